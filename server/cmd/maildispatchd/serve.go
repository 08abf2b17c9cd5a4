package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/server"
	"github.com/maildispatch/maildispatch/store"
)

// configOf reads flags and environment; more declares flags of the command's own.
func configOf(name string, args []string, more ...func(*flag.FlagSet)) (server.Config, error) {
	var c server.Config
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // an error is one line, printed by main
	fs.Usage = func() {}
	for _, f := range more {
		f(fs)
	}
	if err := c.Flags(fs); err != nil {
		return c, err
	}
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(os.Stdout)
		fmt.Printf("maildispatchd %s [flags]; each flag has an environment twin MAILDISPATCH_<FLAG>\n", name)
		fs.PrintDefaults()
		return c, err
	case err != nil:
		return c, err
	case fs.NArg() > 0:
		return c, fmt.Errorf("%q is not a flag", fs.Arg(0))
	}
	return c, c.Validate()
}

func serve(ctx context.Context, args []string) error {
	c, err := configOf("serve", args)
	if err != nil {
		return err
	}
	if c.PrintConfig {
		fmt.Print(c.String())
		return nil
	}
	// from the beginning: nothing else may make of one an end
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	s, err := server.New(ctx, c)
	if err != nil {
		return err
	}
	go s.ReadAgainOn(ctx, hangups)
	// Never touched, so it takes no memory: it only makes the collector of a small heap run
	// when there is more to collect, which saves CPU under load. A larger one would save more,
	// and not leave the service below 256 MiB with large files.
	ballast := make([]byte, 16<<20)
	defer runtime.KeepAlive(ballast)
	if err := s.Run(ctx); err != nil {
		return failed{err}
	}
	return nil
}

func checkConfig(_ context.Context, args []string) error {
	c, err := configOf("check-config", args)
	if err != nil {
		return err
	}
	if err := c.Check(); err != nil {
		return err
	}
	fmt.Print(c.String())
	return nil
}

func migrate(ctx context.Context, args []string) error {
	c, err := configOf("migrate", args)
	if err != nil {
		return err
	}
	s, err := store.Open(ctx, c.Database, store.Options{AllowUnsafe: c.AllowUnsafe})
	if err != nil {
		return err
	}
	return s.Close()
}

func healthCheck(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("health", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	service := fs.String("service", "", "what to ask after: empty, whether mail is accepted and sent; liveness, whether the process answers; adopted, whether a restored or copied database waits for `maildispatchd adopt`")
	ca := fs.String("ca", "", "PEM authorities of the service's certificate; asks over TLS")
	useTLS := fs.Bool("tls", false, "ask over TLS, with the system's authorities where --ca is not given")
	cert := fs.String("cert", "", "PEM certificate to show, where the service asks for one (--client-ca)")
	key := fs.String("key", "", "PEM key of --cert")
	target := fs.String("target", "127.0.0.1:50051", "address of the service")
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(os.Stdout)
		fs.PrintDefaults()
		return err
	case err == nil && fs.NArg() > 0:
		err = fmt.Errorf("%q is not a flag", fs.Arg(0))
	}
	if err != nil {
		return err
	}
	creds := insecure.NewCredentials()
	if *useTLS || *ca != "" || *cert != "" || *key != "" {
		if creds, err = probeTLS(*ca, *cert, *key); err != nil {
			return err
		}
	}
	conn, err := grpc.NewClient(*target, grpc.WithTransportCredentials(creds))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: *service})
	if err != nil {
		return failed{fmt.Errorf("%s does not answer: %s", *target, status.Convert(err).Message())}
	}
	if r.Status != healthpb.HealthCheckResponse_SERVING {
		return failed{fmt.Errorf("%s is %s", *target, r.Status)}
	}
	fmt.Println(r.Status)
	return nil
}
