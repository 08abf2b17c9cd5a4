package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// previous is the commit from which the test upgrades. Its program can ask who calls, and its
// schema is older.
const previous = "514fd504aee3756141c53df334604e3a907f9970"

// olderBinary builds the program of a commit. MAILDISPATCH_TEST_OLD names one that is built
// already, for a copy without the history.
func olderBinary(t *testing.T, commit string) string {
	t.Helper()
	if path := os.Getenv("MAILDISPATCH_TEST_OLD"); path != "" {
		return path
	}
	dir := t.TempDir()
	archive := exec.CommandContext(t.Context(), "git", "-C", "../..", "archive", commit)
	var tree, said bytes.Buffer
	archive.Stdout, archive.Stderr = &tree, &said
	if err := archive.Run(); err != nil {
		t.Fatalf("commit %s is not here (%v: %s): set MAILDISPATCH_TEST_OLD to an older maildispatchd", commit, err, said.String())
	}
	unpack := exec.CommandContext(t.Context(), "tar", "x", "-C", dir)
	unpack.Stdin = &tree
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	path := filepath.Join(dir, "old")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./server/cmd/maildispatchd")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// fleet are the replicas that callers know, and the token that they have.
type fleet struct {
	t      *testing.T
	mu     sync.Mutex
	up     []*service
	next   int
	token  atomic.Value // a string
	closed atomic.Bool  // callers without a token have to be refused
	asked  atomic.Int64 // calls without a token since
}

// set says which replicas there are from now on.
func (f *fleet) set(up ...*service) {
	f.mu.Lock()
	f.up = up
	f.mu.Unlock()
}

// one is a replica, in turn.
func (f *fleet) one() *service {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	return f.up[f.next%len(f.up)]
}

// hand hands over a mail until a replica has acknowledged it, and returns its id.
func (f *fleet) hand(ctx context.Context, r *pb.SendRequest) (id string) {
	for ctx.Err() == nil {
		c, cancel := context.WithTimeout(ctx, 20*time.Second)
		if t := f.token.Load().(string); t != "" {
			c = metadata.AppendToOutgoingContext(c, "authorization", "Bearer "+t)
		}
		id, err := f.try(c, r)
		cancel()
		switch code := status.Code(err); code {
		case codes.OK:
			return id
		case codes.Unavailable, codes.Unauthenticated, codes.Canceled, codes.DeadlineExceeded, codes.ResourceExhausted:
			time.Sleep(10 * time.Millisecond) // a caller's pause
		default:
			f.t.Errorf("%s: %v", r.RequestId, err)
			return ""
		}
	}
	return ""
}

func (f *fleet) try(ctx context.Context, r *pb.SendRequest) (id string, err error) {
	s, err := f.one().dispatch.Send(ctx, r)
	for err == nil {
		var ev *pb.SendResponse
		if ev, err = s.Recv(); err == nil {
			id = ev.MailId
		}
	}
	if err == io.EOF {
		err = nil
	}
	return id, err
}

// knock calls without a token, again and again, and minds who is served.
func (f *fleet) knock(ctx context.Context) {
	for ctx.Err() == nil {
		closed := f.closed.Load()
		s := f.one()
		_, err := s.dispatch.GetQueueStats(ctx, &pb.GetQueueStatsRequest{})
		_, err2 := s.dispatch.SendMail(ctx, &pb.SendMailRequest{Message: &pb.MailMessage{To: []string{"nobody@y.example"}}, ValidateOnly: true})
		for _, err := range []error{err, err2} {
			if code := status.Code(err); closed && code != codes.Unauthenticated && code != codes.Unavailable && code != codes.Canceled {
				f.t.Errorf("without a token: got %v from a service that asks who calls", err)
			}
		}
		if closed {
			f.asked.Add(1)
		}
		time.Sleep(5 * time.Millisecond) // a caller's pause
	}
}

// TestUpgradeToAccess: two replicas of an older program with access off are replaced one by one
// while mail flows, and access is switched on in the middle of it. From three seconds after the
// first token nobody is served without one, by the old replica and the new one. The old program
// does not start on the new schema, and every mail that was acknowledged has arrived once.
func TestUpgradeToAccess(t *testing.T) {
	if os.Getenv("MAILDISPATCH_TEST_FULL") != "1" {
		t.Log("it builds an older program and takes a minute: MAILDISPATCH_TEST_FULL=1")
		return
	}
	old := olderBinary(t, previous)
	w := newWitness(t, 0, nil)
	dsn := storetest.EmptyPostgresDSN(t)
	key := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command(old, "key", "create", key).CombinedOutput(); err != nil {
		t.Fatalf("key: %v: %s", err, out)
	}
	replica := func(path string, more ...string) *service {
		t.Helper()
		s := &service{t: t, path: path, args: append([]string{"serve", "--listen=127.0.0.1:0", "--database=" + dsn, "--key-file=" + key, "--batch-interval=1s", testRelays}, more...), log: &logBuffer{}}
		s.run()
		t.Cleanup(s.stop)
		return s
	}
	renewed := []string{"--guard-address-per-hour=0", "--admin-socket=none"}
	a, b := replica(old, renewed...), replica(old, renewed...)
	a.addServer("now", pb.Mode_MODE_PHP, w.Port(), flightLimit)
	a.addServer("later", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
	f := &fleet{t: t}
	f.token.Store("")
	f.set(a, b)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var callers, knocking sync.WaitGroup
	var mu sync.Mutex // guards ids
	var ids []string
	handed := func() int { mu.Lock(); defer mu.Unlock(); return len(ids) }
	over := make(chan struct{})
	for i := range 4 {
		callers.Go(func() {
			server := []string{"now", "later"}[i%2]
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				id := f.hand(ctx, &pb.SendRequest{Options: &pb.SendOptions{MailServer: server}, RequestId: fmt.Sprintf("upgrade-%d-%d", i, n),
					Message: &pb.MailMessage{To: []string{fmt.Sprintf("m%d-%d@y.example", i, n)}, Subject: "s", Text: "x"}})
				if id != "" {
					mu.Lock()
					ids = append(ids, id)
					mu.Unlock()
				}
			}
		})
	}
	knocking.Go(func() { f.knock(ctx) })
	flows := func(what string) {
		t.Helper()
		from := handed()
		for deadline := time.Now().Add(patience); handed() < from+40; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no mail is taken: %s", what)
			}
		}
	}
	flows("both are old")
	c := replica("", renewed...)
	f.set(a, b, c)
	flows("one is new")
	f.set(b, c)
	a.stop()
	flows("one is old")
	made, err := pb.NewAccessAdminClient(c.conn).CreateToken(timeout(t), &pb.CreateTokenRequest{Name: "ops", Roles: []pb.Role{pb.Role_ROLE_ADMIN}, System: true})
	if err != nil {
		t.Fatal(err)
	}
	switched := time.Now()
	f.token.Store(made.Secret)
	flows("with the token")
	time.Sleep(time.Until(switched.Add(3 * time.Second))) // what is promised
	f.closed.Store(true)
	flows("three seconds later")
	for deadline := time.Now().Add(patience); f.asked.Load() < 20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody has called without a token")
		}
	}
	refused := f.asked.Load()
	d := replica("", renewed...)
	f.set(c, d)
	b.stop()
	flows("both are new")
	for deadline := time.Now().Add(patience); f.asked.Load() < refused+20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody has called the new ones without a token")
		}
	}
	if out, err := exec.CommandContext(timeout(t), old, a.args...).CombinedOutput(); err == nil || !strings.Contains(string(out), "newer") {
		t.Errorf("an old program: got %v and %q, want that it does not start", err, out)
	}
	close(over)
	callers.Wait()
	cancel()
	knocking.Wait()
	within := timeout(t)
	for {
		q, err := d.dispatch.ListDueOutMails(metadata.AppendToOutgoingContext(within, "authorization", "Bearer "+made.Secret), &pb.ListDueOutMailsRequest{PageSize: 1})
		if err != nil {
			t.Fatal(err)
		}
		if len(q.Mails) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	arrived := map[string]int{}
	for _, m := range w.Mails() {
		arrived[messageID(m.Data)]++
	}
	for _, id := range ids {
		if n := arrived[id]; n != 1 {
			t.Errorf("%s has arrived %d times, want once", id, n)
		}
	}
	t.Logf("%d mails, %d calls without a token were refused", len(ids), f.asked.Load())
}
