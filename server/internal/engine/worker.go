package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

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
	s, err := w.d.relay.Connect(ctx, w.permit, w.d.Via, w.d.force)
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
		w.leaveIt(ctx, j)
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
	j.AtMost(w.d.relay.MaxRecipients())
	if s := j.tellsWay(); s != nil {
		w.e.ledger.Record(s, nil)
	}
	positions := j.Next()
	w.pending++
	w.served++
	began := time.Now()
	err := w.session.Submit(ctx, &smtpx.Transaction{
		From: j.Mail.From, To: j.mailboxes(positions), Raw: j.raw, UTF8: j.Mail.UTF8,
		Gate: func(ctx context.Context) error {
			err := w.e.gate(ctx, j)
			if err == nil {
				j.spend(w.d.relay)
				w.e.dotLeaves(j)
			}
			switch {
			case err == nil, ctx.Err() != nil, j.Owner != w.e.lease.Replica():
			case errors.Is(err, lifecycle.ErrLost):
				// this mail alone, or others here as well: see leaveIt
			case w.e.brake.MayTake(j.way) != nil:
				w.d.stop(err)
			default:
				w.d.shut(err)
			}
			return err
		},
		Done: func(o smtpx.Outcome) { w.pending--; w.outcome(ctx, j, positions, began, o) },
	})
	if err != nil {
		w.drop()
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

// outcome takes the truth about one transaction that was begun at a time.
func (w *worker) outcome(ctx context.Context, j *job, positions []int, began time.Time, o smtpx.Outcome) {
	before := j.Left()
	w.e.dotAnswered(j, o)
	o, held := w.d.relay.Judge(ctx, w.d.Via, o)
	if held != nil {
		if w.d.Server.Fallback == "" || w.d.Diverts() { // else it goes on at once
			j.StandBack(held.RetryAt)
		}
		w.d.stop(held)
	}
	next, end := j.After(positions, o, w.e.now()), j.End()
	if end == lifecycle.Lost {
		w.leaveIt(ctx, j)
		return
	}
	if o.Took > 0 {
		w.d.relay.Took(o.Took)
	}
	shown, text := shows(o, j.Left() < before, next)
	if err := w.d.relay.Report(ctx, w.session, w.d.Via, began, shown, text); err != nil {
		w.d.stop(err)
	}
	if shown == relay.Answered || shown == relay.Crowded {
		w.d.hasProbed()
	}
	if next != lifecycle.StepOver && (w.e.work.stopped() || w.d.broken()) {
		next, end = lifecycle.StepOver, lifecycle.Stopped
	}
	switch next {
	case lifecycle.StepFree:
		if j.HasStaleMark() || j.Left() < before {
			// a rescue counts from what is recorded: see leaveUnknown
			w.e.ledger.Record(j.Progress(), nil)
		}
		w.goOn(j)
	case lifecycle.StepNext:
		// The next hundred recipients. What is known so far is recorded in the same commit as,
		// or before, the next mark.
		w.e.ledger.Record(j.Progress(), nil)
		w.goOn(j)
	default:
		w.finish(j, end, "")
	}
}

// goOn sends j again, before anything new. One that has given memory back with its dot asks for
// it anew.
func (w *worker) goOn(j *job) {
	w.e.releaseBody(j)
	w.again = append(w.again, j)
}

// leaveIt leaves a mail to whoever has taken it from this replica. Such mails are seldom one
// alone, and each costs a connection that is cut behind its DATA: what waits is looked through
// before the next.
func (w *worker) leaveIt(ctx context.Context, j *job) {
	w.d.leaveIt(j)
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
		d.jobs.Kill()
	case down:
		d.stop(err)
	}
	d.hasProbed()
}

// shut ends the drain because the database takes no marks, or the lease is late: each further
// mail would cost a connection that is cut behind its DATA.
func (d *drain) shut(err error) {
	if d.stop(err) {
		d.e.log.Error("batch: no mail may leave", "mail_server", d.Server.Name, "error", err)
	}
}

// stop ends the drain because no mail may leave just now, and reports whether it was still
// going. Going on would claim the same mails again at once and without an end. What it holds
// goes back with the reason, and the next pass tries again.
func (d *drain) stop(err error) bool {
	d.mu.Lock()
	first := d.fault == nil
	if first {
		d.fault = err
	}
	d.mu.Unlock()
	if first {
		close(d.ended)
		d.jobs.Kill()
	}
	return first
}

// shows is what a transaction has shown of the mail server.
func shows(o smtpx.Outcome, decided bool, next lifecycle.Step) (relay.Outcome, string) {
	text := ""
	if o.Err != nil {
		text = o.Err.Error()
	}
	switch throttled, server := lifecycle.Throttling(o), lifecycle.RefusesUs(o); {
	case throttled != "" && o.Took == 0 && !o.ServerDown:
		return relay.Throttled, throttled
	case throttled != "" && o.Took == 0:
		return relay.ThrownOut, throttled
	case server != "" && o.DotSent && !decided:
		// a whole body for it: held back, and suspended when it comes again
		return relay.ThrownOut, server
	case decided && !o.ServerDown && lifecycle.Crowded(o):
		return relay.Crowded, ""
	case decided && !o.ServerDown:
		return relay.Answered, ""
	case !o.ServerDown || o.DotSent:
		return relay.Nothing, ""
	case next == lifecycle.StepFree:
		return relay.Interrupted, text
	}
	return relay.Lost, text
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
		w.abandon()
		if !j.over {
			w.quarantine(j, p)
		}
	}()
	w.submit(ctx, j)
}

// abandon closes a session whose state is not known any more.
func (w *worker) abandon() {
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
