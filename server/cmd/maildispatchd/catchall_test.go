package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/catchall"
	"github.com/maildispatch/maildispatch/smtpx"
)

// startCatchAll runs the command, and returns where it listens, its lines, and what ends it.
func startCatchAll(t *testing.T, args ...string) (host string, port int, lines *bufio.Scanner, end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := runCatchAll(ctx, w, append([]string{"--listen=127.0.0.1:0"}, args...))
		_ = w.CloseWithError(err)
		done <- err
	}()
	lines = bufio.NewScanner(r)
	if !lines.Scan() {
		t.Fatal(lines.Err())
	}
	_, rest, _ := strings.Cut(lines.Text(), "listens on ")
	addr, _, _ := strings.Cut(rest, " ")
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatalf("%q: %v", lines.Text(), err)
	}
	port, _ = strconv.Atoi(p)
	ended := false
	end = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		go func() { _, _ = io.Copy(io.Discard, r) }()
		return <-done
	}
	t.Cleanup(func() { _ = end() })
	return host, port, lines, end
}

// TestCatchAll: every fault address is answered as the help says, the session of the service
// understands each as what it is, and everything else is saved.
func TestCatchAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mails")
	host, port, lines, end := startCatchAll(t, "--dir="+dir, "--username=shop@x.example", "--password=secret", "--slow=1ms")
	told := make(chan string, 1000)
	go func() {
		defer close(told)
		for lines.Scan() {
			told <- lines.Text()
		}
	}()
	relay := smtpx.Relay{Host: host, Port: port, Encryption: smtpx.EncryptionNone, Username: "shop@x.example", Password: "secret", AllowPlaintextAuth: true}
	relay.Timeouts.Dot = 30 * time.Second
	raw := []byte("From: a@x.example\r\nTo: b@y.example\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe=1B?=\r\n\r\nHello\r\n")
	send := func(ctx context.Context, from string, to ...string) smtpx.Outcome {
		t.Helper()
		s, err := new(smtpx.Dialer).Dial(context.Background(), relay)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return s.Send(ctx, &smtpx.Transaction{From: from, To: to, Raw: raw})
	}
	type want struct {
		status  smtpx.Status
		code    int
		failure smtpx.Failure
		action  smtpx.Action
	}
	wants := map[string]want{
		"nobody":    {smtpx.StatusRejected, 550, smtpx.FailNoSuchMailbox, smtpx.ActRefuse},
		"reject":    {smtpx.StatusRejected, 550, smtpx.FailRecipientPolicy, smtpx.ActRefuse},
		"full":      {smtpx.StatusRejected, 552, smtpx.FailMailboxFull, smtpx.ActRefuse},
		"tempfail":  {smtpx.StatusDeferred, 451, smtpx.FailUnreachable, smtpx.ActDefer},
		"greylist":  {smtpx.StatusDeferred, 451, smtpx.FailRecipientPolicy, smtpx.ActDefer},
		"few":       {smtpx.StatusAccepted, 250, smtpx.FailNone, smtpx.ActNothing},
		"spam":      {smtpx.StatusRejected, 554, smtpx.FailContent, smtpx.ActRefuse},
		"toobig":    {smtpx.StatusRejected, 552, smtpx.FailSize, smtpx.ActRefuse},
		"throttle":  {smtpx.StatusDeferred, 432, smtpx.FailRate, smtpx.ActSlower},
		"slow":      {smtpx.StatusAccepted, 250, smtpx.FailNone, smtpx.ActNothing},
		"drop":      {smtpx.StatusUnknown, 0, smtpx.FailUnreachable, smtpx.ActNothing},
		"badsender": {smtpx.StatusRejected, 553, smtpx.FailSenderRefused, smtpx.ActSuspend},
		"nologin":   {smtpx.StatusRejected, 530, smtpx.FailAuth, smtpx.ActSuspend},
	}
	for _, f := range catchall.Faults {
		w, known := wants[f.Name]
		from, to := "a@x.example", f.Name+"+1@y.example"
		if strings.HasPrefix(f.Does, "as sender") {
			from, to = to, "b@y.example"
		}
		switch {
		case f.Name == "silent":
			continue // below
		case !known:
			t.Errorf("%s@ is not tried", f.Name)
			continue
		}
		o := send(context.Background(), from, to)
		r := o.Recipients[0]
		if got := (want{r.Status, r.Reply.Code, smtpx.FailureOf(smtpx.Said{Phase: r.Phase, Reply: r.Reply}), r.Means.Action}); got != w {
			t.Errorf("%s@: got %+v, want %+v: %v", f.Name, got, w, r.Reply)
		}
	}
	if o := send(context.Background(), "a@x.example", "greylist+1@y.example"); o.Recipients[0].Status != smtpx.StatusAccepted {
		t.Errorf("greylist@ again: %v", o.Recipients)
	}
	if o := send(context.Background(), "a@x.example", "b@y.example", "few@y.example", "c@y.example"); o.Took != 1 || o.Recipients[1].Means.Action != smtpx.ActSplit {
		t.Errorf("few@ behind another: %+v", o)
	}

	// Silence: the mail is there, and its sender does not know.
	relay.Timeouts.Dot = 300 * time.Millisecond
	if o := send(context.Background(), "a@x.example", "silent@y.example"); o.Recipients[0].Status != smtpx.StatusUnknown {
		t.Errorf("silent@: %+v", o.Recipients)
	}
	relay.Password = "wrong"
	var fault *smtpx.Error
	if _, err := new(smtpx.Dialer).Dial(context.Background(), relay); !errors.As(err, &fault) || fault.Reply.Code != 535 {
		t.Errorf("a wrong password: %v", err)
	}
	for token, good := range map[string]bool{"secret": true, "expired": false} {
		relay.Auth, relay.Tokens = smtpx.AuthXOAUTH2, token1(token)
		if s, err := new(smtpx.Dialer).Dial(context.Background(), relay); (err == nil) != good {
			t.Errorf("the token %q: %v", token, err)
		} else if err == nil {
			_ = s.Close()
		}
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	var said []string
	for l := range told {
		said = append(said, l)
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{"said to <reject+1@y.example>: 550 5.7.1 ", "from <a@x.example> for <slow+1@y.example>: \"Grüße", "for <silent@y.example>", ".eml"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not told of:\n%s", want, all)
		}
	}
	if strings.Contains(all, "\x1b") {
		t.Error("a control character reaches the terminal")
	}
	saved, _ := filepath.Glob(dir + "/*.eml")
	if len(saved) != 5 { // few, slow, greylist again, few behind another, silent
		t.Errorf("%d mails are saved: %v", len(saved), saved)
	}
	for _, name := range saved {
		if got, err := os.ReadFile(name); err != nil || !strings.HasSuffix(string(got), "\r\n\r\nHello\r\n") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

type token1 string

func (o token1) Token(context.Context) (smtpx.Token, error) {
	return smtpx.Token{Access: string(o), Fresh: true}, nil
}
func (token1) Refused(smtpx.Token) {}

// TestCatchAllBegins: what is wrong with its flags is one line, and its help lists every fault.
func TestCatchAllBegins(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, c := range [][]string{{"--colour", "colour"}, {"x", "not a flag"}, {"--username=u", "belong together"}, {"--listen=" + busy.Addr().String(), "in use"}} {
		if err := runCatchAll(context.Background(), io.Discard, c[:1]); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%v: %v", c, err)
		}
	}
	var help strings.Builder
	if err := runCatchAll(context.Background(), &help, []string{"-h"}); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
	for _, f := range catchall.Faults {
		if !strings.Contains(help.String(), fmt.Sprintf("%s@", f.Name)) {
			t.Errorf("%s is not in the help", f.Name)
		}
	}
}
