package quota

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

const (
	// slice is for how long a process takes in advance out of an allowance that all replicas
	// share; it is never more than a twentieth of the limit.
	slice     = 100 * time.Millisecond
	sliceFrac = 20
	// unused is when what was taken in advance goes back; of an allowance of an hour or a day a
	// sixtieth of that.
	unused = time.Second
	// denied is for how long nobody asks again for what was not there.
	denied = 100 * time.Millisecond
	// storeTime bounds the wait for the database.
	storeTime = 5 * time.Second
)

// want is so much of one allowance.
type want struct {
	name   string // as errors and WhoAmI name it
	whose  string // what tells it from others of the name
	limit  int64
	period time.Duration
	n      int64
	used   int64 // of it what was taken before anybody was asked
}

type meterKey struct{ name, whose string }

// meter is what this process has of an allowance. q.mu guards it.
type meter struct {
	want // of it only what does not change: name, whose, limit, period

	left    int64 // granted and not taken; 0 as soon as it is given back
	slot    int64 // of the grant
	taken   int64 // since the last question; below 0 where more came back
	rest    int64 // what the database had then
	answer  time.Time
	last    time.Time     // when anything was taken or wanted
	told    bool          // used was reported
	nothing time.Time     // until then there is nothing to be had
	next    time.Duration // as the answer had it
	asking  chan struct{} // closed when the answer is there; nil = nobody asks
}

// key is what the database knows an allowance by: a keyed hash, so that it says nothing of
// whose address it is.
func (q *Quota) key(name, whose string) []byte {
	h := hmac.New(sha256.New, q.secret)
	h.Write([]byte(name + "\x00" + whose))
	return h.Sum(nil)[:16]
}

// AddressKeys are what the database knows the budgets of an address by, those of every team
// that this process has seen; the others end within an hour.
func (q *Quota) AddressKeys(mailbox string) (keys [][]byte) {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	suffix := "\x00" + strings.ToLower(mailbox)
	for k := range q.meters {
		if k.name == BudgetAddress && strings.HasSuffix(k.whose, suffix) {
			keys = append(keys, q.key(k.name, k.whose))
		}
	}
	return keys
}

// take takes all that is wanted, or nothing: then short says what was not there and after when
// it may be, 0 = never. It asks the database where a slice is used up; many who want the same
// wait for one answer.
func (q *Quota) take(ctx context.Context, ws []want) (short *want, after time.Duration, err error) {
	for {
		q.mu.Lock()
		now := q.now()
		var asking chan struct{}
		var ms []*meter
		var wanted []*want // of ms
		for i := range ws {
			w := &ws[i]
			m := q.meterOf(w, now)
			switch {
			case m.left >= w.n:
				continue
			case m.asking != nil:
				asking = m.asking
			case now.Before(m.nothing):
				next := m.next - now.Sub(m.answer)
				if m.next == 0 {
					next = 0
				}
				q.mu.Unlock()
				return w, next, nil
			default:
				ms, wanted = append(ms, m), append(wanted, w)
			}
		}
		switch {
		case asking != nil:
			q.mu.Unlock()
			select {
			case <-asking:
			case <-ctx.Done():
				return nil, 0, ctx.Err()
			}
			continue
		case len(ms) == 0:
			for i := range ws {
				m := q.meters[meterKey{ws[i].name, ws[i].whose}]
				m.left -= ws[i].n
				m.taken += ws[i].n
				m.last = now
			}
			q.mu.Unlock()
			return nil, 0, nil
		}
		done := make(chan struct{})
		takes := make([]store.AllowanceTake, len(ms))
		for i, m := range ms {
			takes[i] = q.ask(m, wanted[i], now)
			m.asking = done
		}
		q.mu.Unlock()
		if err := q.asked(ms, takes, done); err != nil {
			return nil, 0, err
		}
	}
}

// meterOf finds or makes what this process knows of an allowance; q.mu is held.
func (q *Quota) meterOf(w *want, now time.Time) *meter {
	k := meterKey{w.name, w.whose}
	m := q.meters[k]
	if m == nil {
		m = &meter{want: *w, answer: now}
		q.meters[k] = m
	}
	m.last = now
	return m
}

// ask is what the database is asked for: what is needed and a slice more. What was not used of
// the last one goes back.
func (q *Quota) ask(m *meter, w *want, now time.Time) store.AllowanceTake {
	taken := m.taken
	t := q.handOver(m)
	t.Need = w.n
	if !m.told {
		t.Used = w.used
	}
	ahead := int64(0)
	if since := now.Sub(m.answer); since > 0 {
		ahead = int64(float64(max(0, taken)) * float64(slice) / float64(max(since, time.Millisecond)))
	}
	if m.told && m.period >= time.Hour { // many addresses get little each
		ahead = max(ahead, m.limit/100)
	}
	t.Want = w.n + min(ahead, m.limit/sliceFrac)
	return t
}

// handOver gives back what is left, in a question to the database. From here on nobody takes
// it, whatever the answer: it may be another's already. q.mu is held.
func (q *Quota) handOver(m *meter) store.AllowanceTake {
	t := store.AllowanceTake{Key: q.key(m.name, m.whose), Limit: m.limit, Period: m.period, Back: m.left, BackSlot: m.slot}
	m.left, m.taken = 0, 0
	return t
}

// keeps is how long what was taken in advance is kept.
func (m *meter) keeps() time.Duration { return max(unused, m.period/60) }

// asked asks the database and keeps the answers. It does so without q.mu, and for everybody who
// waits: so it does not end with one caller's context.
func (q *Quota) asked(ms []*meter, takes []store.AllowanceTake, done chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTime)
	defer cancel()
	gs, err := q.store.TakeAllowances(ctx, takes)
	q.mu.Lock()
	defer q.mu.Unlock()
	defer close(done)
	now := q.now()
	for i, m := range ms {
		m.asking = nil
		if err != nil {
			// whether it was granted is not known; what is too much comes back by itself
			continue
		}
		g := gs[i]
		m.left += g.Granted // to what came back meanwhile
		m.slot, m.rest, m.answer, m.told = g.Slot, g.Left, now, true
		if g.Granted < takes[i].Need {
			m.nothing, m.next = now.Add(denied), g.Next
		}
	}
	return err
}

// back gives back what was taken for a mail that was not accepted, or had been accepted before.
func (q *Quota) back(ws []want) {
	if len(ws) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range ws {
		if m := q.meters[meterKey{w.name, w.whose}]; m != nil {
			m.left += w.n
			m.taken -= w.n
			m.nothing = time.Time{}
		}
	}
}

// giveBack gives back what lies unused, and forgets whose period is over; all: whatever there
// is.
func (q *Quota) giveBack(all bool) error {
	q.mu.Lock()
	now := q.now()
	var ms []*meter
	var takes []store.AllowanceTake
	done := make(chan struct{})
	for k, m := range q.meters {
		switch {
		case m.asking != nil:
		case m.left > 0 && (all || now.Sub(m.answer) >= m.keeps()):
			m.asking = done
			ms = append(ms, m)
			takes = append(takes, q.handOver(m))
		case now.Sub(m.last) > m.period+m.period/store.AllowanceSlots:
			delete(q.meters, k)
		}
	}
	q.mu.Unlock()
	if len(takes) == 0 {
		return nil
	}
	return q.asked(ms, takes, done)
}
