package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestCommands: what is asked for goes to stdout with code 0, what is wrong is one line on
// stderr with code 2.
func TestCommands(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"help"}, {"-h"}, {"--help"}, {"serve", "-h"}, {"check-config", "--help"}, {"migrate", "-h"}, {"doctor", "-h"}, {"adopt", "-h"}, {"health", "-h"}} {
		if r := run(t, nil, args...); r.code != 0 || r.stderr != "" || !strings.Contains(r.stdout, "  ") {
			t.Errorf("%q: %+v", args, r)
		}
	}
	help := run(t, nil, "help").stdout
	for _, c := range []string{"serve", "demo", "migrate", "doctor", "adopt", "check-config", "health", "key", "token"} {
		if !strings.Contains(help, "\n  "+c+" ") {
			t.Errorf("help does not list %s:\n%s", c, help)
		}
	}
	if r := run(t, nil); r.code != 2 || r.stdout != "" || r.stderr != help {
		t.Errorf("no command: %+v", r)
	}
	onlyLine(t, run(t, nil, "server"), `"server" is not a command`, "maildispatchd help")
	onlyLine(t, run(t, nil, "--listen=127.0.0.1:0"), "is not a command")
	onlyLine(t, run(t, nil, "demo", "fast"), "demo")
	onlyLine(t, run(t, nil, "health", "--colour"), "colour")
	onlyLine(t, run(t, nil, "health", "127.0.0.1:1"), "127.0.0.1:1")
	onlyLine(t, run(t, nil, "key"), "key create FILE")
	onlyLine(t, run(t, nil, "key", "destroy", "x"), "key create FILE")
	onlyLine(t, run(t, nil, "migrate", "--database=sqlite:/nowhere/mail.db"), "/nowhere")

	path := filepath.Join(t.TempDir(), "key")
	if r := run(t, nil, "key", "create", path); r.code != 0 || r.stdout != "" || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	onlyLine(t, run(t, nil, "key", "create", path), path, "exists") // it is never overwritten
}

// TestCheckConfig: a good configuration is printed, a bad one is one line. Neither makes a file
// or needs the database.
func TestCheckConfig(t *testing.T) {
	t.Parallel()
	cert, key := certificateFiles(t)
	good := []string{"check-config", "--database=postgres://app:" + secret + "@db.invalid/mail?sslmode=disable", "--tls-cert=" + cert, "--tls-key=" + key}
	keys := filepath.Join(t.TempDir(), "keys")
	onlyLine(t, run(t, nil, append(good, "--key-file="+keys)...), "key-file", keys)
	if r := run(t, nil, "key", "create", keys); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	r := run(t, nil, append(good, "--key-file="+keys)...)
	if r.code != 0 || r.stderr != "" || !strings.Contains(r.stdout, "listen=127.0.0.1:50051\n") || !strings.Contains(r.stdout, "tls-cert="+cert+"\n") {
		t.Errorf("%+v", r)
	}
	folder := t.TempDir()
	if r := run(t, nil, "check-config", "--database=sqlite:"+folder+"/mail.db"); r.code != 0 || r.stderr != "" || !strings.Contains(r.stdout, "key-file="+folder+"/maildispatch.key\n") {
		t.Errorf("%+v", r)
	}
	if made, _ := filepath.Glob(folder + "/*"); len(made) != 0 {
		t.Errorf("check-config made %q", made)
	}
	for _, bad := range [][]string{
		{"--listen=0.0.0.0:1", "listen"}, {"--smtp-destinations=x", "smtp-destinations"}, {"--localhost-smtp=x", "localhost-smtp"}, {"--database=x", "database"},
		{"--tls-cert=" + cert, "tls-key"}, {"--log-level=x", "log-level"}, {"--colour", "colour"},
	} {
		onlyLine(t, run(t, nil, "check-config", bad[0]), bad[1])
	}
	onlyLine(t, run(t, nil, "check-config", "--tls-cert="+cert, "--tls-key="+cert), "tls-cert")
}

