package engine_test

import (
	"context"
	"flag"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// lostAnswers is a mode in which the whole suite can be run: go test ./server/internal/engine
// -lost-answers. Every write to a mail is committed, its answer is lost, and it is written
// again, behind whatever has come meanwhile. A test that fails by it shows a write that does
// something the second time.
var lostAnswers = flag.Bool("lost-answers", false, "commit every write to a mail, lose its answer, and write it again")

// repeating is a journal whose answers are lost: every write is made twice.
type repeating struct {
	engine.Journal
	own   sync.WaitGroup // repeats under way
	ended chan struct{}  // closed when the test is over: some answers never come
}

// end waits for what is under way.
func (r *repeating) end() {
	close(r.ended)
	r.own.Wait()
}

// repeatAfter is how much later than its first answer a write comes again.
const repeatAfter = 3 * time.Millisecond

func (r *repeating) Settle(s *store.Settlement) <-chan store.Settled {
	again := *s
	first := r.Journal.Settle(s)
	c := make(chan store.Settled, 1)
	r.own.Go(func() {
		var a store.Settled
		select {
		case a = <-first:
		case <-r.ended:
			return
		}
		if a.Err != nil || !a.Mine {
			c <- a
			return
		}
		// The engine hears of it, and goes on; the repeat meets what it does then.
		c <- a
		<-time.After(repeatAfter)
		<-r.Journal.Settle(&again)
	})
	return c
}

func (r *repeating) Enqueue(ctx context.Context, m *store.NewMail) (store.Enqueued, error) {
	if res, err := r.Journal.Enqueue(ctx, m); err != nil || res.Err != nil || res.Duplicate {
		return res, err
	}
	return r.Journal.Enqueue(ctx, m)
}

func (r *repeating) EnqueueBatch(ctx context.Context, ms []*store.NewMail) ([]store.Enqueued, error) {
	if res, err := r.Journal.EnqueueBatch(ctx, ms); err != nil {
		return res, err
	}
	return r.Journal.EnqueueBatch(ctx, ms)
}

func (r *repeating) Renew(ctx context.Context, id store.ReplicaID, ttl time.Duration) error {
	if err := r.Journal.Renew(ctx, id, ttl); err != nil {
		return err
	}
	return r.Journal.Renew(ctx, id, ttl)
}

// lateRepeat is a journal that refuses the first mark, and writes the first give-back a second
// time when repeat is closed.
type lateRepeat struct {
	engine.Journal
	marks  atomic.Int32
	backs  atomic.Int32
	repeat chan struct{}
	// what the second writing of the give-back was answered
	answer chan store.Settled
}

func (l *lateRepeat) Settle(s *store.Settlement) <-chan store.Settled {
	switch s.Kind {
	case store.SettleMark:
		if l.marks.Add(1) == 1 {
			c := make(chan store.Settled, 1)
			c <- store.Settled{Err: store.ErrFull}
			return c
		}
	case store.SettleRetry:
		if l.backs.Add(1) == 1 {
			again := *s
			go func() {
				<-l.repeat
				l.answer <- <-l.Journal.Settle(&again)
			}()
		}
	}
	return l.Journal.Settle(s)
}

// TestGiveBackWrittenAgain: a mail goes back untouched, and the same replica claims it again
// and lets its dot leave. If the give-back is written once more now, because its answer was
// lost, it takes neither the mail nor its mark: the invoice arrives once, or twice and flagged.
func TestGiveBackWrittenAgain(t *testing.T) {
	t.Parallel()
	for database, dsn := range storetest.DSNs(t) {
		t.Run(database, func(t *testing.T) {
			l := &lateRepeat{repeat: make(chan struct{}), answer: make(chan store.Settled, 1)}
			left, reply := make(chan struct{}), make(chan struct{})
			var dots atomic.Int32
			relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb == "DOT" && dots.Add(1) == 1 {
					close(left)
					<-reply // the relay takes a moment to answer
				}
				return nil
			}}).Start(t)
			answered := sync.OnceFunc(func() { close(reply) })
			defer answered()
			r := newRig(t, dsn, func(s *store.Store) engine.Journal { l.Journal = s; return l })
			s := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
			m := newMail(s, store.KindInvoice, "u@y.example")
			r.queue(s, m)
			r.batch(s.Name) // gives it back
			if got := r.mail(m.ID); got.Status != store.MailQueued || l.backs.Load() == 0 {
				t.Fatalf("got %s after %d give-backs, want it back", got.Status, l.backs.Load())
			}
			if _, err := r.RunBatch(ctx(t), s.Name, false); err != nil {
				t.Fatal(err)
			}
			select {
			case <-left:
			case <-time.After(30 * time.Second):
				t.Fatal("its dot does not leave")
			}
			close(l.repeat)
			if a := <-l.answer; a.Mine || a.Err != nil {
				t.Errorf("the late give-back got %+v, want it refused", a)
			}
			if got := r.mail(m.ID); got.Owner == 0 || !got.Marked {
				t.Errorf("got owner %d, marked %v: the late give-back took the mail while its dot is on its way", got.Owner, got.Marked)
			}
			r.rescueNow() // nor does anybody else get it
			answered()
			until(t, "it is settled", func() bool { return r.mail(m.ID).Archived })
			if got := r.mail(m.ID); got.Status != store.MailSent || got.PossibleDuplicate || len(relay.Mails()) != 1 {
				t.Errorf("arrived %d times, %s, possible_duplicate %v, want it sent once", len(relay.Mails()), got.Status, got.PossibleDuplicate)
			}
		})
	}
}

// rescueNow lets another replica look for what has no living owner. SQLite has only one.
func (r *rig) rescueNow() {
	r.t.Helper()
	if r.store.Dialect() == "sqlite" {
		return
	}
	other, err := r.store.Register(ctx(r.t), "other", time.Minute)
	if err != nil {
		r.t.Fatal(err)
	}
	released, adopted, err := r.store.Recover(ctx(r.t), other, 10)
	if err != nil || released+len(adopted) > 0 {
		r.t.Errorf("%d released, %d adopted, %v, want nothing without a living owner", released, len(adopted), err)
	}
}
