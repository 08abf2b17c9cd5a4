package memory

import (
	"context"
	"slices"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// Breakers reads all there are.
func (s *Store) Breakers(context.Context) (map[string]*store.Breaker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]*store.Breaker, len(s.breakers))
	for k, b := range s.breakers {
		c := *b
		out[k] = &c
	}
	return out, nil
}

// ChangeBreaker reads, changes and writes a mail server's breaker. change must not call the
// store.
func (s *Store) ChangeBreaker(_ context.Context, server string, change func(now time.Time, b *store.Breaker) bool) (*store.Breaker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.breakers[server] == nil {
		s.breakers[server] = &store.Breaker{MailServer: server}
	}
	c := *s.breakers[server]
	if change(s.clock(), &c) {
		for _, t := range []*time.Time{&c.RetryAt, &c.ProbeUntil, &c.HealedAt, &c.SuccessAt, &c.FailureAt} {
			if !t.IsZero() {
				*t = micro(*t)
			}
		}
		w := c
		s.breakers[server] = &w
	}
	return &c, nil
}

func (s *Store) alive(r store.ReplicaID) bool {
	x := s.replicas[r]
	return x != nil && x.alive.After(s.clock())
}

// held is a connection slot that is taken.
type held struct {
	replica store.ReplicaID
	token   int64
}

// TakeSlot takes one of a mail server's connections over all replicas, false when none is free.
// Free is what nobody alive has, and what the asking replica has and does not hold.
func (s *Store) TakeSlot(_ context.Context, r store.ReplicaID, t store.SlotTake) (n int, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.slots[t.MailServer]
	if taken == nil {
		taken = map[int]held{}
		s.slots[t.MailServer] = taken
	}
	busy := map[int]bool{}
	for n, x := range taken {
		free := x.replica == r && x.token < t.Settled && !slices.Contains(t.Held, n)
		if (s.alive(x.replica) || s.Faults.SlotsForever) && !free {
			busy[n] = true
		}
	}
	if len(busy) >= t.Limit {
		return 0, false, nil
	}
	for n := 1; n <= t.Limit; n++ {
		if !busy[n] {
			taken[n] = held{r, t.Token}
			return n, true, nil
		}
	}
	return 0, false, nil
}

// GiveSlot gives a slot back.
func (s *Store) GiveSlot(_ context.Context, r store.ReplicaID, sl store.Slot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slots[sl.MailServer][sl.N] == (held{r, sl.Token}) {
		delete(s.slots[sl.MailServer], sl.N)
	}
	return nil
}

// HoldSlots writes down which slots a replica holds, and returns those that it has lost.
func (s *Store) HoldSlots(_ context.Context, r store.ReplicaID, list []store.Slot, settled int64) (lost []store.Slot, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for server, taken := range s.slots {
		for n, x := range taken {
			mine := slices.ContainsFunc(list, func(sl store.Slot) bool { return sl.MailServer == server && sl.N == n })
			if x.replica == r && x.token < settled && !mine {
				delete(taken, n)
			}
		}
	}
	for _, sl := range list {
		taken := s.slots[sl.MailServer]
		if taken == nil {
			taken = map[int]held{}
			s.slots[sl.MailServer] = taken
		}
		switch x, is := taken[sl.N]; {
		case !is, x.replica != r && !s.alive(x.replica):
			taken[sl.N] = held{r, sl.Token}
		case x.replica != r:
			lost = append(lost, sl)
		}
	}
	return lost, nil
}

// quota is what all replicas together have used of a mail server's limits.
type quota struct {
	tokens   float64
	refilled time.Time
	day      string
	used     int
	shares   map[store.ReplicaID]share
}

// share is what one replica has said last.
type share struct {
	call, granted int64
	held          int
}

// TakeRate takes up to want mails out of a mail server's limits over all replicas, and writes
// down what the replica has used.
func (s *Store) TakeRate(_ context.Context, r store.ReplicaID, server string, use store.RateUse, want, perMinute, perDay int) (granted int, next time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock()
	bucket := max(1, float64(perMinute)/10)
	q := s.quotas[server]
	if q == nil {
		q = &quota{tokens: bucket, refilled: now, day: now.Format(time.DateOnly), shares: map[store.ReplicaID]share{}}
		s.quotas[server] = q
	}
	mine, is := q.shares[r]
	if !is {
		// it was somebody before, or has just begun
		mine = share{granted: use.Used + int64(use.Held), held: use.Held}
		for id := range q.shares {
			if s.replicas[id] == nil {
				delete(q.shares, id)
			}
		}
	}
	if use.Call <= mine.call {
		return 0, time.Time{}, nil
	}
	others := 0
	for id, x := range q.shares {
		if id != r && s.alive(id) {
			others += x.held
		}
	}
	if day := now.Format(time.DateOnly); q.day < day {
		q.day, q.used = day, mine.held+others
	}
	back := int(mine.granted - use.Used - int64(use.Held))
	q.used = max(0, q.used-back)
	granted = max(0, want)
	if perMinute > 0 {
		since := max(0, now.Sub(q.refilled))
		quiet := min(since, max(0, use.Quiet))
		room := func(held int) float64 { return max(0, bucket-float64(held+others)) }
		fill := func(d time.Duration) float64 { return d.Seconds() * float64(perMinute) / 60 }
		q.tokens = max(q.tokens, min(room(mine.held), q.tokens+fill(since-quiet)))
		q.tokens = max(0, min(room(use.Held), q.tokens+fill(quiet)+float64(back)))
		q.refilled = now
		if float64(granted) > q.tokens {
			granted = int(q.tokens)
			next = now.Add(time.Duration((float64(granted+1) - q.tokens) / float64(perMinute) * float64(time.Minute)))
		}
	}
	if left := max(0, perDay-q.used); perDay > 0 && granted > left {
		granted = left
		next = now.Truncate(24 * time.Hour).Add(24 * time.Hour)
	}
	if perMinute > 0 {
		q.tokens -= float64(granted)
	}
	q.used += granted
	kept := use.Held + granted
	q.shares[r] = share{use.Call, use.Used + int64(kept), kept}
	return granted, next, nil
}

// ForgetUploads does nothing: there are none.
func (s *Store) ForgetUploads(context.Context) (uploads, contents int, err error) { return 0, 0, nil }