// TestPrintConfig: the password of the database is nowhere in it, wherever it stood.
func TestPrintConfig(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"postgres://app:" + secret + "@db.invalid/mail?sslmode=disable",
		"postgresql://app:" + secret + "@db.invalid/mail?sslmode=disable",
		"postgres://app@db.invalid/mail?sslmode=disable&password=" + secret,
		"postgres://app@db.invalid/mail?sslmode=disable&sslpassword=" + secret,
		"postgres://app:%zz" + secret + "@db.invalid/mail",
	} {
		for _, args := range [][]string{{"serve", "--print-config", "--database=" + dsn}, {"serve", "--print-config"}} {
			var env []string
			if len(args) == 2 {
				env = []string{"MAILDISPATCH_DATABASE=" + dsn}
			}
			r := run(t, env, args...)
			if r.code != 0 || r.stderr != "" || strings.Contains(r.stdout, secret) || !strings.Contains(r.stdout, "\ndatabase=") {
				t.Errorf("%s: %+v", dsn, r)
			}
			if !strings.Contains(dsn, "%zz") && !strings.Contains(r.stdout, "@db.invalid/mail") {
				t.Errorf("too much is hidden:\n%s", r.stdout)
			}
		}
	}
	if r := run(t, nil, "serve", "--help"); strings.Contains(run(t, []string{"MAILDISPATCH_DATABASE=postgres://app:" + secret + "@db/mail"}, "serve", "--help").stdout, secret) || r.code != 0 {
		t.Error("--help shows the password that the environment gives")
	}
}

// TestHealthCommand: 0 while the service is well, 1 and one line when nobody answers.
func TestHealthCommand(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	if r := run(t, nil, "health", "--target="+s.addr); r.code != 0 || r.stdout != "SERVING\n" || r.stderr != "" {
		t.Errorf("a running service: %+v", r)
	}
	addr := s.addr
	s.stop()
	for _, target := range []string{addr, fmt.Sprintf("127.0.0.1:%d", deadPort(t))} {
		r := run(t, nil, "health", "--target="+target)
		if r.code != 1 || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, target+" does not answer") {
			t.Errorf("none: %+v", r)
		}
	}
	if !strings.Contains(s.log.String(), "msg=stopping") || !strings.HasSuffix(s.log.String(), "msg=stopped\n") {
		t.Errorf("an idle stop says\n%s", s.log)
	}
}

