package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// rig is the real service over SQLite, in this process or a built one, with a mail server that
// refuses addresses that begin with "no" and is silent after the message to those with
// "silent".
type rig struct {
	t     *testing.T
	addr  string
	c     *client.Client
	relay *smtpxtest.Server
	dir   string

	// a command line
	do func(ctx context.Context, input string, args ...string) (code int, out, errs string)
	// a printed call; its answers as JSON
	call func(line string) string
}

// newRig runs service and command line in this process.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := emptyRig(t)
	r.do = func(ctx context.Context, input string, args ...string) (int, string, string) {
		var o, e bytes.Buffer
		code := run(ctx, args, &app{in: strings.NewReader(input), out: &o, errs: &e, dial: client.New})
		return code, o.String(), e.String()
	}
	r.call = r.grpcurl
	ctx, cancel := context.WithCancel(context.Background())
	cfg, fs := server.Config{LogOutput: io.Discard}, flag.NewFlagSet("serve", flag.ContinueOnError)
	if err := errors.Join(cfg.Flags(fs), fs.Parse(r.serveFlags())); err != nil {
		t.Fatal(err)
	}
	s, err := server.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	r.connect(s.Addr().String())
	t.Cleanup(func() {
		_ = r.c.Close() // nothing is asked any more
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	r.addServers()
	return r
}

// emptyRig has a mail server and no service.
func emptyRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	r.relay = (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		switch {
		case c.Verb == "RCPT" && strings.Contains(c.Arg, "<no"):
			return &smtpxtest.Action{Reply: "550 5.1.1 no such \x1b[31muser\r\n"}
		case c.Verb == "DOT" && strings.Contains(c.Arg, "silent@"):
			return &smtpxtest.Action{Close: true}
		}
		return nil
	}}).Start(t)
	return r
}

func (r *rig) serveFlags() []string {
	return []string{"--listen=127.0.0.1:0", "--database=sqlite:" + filepath.Join(r.dir, "md.db"), "--key-file=" + filepath.Join(r.dir, "key"),
		"--smtp-destinations=loopback:*", "--admin-socket=none", "--batch-interval=1h", "--shutdown-grace=2s"}
}

func (r *rig) connect(addr string) {
	r.t.Helper()
	var err error
	r.addr = addr
	if r.c, err = client.New(addr, client.Options{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) addServers() {
	r.t.Helper()
	r.done("server", "add", "main", "--host", "127.0.0.1", "--port", fmt.Sprint(r.relay.Port()), "--encryption", "none", "--from", "Shop <shop@x.example>", "--mode", "php", "--default")
	r.done("server", "add", "later", "--host", "127.0.0.1", "--port", fmt.Sprint(r.relay.Port()), "--encryption", "none", "--from", "Shop <shop@x.example>", "--mode", "daemon")
}

// run runs a command line; input is what the person types.
func (r *rig) run(ctx context.Context, input string, args ...string) (code int, out, errs string) {
	r.t.Helper()
	return r.do(ctx, input, append([]string{"--address", r.addr, "--config", r.config()}, args...)...)
}

// config is an empty file of profiles, so that the tester's own does not count.
func (r *rig) config() string {
	path := filepath.Join(r.dir, "config.toml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// done runs a command line that has to succeed.
func (r *rig) done(args ...string) string {
	r.t.Helper()
	code, out, errs := r.run(context.Background(), "", args...)
	if code != exitDone {
		r.t.Fatalf("maildispatch %s: got exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// mail sends a mail and returns its id.
func (r *rig) mail(server, reference string, kind maildispatchv1.Kind, to ...string) string {
	r.t.Helper()
	subject := "Invoice " + reference
	if strings.HasPrefix(to[0], "nobody") {
		subject += "\u202egnp" // foreign text that turns a terminal's around
	}
	res, err := r.c.Deliver(context.Background(), &maildispatchv1.SendRequest{Options: &maildispatchv1.SendOptions{MailServer: server, Reference: reference, Kind: kind},
		Message: &maildispatchv1.MailMessage{To: to, Subject: subject, Text: "hello"}})
	if err != nil {
		r.t.Fatal(err)
	}
	return res.MailID
}

// get is a mail as the journal has it.
func (r *rig) get(id string) *maildispatchv1.Mail {
	r.t.Helper()
	res, err := r.c.GetMail(context.Background(), &maildispatchv1.GetMailRequest{Id: id})
	if err != nil {
		r.t.Fatal(err)
	}
	return res.Mail
}

// write puts a file into the test's folder.
func (r *rig) write(name, text string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path
}
