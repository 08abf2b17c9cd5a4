package engine

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
)

// pass is one call of RunBatch that waits. It counts what becomes of every mail that was due
// when it was asked and that this process settles: whichever drain claimed it, before or
// afterwards, and also what was handed over in memory. A mail that comes due later belongs to
// the next pass.
type pass struct {
	server string    // "" = every mail server
	asked  time.Time // by the clock that says what is due

	mu  sync.Mutex
	sum delivery.Counts
	// given back untouched: they count anew when they are claimed again
	released map[uuid.UUID]bool
}

// passes are the calls that wait. A drain tells them of every result that is durable.
type passes struct {
	waiting atomic.Int32 // how many are open, so that nobody pays for them when there is none
	mu      sync.Mutex
	open    map[*pass]bool
}

func (ps *passes) begin(server string, now time.Time) *pass {
	p := &pass{server: server, asked: now, released: map[uuid.UUID]bool{}}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.open == nil {
		ps.open = map[*pass]bool{}
	}
	ps.open[p] = true
	ps.waiting.Add(1)
	return p
}

// end returns what the pass has counted.
func (ps *passes) end(p *pass) delivery.Counts {
	ps.mu.Lock()
	delete(ps.open, p)
	ps.waiting.Add(-1)
	ps.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sum
}

// settled tells the passes that what became of a job is durable.
func (ps *passes) settled(j *job, v lifecycle.Verdict) {
	if ps.waiting.Load() == 0 {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for p := range ps.open {
		p.count(j, v)
	}
}

func (p *pass) count(j *job, v lifecycle.Verdict) {
	m := j.Mail
	if p.server != "" && p.server != m.MailServer || m.RunAt.After(p.asked) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := counts(v)
	c.Claimed = 1
	if p.released[m.ID] {
		p.sum.Claimed--
		p.sum.Released--
	}
	p.sum.Add(c)
	p.released[m.ID] = c.Released > 0
	if c.Released == 0 {
		delete(p.released, m.ID)
	}
}

// await waits until everything that was due at the drain's mail server when it is called is
// settled, and that is durable. What comes in meanwhile belongs to the next pass: under a
// steady load a drain may never end.
func (d *drain) await(ctx context.Context) error {
	var settled <-chan struct{}
	for claimed := d.allDue(); ; {
		select {
		case settled = <-claimed:
			claimed = nil
		case <-settled:
			return nil
		case <-d.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// counts is a verdict as a pass counts it.
func counts(v lifecycle.Verdict) delivery.Counts {
	if v.End == lifecycle.Expire {
		return delivery.Counts{Expired: 1}
	}
	switch v.Outcome {
	case lifecycle.Sent:
		return delivery.Counts{Sent: 1}
	case lifecycle.Partial:
		return delivery.Counts{Partial: 1}
	case lifecycle.Deferred:
		return delivery.Counts{Deferred: 1}
	case lifecycle.Unknown:
		return delivery.Counts{Unknown: 1}
	case lifecycle.ServerFault:
		return delivery.Counts{Released: 1}
	}
	return delivery.Counts{Failed: 1}
}
