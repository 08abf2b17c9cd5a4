package e2e

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestStopDuringABatch (F19): SIGTERM with every connection in DATA and a backlog. Nothing new
// is claimed, what has begun finishes or is cut before its dot, the leases are given back, and
// the next process goes on at once. Nothing is lost and nothing is doubled.
func TestStopDuringABatch(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		mails := scaled(600, 5000)
		var mu sync.Mutex
		inData := 0
		full, stopped := make(chan time.Time, 1), make(chan struct{})
		var stoppedAt, lastMail time.Time // of the signal, and of the last MAIL command
		w := newWitness(t, 5*time.Millisecond, func(c smtpxtest.Command) *smtpxtest.Action {
			wait := c.Verb == "DATA" && c.Nth == 3
			mu.Lock()
			if c.Verb == "MAIL" {
				lastMail = time.Now()
			}
			if wait {
				if inData++; inData == flight {
					full <- time.Now()
				}
			}
			mu.Unlock()
			if wait {
				<-stopped // until all are in DATA and the service is told to stop
			}
			return nil
		})
		s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
		s.addServer("now", pb.Mode_MODE_PHP, w.Port(), flightLimit)
		ids := s.queue("bulk", mails)
		if _, err := s.admin.RunBatch(timeout(t), &pb.RunBatchRequest{}); err != nil {
			t.Fatal(err)
		}
		await(t, "every connection is in DATA", full)
		watch, err := s.dispatch.WatchMails(timeout(t), &pb.WatchMailsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		stoppedAt = time.Now()
		mu.Unlock()
		atStop := len(w.Mails())
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "it says that it stops", func() bool { return strings.Contains(s.log.String(), "msg=stopping") })
		close(stopped)
		if _, err := s.send(timeout(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: message("u@y.example")}); status.Code(err) != codes.Unavailable {
			t.Errorf("a call while it stops: %v", err)
		}
		select {
		case err := <-s.exited:
			if err != nil {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("does not end")
		}
		took := time.Since(stoppedAt)
		for err == nil {
			_, err = watch.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("a stream while it stops ends with %v", err)
		}
		_ = s.conn.Close()
		mu.Lock()
		claimed := lastMail.Sub(stoppedAt)
		mu.Unlock()
		left := owned(t, openDB(t, s.dsn()))
		sent := len(w.Mails())
		first := w.after(1)
		begin := time.Now()
		s.run()
		takeover := await(t, "the next process goes on", first).Sub(begin)
		s.drained("bulk", 2*time.Minute)
		a := w.account(s, ids)
		t.Logf("F19 %s exit_after=%v last_new_mail_after=%v owned=%d sent_before=%d takeover=%v mails=%d", a, took.Round(time.Millisecond), claimed.Round(time.Millisecond), left, sent,
			takeover.Round(time.Millisecond), mails)
		// A mail whose MAIL left together with the dot before it was claimed long before the
		// signal.
		if a.doubled+a.flagged > 0 || left > 0 || took > 30*time.Second || sent-atStop > 2*flight {
			t.Errorf("%+v, %d still left, exit after %v, %d mails left after the signal", a, left, took, sent-atStop)
		}
		s.invariants(t)
	})
}

// TestSQLiteLockedByAWriter: another program holds the write lock of the database. Nothing is
// acknowledged meanwhile, and all goes on when it lets go.
func TestSQLiteLockedByAWriter(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t), "--batch-interval=200ms")
	w := newWitness(t, 0, nil)
	s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
	db := openDB(t, s.dsn())
	mustExec(t, db, "begin immediate")
	type answer struct {
		id  string
		err error
	}
	answered := make(chan answer, 1)
	begin := time.Now()
	r := &pb.SendRequest{RequestId: "r", Options: &pb.SendOptions{MailServer: "bulk"}, Message: message("u@y.example")}
	go func() {
		out, err := s.send(timeout(t), r)
		answered <- answer{out.id, err}
	}()
	select {
	case a := <-answered:
		t.Fatalf("acknowledged while nothing can be written: %+v", a)
	case <-time.After(time.Duration(scaled(3, 12)) * time.Second):
		// the fault's length; the service waits for 10 s each time
	}
	mustExec(t, db, "commit")
	a := <-answered
	if status.Code(a.err) == codes.Unavailable {
		// as far as the caller may know it: it asks again
		a.id, a.err = s.mustSend(r).id, nil
	}
	if a.err != nil {
		t.Fatal(a.err)
	}
	eventually(t, 30*time.Second, "the mail is sent", func() bool { return s.mail(a.id).Status == pb.MailStatus_MAIL_STATUS_SENT })
	t.Logf("SQLite locked: %s acknowledged_after=%v", w.account(s, []string{a.id}), time.Since(begin).Round(time.Millisecond))
	s.invariants(t)
}

// TestSQLiteIsCopiedLive: a copy that another program makes while mail is taken and sent opens,
// is whole, and has everything that was acknowledged before.
func TestSQLiteIsCopiedLive(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t), "--batch-interval=0")
	w := newWitness(t, 5*time.Millisecond, nil)
	s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
	before := s.queue("bulk", scaled(200, 2000))
	var wg sync.WaitGroup
	wg.Go(func() { s.queue("bulk", scaled(200, 2000)) })
	dir := t.TempDir()
	vacuumed, copied := filepath.Join(dir, "vacuumed.db"), filepath.Join(dir, "copied.db")
	db := openDB(t, s.dsn())
	mustExec(t, db, "vacuum into ?", vacuumed)
	// Files are copied under a read transaction, which keeps the log from being reset while the
	// database file is read.
	mustExec(t, db, "begin")
	var n int
	if err := db.QueryRow("select count(*) from mail").Scan(&n); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(strings.TrimPrefix(s.dsn(), "sqlite:") + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustExec(t, db, "commit")
	wg.Wait()
	s.drained("bulk", 2*time.Minute)
	for _, path := range []string{vacuumed, copied} {
		invariants(t, "sqlite:"+path)
		intact(t, "sqlite:"+path)
		missing := missingIDs(t, openDB(t, "sqlite:"+path), before)
		t.Logf("SQLite copied live: %s lost=%d of %d", filepath.Base(path), missing, len(before))
		if missing > 0 {
			t.Errorf("%d mails are not in %s", missing, path)
		}
	}
	s.invariants(t)
	// The copy serves: what it had in hand goes on.
	next := start(t, "sqlite:"+vacuumed)
	next.drained("bulk", time.Minute)
	next.invariants(t)
}

func missingIDs(t *testing.T, db *sql.DB, ids []string) (missing int) {
	t.Helper()
	for _, id := range ids {
		var n int
		if err := db.QueryRow("select count(*) from mail where id = '" + id + "'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		missing += 1 - n
	}
	return missing
}
