package engine

import (
	"context"
	"errors"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
)

// worker sends a drain's mails over one session at a time. Everything but the drain's shared part belongs to its own goroutine, also the Done
// callbacks of the session, which run inside Submit and Flush.
type worker struct {
	d       *drain
	e       *Engine
	session Session
	served  int    // transactions on this session
	pending int    // handed over, outcome not known yet
	again   []*job // to go on with before anything new: next transactions of a large mail, free tries
}

func (w *worker) run(ctx context.Context) {
	defer w.leave()
	for {
		j := w.take()
		if j == nil {
			if w.pending > 0 {
				w.flush(ctx)
				continue
			}
			if j = w.d.jobs.take(true); j == nil {
				return
			}
		}
		if w.e.isStopping() && !j.submitted {
			w.d.release(j)
			continue
		}
		if !w.open(ctx, j) {
			return
		}
		w.submit(ctx, j)
	}
}

// take returns a job that waits, nil if there is none just now.
func (w *worker) take() *job {
	if n := len(w.again); n > 0 {
		j := w.again[n-1]
		w.again = w.again[:n-1]
		return j
	}
	return w.d.jobs.take(false)
}

// open makes sure there is a session for j. When none can be had j goes back, and the drain ends unless another worker has one.
func (w *worker) open(ctx context.Context, j *job) bool {
	if w.session != nil && (w.served >= w.e.mailsPerConnection(w.d.server) || !w.session.Usable()) {
		if w.pending > 0 {
			w.flush(ctx) // may put jobs into again: they wait for their turn
		}
		w.drop()
	}
	if w.session != nil {
		return true
	}
	s, err := w.e.cfg.Dial(ctx, w.d.server)
	if err != nil {
		w.d.jobs.putBack(j)
		w.d.noSession(err)
		return false
	}
	w.session, w.served = s, 0
	w.d.opened()
	return true
}

// drop closes the session.
func (w *worker) drop() {
	if w.session == nil {
		return
	}
	if err := w.session.Close(); err != nil {
		w.e.log.Debug("close session", "mail_server", w.d.server.Name, "error", err)
	}
	w.session = nil
	w.d.mu.Lock()
	w.d.live--
	w.d.mu.Unlock()
}

func (w *worker) leave() {
	w.drop()
	for _, j := range w.again {
		w.d.jobs.putBack(j)
	}
	w.again = nil
	w.d.mu.Lock()
	w.d.workers--
	w.d.mu.Unlock()
}

func (w *worker) flush(ctx context.Context) {
	if err := w.session.Flush(ctx); err != nil {
		w.drop()
	}
}

// submit hands the next transaction of j over.
func (w *worker) submit(ctx context.Context, j *job) {
	if j.raw == nil {
		if err := w.e.load(ctx, j); err != nil {
			// Not the relay's fault and not the mail's: the database is away. Another pass finds it again.
			j.fault = "read the message: " + err.Error()
			w.finish(j)
			return
		}
	}
	positions := append([]int(nil), j.chunk()...)
	to := make([]string, len(positions))
	for i, p := range positions {
		to[i] = j.mail.Recipients[p].Mailbox
	}
	j.submitted = true
	w.pending++
	w.served++
	err := w.session.Submit(ctx, &smtpx.Transaction{
		From: j.mail.From, To: to, Raw: j.raw, UTF8: j.mail.UTF8,
		Gate: func(ctx context.Context) error { return w.e.gate(ctx, j) },
		Done: func(o smtpx.Outcome) { w.pending--; w.outcome(j, positions, o) },
	})
	if err != nil {
		w.drop()
	}
}

// outcome takes the truth about one transaction.
func (w *worker) outcome(j *job, positions []int, o smtpx.Outcome) {
	if j.lost {
		w.e.log.Warn("mail was taken over by another replica before its dot", "mail_id", j.mail.ID)
		w.e.unload(j)
		w.d.jobs.settled()
		return
	}
	next := j.step(positions, o, w.e.cfg.Now())
	if next != stepOver && w.e.isStopping() {
		next = stepOver
	}
	switch next {
	case stepFree:
		w.again = append(w.again, j)
	case stepNext:
		// The next hundred recipients. What is known so far is recorded in the same commit as, or before, the next mark.
		w.d.record(j.progress())
		w.again = append(w.again, j)
	default:
		w.finish(j)
	}
}

// finish settles the mail.
func (w *worker) finish(j *job) {
	s, outcome := j.verdict(w.e.cfg.Now(), w.d.server.Limits, "", false)
	w.d.count(s, outcome)
	w.d.record(s)
	w.e.unload(j)
	w.d.jobs.settled()
}

// opened notes a worker's session.
func (d *drain) opened() {
	d.mu.Lock()
	d.live++
	d.mu.Unlock()
	d.e.rests.opened(d.server.Name)
	d.probing.Do(func() { close(d.probed) })
}

// noSession notes that a worker could not open a session. With others open that only means the relay wants fewer connections; with none it is down.
func (d *drain) noSession(err error) {
	d.mu.Lock()
	down := d.live == 0 && d.fault == nil && !errors.Is(err, context.Canceled)
	if down {
		d.fault = err
	}
	if errors.Is(err, context.Canceled) {
		d.jobs.kill()
	}
	d.mu.Unlock()
	if down {
		d.jobs.kill()
		until := d.e.rests.failed(d.server.Name, d.server.Version, err.Error(), d.e.cfg.Now())
		d.e.log.Error("mail server is down: no session", "mail_server", d.server.Name, "error", err, "next_try", until.Format(time.RFC3339))
	}
	d.probing.Do(func() { close(d.probed) })
}
