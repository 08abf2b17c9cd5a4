package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/lease"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// transacted is what came of a transaction.
type transacted struct {
	next      lifecycle.Step
	end       lifecycle.End // how the attempt ended, if next is StepOver
	positions []int         // the recipients that it was for
	decided   bool          // something was decided about the mail
	shown     relay.Outcome // what it says about the mail server
	suspended error         // why the mail server is suspended by it, nil if it is not
}

// recorded is what has to be on record before the mail goes on, nil if nothing has: the next
// mark is made in the same commit or a later one, and a rescue counts from what is recorded.
func (t transacted) recorded(j *job) *store.Settlement {
	if t.next == lifecycle.StepNext || t.next == lifecycle.StepFree && (t.decided || j.HasStaleMark()) {
		return j.Progress()
	}
	return nil
}

// transact hands the next transaction of a job over to a session with a relay, in php mode and
// in the batch. passed hears what the gate says, and what it returns is why the dot does not
// leave. over hears what came of it; without that the session took nothing.
func (e *Engine) transact(ctx context.Context, r *relay.Relay, session Session, j *job, passed func(gate error) error, over func(transacted)) error {
	j.AtMost(r.MaxRecipients())
	if way := j.tellsWay(); way != nil {
		e.ledger.Record(way, nil)
	}
	positions, began := j.Next(), time.Now()
	return session.Submit(ctx, &smtpx.Transaction{
		From: j.Mail.From, To: j.mailboxes(positions), Raw: j.raw, UTF8: j.Mail.UTF8, Trace: j.span.trace,
		Gate: func(ctx context.Context) error {
			err := passed(e.gate(ctx, j))
			if err == nil {
				j.spend(r)
				e.dotLeaves(j)
			}
			return err
		},
		Done: func(o smtpx.Outcome) { over(e.fold(ctx, r, session, j, positions, began, o)) },
	})
}

// fold takes the truth about a transaction that was begun at a time: for the mail, and for the
// mail server.
func (e *Engine) fold(ctx context.Context, r *relay.Relay, session Session, j *job, positions []int, began time.Time, o smtpx.Outcome) transacted {
	before := j.Left()
	t := transacted{positions: positions}
	e.dotAnswered(j, o)
	o, held := r.Judge(ctx, j.way.Via, o)
	if held != nil {
		t.suspended = held
		if j.standsBack() {
			j.StandBack(held.RetryAt)
		}
	}
	t.next, t.end = j.After(positions, o, e.now()), j.End()
	t.decided = j.Left() < before
	if t.end == lifecycle.Lost {
		return t // it was cut by us, and says nothing of the relay
	}
	if o.Took > 0 {
		r.Took(o.Took)
	}
	shown, text := shows(o, t.decided, t.next)
	t.shown = shown
	if err := r.Report(ctx, session, j.way.Via, began, shown, text); err != nil && t.suspended == nil {
		t.suspended = err
	}
	return t
}

// mailboxes are the addresses at the positions.
func (j *job) mailboxes(positions []int) []string {
	to := make([]string, len(positions))
	for i, p := range positions {
		to[i] = j.Mail.Recipients[p].Mailbox
	}
	return to
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

// errMarkLate: the database has not taken a mark for as long as a lease is fresh. The store
// goes on trying; what is handed over behind the mark undoes it.
var errMarkLate = errors.New("mark before the dot: the database does not take it")

// gate is the dot gate for a job: a durable mark by this replica under a fresh lease, or no
// dot.
func (e *Engine) gate(ctx context.Context, j *job) error {
	if !e.lease.Held(j.Owner) {
		return lease.ErrLost
	}
	if !gated {
		return e.brake.MayTake(j.way)
	}
	late := time.NewTimer(lease.Fresh)
	defer late.Stop()
	for {
		// Waited for before the mark: while a dot waits behind its mark others may take the
		// mail.
		if err := e.brake.Await(ctx, j.way); err != nil {
			return err
		}
		select {
		case a := <-e.journal.Settle(j.Mark()):
			if a.Err != nil {
				return fmt.Errorf("mark before the dot: %w", a.Err)
			}
			if !a.Mine {
				return lifecycle.ErrLost
			}
			j.DotMayLeave()
		case <-late.C:
			return errMarkLate
		case <-ctx.Done():
			return ctx.Err()
		}
		fresh, _, err := e.brake.MayStillTake(j.way)
		if err != nil {
			return err
		}
		if fresh {
			break // else the mark took long: a new reading, and a new mark
		}
	}
	if !e.lease.Held(j.Owner) {
		return lease.ErrLost
	}
	j.dotAt = time.Now()
	return nil
}

// beginSuspect records that this owner is about to handle a mail whose owner died before.
// lifecycle.ErrLost: the mail is not this replica's any more.
func (e *Engine) beginSuspect(ctx context.Context, j *job) error {
	s := j.BeginSuspect()
	if s == nil || j.begun {
		return nil
	}
	late := time.NewTimer(lease.Fresh)
	defer late.Stop()
	select {
	case a := <-e.journal.Settle(s):
		if a.Err == nil && !a.Mine {
			return lifecycle.ErrLost
		}
		j.begun = a.Err == nil
		return a.Err
	case <-late.C:
		return errMarkLate
	case <-ctx.Done():
		return ctx.Err()
	}
}
