// Package e2e runs scenarios over the built binary: a real database, real SMTP on sockets, a
// real gRPC client.
package e2e

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest"
)

var buildFlags = []string{"build"}

// built is whether binary was asked for.
var built atomic.Bool

// binary builds maildispatchd once.
var binary = sync.OnceValues(func() (string, error) {
	built.Store(true)
	dir, err := os.MkdirTemp("", "maildispatch-e2e-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "maildispatchd")
	out, err := exec.Command("go", append(buildFlags, "-o", path, "github.com/maildispatch/maildispatch/server/cmd/maildispatchd")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return path, nil
})

// patience is how long a test waits for what comes at once on an idle machine. What has to be
// quick is measured where it counts; a busy machine alone fails nothing.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	// Most of the time of a scenario is waiting, for a lease or for a relay that says nothing.
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		_ = flag.Set("test.parallel", strconv.Itoa(max(6, runtime.GOMAXPROCS(0))))
	}
	// A process with the race detector sleeps for a second when it ends, and these end by the
	// hundred.
	if os.Getenv("GORACE") == "" {
		_ = os.Setenv("GORACE", "atexit_sleep_ms=50")
	}
	code := m.Run()
	if built.Load() {
		if path, err := binary(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

// service is one running process.
type service struct {
	t        *testing.T
	addr     string
	args     []string
	cmd      *exec.Cmd
	log      *logBuffer
	exited   chan error
	conn     *grpc.ClientConn
	admin    pb.MailServerAdminClient
	dispatch pb.DispatchClient
	dir      string // "" = this one
	path     string // of the program; "" = the one that is built here
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) add(s string) {
	l.mu.Lock()
	l.b.WriteString(s + "\n")
	l.mu.Unlock()
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// testRelays lets mail servers be reached where tests have theirs, on any port of this machine.
const testRelays = "--smtp-destinations=public:25+465+587+2525,private:25+465+587+2525,loopback:*"

// start runs `serve` on dsn and waits for its first line.
func start(t *testing.T, dsn string, flags ...string) *service {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if strings.HasPrefix(dsn, "sqlite:") {
		key = strings.TrimPrefix(dsn, "sqlite:") + ".key"
	} else if out, err := exec.Command(path, "key", "create", key).CombinedOutput(); err != nil {
		t.Fatalf("key: %v: %s", err, out)
	}
	// thousands of mails go to the same address here, which no honest caller does
	s := &service{t: t, args: append([]string{"serve", "--listen=127.0.0.1:0", "--database=" + dsn, "--key-file=" + key, "--batch-interval=1h", testRelays, "--guard-address-per-hour=0"}, flags...), log: &logBuffer{}}
	s.run()
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			l := s.log.String()
			t.Logf("end of the service's log:\n%s", l[max(0, len(l)-4000):])
		}
	})
	return s
}

func (s *service) run() {
	s.t.Helper()
	path := s.path
	if path == "" {
		var err error
		if path, err = binary(); err != nil {
			s.t.Fatal(err)
		}
	}
	s.cmd = exec.Command(path, s.args...)
	s.cmd.Dir = s.dir
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	addr := make(chan string, 1)
	s.exited = make(chan error, 1)
	go func() {
		sc := bufio.NewScanner(out)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			s.log.add(sc.Text())
			if _, rest, ok := strings.Cut(sc.Text(), "msg=listening address="); ok {
				a, _, _ := strings.Cut(rest, " ")
				addr <- a
			}
		}
		s.exited <- s.cmd.Wait()
	}()
	select {
	case s.addr = <-addr:
	case err := <-s.exited:
		s.t.Fatalf("the service ended: %v\n%s", err, s.log)
	case <-time.After(patience):
		s.t.Fatalf("the service does not listen\n%s", s.log)
	}
	s.connect()
}

func (s *service) connect() {
	s.t.Helper()
	var err error
	if s.conn, err = grpc.NewClient(s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20))); err != nil {
		s.t.Fatal(err)
	}
	s.admin, s.dispatch = pb.NewMailServerAdminClient(s.conn), pb.NewDispatchClient(s.conn)
}

