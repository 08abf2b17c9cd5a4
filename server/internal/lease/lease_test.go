package lease

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// journal is the row of a replica, in memory.
type journal struct {
	mu       sync.Mutex // guards all below: the test writes how it behaves, the lease asks
	last     store.ReplicaID
	renewals []time.Time
	renew    func(ctx context.Context) error // nil: it works
	register func() error
}

func (j *journal) Register(context.Context, string, time.Duration) (store.ReplicaID, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.register != nil {
		if err := j.register(); err != nil {
			return 0, err
		}
	}
	j.last++
	return j.last, nil
}

func (j *journal) Renew(ctx context.Context, _ store.ReplicaID, _ time.Duration) error {
	j.mu.Lock()
	j.renewals = append(j.renewals, time.Now())
	renew := j.renew
	j.mu.Unlock()
	if renew == nil {
		return nil
	}
	return renew(ctx)
}

// behave says how renewals are answered from now on; nil = well.
func (j *journal) behave(renew func(ctx context.Context) error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.renew = renew
}

// run gives test a lease that is held and renewed.
func run(t *testing.T, test func(j *journal, l *Lease)) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		l := New(j, "a", slog.New(slog.DiscardHandler))
		if l.Held(l.Replica()) && l.Replica() != 0 || l.Fault() != nil && l.Replica() != 0 {
			t.Error("it is held before it is registered")
		}
		if err := l.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.Run(ctx)
		}()
		test(j, l)
		cancel()
		<-done
	})
}

// TestRenewed: a lease is renewed every 5 s and stays held.
func TestRenewed(t *testing.T) {
	run(t, func(j *journal, l *Lease) {
		for range 12 {
			time.Sleep(every)
			synctest.Wait()
			if !l.Held(1) || l.Fault() != nil {
				t.Fatalf("not held: %v", l.Fault())
			}
		}
		if len(j.renewals) != 12 {
			t.Errorf("%d renewals in a minute, want 12", len(j.renewals))
		}
	})
}

// TestNotRenewed: no dot may leave 15 s after the last good renewal began, whether the database
// refuses or says nothing. It is asked again each second, and the lease is held again as soon
// as one answer is good.
func TestNotRenewed(t *testing.T) {
	away := errors.New("away")
	for name, test := range map[string]struct {
		renew func(ctx context.Context) error
		next  time.Duration // until the next renewal, at most
	}{
		"refused": {func(context.Context) error { return away }, again},
		"silent":  {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, every + again},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(j *journal, l *Lease) {
				j.behave(test.renew)
				time.Sleep(Fresh - time.Millisecond)
				synctest.Wait()
				if !l.Held(1) {
					t.Error("lost too early: one late renewal must not stop anything")
				}
				if err := l.Fault(); err == nil {
					t.Error("nothing says that the renewals fail")
				}
				time.Sleep(time.Millisecond)
				if l.Held(1) {
					t.Error("held for longer than its last renewal allows")
				}
				time.Sleep(100 * time.Millisecond)
				j.behave(nil)
				time.Sleep(test.next)
				synctest.Wait()
				if !l.Held(1) || l.Fault() != nil {
					t.Errorf("not held after a good answer: %v", l.Fault())
				}
			})
		})
	}
}

// TestSlowRenewal: the lease counts from when a renewal began, because the database may have
// written it then.
func TestSlowRenewal(t *testing.T) {
	run(t, func(j *journal, l *Lease) {
		j.behave(func(context.Context) error { time.Sleep(4 * time.Second); return nil })
		time.Sleep(every + 4*time.Second)
		synctest.Wait()
		j.behave(func(context.Context) error { return errors.New("away") })
		time.Sleep(Fresh - 4*time.Second - time.Millisecond)
		if !l.Held(1) {
			t.Error("lost too early")
		}
		time.Sleep(time.Millisecond)
		if l.Held(1) {
			t.Error("it counts from the answer")
		}
	})
}

// TestTakenForDead: who was taken for dead goes on under a new id at once. What was claimed
// under the old one is lost to it.
func TestTakenForDead(t *testing.T) {
	run(t, func(j *journal, l *Lease) {
		j.behave(func(context.Context) error { j.behave(nil); return store.ErrStale })
		time.Sleep(every)
		synctest.Wait()
		if l.Replica() != 2 || l.Held(1) || !l.Held(2) || l.Fault() != nil {
			t.Errorf("replica %d, old held %v, new held %v, %v", l.Replica(), l.Held(1), l.Held(2), l.Fault())
		}
		// Without a new id nothing may leave under the old one either.
		j.mu.Lock()
		j.renew, j.register = func(context.Context) error { return store.ErrStale }, func() error { return errors.New("away") }
		j.mu.Unlock()
		time.Sleep(Fresh)
		synctest.Wait()
		if l.Held(2) || l.Fault() == nil {
			t.Errorf("held %v, %v, want it lost", l.Held(2), l.Fault())
		}
	})
}
