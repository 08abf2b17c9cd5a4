package engine

import (
	"context"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/store"
)

// A daemon-mode mail that is accepted while its mail server is being drained goes to the drain in memory, once it is durable: its row is born owned by this
// replica, and the database is read only for what waited before, for retries and after a crash. Nothing else changes: the mark, the results and the
// rescue are those of any claimed mail.

// place is a reservation in a running drain's queue, made before the commit, so that the drain cannot end meanwhile.
type place struct {
	d      *drain
	weight int64
}

// reserve finds a place for a mail, nil when it has to be claimed like any other: it is not due or held, no drain runs, there is an older backlog in the
// database, the mail server has limits that count claims, or memory is short.
func (e *Engine) reserve(m *store.NewMail) *place {
	if m.RunAt.After(e.now()) || m.Held != "" {
		return nil
	}
	e.drains.mu.Lock()
	d := e.drains.running[m.MailServer]
	e.drains.mu.Unlock()
	weight := m.OwnBytes()
	if d == nil || !d.hungry.Load() || d.limited() || weight > e.handMost || !e.handBytes.TryAcquire(weight) {
		return nil
	}
	if !d.jobs.reserve() {
		e.handBytes.Release(weight)
		return nil
	}
	m.Owner = e.lease.replica()
	return &place{d, weight}
}

// fill puts a durable mail into its place.
func (p *place) fill(m *store.NewMail) {
	d := p.d
	j := newJob(m.Claimed(d.server.HoldUnknown), m.Owner, d.e.now())
	j.handed = p.weight
	d.note(delivery.Counts{Claimed: 1})
	d.jobs.pin() // hiring must not race with the end of the drain
	defer d.jobs.giveUp()
	if !d.jobs.putReserved(j) {
		d.release(j)
		return
	}
	d.staff()
}

// leave gives the place up. A row that was written all the same is rescued by its owner: see Engine.enqueue.
func (p *place) leave() {
	p.d.e.handBytes.Release(p.weight)
	p.d.jobs.giveUp()
}

// enqueue makes a daemon-mode mail durable and hands it to a running drain if there is one.
func (e *Engine) enqueue(ctx context.Context, m *store.NewMail) (store.Enqueued, error) {
	p := e.reserve(m)
	if p == nil {
		res, err := e.journal.Enqueue(ctx, m)
		if err == nil && res.Err == nil && !res.Duplicate {
			e.queued()
		}
		return res, err
	}
	res, err := e.journal.Enqueue(ctx, m)
	switch {
	case err != nil:
		// Whether it was written is not known. If it was, its row is ours and must not stay "sending": finding out is not the caller's business.
		e.work.Add(1)
		go func() { defer e.work.Done(); e.settleUnheard(p, m) }()
	case res.Err != nil || res.Duplicate:
		p.leave()
	default:
		p.fill(m)
	}
	return res, err
}

// settleUnheard finds out whether a mail whose commit was not heard of was written, and goes on with it.
func (e *Engine) settleUnheard(p *place, m *store.NewMail) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		// The same id again writes nothing twice, and tells whether the first try was written.
		res, err := e.journal.Enqueue(e.workCtx, m)
		if err == nil {
			if res.Err == nil && !res.Duplicate {
				p.fill(m)
			} else {
				p.leave()
			}
			return
		}
		select {
		case <-e.workCtx.Done():
			p.leave()
			return // the next replica finds it without a mark and sends it
		case <-time.After(wait):
		}
	}
}
