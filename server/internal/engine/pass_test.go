package engine_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// gatedRelay takes mail, and answers no dot before it is opened.
type gatedRelay struct {
	*smtpxtest.Server
	dots chan string   // the dots that came in
	open chan struct{} // closed to answer them
}

func newGatedRelay(t *testing.T) *gatedRelay {
	g := &gatedRelay{dots: make(chan string, 1000), open: make(chan struct{})}
	g.Server = (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "DOT" {
			g.dots <- c.Arg
			<-g.open
		}
		return nil
	}}).Start(t)
	return g
}

// await waits for a signal of a test.
func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
	}
	panic("unreachable")
}

// passing asks for a pass, and returns where its counts come.
func (r *rig) passing(server string) <-chan delivery.Counts {
	counts := make(chan delivery.Counts, 1)
	go func() {
		n, err := r.RunBatch(ctx(r.t), server, true)
		if err != nil {
			r.t.Error(err)
		}
		counts <- n
	}()
	return counts
}

// awaitPasses waits until n calls of RunBatch wait.
func (r *rig) awaitPasses(n int) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); r.Passes() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%d of %d passes began", r.Passes(), n)
		}
	}
}

// TestPassCountsWhatWasDue: a pass that joins a running drain counts what was due when it was
// asked: what the drain had in flight and what was handed to it in memory, and nothing that
// came later.
func TestPassCountsWhatWasDue(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			relay := newGatedRelay(t)
			var once sync.Once
			release := func() { once.Do(func() { close(relay.open) }) }
			t.Cleanup(release)
			r := newRig(t, dsn, nil)
			s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 1})
			r.queue(s, newMail(s, store.KindBulk, "first@y.example"))
			if _, err := r.RunBatch(ctx(t), "", false); err != nil {
				t.Fatal(err)
			}
			await(t, "the first mail's dot", relay.dots)
			// The drain holds these in memory.
			if _, err := r.Queue(ctx(t), []*store.NewMail{newMail(s, store.KindBulk, "second@y.example"), newMail(s, store.KindBulk, "third@y.example")}, false); err != nil {
				t.Fatal(err)
			}
			all, named := r.passing(""), r.passing("bulk")
			other := r.server("other", store.ModeDaemon, relay, store.Limits{})
			if n := r.batch(other.Name); n != (delivery.Counts{}) {
				t.Errorf("a pass of another mail server: %+v", n)
			}
			r.awaitPasses(2)
			if _, err := r.Queue(ctx(t), []*store.NewMail{newMail(s, store.KindBulk, "later@y.example")}, false); err != nil {
				t.Fatal(err)
			}
			release()
			for what, c := range map[string]<-chan delivery.Counts{"all": all, "by name": named} {
				if n := await(t, "the pass", c); n != (delivery.Counts{Claimed: 3, Sent: 3}) {
					t.Errorf("%s: %+v", what, n)
				}
			}
		})
	}
}

// TestPassWaitsForResults: a pass does not answer while a result of a drain that has nothing
// more to do is not durable.
func TestPassWaitsForResults(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{}).Start(t)
	away := &resultsAway{tried: make(chan struct{}), back: make(chan struct{})}
	r := newRig(t, storetest.SQLiteDSN(t), func(st *store.Store) engine.Journal {
		away.Journal = st
		return away
	})
	back := sync.OnceFunc(func() { close(away.back) })
	t.Cleanup(back)
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
	m := newMail(s, store.KindBulk, "a@y.example")
	r.queue(s, m)
	first := r.passing("")
	await(t, "the first result", away.tried)
	second := r.passing("")
	r.awaitPasses(2)
	select {
	case n := <-first:
		t.Fatalf("the first pass answered %+v before its result was durable", n)
	case n := <-second:
		t.Fatalf("the second pass answered %+v before the result was durable", n)
	case <-time.After(300 * time.Millisecond):
	}
	back()
	for i, c := range []<-chan delivery.Counts{first, second} {
		if n := await(t, "the pass", c); n != (delivery.Counts{Claimed: 1, Sent: 1}) {
			t.Errorf("pass %d: %+v", i+1, n)
		}
	}
	if got := r.mail(m.ID); got.Status != store.MailSent {
		t.Errorf("%s", got.Status)
	}
}

// TestPassAfterPass: mail that is accepted right after a pass has answered is counted by the
// next one, all of it: the drain that ends takes nothing more by itself.
func TestPassAfterPass(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			relay := (&smtpxtest.Server{}).Start(t)
			r := newRig(t, dsn, nil)
			s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 4})
			for round := range 20 {
				n := 1 + round%3
				var ms []*store.NewMail
				for i := range n {
					ms = append(ms, newMail(s, store.KindBulk, fmt.Sprintf("r%d-%d@y.example", round, i)))
				}
				if _, err := r.Queue(ctx(t), ms, false); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				sums := make([]delivery.Counts, 4)
				for i := range sums {
					wg.Go(func() { sums[i], _ = r.RunBatch(ctx(t), "", true) })
				}
				wg.Wait()
				most := 0
				for _, c := range sums {
					most = max(most, c.Sent)
				}
				if most != n {
					t.Fatalf("round %d: %d mails were due, the passes say %+v", round, n, sums)
				}
			}
		})
	}
}
