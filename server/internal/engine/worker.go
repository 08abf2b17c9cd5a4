package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/smtpx"
)

// worker sends a drain's mails over one session at a time. Everything but the drain's shared
// part belongs to its own goroutine, also the Done callbacks of the session, which run inside
// Submit and Flush.
type worker struct {
	d       *drain
	e       *Engine
	permit  *relay.Permit
	session Session
	served  int // transactions on this session
	pending int // handed over, outcome not known yet
	// to go on with before anything new: next transactions of a large mail, free tries
	again []*job
}

func (w *worker) run(ctx context.Context) {
	defer w.leave()
	for {
		j, any := w.take()
		if !any {
			if w.pending > 0 {
				w.flush(ctx)
				continue
			}
			if j, any = w.d.jobs.Await(w.d.idleFor()); !any {
				return
			}
		}
		if w.e.work.stopped() || w.d.broken() {
			if j.HasBegun() {
				w.finish(j, lifecycle.Stopped, "") // what is decided counts
			} else {
				w.d.release(j)
			}
			continue
		}
		w.e.followJob(j)
		if !w.open(ctx, j) {
			return
		}
		w.e.Yield(ctx)
		w.guarded(ctx, j)
		if w.d.relay.Surplus(w.permit) {
			w.flush(ctx)
			return
		}
	}
}

// take returns a job that waits, false if there is none just now.
func (w *worker) take() (*job, bool) {
	if n := len(w.again); n > 0 {
		j := w.again[n-1]
		w.again = w.again[:n-1]
		return j, true
	}
	return w.d.jobs.Take()
}

// open makes sure there is a session for j. When none can be had j goes back, and the drain
// ends unless another worker has one.
func (w *worker) open(ctx context.Context, j *job) bool {
	if w.session != nil && (w.served >= w.e.relays.MailsPerConnection(w.d.Via) || !w.session.Usable()) {
		if w.pending > 0 {
			w.flush(ctx) // may put jobs into again: they wait for their turn
		}
		w.drop()
	}
	if w.session != nil {
		return true
	}
	s, err := w.d.relay.Connect(j.span.opening(ctx), w.permit, w.d.Via, w.d.force)
	if err != nil {
		w.e.releaseBody(j)
		w.d.jobs.PutBack(j)
		w.d.noSession(err)
		return false
	}
	w.session, w.served = s, 0
	if !w.d.relay.Probing(s) {
		w.d.hasProbed()
	}
	return true
}

// drop closes the session.
func (w *worker) drop() {
	if w.session == nil {
		return
	}
	s := w.session
	w.session = nil
	w.d.relay.CloseSession(s)
}

func (w *worker) leave() {
	w.drop()
	for _, j := range w.again {
		w.e.releaseBody(j)
		w.d.jobs.PutBack(j)
	}
	w.again = nil
	w.d.relay.Release(w.permit)
	w.d.removeWorker()
}

func (w *worker) flush(ctx context.Context) {
	if w.session == nil {
		return
	}
	if err := w.session.Flush(ctx); err != nil {
		w.drop()
	}
}

// submit hands the next transaction of j over.
func (w *worker) submit(ctx context.Context, j *job) {
	if j.raw == nil && (w.pending > 0 || len(w.again) > 0) && !w.e.tryReserve(j) {
		// Whoever waits for room holds none: all workers might wait for each other. What this
		// one holds goes first.
		w.flush(ctx)
		w.d.jobs.PutBack(j)
		return
	}
	if j.Alone() {
		w.flush(ctx)
		if w.session == nil {
			w.again = append(w.again, j)
			return
		}
		select {
		case w.d.isolate <- true:
		case <-ctx.Done():
			w.finish(j, lifecycle.Stopped, "")
			return
		}
		defer func() { <-w.d.isolate }()
		defer w.flush(ctx)
	}
	switch err := w.e.beginSuspect(ctx, j); {
	case errors.Is(err, lifecycle.ErrLost):
		w.lost(ctx, j)
		return
	case err != nil:
		w.finish(j, lifecycle.Unreadable, "record that it is being sent: "+err.Error())
		return
	}
	if j.raw == nil {
		poison, err := w.load(ctx, j)
		if poison != nil {
			w.quarantine(j, poison)
			return
		}
		if err != nil {
			// Not the relay's fault and most often not the mail's: the database is away. It
			// comes again in a little.
			w.finish(j, lifecycle.Unreadable, "read the message: "+err.Error())
			return
		}
	}
	w.pending++
	w.served++
	passed := func(gate error) error { w.passed(ctx, j, gate); return gate }
	if err := w.e.transact(ctx, w.d.relay, w.session, j, passed, func(t transacted) { w.outcome(ctx, j, t) }); err != nil {
		w.drop()
	}
}

