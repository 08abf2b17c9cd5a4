package simulation

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

// journal is the store as one replica sees it: every call waits until the driver carries it
// out, and may fail, or be carried out and not be heard of.
type journal struct {
	w    *world
	rep  *replica
	bulk line
	fast line
}

// line is the writer of settlements: what was handed over, in order.
type line struct {
	key    string
	queue  []*handed
	parked bool
}

type handed struct {
	st   *store.Settlement
	done chan store.Settled
}

func newJournal(w *world, r *replica) *journal {
	return &journal{w: w, rep: r, bulk: line{key: r.name + ".settle"}, fast: line{key: r.name + ".quick"}}
}

type how int

const (
	plain how = iota
	local     // carried out with the caller or not at all
)

// call is one statement.
func call[T any](ctx context.Context, j *journal, key string, h how, do func() (T, error)) (T, error) {
	var out T
	var err error
	done := make(chan struct{})
	if ctx.Err() != nil {
		// which of two that are ready a select takes is not drawn from the seed
		return out, ctx.Err()
	}
	if j.rep.dead.Load() {
		return out, errBroken
	}
	o := &op{key: j.rep.name + "." + key, who: j.rep, local: h == local}
	o.exec = func(f fate) fate {
		if f != fateFailed {
			out, err = do()
		}
		return f
	}
	o.reply = func(f fate) {
		if f != fateDone {
			var zero T
			out, err = zero, errBroken
		}
		close(done)
	}
	j.w.park(o)
	select {
	case <-done:
		return out, err
	case <-ctx.Done():
		j.w.mu.Lock()
		o.reply = nil
		if o.local {
			o.exec = func(fate) fate { return fateFailed }
		}
		j.w.mu.Unlock()
		var zero T
		return zero, ctx.Err()
	}
}

func (j *journal) Enqueue(ctx context.Context, m *store.NewMail) (store.Enqueued, error) {
	e, err := call(ctx, j, "enqueue "+short(m.ID), plain, func() (store.Enqueued, error) {
		return j.w.db.Enqueue(context.Background(), m)
	})
	if j.w.opt.Plant.accepts && err != nil && ctx.Err() == nil {
		return store.Enqueued{ID: m.ID}, nil
	}
	return e, err
}

func (j *journal) EnqueueBatch(ctx context.Context, ms []*store.NewMail) ([]store.Enqueued, error) {
	return call(ctx, j, "enqueue "+short(ms[0].ID), plain, func() ([]store.Enqueued, error) {
		return j.w.db.EnqueueBatch(context.Background(), ms)
	})
}

func (j *journal) EnqueueAll(ctx context.Context, ms []*store.NewMail) ([]store.Enqueued, error) {
	return call(ctx, j, "enqueue all "+short(ms[0].ID), plain, func() ([]store.Enqueued, error) {
		return j.w.db.EnqueueAll(context.Background(), ms)
	})
}

func (j *journal) DueServers(ctx context.Context) ([]string, error) {
	return call(ctx, j, "due", plain, func() ([]string, error) {
		names, err := j.w.db.DueServers(context.Background())
		return slices.DeleteFunc(names, func(n string) bool { return n == j.w.opt.Plant.forget }), err
	})
}

// Claim whose answer is lost is an error: the engine finds out what it got.
func (j *journal) Claim(ctx context.Context, r store.ReplicaID, server string, most int, above int16) ([]*store.Claimed, error) {
	return call(ctx, j, "claim "+server, plain, func() ([]*store.Claimed, error) {
		cs, err := j.w.db.Claim(context.Background(), r, server, most, above)
		if f := j.w.opt.Plant.claimed; f != nil {
			for _, c := range cs {
				f(j.w, c)
			}
		}
		return cs, err
	})
}

func (j *journal) LoadRaw(ctx context.Context, c *store.Claimed) ([]byte, error) {
	return j.w.db.LoadRaw(ctx, c)
}