// keyFile is the flag that gives another replica this one's key, with which cursors are signed.
func (s *service) keyFile() string {
	return s.args[slices.IndexFunc(s.args, func(a string) bool { return strings.HasPrefix(a, "--key-file=") })]
}

// stop asks the service to end and wants exit code 0.
func (s *service) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.conn.Close()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.exited:
		if err != nil {
			s.t.Errorf("the service ended with %v", err)
		}
	case <-time.After(patience):
		s.t.Error("the service does not end")
		_ = s.cmd.Process.Kill()
	}
	s.cmd = nil
}

// kill ends it the hard way.
func (s *service) kill() {
	_ = s.conn.Close()
	_ = s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// each runs f against the binary on both databases, beside each other: most of the time is
// waiting.
func each(t *testing.T, f func(t *testing.T, s *service)) {
	t.Helper()
	t.Run("on", func(t *testing.T) {
		t.Run("sqlite", func(t *testing.T) {
			t.Parallel()
			f(t, start(t, storetest.SQLiteDSN(t)))
		})
		t.Run("postgres", func(t *testing.T) {
			t.Parallel()
			f(t, start(t, storetest.PostgresDSN(t)))
		})
	})
}

// inTurn is each, one database after the other: for what measures, or sets the environment.
func inTurn(t *testing.T, f func(t *testing.T, s *service)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, start(t, storetest.SQLiteDSN(t))) })
	t.Run("postgres", func(t *testing.T) { f(t, start(t, storetest.PostgresDSN(t))) })
}

// addServer saves a mail server on a local port.
func (s *service) addServer(name string, mode pb.Mode, port int, change ...func(*pb.MailServer)) {
	s.t.Helper()
	m := &pb.MailServer{Name: name, Type: pb.MailServer_TYPE_SMTP, Mode: mode, From: "Shop <shop@x.example>",
		Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(port), Encryption: pb.Smtp_ENCRYPTION_NONE}}
	for _, c := range change {
		c(m)
	}
	if _, err := s.admin.CreateMailServer(timeout(s.t), &pb.CreateMailServerRequest{MailServer: m}); err != nil {
		s.t.Fatal(err)
	}
}

// result is a folded stream.
type result struct {
	accepted   *pb.SendResponse_Accepted
	id         string
	attempts   int
	recipients []*pb.RecipientResult
	mail       *pb.Mail
	order      string
}

func (s *service) send(ctx context.Context, r *pb.SendRequest) (*result, error) {
	stream, err := s.dispatch.Send(ctx, r)
	if err != nil {
		return nil, err
	}
	out := &result{}
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out.id = ev.MailId
		switch e := ev.Event.(type) {
		case *pb.SendResponse_Accepted_:
			out.accepted = e.Accepted
			out.order += "a"
		case *pb.SendResponse_Attempt:
			out.attempts++
			out.order += "t"
		case *pb.SendResponse_Recipient:
			out.recipients = append(out.recipients, e.Recipient)
			out.order += "r"
		case *pb.SendResponse_Completed_:
			out.mail = e.Completed.Mail
			out.order += "c"
		}
	}
}

func (s *service) mustSend(r *pb.SendRequest) *result {
	s.t.Helper()
	out, err := s.send(timeout(s.t), r)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *service) batch() *pb.RunBatchResponse {
	s.t.Helper()
	r, err := s.admin.RunBatch(timeout(s.t), &pb.RunBatchRequest{Wait: true})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *service) mail(id string) *pb.Mail {
	s.t.Helper()
	r, err := s.dispatch.GetMail(timeout(s.t), &pb.GetMailRequest{Id: id})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Mail
}

func message(to ...string) *pb.MailMessage {
	return &pb.MailMessage{To: to, Subject: "Rechnung 发票", Text: "Guten Tag", Html: "<p>Guten Tag</p>"}
}
