package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestDatabaseRestarts (F11): PostgreSQL is restarted during a batch. The process lives, calls
// hear UNAVAILABLE meanwhile, and the batch goes on.
func TestDatabaseRestarts(t *testing.T) {
	t.Parallel()
	mails := scaled(600, 5000)
	c, err := storetest.StartCluster()
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, c.DSN(), "--batch-interval=1s")
	// Slow enough that a batch is still under way when its database goes.
	w := newWitness(t, 100*time.Millisecond, nil)
	// few: none of them may be lost
	s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: 8} })
	var ids []string
	var worst time.Duration
	for i, mode := range []string{"fast", "immediate", "kill"} {
		underWay := w.after(about(100))
		// Each restart has mail of its own to meet, whatever the one before has left.
		ids = append(ids, s.queue("bulk", mails/3)...)
		await(t, "the batch is under way", underWay)
		if err := c.Stop(mode); err != nil {
			t.Fatal(err)
		}
		_, err := s.send(timeout(t), &pb.SendRequest{RequestId: fmt.Sprint("while away ", i), Options: &pb.SendOptions{MailServer: "bulk"}, Message: message("u@y.example")})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("while PostgreSQL is away: %v", err)
		}
		before := len(w.Mails())
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		eventually(t, 30*time.Second, "the batch goes on", func() bool { return len(w.Mails()) > before })
		worst = max(worst, time.Since(back))
		// The key of the refused call is still free, or found: it is not known whether it was
		// written.
		out := s.mustSend(&pb.SendRequest{RequestId: fmt.Sprint("while away ", i), Options: &pb.SendOptions{MailServer: "bulk"}, Message: message("u@y.example")})
		ids = append(ids, out.id)
	}
	s.drained("bulk", 2*time.Minute)
	a := w.account(s, ids)
	t.Logf("F11 %s worst_resume=%v mails=%d restarts=3", a, worst.Round(time.Millisecond), mails)
	if worst > 5*time.Second {
		t.Errorf("the batch goes on %v after PostgreSQL is back", worst)
	}
	s.invariants(t)
}

// TestAnswersAreLost (F12): the connection to PostgreSQL breaks after a statement was done and
// before its answer is heard. Nothing is inserted twice, no mail changes its state twice, no
// acknowledged id is missing.
func TestAnswersAreLost(t *testing.T) {
	t.Parallel()
	p, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
	s := start(t, dsn, "--batch-interval=200ms")
	w := newWitness(t, 10*time.Millisecond, nil)
	s.addServer("bulk", pb.Mode_MODE_DAEMON, w.Port(), flightLimit)
	var cut atomic.Int64
	lose := func(answer bool, b []byte) bool {
		drop := int64(scaled(30, 10)) // of a thousand
		if bytes.Contains(b, []byte("COMMIT\x00")) {
			// what most depends on, and one answer in many
			drop *= 10
		}
		if !answer || rand.N(int64(1000)) >= drop {
			return false
		}
		cut.Add(1)
		return true
	}
	p.Cut(lose)
	mails := scaled(600, 5000)
	ids := make([]string, mails)
	var repeated atomic.Int64
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Go(func() {
			for i := c; i < mails; i += 8 {
				r := &pb.SendRequest{RequestId: fmt.Sprint("r", i), Options: &pb.SendOptions{MailServer: "bulk", Kind: pb.Kind_KIND_BULK}, Message: message("u@y.example")}
				out, err := s.send(timeout(t), r)
				for ; status.Code(err) == codes.Unavailable; out, err = s.send(timeout(t), r) {
					repeated.Add(1)
				}
				if err != nil {
					t.Error(err)
					return
				}
				ids[i] = out.id
			}
		})
	}
	wg.Wait()
	eventually(t, 2*time.Minute, "most are sent while answers are lost", func() bool { return len(w.Mails()) > mails*9/10 })
	p.Cut(nil)
	s.drained("bulk", 2*time.Minute)
	a := w.account(s, ids)
	db := openDB(t, dsn)
	var rows, keys, twice int
	if err := db.QueryRow("select count(*), count(distinct request_id), (select count(*) from (select 1 from change where status = 'sent' group by mail_id having count(*) > 1) x) from mail").Scan(&rows, &keys, &twice); err != nil {
		t.Fatal(err)
	}
	t.Logf("F12 %s answers_lost=%d calls_repeated=%d rows_per_key=%d/%d sent_twice=%d mails=%d", a, cut.Load(), repeated.Load(), rows, keys, twice, mails)
	if rows != mails || keys != mails || twice != 0 || a.doubled != 0 || cut.Load() == 0 {
		t.Errorf("%d mails: %d rows of %d keys, %d sent twice, %d doubled, %d answers lost", mails, rows, keys, twice, a.doubled, cut.Load())
	}
	s.invariants(t)
}

// TestDatabaseAwayAfterThe250 (F13): the database cannot be reached from the moment of the
// relay's 250 on. What came within the lease is recorded as it was; after it the mail is
// flagged if it goes again. The caller of an invoice hears the truth when it can be recorded.
func TestDatabaseAwayAfterThe250(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		away time.Duration
	}{{"within the lease", 8 * time.Second}, {"beyond the lease", time.Duration(scaled(40, 300)) * time.Second}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
			s := start(t, dsn, "--batch-interval=1s")
			var once sync.Once
			away := make(chan time.Time, 1)
			w := newWitness(t, 0, func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb == "DOT" {
					once.Do(func() { p.Stick(true); away <- time.Now() })
				}
				return nil
			})
			s.addServer("now", pb.Mode_MODE_PHP, w.Port())
			long, cancel := context.WithTimeout(context.Background(), c.away+2*time.Minute)
			defer cancel()
			type answer struct {
				r   *result
				err error
			}
			answered := make(chan answer, 1)
			go func() {
				r, err := s.send(long, &pb.SendRequest{Options: &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_OTHER}, Message: message("a@y.example")})
				answered <- answer{r, err}
			}()
			gone := await(t, "the 250", away)
			select {
			case a := <-answered:
				t.Errorf("answered while nothing could be recorded: %+v %v", a.r, a.err)
			case <-time.After(time.Until(gone.Add(c.away))): // the fault's length
			}
			p.Stick(false)
			back := time.Now()
			a := <-answered
			took := time.Since(back)
			if a.r == nil || a.r.id == "" {
				t.Fatalf("%+v %v", a.r, a.err)
			}
			db := openDB(t, s.dsn())
			eventually(t, time.Minute, "the mail is settled", func() bool { return owned(t, db) == 0 })
			m := s.mail(a.r.id)
			if c.away < 30*time.Second && (m.Status != pb.MailStatus_MAIL_STATUS_SENT || m.PossibleDuplicate || a.err != nil) {
				t.Errorf("%v %v", m, a.err)
			}
			s.drained("now", 2*time.Minute)
			t.Logf("F13 %s %s away=%v recorded_after=%v", c.name, w.account(s, []string{a.r.id}), c.away, took.Round(time.Millisecond))
			s.invariants(t)
		})
	}
}
