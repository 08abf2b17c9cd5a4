//go:build relays

package relays

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest"
)

var buildFlags = []string{"build"}

// binary builds maildispatchd once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "maildispatch-relays-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "maildispatchd")
	out, err := exec.Command("go", append(buildFlags, "-o", path, "github.com/maildispatch/maildispatch/server/cmd/maildispatchd")...).CombinedOutput()
	if err != nil {
		_ = os.RemoveAll(dir) // the error of the build is the one to report
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // a folder in the system's temporary one
	}
	os.Exit(code)
}

// service is the running process and its client.
type service struct {
	t        *testing.T
	admin    pb.MailServerAdminClient
	dispatch pb.DispatchClient
}

// start runs `serve` on SQLite until the test ends, and wants exit code 0 then.
func start(t *testing.T) *service {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dsn := storetest.SQLiteDSN(t)
	cmd := exec.Command(path, "serve", "--listen=127.0.0.1:0", "--database="+dsn, "--key-file="+strings.TrimPrefix(dsn, "sqlite:")+".key", "--batch-interval=1h",
		"--token-destinations=loopback:*", "--smtp-destinations=loopback:*", "--tests-per-minute=0")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr, exited := make(chan string, 1), make(chan error, 1)
	var log strings.Builder // written by the reader alone, read by others after exited
	go func() {
		sc := bufio.NewScanner(out)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			log.WriteString(sc.Text() + "\n")
			if _, rest, ok := strings.Cut(sc.Text(), "msg=listening address="); ok {
				a, _, _ := strings.Cut(rest, " ")
				addr <- a
			}
		}
		exited <- cmd.Wait()
	}()
	t.Cleanup(func() {
		// it may have ended by itself, which the next lines report
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-exited:
			if err != nil {
				t.Errorf("the service ended with %v", err)
			}
		case <-time.After(40 * time.Second):
			t.Error("the service does not end")
			_ = cmd.Process.Kill()
			<-exited
		}
		if l := log.String(); t.Failed() {
			t.Logf("end of the service's log:\n%s", l[max(0, len(l)-4000):])
		}
	})
	var target string
	select {
	case target = <-addr:
	case <-time.After(30 * time.Second):
		t.Fatal("the service does not listen")
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &service{t: t, admin: pb.NewMailServerAdminClient(conn), dispatch: pb.NewDispatchClient(conn)}
}

// in is the service as a subtest sees it.
func (s *service) in(t *testing.T) *service {
	c := *s
	c.t = t
	return &c
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// addServer saves a mail server.
func (s *service) addServer(name string, mode pb.Mode, smtp *pb.Smtp) {
	s.t.Helper()
	m := &pb.MailServer{Name: name, Type: pb.MailServer_TYPE_SMTP, Mode: mode, From: "Großhandel 上海 <shop@shop.example>", Smtp: smtp}
	if _, err := s.admin.CreateMailServer(timeout(s.t), &pb.CreateMailServerRequest{MailServer: m}); err != nil {
		s.t.Fatal(err)
	}
}

// probe tests a saved mail server, overlaid with what smtp has.
func (s *service) probe(name string, smtp *pb.Smtp, recipient string) *pb.TestMailServerResponse {
	s.t.Helper()
	r := &pb.TestMailServerRequest{Name: name, ProbeRecipient: recipient}
	if smtp != nil {
		r.MailServer = &pb.MailServer{Smtp: smtp}
	}
	out, err := s.admin.TestMailServer(timeout(s.t), r)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// connects wants a test of a saved mail server to succeed and returns its steps.
func (s *service) connects(name, recipient string) map[pb.TestStep_Kind]*pb.TestStep {
	s.t.Helper()
	r := s.probe(name, nil, recipient)
	if !r.Success || r.Message != "connect success!" {
		s.t.Fatalf("%s: %v", name, r)
	}
	steps := map[pb.TestStep_Kind]*pb.TestStep{}
	for _, st := range r.Steps {
		steps[st.Kind] = st
		if st.Outcome == pb.TestStep_OUTCOME_FAILED {
			s.t.Errorf("%s: success with a failed step %v", name, st)
		}
	}
	return steps
}

// fails wants a test to end at a step with a reply code (0 = no reply) and a hint.
func (s *service) fails(name string, smtp *pb.Smtp, recipient string, kind pb.TestStep_Kind, code int32) {
	s.t.Helper()
	r := s.probe(name, smtp, recipient)
	var failed *pb.TestStep
	for _, st := range r.Steps {
		if st.Outcome == pb.TestStep_OUTCOME_FAILED {
			failed = st
		}
	}
	if r.Success || r.Message == "connect success!" || failed == nil || failed.Kind != kind || failed.SmtpCode != code || failed.Hint == "" {
		s.t.Errorf("want %v to fail with %d and a hint: %v", kind, code, r)
	}
}

// send is a php-mode or daemon-mode Send: the events' recipients and the mail at the end.
func (s *service) send(server string, m *pb.MailMessage) ([]*pb.RecipientResult, *pb.Mail) {
	s.t.Helper()
	stream, err := s.dispatch.Send(timeout(s.t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: server}, Message: m})
	if err != nil {
		s.t.Fatal(err)
	}
	var results []*pb.RecipientResult
	var mail *pb.Mail
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return results, mail
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if r := ev.GetRecipient(); r != nil {
			results = append(results, r)
		}
		if c := ev.GetCompleted(); c != nil {
			mail = c.Mail
		}
	}
}