func (j *journal) Yield(ctx context.Context) { j.w.db.Yield(ctx) }

func (j *journal) BulkItems() int { return j.w.db.BulkItems() }

func (j *journal) Register(ctx context.Context, name string, ttl time.Duration) (store.ReplicaID, error) {
	id, err := call(ctx, j, "register", plain, func() (store.ReplicaID, error) {
		id, err := j.w.db.Register(context.Background(), name, ttl)
		return id, err
	})
	if err == nil {
		j.rep.id.Store(int64(id))
		j.rep.lives.Add(1)
		j.rep.lapsed.Store(int64(time.Since(j.w.begin)))
	}
	return id, err
}

func (j *journal) Renew(ctx context.Context, r store.ReplicaID, ttl time.Duration) error {
	_, err := call(ctx, j, "renew", plain, func() (struct{}, error) {
		if !j.w.db.Alive(r) {
			j.rep.lives.Add(1) // others may have taken what it held meanwhile
			j.rep.lapsed.Store(int64(time.Since(j.w.begin)))
		}
		return struct{}{}, j.w.db.Renew(context.Background(), r, ttl)
	})
	return err
}

func (j *journal) Unregister(ctx context.Context, r store.ReplicaID) error {
	_, err := call(ctx, j, "unregister", plain, func() (struct{}, error) { return struct{}{}, j.w.db.Unregister(context.Background(), r) })
	return err
}

type recovered struct {
	released int
	adopted  []*store.Claimed
}

func (j *journal) Recover(ctx context.Context, me store.ReplicaID, max int) (int, []*store.Claimed, error) {
	r, err := call(ctx, j, "recover", plain, func() (recovered, error) {
		n, cs, err := j.w.db.Recover(context.Background(), me, max)
		return recovered{n, cs}, err
	})
	return r.released, r.adopted, err
}

func (j *journal) Owned(ctx context.Context, r store.ReplicaID) ([]store.Ownership, error) {
	return call(ctx, j, "owned", plain, func() ([]store.Ownership, error) {
		if j.w.opt.Plant.blind {
			return nil, nil
		}
		return j.w.db.Owned(context.Background(), r)
	})
}

func (j *journal) TakeBack(ctx context.Context, r store.ReplicaID, lost []store.Ownership) (int, []*store.Claimed, error) {
	t, err := call(ctx, j, "take back", plain, func() (recovered, error) {
		n, cs, err := j.w.db.TakeBack(context.Background(), r, lost)
		return recovered{n, cs}, err
	})
	return t.released, t.adopted, err
}

func (j *journal) Server(ctx context.Context, sc store.Scope, name string) (*store.MailServer, error) {
	return call(ctx, j, "server "+name, plain, func() (*store.MailServer, error) {
		s, err := j.w.db.Server(context.Background(), sc, name)
		if f := j.w.opt.Plant.server; f != nil && err == nil {
			s = f(j.w, s)
		}
		return s, err
	})
}

func (j *journal) ServerVersions(ctx context.Context, names []string) (map[string]int64, error) {
	return call(ctx, j, "versions", plain, func() (map[string]int64, error) {
		if j.w.opt.Plant.oldVersions {
			return nil, nil
		}
		return j.w.db.ServerVersions(context.Background(), names)
	})
}

func (j *journal) HoldDeleted(ctx context.Context, server string) (int, error) {
	return call(ctx, j, "hold deleted "+server, plain, func() (int, error) { return j.w.db.HoldDeleted(context.Background(), server) })
}

func (j *journal) Mail(ctx context.Context, sc store.Scope, id uuid.UUID) (*store.Mail, error) {
	return call(ctx, j, "mail "+short(id), plain, func() (*store.Mail, error) { return j.w.db.Mail(context.Background(), sc, id) })
}

func (j *journal) Now(ctx context.Context) (time.Time, error) {
	return call(ctx, j, "now", plain, func() (time.Time, error) { return j.w.db.Now(context.Background()) })
}