// passed hears what the gate says about a mail. Where it refuses not this mail alone, the drain
// ends.
func (w *worker) passed(ctx context.Context, j *job, gate error) {
	switch {
	case gate == nil, ctx.Err() != nil, j.Owner != w.e.lease.Replica():
	case errors.Is(gate, lifecycle.ErrLost):
		// this mail alone, or others here as well: see lost
	case w.e.brake.MayTake(j.way) != nil:
		w.d.abort(gate)
	default:
		w.d.abortLogged(gate)
	}
}

// load brings the message in; a mail that makes that panic leaves the session and the mails on
// it alone.
func (w *worker) load(ctx context.Context, j *job) (poison any, err error) {
	defer func() {
		if poison = recover(); poison != nil {
			w.e.log.Error("panic while reading a mail: quarantined", "mail_id", j.Mail.ID, "panic", poison, "stack", string(debug.Stack()))
		}
	}()
	return nil, w.e.load(ctx, j)
}

// outcome takes what came of a transaction.
func (w *worker) outcome(ctx context.Context, j *job, t transacted) {
	w.pending--
	if t.suspended != nil {
		w.d.abort(t.suspended)
	}
	if t.shown == relay.Answered || t.shown == relay.Crowded {
		w.d.hasProbed()
	}
	switch {
	case t.end == lifecycle.Lost:
		w.lost(ctx, j)
	case t.next == lifecycle.StepOver:
		w.finish(j, t.end, "")
	case w.e.work.stopped() || w.d.broken():
		w.finish(j, lifecycle.Stopped, "")
	default:
		if s := t.recorded(j); s != nil {
			w.e.ledger.Record(s, nil)
		}
		w.goOn(j)
	}
}

// goOn sends j again, before anything new. One that has given memory back with its dot asks for
// it anew.
func (w *worker) goOn(j *job) {
	w.e.releaseBody(j)
	w.again = append(w.again, j)
}

// lost leaves a mail to whoever has taken it from this replica. Such mails are seldom one
// alone, and each costs a connection that is cut behind its DATA: what waits is looked through
// before the next.
func (w *worker) lost(ctx context.Context, j *job) {
	w.d.lost(j)
	w.e.lookThrough(ctx)
}

// finish settles a mail whose attempt has ended.
func (w *worker) finish(j *job, end lifecycle.End, why string) { w.d.finish(j, end, why) }

// noSession notes that a worker could not open a session. With others open that only means the
// relay wants fewer connections; with none it is down.
func (d *drain) noSession(err error) {
	var suspended *relay.SuspendedError
	down := d.relay.Down() || errors.As(err, &suspended)
	stopped := errors.Is(err, context.Canceled)
	switch {
	case stopped:
		d.jobs.Abort()
	case down:
		d.abort(err)
	}
	d.hasProbed()
}

// abortLogged ends the drain because the database takes no marks, or the lease is late: each
// further mail would cost a connection that is cut behind its DATA.
func (d *drain) abortLogged(err error) {
	if d.abort(err) {
		d.e.log.Error("batch: no mail may leave", "mail_server", d.Server.Name, "error", err)
	}
}

// abort ends the drain because no mail may leave now, and reports whether it was still
// going. Going on would claim the same mails again at once and without an end. What it holds
// goes back with the reason, and the next pass tries again.
func (d *drain) abort(err error) bool {
	d.mu.Lock()
	first := d.fault == nil
	if first {
		d.fault = err
	}
	d.mu.Unlock()
	if first {
		close(d.ended)
		d.jobs.Abort()
	}
	return first
}

// guarded submits, and survives what a single mail may do to the process: such a mail is put
// aside and the rest flows.
func (w *worker) guarded(ctx context.Context, j *job) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		w.e.log.Error("panic while sending a mail: quarantined", "mail_id", j.Mail.ID, "panic", p, "stack", string(debug.Stack()))
		w.dropBroken()
		if !j.over {
			w.quarantine(j, p)
		}
	}()
	w.submit(ctx, j)
}

// dropBroken closes a session whose state is not known any more.
func (w *worker) dropBroken() {
	defer func() {
		if p := recover(); p != nil {
			w.e.log.Error("panic while closing a session", "panic", p)
		}
	}()
	w.drop()
}

// quarantine puts a mail aside that made the service panic.
func (w *worker) quarantine(j *job, p any) { w.finish(j, lifecycle.Panicked, panicText(p)) }

func panicText(p any) string {
	return "quarantined: the service panicked while it sent this mail: " + smtpx.Clean(fmt.Sprint(p), 200)
}
