package engine

import (
	"context"
	"errors"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/brake"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/store"
)

// A daemon-mode mail that is accepted while its mail server is being drained goes to the drain
// in memory, once it is durable: its row is born owned by this replica, and the database is
// read only for what waited before, for retries and after a crash. Nothing else changes: the
// mark, the results and the rescue are those of any claimed mail.

// reservation is a promise to a running drain, made before the commit, so that the drain cannot
// end meanwhile.
type reservation struct {
	d      *drain
	weight int64
}

// reserve promises a mail to a drain, nil when it has to be claimed like any other: it is not
// due or held, no drain runs, there is an older backlog in the database, the mail server has
// limits that count claims, or memory is short.
func (e *Engine) reserve(m *store.NewMail) *reservation {
	if m.RunAt.After(e.now()) || m.Held != "" {
		return nil
	}
	d := e.drains.of(m.MailServer)
	if d == nil || d.limited() || m.ServerVersion != 0 && m.ServerVersion != d.Server.Version {
		return nil
	}
	weight := m.OwnBytes()
	if e.direct.TryAcquire(weight) {
		if d.jobs.Reserve(m.Priority) {
			m.Owner = e.lease.Replica()
			e.ledger.Take(m.ID, store.BornClaim)
			return &reservation{d, weight}
		}
		e.direct.Release(weight)
	}
	return nil
}

// fill hands a durable mail over.
func (p *reservation) fill(m *store.NewMail) {
	d := p.d
	j := newJob(m.Claimed(d.Server.HoldUnknown), m.Owner, d.e.now())
	j.direct = p.weight
	j.take(d.Way, "", d.e.now())
	d.note(delivery.Counts{Claimed: 1})
	d.direct.Add(1)
	if !d.jobs.Fill(j) {
		d.release(j)
	}
	d.wakeScale()
}

// leave takes the promise back. A row that was written all the same is rescued by its owner:
// see Engine.Queue.
func (p *reservation) leave() {
	p.d.e.direct.Release(p.weight)
	p.d.jobs.GiveUp()
}

// Queue makes mails durable, up to 500 in one commit, and hands those that are due to the
// drains that run; with all in one transaction or none of them, to be claimed. The answers are
// store.EnqueueBatch's or store.EnqueueAll's. Mails of a php-mode server are queued as well and
// sent by the batch.
func (e *Engine) Queue(ctx context.Context, ms []*store.NewMail, all bool) ([]store.Enqueued, error) {
	if !e.begin() {
		return nil, ErrStopping
	}
	defer e.work.done()
	if !all {
		if len(ms) == 0 {
			return nil, nil
		}
		if d := e.drains.of(ms[0].MailServer); d != nil {
			d.pace(ctx, len(ms))
		}
		return e.enqueueAll(ctx, ms, func(ctx context.Context) ([]store.Enqueued, error) { return e.journal.EnqueueBatch(ctx, ms) })
	}
	// Never owned: if the commit is not heard of, nobody has to write them once more to find
	// out.
	res, err := e.journal.EnqueueAll(ctx, ms)
	if err == nil {
		e.fillDirect(ms, make([]*reservation, len(ms)), res)
	}
	return res, err
}

// enqueue makes a daemon-mode mail durable and hands it to a running drain if there is one.
func (e *Engine) enqueue(ctx context.Context, m *store.NewMail) (store.Enqueued, error) {
	res, err := e.enqueueAll(ctx, []*store.NewMail{m}, func(ctx context.Context) ([]store.Enqueued, error) {
		r, err := e.journal.Enqueue(ctx, m)
		return []store.Enqueued{r}, err
	})
	if len(res) == 0 {
		return store.Enqueued{ID: m.ID}, err
	}
	return res[0], err
}

func (e *Engine) enqueueAll(ctx context.Context, ms []*store.NewMail, write func(context.Context) ([]store.Enqueued, error)) ([]store.Enqueued, error) {
	reserved := make([]*reservation, len(ms))
	for i, m := range ms {
		reserved[i] = e.reserve(m)
	}
	res, err := write(ctx)
	if errors.Is(err, store.ErrUnwritten) {
		// Its callers hear so, and nothing writes them behind their back.
		for i, p := range reserved {
			if p != nil {
				e.ledger.Let(ms[i].ID, store.BornClaim)
				p.leave()
			}
		}
		return res, err
	}
	if err != nil {
		// Whether they were written is not known. A row of ours must not stay "sending":
		// finding out is not the caller's business.
		var open []*store.NewMail
		var theirs []*reservation
		for i, p := range reserved {
			if p != nil {
				open, theirs = append(open, ms[i]), append(theirs, p)
			}
		}
		if len(open) > 0 {
			e.work.concurrently(func() { e.settleUnheard(open, theirs) })
		}
		return res, err
	}
	e.fillDirect(ms, reserved, res)
	return res, nil
}

// fillDirect hands over what is durable and was promised, and sees to it that the rest is
// found.
func (e *Engine) fillDirect(ms []*store.NewMail, reserved []*reservation, res []store.Enqueued) {
	// the most urgent of those that wait
	waiting := map[string]int16{}
	for i, p := range reserved {
		stored := res[i].Err == nil && !res[i].Duplicate
		switch {
		case p == nil && stored:
			waiting[ms[i].MailServer] = max(waiting[ms[i].MailServer], ms[i].Priority)
		case p == nil:
		case stored:
			p.fill(ms[i])
		default:
			e.ledger.Let(ms[i].ID, store.BornClaim)
			p.leave()
		}
	}
	for name, priority := range waiting {
		if d := e.drains.of(name); d == nil || !d.jobs.Ask(d.overtakenBy(priority)) {
			e.queued()
		}
	}
}

// settleUnheard finds out whether mails whose commit was not heard of were written, and goes on
// with them.
func (e *Engine) settleUnheard(ms []*store.NewMail, reserved []*reservation) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		// The same ids again write nothing twice, and tell whether the first try was written.
		res, err := e.journal.EnqueueBatch(e.workCtx, ms)
		if err == nil {
			e.fillDirect(ms, reserved, res)
			return
		}
		select {
		case <-e.workCtx.Done():
			for _, p := range reserved {
				p.leave()
			}
			return // the next replica finds them without a mark and sends them
		case <-time.After(wait):
		}
	}
}

// of is the mail server's drain that sends through itself, nil when none runs that knows its
// configuration. What a fallback may take is known only of mail that was claimed.
func (ds *drains) of(server string) *drain {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if d := ds.running[brake.Key{Server: server, Via: server}]; d != nil && !d.stale && !d.Probe {
		return d
	}
	return nil
}