func (j *journal) ForgetChanges(ctx context.Context, age time.Duration) (int, error) {
	return 0, nil
}

func (j *journal) KeepCounts(context.Context) error { return nil }

func (j *journal) ForgetUploads(context.Context) (int, int, error) { return 0, 0, nil }

func (j *journal) Breakers(ctx context.Context) (map[string]*store.Breaker, error) {
	return call(ctx, j, "breakers", plain, func() (map[string]*store.Breaker, error) { return j.w.db.Breakers(context.Background()) })
}

func (j *journal) ChangeBreaker(ctx context.Context, server string, change func(time.Time, *store.Breaker) bool) (*store.Breaker, error) {
	return call(ctx, j, "breaker "+server, local, func() (*store.Breaker, error) {
		return j.w.db.ChangeBreaker(context.Background(), server, func(now time.Time, b *store.Breaker) bool {
			before := *b
			ok := change(now, b)
			if f := j.w.opt.Plant.breaker; f != nil && ok {
				f(&before, b)
			}
			return ok
		})
	})
}

type slot struct {
	n  int
	ok bool
}

func (j *journal) TakeSlot(ctx context.Context, r store.ReplicaID, t store.SlotTake) (int, bool, error) {
	t.Limit += j.w.opt.Plant.slots
	if j.w.opt.Plant.keepsSlot {
		t.Settled = 0
	}
	s, err := call(ctx, j, "slot "+t.MailServer, plain, func() (slot, error) {
		n, ok, err := j.w.db.TakeSlot(context.Background(), r, t)
		j.w.tell("   slot %d of %s for %d: %v, %+v", n, t.MailServer, r, ok, t)
		return slot{n, ok}, err
	})
	return s.n, s.ok, err
}

// GiveSlot gives a slot back.
func (j *journal) GiveSlot(ctx context.Context, r store.ReplicaID, sl store.Slot) error {
	_, err := call(ctx, j, fmt.Sprintf("give %s %d", sl.MailServer, sl.N), plain, func() (struct{}, error) {
		j.w.tell("   %d gives %+v", r, sl)
		return struct{}{}, j.w.db.GiveSlot(context.Background(), r, sl)
	})
	return err
}

// HoldSlots writes down what is held.
func (j *journal) HoldSlots(ctx context.Context, r store.ReplicaID, list []store.Slot, settled int64) ([]store.Slot, error) {
	if j.w.opt.Plant.keepsSlot {
		settled = 0
	}
	return call(ctx, j, "hold", plain, func() ([]store.Slot, error) {
		lost, err := j.w.db.HoldSlots(context.Background(), r, list, settled)
		j.w.tell("   %d holds %+v, settled %d, lost %v", r, list, settled, lost)
		return lost, err
	})
}

type granted struct {
	n    int
	next time.Time
}

func (j *journal) TakeRate(ctx context.Context, r store.ReplicaID, server string, use store.RateUse, want, perMinute, perDay int) (int, time.Time, error) {
	p := &j.w.opt.Plant
	if p.noDay {
		perDay = 0
	}
	g, err := call(ctx, j, "rate "+server, plain, func() (granted, error) {
		n, next, err := j.w.db.TakeRate(context.Background(), r, server, use, want, perMinute, perDay)
		j.w.tell("   rate of %s for %d: %d of %d, %+v, limits %d %d", server, r, n, want, use, perMinute, perDay)
		return granted{n, next}, err
	})
	if p.rate > 1 && g.n > 0 {
		g.n = min(want, p.rate*g.n)
	}
	return g.n, g.next, err
}

