package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// app is one run of the program, on one goroutine.
type app struct {
	in       io.Reader
	out      io.Writer
	errs     io.Writer
	terminal bool // out is one
	drawn    bool // errs is one: what goes on is drawn there
	dial     func(target string, o client.Options) (*client.Client, error)

	flags   profile // what the command line says; it wins over the profile
	config  string
	name    string // of the profile
	json    bool
	grpcurl bool
	yes     bool

	used   *profile // once it is known
	client *client.Client
	lines  *bufio.Reader // of in
}

// command is the tree of all commands.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{Use: "maildispatch", Short: "Find, explain, send and stop mail", SilenceErrors: true, SilenceUsage: true,
		Long: "Find, explain, send and stop mail.\n\nExit codes: 0 done, 1 not everything was done or delivered or nothing was found, 2 the command line is\nwrong, 3 the service cannot be reached, 4 the service refused."}
	f := root.PersistentFlags()
	f.StringVar(&a.config, "config", "", "file of profiles (default ~/.config/maildispatch/config.toml)")
	f.StringVarP(&a.name, "profile", "p", "", "profile of that file (default: the one it names)")
	f.StringVarP(&a.flags.Address, "address", "a", "", "address of the service (default 127.0.0.1:50051)")
	f.StringVar(&a.flags.TokenFile, "token-file", "", "file with the token")
	f.StringVar(&a.flags.CA, "ca", "", "PEM file of the authority of the service's certificate")
	f.StringVar(&a.flags.Cert, "cert", "", "PEM file of the caller's own certificate")
	f.StringVar(&a.flags.Key, "key", "", "PEM file of its key")
	f.BoolVar(&a.flags.Plaintext, "plaintext", false, "speak without TLS to an address that is not this machine")
	f.BoolVar(&a.json, "json", false, "print JSON, one object a line")
	f.BoolVar(&a.grpcurl, "grpcurl", false, "print the calls as lines for grpcurl instead of making them")
	root.AddCommand(a.find(), a.why(), a.show(), a.raw(), a.resend(), a.retry(), a.cancel(), a.hold(), a.release(), a.resolve(), a.send(), a.bulk(),
		a.server(), a.batch(), a.operation(), a.watch(), a.queue(), a.token(), a.domains(), a.audit(), a.whoami())
	fix(root)
	return root
}

// fix makes wrong arguments and flags errors of usage.
func fix(c *cobra.Command) {
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		fix(sub)
	}
}

func isTerminal(f *os.File) bool {
	s, err := f.Stat()
	return err == nil && s.Mode()&os.ModeCharDevice != 0
}

func (a *app) address() string {
	if a.used == nil {
		return a.flags.Address
	}
	return a.used.Address
}

// service is the client, connected at the first call.
func (a *app) service() (*client.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	p, err := a.profile()
	if err != nil {
		return nil, usageError{err}
	}
	a.used = p
	o := client.Options{Insecure: p.Plaintext, TokenFile: p.TokenFile, UserAgent: "maildispatch"}
	if p.CA != "" || p.Cert != "" {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		if p.CA != "" {
			pem, err := os.ReadFile(p.CA)
			if err != nil {
				return nil, usageError{err}
			}
			o.TLS.RootCAs = x509.NewCertPool()
			if !o.TLS.RootCAs.AppendCertsFromPEM(pem) {
				return nil, usage("%s holds no certificate", p.CA)
			}
		}
		if p.Cert != "" {
			pair, err := tls.LoadX509KeyPair(p.Cert, p.Key)
			if err != nil {
				return nil, usageError{err}
			}
			o.TLS.Certificates = []tls.Certificate{pair}
		}
	}
	if a.grpcurl {
		pr := &printer{app: a, profile: p, out: a.out}
		a.out = io.Discard // what comes of calls that nobody makes
		o.DialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(pr.unary), grpc.WithChainStreamInterceptor(pr.stream)}
	}
	if a.client, err = a.dial(p.Address, o); err != nil {
		return nil, usageError{err}
	}
	return a.client, nil
}

// access is the service of that name.
func (a *app) access() (maildispatchv1.AccessAdminClient, error) {
	c, err := a.service()
	if err != nil {
		return nil, err
	}
	return maildispatchv1.NewAccessAdminClient(c.Conn()), nil
}

func (a *app) close() {
	if a.client != nil {
		_ = a.client.Close() // nothing is asked any more
	}
}

// line reads one line of the person's.
func (a *app) line() (string, error) {
	if a.lines == nil {
		a.lines = bufio.NewReader(a.in)
	}
	s, err := a.lines.ReadString('\n')
	if errors.Is(err, io.EOF) && s != "" {
		err = nil
	}
	return strings.TrimSpace(s), err
}

// sure asks a person whether to go on, unless --yes or --grpcurl has said it.
func (a *app) sure(format string, args ...any) error {
	if a.yes || a.grpcurl {
		return nil
	}
	fmt.Fprintf(a.errs, format+" Go on? [y/N] ", args...)
	answer, err := a.line()
	if err == nil && (strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes")) {
		return nil
	}
	fmt.Fprintln(a.errs, "Nothing was done.")
	return errNotAll
}

// because is the reason for an act: asked for where it is missing and has to be there.
func (a *app) because(reason string, needed bool) (string, error) {
	if reason != "" || !needed || a.grpcurl {
		return reason, nil
	}
	if a.yes {
		return "", usage("--reason is needed")
	}
	fmt.Fprint(a.errs, "Why? ")
	answer, err := a.line()
	if err != nil || answer == "" {
		return "", usage("--reason is needed")
	}
	return answer, nil
}

// show prints an answer: with --json itself, else what text says.
func (a *app) print(m proto.Message, text func()) {
	if a.json {
		fmt.Fprintln(a.out, jsonText(m))
		return
	}
	text()
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }
