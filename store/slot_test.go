package store_test

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// holder is a replica that takes slots of one mail server, and knows what it holds.
type holder struct {
	t     *testing.T
	s     *store.Store
	r     store.ReplicaID
	token int64
	held  []store.Slot
}

func (h *holder) ns() []int {
	var ns []int
	for _, sl := range h.held {
		ns = append(ns, sl.N)
	}
	return ns
}

// take takes a slot of limit; forget stands for an answer that is lost.
func (h *holder) take(limit int, forget bool) bool {
	h.t.Helper()
	h.token++
	n, ok, err := h.s.TakeSlot(ctx, h.r, store.SlotTake{MailServer: "ss", Limit: limit, Token: h.token, Settled: h.token, Held: h.ns()})
	if err != nil {
		h.t.Fatal(err)
	}
	if ok && !forget {
		if slices.Contains(h.ns(), n) {
			h.t.Fatalf("slot %d was given twice", n)
		}
		h.held = append(h.held, store.Slot{MailServer: "ss", N: n, Token: h.token})
	}
	return ok
}

func (h *holder) hold() []store.Slot {
	h.t.Helper()
	lost, err := h.s.HoldSlots(ctx, h.r, h.held, h.token+1)
	if err != nil {
		h.t.Fatal(err)
	}
	return lost
}

// TestSlots: replicas that ask at once never get more than the limit together.
func TestSlots(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	a, b := register(t, s), register(t, s)
	var taken atomic.Int32
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			r := a
			if i%2 == 0 {
				r = b
			}
			_, ok, err := s.TakeSlot(ctx, r, store.SlotTake{MailServer: "ss", Limit: 4, Token: int64(i + 1), Settled: 1})
			if err != nil {
				t.Error(err)
			}
			if ok {
				taken.Add(1)
			}
		})
	}
	wg.Wait()
	if taken.Load() != 4 {
		t.Fatalf("got %d slots, want 4", taken.Load())
	}
}

// TestSlotsAreState: a slot is free when its replica does not say that it holds it, whatever
// became of the answers.
func TestSlotsAreState(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(t *testing.T, a, b *holder){
		"given back": func(t *testing.T, a, b *holder) {
			a.take(1, false)
			if b.take(1, false) {
				t.Fatal("the limit does not hold")
			}
			if err := a.s.GiveSlot(ctx, a.r, a.held[0]); err != nil {
				t.Fatal(err)
			}
			if !b.take(1, false) {
				t.Error("it is not free")
			}
		},
		"the answer of a taking is lost": func(t *testing.T, a, b *holder) {
			a.take(1, true)
			if !a.take(1, false) {
				t.Error("it is not free for the replica itself")
			}
		},
		"it is lost, and another replica asks after a renewal": func(t *testing.T, a, b *holder) {
			a.take(1, true)
			a.hold()
			if !b.take(1, false) {
				t.Error("it is not free")
			}
		},
		"a renewal keeps what is held": func(t *testing.T, a, b *holder) {
			a.take(2, false)
			a.take(2, false)
			if lost := a.hold(); len(lost) > 0 || b.take(2, false) {
				t.Errorf("lost %v, or given to another", lost)
			}
		},
		"a renewal that is late takes nothing away": func(t *testing.T, a, b *holder) {
			before := a.token + 1 // it was sent here
			a.take(1, false)
			if _, err := a.s.HoldSlots(ctx, a.r, nil, before); err != nil {
				t.Fatal(err)
			}
			if b.take(1, false) {
				t.Error("a slot that was taken after the renewal was begun is free")
			}
		},
		"giving back that is late takes nothing away": func(t *testing.T, a, b *holder) {
			a.take(1, false)
			old := a.held[0]
			a.held = nil
			a.take(1, false) // its row is the replica's own still
			if err := a.s.GiveSlot(ctx, a.r, old); err != nil {
				t.Fatal(err)
			}
			if b.take(1, false) {
				t.Error("a slot that was taken again is free")
			}
		},
		"a replica ends": func(t *testing.T, a, b *holder) {
			a.take(1, false)
			if err := a.s.Unregister(ctx, a.r); err != nil {
				t.Fatal(err)
			}
			if !b.take(1, false) {
				t.Error("it is not free")
			}
			a.r = register(t, a.s) // taken for dead, it goes on under a new id
			if lost := a.hold(); len(lost) != 1 {
				t.Errorf("lost %v, want the slot that another replica has by now", lost)
			}
		},
		"a replica goes on under a new id": func(t *testing.T, a, b *holder) {
			a.take(1, false)
			if err := a.s.Unregister(ctx, a.r); err != nil {
				t.Fatal(err)
			}
			a.r = register(t, a.s)
			if lost := a.hold(); len(lost) != 0 || b.take(1, false) {
				t.Errorf("lost %v, or given to another", lost)
			}
		},
		"the limit is lowered": func(t *testing.T, a, b *holder) {
			for range 4 {
				a.take(4, false)
			}
			if err := a.s.GiveSlot(ctx, a.r, a.held[0]); err != nil { // number 1
				t.Fatal(err)
			}
			a.held = a.held[1:]
			if b.take(2, false) {
				t.Error("a fourth connection beside three, with a limit of 2")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := storetest.Open(t, storetest.PostgresDSN(t))
			test(t, &holder{t: t, s: s, r: register(t, s)}, &holder{t: t, s: s, r: register(t, s)})
		})
	}
}

// TestSlotsOnSQLite: one process counts for itself.
func TestSlotsOnSQLite(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.SQLiteDSN(t))
	h := &holder{t: t, s: s, r: 1}
	for range 3 {
		if !h.take(1, true) || len(h.hold()) > 0 || s.GiveSlot(ctx, 1, store.Slot{MailServer: "ss"}) != nil {
			t.Fatal("SQLite limits slots")
		}
	}
}

// taker is a replica that takes rates of one mail server.
type taker struct {
	t *testing.T
	s *store.Store
	r store.ReplicaID
	store.RateUse
}

// take takes up to want and holds what it gets. next says how long after the call began there
// may be more.
func (k *taker) take(want, perMinute, perDay int) (n int, next time.Duration) {
	k.t.Helper()
	k.Call++
	begin := time.Now()
	n, at, err := k.s.TakeRate(ctx, k.r, "ss", k.RateUse, want, perMinute, perDay)
	if err != nil || n < 0 || n > max(want, 0) {
		k.t.Fatalf("got %d of %d, %v", n, want, err)
	}
	k.Held += n
	return n, at.Sub(begin)
}

// left says that n of what is held have left.
func (k *taker) left(n int) { k.Held -= n; k.Used += int64(n) }

// TestRate: the bucket of a minute and the count of a day.
func TestRate(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, k, other *taker){
		"a tenth of a minute's limit at once, then evenly": func(t *testing.T, k, _ *taker) {
			begin := time.Now()
			n, next := k.take(500, 600, 0)
			if took := time.Since(begin); n != 60 || next <= 0 || next > took+time.Second {
				t.Fatalf("got %d, next in %v, after %v", n, next, took)
			}
			k.left(60)
			n, _ = k.take(100, 600, 0)
			if most := 1 + int(time.Since(begin)/(100*time.Millisecond)); n > most {
				t.Errorf("got %d at once, want one each tenth of a second: %d", n, most)
			}
		},
		"what is held takes up room": func(t *testing.T, k, other *taker) {
			k.take(6000, 60000, 0) // one comes each millisecond
			if n, _ := other.take(60, 60000, 0); n != 0 {
				t.Errorf("got %d while as many may still leave at once as the minute allows", n)
			}
		},
		"what has not left comes back": func(t *testing.T, k, _ *taker) {
			k.take(60, 600, 0)
			k.Held = 0
			if n, _ := k.take(60, 600, 0); n != 60 {
				t.Errorf("got %d of 60", n)
			}
		},
		"a day": func(t *testing.T, k, other *taker) {
			if n, next := k.take(500, 0, 120); n != 120 || next <= 0 {
				t.Fatalf("got %d, next in %v", n, next)
			}
			if n, _ := other.take(5, 0, 120); n != 0 {
				t.Errorf("got %d beyond the day's limit", n)
			}
			k.left(100)
			k.Held = 0
			k.take(0, 0, 120)
			if n, _ := other.take(50, 0, 120); n != 20 {
				t.Errorf("got %d, want the 20 that came back", n)
			}
		},
		"an answer that was lost costs nothing": func(t *testing.T, k, _ *taker) {
			for range 5 {
				k.take(30, 0, 120)
				k.Held = 0 // never heard of
			}
			if n, _ := k.take(500, 0, 120); n != 120 {
				t.Errorf("got %d, want 120", n)
			}
		},
		"a call that is late changes nothing": func(t *testing.T, k, _ *taker) {
			k.take(120, 0, 120)
			late := store.RateUse{Call: k.Call}
			if n, _, err := k.s.TakeRate(ctx, k.r, "ss", late, 120, 0, 120); n != 0 || err != nil {
				t.Errorf("got %d, %v", n, err)
			}
			if n, _ := k.take(1, 0, 120); n != 0 {
				t.Errorf("got %d after the day's limit", n)
			}
		},
		"changing the limits gives the day not back": func(t *testing.T, k, _ *taker) {
			n, _ := k.take(1000, 0, 1000)
			k.left(n)
			for range 20 {
				if n, _ := k.take(500, 60000, 1000); n != 0 {
					t.Fatalf("got %d more when a limit per minute was added", n)
				}
			}
			if n, _ := k.take(500, 0, 1001); n != 1 {
				t.Errorf("got %d when the day's limit was raised by 1", n)
			}
		},
		"a day's limit leaves the bucket full": func(t *testing.T, k, _ *taker) {
			n, _ := k.take(1000, 0, 5000)
			k.left(n)
			if n, _ := k.take(1000, 600, 5000); n == 0 || n > 60 {
				t.Errorf("got %d, want up to the 60 of a new limit per minute", n)
			}
		},
		"a dead replica's count as used": func(t *testing.T, k, _ *taker) {
			k.take(100, 0, 120)
			if err := k.s.Unregister(ctx, k.r); err != nil {
				t.Fatal(err)
			}
			next := &taker{t: t, s: k.s, r: register(t, k.s)}
			if n, _ := next.take(500, 0, 120); n != 20 {
				t.Errorf("got %d, want 20", n)
			}
		},
		"without limits": func(t *testing.T, k, _ *taker) {
			if n, _ := k.take(500, 0, 0); n != 500 {
				t.Errorf("got %d of 500", n)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Each(t, func(t *testing.T, s *store.Store) {
				k := &taker{t: t, s: s, r: register(t, s)}
				other := k // one process serves SQLite
				if s.Dialect() == "postgres" {
					other = &taker{t: t, s: s, r: register(t, s)}
				}
				test(t, k, other)
			})
		})
	}
}

// TestRateIsOneForAll: callers at once never get more than a day's limit.
func TestRateIsOneForAll(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var wg sync.WaitGroup
		var got atomic.Int64
		for i := range 12 {
			wg.Go(func() {
				n, _, err := s.TakeRate(ctx, store.ReplicaID(i+1), "ss", store.RateUse{Call: 1}, 15, 0, 100)
				if err != nil {
					t.Error(err)
				}
				got.Add(int64(n))
			})
		}
		wg.Wait()
		if n := got.Load(); n != 100 {
			t.Errorf("%d taken of 100", n)
		}
	})
}