// Settle hands a write over to its line.
func (j *journal) Settle(st *store.Settlement) <-chan store.Settled {
	w, p := j.w, &j.w.opt.Plant
	h := &handed{st: w.smooth(st), done: make(chan store.Settled, 2)}
	if j.rep.dead.Load() {
		h.done <- store.Settled{} // the dead one's goroutines have to end somehow
		return h.done
	}
	if p.settle != nil {
		c := *h.st
		if h.st = p.settle(w, &c); h.st == nil {
			h.done <- store.Settled{Mine: true}
			return h.done
		}
	}
	if p.early != nil && p.early(st) {
		h.done <- store.Settled{Mine: true}
	}
	j.hand(h)
	return h.done
}

// hand puts a write at the end of its line.
func (j *journal) hand(h *handed) {
	w := j.w
	l := &j.bulk
	if h.st.Quick {
		l = &j.fast
	}
	w.mu.Lock()
	l.queue = append(l.queue, h)
	first := !l.parked
	l.parked = true
	w.mu.Unlock()
	if first {
		j.flush(l)
	}
}

// flush parks the writing of what stands first in a line. What failed, or was not heard of,
// stays there and is written once more: nothing overtakes, and nobody hears of it.
func (j *journal) flush(l *line) {
	w, p := j.w, &j.w.opt.Plant
	var heard []*handed
	var answers []store.Settled
	o := &op{key: l.key, who: j.rep}
	o.exec = func(f fate) fate {
		w.mu.Lock()
		n := len(l.queue)
		if n > 1 {
			n = 1 + w.rng.IntN(n)
		}
		batch := slices.Clone(l.queue[:n])
		rest := slices.Clone(l.queue[n:])
		w.mu.Unlock()
		if f == fateDone && !w.calm && w.chance(w.prof.settleFail) {
			f = fateFailed
			if w.chance(0.6) {
				f = fateLost
			}
		}
		var keep []*handed
		for _, h := range batch {
			a := store.Settled{Err: errBroken}
			if f != fateFailed {
				a = <-w.db.Settle(h.st)
				w.tell("   %s %s %s %s claim %d mine=%v", l.key, short(h.st.ID), h.st.Kind, h.st.Status, h.st.Claim, a.Mine)
			}
			if f != fateDone {
				a = store.Settled{Err: errBroken}
			}
			if p.answered != nil {
				a = p.answered(h.st, a)
			}
			switch {
			case a.Err == nil:
				heard, answers = append(heard, h), append(answers, a)
			case p.behind != nil && p.behind(h.st):
				w.after(time.Duration(w.rng.Int64N(int64(5*time.Second))), "behind "+short(h.st.ID), func() { j.hand(h) })
			case p.twice:
				keep = append(keep, h)
				w.after(time.Duration(w.rng.Int64N(int64(10*time.Second))), "once more "+short(h.st.ID), func() {
					a := <-w.db.Settle(h.st)
					w.tell("   %s %s %s %s mine=%v", l.key, short(h.st.ID), h.st.Kind, h.st.Status, a.Mine)
				})
			default:
				keep = append(keep, h)
			}
		}
		if j.rep.dead.Load() {
			return f // it runs on behind its dead process, which was answered already
		}
		w.mu.Lock()
		l.queue = append(keep, rest...)
		l.parked = len(l.queue) > 0
		more := l.parked
		w.mu.Unlock()
		if more {
			j.flush(l)
		}
		return f
	}
	o.reply = func(fate) {
		for i, h := range heard {
			h.done <- answers[i]
		}
	}
	w.park(o)
}

// smooth makes the waits of mails that are tried again short.
func (w *world) smooth(st *store.Settlement) *store.Settlement {
	if st.Kind != store.SettleRetry {
		return st
	}
	now := time.Now()
	if wait := st.RunAt.Sub(now); wait > 10*time.Second {
		c := *st
		c.RunAt = now.Add(time.Duration(2+int(st.ID[6]^st.ID[15])%7) * time.Second).Truncate(time.Second)
		if c.Attempts > 3 {
			c.RunAt = c.RunAt.Add(20 * time.Second)
		}
		return &c
	}
	return st
}

func short(id uuid.UUID) string { return fmt.Sprintf("m%d", number(id)) }