// TestStopWhileARelayHangs: SIGTERM ends the service within its grace although a relay says
// nothing more; the caller hears it, and the mail is not lost.
func TestStopWhileARelayHangs(t *testing.T) {
	const (
		grace = 2 * time.Second
		// the race detector holds up every exit by one, a busy machine by some more
		slack = 2 * time.Second
		back  = pb.MailStatus_MAIL_STATUS_QUEUED
	)
	for verb, c := range map[string]struct {
		heard, becomes pb.MailStatus
		arrived        int
	}{
		// Before the dot the mail is cut and goes back: the caller hears that it is queued, and
		// the next batch sends it.
		"CONNECT": {back, pb.MailStatus_MAIL_STATUS_SENT, 1},
		"MAIL":    {back, pb.MailStatus_MAIL_STATUS_SENT, 1},
		"RCPT":    {back, pb.MailStatus_MAIL_STATUS_SENT, 1},
		"DATA":    {back, pb.MailStatus_MAIL_STATUS_SENT, 1},
		// It has left: nobody knows, and an invoice waits for a person.
		"DOT": {pb.MailStatus_MAIL_STATUS_UNKNOWN, pb.MailStatus_MAIL_STATUS_UNKNOWN, 0},
	} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			reached := make(chan struct{})
			var hung atomic.Bool // once
			relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb != verb || !hung.CompareAndSwap(false, true) {
					return nil
				}
				close(reached)
				return &smtpxtest.Action{Hang: true}
			}}).Start(t)
			s := start(t, storetest.SQLiteDSN(t), "--shutdown-grace="+grace.String())
			s.addServer("hangs", pb.Mode_MODE_PHP, relay.Port())
			type answer struct {
				r   *result
				err error
			}
			answered := make(chan answer, 1)
			ctx := timeout(t)
			go func() {
				r, err := s.send(ctx, &pb.SendRequest{Options: &pb.SendOptions{MailServer: "hangs", Kind: pb.Kind_KIND_INVOICE}, Message: message("a@y.example")})
				answered <- answer{r, err}
			}()
			select {
			case <-reached:
			case a := <-answered:
				t.Fatalf("ended early: %+v %v", a.r, a.err)
			}
			begin := time.Now()
			if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-s.exited:
				s.cmd = nil
				if err != nil {
					t.Errorf("ended with %v", err)
				}
			case <-ctx.Done():
				t.Fatal("does not end")
			}
			if took := time.Since(begin); took > grace+slack {
				t.Errorf("took %v with a grace of %v", took, grace)
			}
			if l := s.log.String(); strings.Count(l, "msg=stopping") != 1 || !strings.HasSuffix(l, "msg=stopped\n") || strings.Contains(l, "panic") {
				t.Errorf("log:\n%s", l)
			}
			a := <-answered
			if a.err != nil || a.r.accepted == nil || a.r.mail == nil {
				t.Fatalf("the caller hears %+v, %v", a.r, a.err)
			}
			if a.r.mail.Status != c.heard {
				t.Errorf("the caller hears %v, want %v", a.r.mail, c.heard)
			}
			s.run()
			s.becomes(a.r.id, c.becomes)
			if n := len(relay.Mails()); n != c.arrived {
				t.Errorf("%d mails arrived, want %d", n, c.arrived)
			}
		})
	}
}

// becomes waits until the mail has the status.
func (s *service) becomes(id string, want pb.MailStatus) {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx := timeout(s.t); ; {
		m := s.mail(id)
		if m.Status == want {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("the mail is %v, want %v", m, want)
		}
	}
}

// TestJSONLog: with --log-format=json every line is one object, whatever relays and callers put
// into it.
func TestJSONLog(t *testing.T) {
	t.Parallel()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(timeout(t))
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "serve", "--listen=127.0.0.1:0", "--log-format=json", "--log-level=debug", testRelays)
	cmd.Dir, cmd.Env = t.TempDir(), cleanEnv(nil)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" {
			return &smtpxtest.Action{Reply: "550 5.1.1 no\x1b[31m such user\x07 \"}{\"level\":\"FATAL\"\r\n"}
		}
		return nil
	}}).Start(t)
	seen := map[string]int{}
	for sc := bufio.NewScanner(pipe); sc.Scan(); {
		var line map[string]any
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil || strings.ContainsFunc(sc.Text(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%v: %q", err, sc.Text())
			continue
		}
		msg, _ := line["msg"].(string)
		if line["time"] == nil || line["level"] == nil || msg == "" {
			t.Errorf("no time, level or msg: %s", sc.Text())
		}
		seen[msg]++
		if msg != "listening" {
			continue
		}
		conn, err := grpc.NewClient(line["address"].(string), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		s := &service{t: t, conn: conn, admin: pb.NewMailServerAdminClient(conn), dispatch: pb.NewDispatchClient(conn)}
		s.addServer("one", pb.Mode_MODE_PHP, relay.Port())
		if m := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "one", Reference: "a\"}{"}, Message: message("\"}\\ {\" <a@y.example>")}).mail; m.Status != pb.MailStatus_MAIL_STATUS_FAILED {
			t.Errorf("%v", m)
		}
		if _, err := s.admin.GetMailServer(ctx, &pb.GetMailServerRequest{Name: "a\nb\x1b"}); err == nil {
			t.Error("no error")
		}
		_ = conn.Close()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for _, msg := range []string{"listening", "call", "stopping", "stopped"} {
		if seen[msg] == 0 {
			t.Errorf("no line %q, only %v", msg, seen)
		}
	}
}
