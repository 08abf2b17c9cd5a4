package simulation

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest/memory"
)

// Options of a run.
type Options struct {
	Trace bool  // keep the released operations as text, and what the engines log
	Plant Plant // a fault on purpose
}

// Result is what a run has shown.
type Result struct {
	Seed   uint64
	Faults []string // what is not as promised; empty = all well
	Hash   uint64   // over every released operation, its fate and its time
	Steps  int
	Trace  []string
	Counts Counts
}

// Counts say that a run was about something.
type Counts struct {
	Mails, Dots, Delivered, Diverted, Twice, Unknown, Crashes, Lost, Stops, Quarantined, Operations int
}

// Add sums up.
func (c *Counts) Add(d Counts) {
	c.Mails += d.Mails
	c.Dots += d.Dots
	c.Delivered += d.Delivered
	c.Diverted += d.Diverted
	c.Twice += d.Twice
	c.Unknown += d.Unknown
	c.Crashes += d.Crashes
	c.Lost += d.Lost
	c.Stops += d.Stops
	c.Quarantined += d.Quarantined
	c.Operations += d.Operations
}

// fate is what becomes of a released store call.
type fate int

const (
	fateDone   fate = iota // done and answered
	fateFailed             // nothing was written, and the caller is told so
	fateLost               // written; the caller hears of a broken connection
)

func (f fate) String() string { return [...]string{"", " failed", " lost"}[f] }

// op is one operation that waits to be released: a call of the store, a packet, a dial.
type op struct {
	key   string
	who   *replica // whose it is, nil = nobody's
	due   time.Time
	order int  // of arrival; decides between equal keys
	local bool // ends with whoever asked for it: never carried out behind the caller's back
	calm  bool // never fails: its failing means nothing that another's does not

	exec  func(f fate) fate // carries it out in the driver, and may turn the fate into another
	reply func(f fate)      // tells whoever waits; nil = nobody does any more
}

// world is one simulated company: a database, replicas, relays and people. The driver's
// goroutine owns everything in it but fresh; the engines' goroutines reach it through park
// alone.
type world struct {
	seed  uint64
	rng   *rand.Rand
	opt   Options
	prof  profile
	db    *memory.Store
	begin time.Time
	log   *slog.Logger

	mu    sync.Mutex // guards fresh and order
	fresh []*op      // parked since the driver last looked
	order int
	wake  chan struct{} // holds a value when fresh is not empty

	ops      []*op
	replicas []*replica
	old      []*replica // runs before
	interval time.Duration
	ahead    time.Duration // the database's clock
	relays   []*relay
	servers  []string
	fallback string // the mail server that others have as theirs; "" = none have
	conns    int
	plan     []event
	planned  int
	calm     bool // no more faults

	luck   *luck
	hash   uint64
	steps  int
	trace  []string
	faults []string
	counts Counts
	truth  *truth
	people *people

	operations *operations
}

type event struct {
	at   time.Time
	n    int
	name string
	do   func()
}

// profile is which faults this seed has, and how often. Each seed leaves some out, so that they
// do not hide each other.
type profile struct {
	fail, lost, slow, silent float64 // of a store call
	cut, late                float64 // of a packet
	settleFail               float64
	relay                    float64 // how unruly relays are
	crash, freeze, stop      float64 // events a minute
	people                   float64
	config                   float64
	clock                    float64
	length                   time.Duration
}

func (w *world) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

func (w *world) newProfile() profile {
	some := func(p, most float64) float64 {
		if !w.chance(p) {
			return 0
		}
		return most * (0.1 + 0.9*w.rng.Float64())
	}
	return profile{
		fail: some(0.6, 0.08), lost: some(0.7, 0.15), slow: some(0.7, 0.3), silent: some(0.5, 0.02), settleFail: some(0.5, 0.15),
		cut: some(0.6, 0.02), late: some(0.6, 0.1), relay: some(0.85, 1),
		crash: some(0.6, 1.5), freeze: some(0.4, 1), stop: some(0.5, 1.2), people: some(0.7, 6), config: some(0.6, 2), clock: some(0.25, 2),
		length: 90*time.Second + time.Duration(w.rng.Int64N(int64(150*time.Second))),
	}
}

