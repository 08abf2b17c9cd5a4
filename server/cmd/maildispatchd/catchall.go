package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/catchall"
	"github.com/maildispatch/maildispatch/smtpx"
)

// catchAll runs a catch-all SMTP server until ctx ends.
func catchAll(ctx context.Context, args []string) error {
	return runCatchAll(ctx, os.Stdout, args)
}

func runCatchAll(ctx context.Context, out io.Writer, args []string) error {
	fs := flag.NewFlagSet("catchall", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // an error is one line, printed by main
	srv := &catchall.Server{}
	fs.StringVar(&srv.Listen, "listen", "127.0.0.1:2525", "host:port; beyond loopback anybody may hand mail in")
	fs.StringVar(&srv.Username, "username", "", "ask for a login with this name; default: none")
	fs.StringVar(&srv.Password, "password", "", "its password, or its access token with XOAUTH2")
	fs.DurationVar(&srv.Slow, "slow", 10*time.Second, "how long a mail to slow@ waits for its answer")
	dir := fs.String("dir", "", "folder to save mails in, as .eml; default: they are told of and dropped")
	show := fs.Bool("show", false, "print each mail as its reader sees it")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(out, "maildispatchd catchall [flags]: an SMTP server that takes every mail and sends none on")
		fs.SetOutput(out)
		fs.PrintDefaults()
		tellFaults(out)
		return err
	case err != nil:
		return err
	case fs.NArg() > 0:
		return fmt.Errorf("%q is not a flag", fs.Arg(0))
	case (srv.Username == "") != (srv.Password == ""):
		return errors.New("catchall: --username and --password belong together")
	}
	c := &collector{dir: *dir, show: *show, out: out}
	if c.dir != "" {
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			return err
		}
	}
	srv.Took, srv.Refused = c.took, c.refused
	if err := srv.Start(); err != nil {
		return err
	}
	fmt.Fprintf(out, "the catch-all listens on %s and sends nothing on\n", srv.Addr())
	<-ctx.Done()
	return srv.Close()
}

// tellFaults lists the addresses that are answered with a fault.
func tellFaults(out io.Writer) {
	fmt.Fprintln(out, "Addresses that are answered with a fault, at any domain, also as name+text@:")
	for _, f := range catchall.Faults {
		fmt.Fprintf(out, "  %-10s %s\n", f.Name+"@", f.Does)
	}
}

// collector tells of what comes, a line each, and saves it where a folder is given. Sessions
// call it at once.
type collector struct {
	dir  string
	show bool

	mu  sync.Mutex // guards out and n
	out io.Writer
	n   int // mails saved
}

func (c *collector) took(m catchall.Mail) error {
	subject := ""
	if msg, err := mail.ReadMessage(bytes.NewReader(m.Raw)); err == nil {
		if subject, err = new(mime.WordDecoder).DecodeHeader(msg.Header.Get("Subject")); err != nil {
			subject = msg.Header.Get("Subject")
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	saved := ""
	if c.dir != "" {
		c.n++
		saved = filepath.Join(c.dir, fmt.Sprintf("%s-%05d.eml", time.Now().UTC().Format("20060102-150405.000"), c.n))
		f, err := os.OpenFile(saved, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			_, err = f.Write(m.Raw)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			c.say("not saved: %v", err)
			return err
		}
		saved = " in " + saved
	}
	c.say("took %d octets from <%s> for <%s>: %q%s", len(m.Raw), m.From, strings.Join(m.To, ">, <"), subject, saved)
	if c.show {
		printLetter(c.out, m.Raw)
	}
	return nil
}

// printLetter prints a message as its reader sees it. What is foreign in it is made printable.
func printLetter(out io.Writer, raw []byte) {
	for _, l := range catchall.Letter(raw) {
		fmt.Fprintln(out, strings.TrimRight("   | "+smtpx.Clean(l, 2000), " "))
	}
}

func (c *collector) refused(address, reply string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.say("said to <%s>: %s", address, reply)
}

// say prints a line. What is foreign in it is made printable. With mu held.
func (c *collector) say(format string, args ...any) {
	fmt.Fprintf(c.out, "%s %s\n", time.Now().Format(time.TimeOnly), smtpx.Clean(fmt.Sprintf(format, args...), 2000))
}