// park hands an operation to the driver.
func (w *world) park(o *op) {
	w.mu.Lock()
	w.order++
	o.order = w.order
	w.fresh = append(w.fresh, o)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// latency of an operation that has just arrived.
func (w *world) latency(o *op) time.Duration {
	if w.calm {
		return time.Duration(w.rng.IntN(3)) * time.Millisecond
	}
	switch x := w.rng.Float64(); {
	case o.who != nil && x < w.prof.silent:
		return time.Second + time.Duration(w.rng.Int64N(int64(11*time.Second)))
	case x < w.prof.silent+w.prof.slow:
		return time.Duration(w.rng.Int64N(int64(2 * time.Second)))
	case x > 0.6:
		return time.Duration(w.rng.Int64N(int64(20 * time.Millisecond)))
	}
	return 0
}

// admit takes over what has been parked, in an order that does not depend on the machine.
func (w *world) admit() {
	w.mu.Lock()
	fresh := w.fresh
	w.fresh = nil
	w.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	slices.SortFunc(fresh, func(a, b *op) int { return cmp.Or(strings.Compare(a.key, b.key), cmp.Compare(a.order, b.order)) })
	now := time.Now()
	for _, o := range fresh {
		o.due = now.Add(w.latency(o))
	}
	w.ops = append(w.ops, fresh...)
}

// after plans an event.
func (w *world) after(d time.Duration, name string, do func()) {
	w.planned++
	w.plan = append(w.plan, event{time.Now().Add(d), w.planned, name, do})
}

// run drives the world until t, or until over says that it is enough.
func (w *world) run(t time.Time, over func() bool) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		synctest.Wait()
		w.admit()
		now := time.Now()
		if !now.Before(t) || over != nil && over() {
			return
		}
		next := t
		best := -1
		for i, e := range w.plan {
			if best < 0 || e.at.Before(w.plan[best].at) || e.at.Equal(w.plan[best].at) && e.n < w.plan[best].n {
				best = i
			}
		}
		if best >= 0 {
			e := w.plan[best]
			if !e.at.After(now) {
				w.plan = slices.Delete(w.plan, best, best+1)
				w.note(e.name, 0)
				e.do()
				continue
			}
			if e.at.Before(next) {
				next = e.at
			}
		}
		var ready []int
		for i, o := range w.ops {
			at := o.due
			if o.who != nil && o.who.frozen.After(at) {
				at = o.who.frozen
			}
			if !at.After(now) {
				ready = append(ready, i)
			} else if at.Before(next) {
				next = at
			}
		}
		if len(ready) > 0 {
			i := ready[0]
			if len(ready) > 1 {
				i = ready[w.rng.IntN(len(ready))]
			}
			o := w.ops[i]
			w.ops = slices.Delete(w.ops, i, i+1)
			w.release(o)
			continue
		}
		timer.Reset(next.Sub(now))
		select {
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// release carries an operation out.
func (w *world) release(o *op) {
	f := fateDone
	if !w.calm && !o.calm {
		switch x := w.rng.Float64(); {
		case x < w.prof.fail:
			f = fateFailed
		case x < w.prof.fail+w.prof.lost && !o.local:
			f = fateLost
		}
	}
	w.mu.Lock()
	exec := o.exec
	w.mu.Unlock()
	f = exec(f)
	w.note(o.key, f)
	if f == fateLost {
		w.counts.Lost++
	}
	w.mu.Lock()
	reply := o.reply
	w.mu.Unlock()
	if reply != nil {
		reply(f)
	}
}

// note adds to the trace.
func (w *world) note(what string, f fate) {
	w.steps++
	h := fnv.New64a()
	var b [24]byte
	binary.LittleEndian.PutUint64(b[:], w.hash)
	binary.LittleEndian.PutUint64(b[8:], uint64(time.Since(w.begin)))
	b[16] = byte(f)
	_, _ = h.Write(b[:]) // never fails
	_, _ = h.Write([]byte(what))
	w.hash = h.Sum64()
	w.luck.renew(w.hash)
	if w.opt.Trace {
		w.tell("%s%v", what, f)
	}
}

// tell adds a line for people, which the hash does not count.
func (w *world) tell(format string, args ...any) {
	if w.opt.Trace {
		w.mu.Lock()
		w.trace = append(w.trace, fmt.Sprintf("%10.6f  ", time.Since(w.begin).Seconds())+fmt.Sprintf(format, args...))
		w.mu.Unlock()
	}
}

// wrong notes that a promise is broken.
func (w *world) wrong(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.tell("WRONG: %s", text)
	if len(w.faults) < 20 {
		w.faults = append(w.faults, text)
	}
}

var errBroken = fmt.Errorf("%w: simulated", store.ErrUnavailable)

var errGone = errors.New("this replica is gone")
