package engine

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/brake"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/server/internal/live"
	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// liveSend delivers one php-mode mail on a goroutine of its own, which owns the job.
type liveSend struct {
	*live.Send
	e   *Engine
	sub *delivery.Submission
}

func newLiveSend(e *Engine, sub *delivery.Submission) *liveSend {
	return &liveSend{Send: live.New(sub.Mail, e.now, e.workCtx.Done()), e: e, sub: sub}
}

// run delivers the mail.
func (s *liveSend) run() {
	defer s.e.live.Remove(s.Send)
	ctx, cut := context.WithCancel(s.e.workCtx)
	defer cut()
	s.Begin(cut)
	j := s.job()
	s.e.followJob(j)
	if err := s.e.load(ctx, j); err != nil {
		s.finish(j, lifecycle.Unreadable, "read the message: "+err.Error())
		return
	}
	end, why := s.guarded(ctx, j)
	s.finish(j, end, why)
}

// job is the mail as a job: its caller waits.
func (s *liveSend) job() *job {
	m := s.Mail
	j := newJob(m.Claimed(s.sub.Server.HoldUnknown), m.Owner, s.e.now())
	j.Interactive = true
	return j
}

// guarded delivers, and survives what a single mail may do to the process. It returns how the
// attempt ended and what more there is to say about it.
func (s *liveSend) guarded(ctx context.Context, j *job) (end lifecycle.End, why string) {
	defer func() {
		if p := recover(); p != nil {
			s.e.log.Error("panic while sending a mail: quarantined", "mail_id", j.Mail.ID, "panic", p, "stack", string(debug.Stack()))
			end, why = lifecycle.Panicked, panicText(p)
		}
	}()
	return s.deliver(ctx, j)
}

// rateWait is how long a php-mode mail waits for its mail server's limit per minute; a caller
// is better told than kept longer.
const rateWait = 10 * time.Second

// takeRate takes one mail out of the mail server's limits. It says why there is none to be had
// in time.
func (s *liveSend) takeRate(ctx context.Context, r *relay.Relay, j *job) (why string) {
	for relay.Limited(j.way.Via) && j.charge == unpaid {
		n, next, err := r.TakeRate(ctx, j.way.Via, 1)
		wait := next.Sub(s.e.now())
		switch {
		case err != nil:
			return "read the mail server's limits: " + err.Error()
		case n > 0:
			j.charge = reserved
			return ""
		case wait > rateWait:
			return "the mail server's limit is reached; the next mail may leave at " + next.UTC().Format(time.RFC3339)
		}
		select {
		case <-time.After(max(wait, 5*time.Millisecond)):
		case <-ctx.Done():
			return "the mail server's limit was reached until the caller's time ran out"
		}
	}
	return ""
}

// deliver runs the attempt's transactions until every recipient is decided or the attempt is
// over.
func (s *liveSend) deliver(ctx context.Context, j *job) (end lifecycle.End, why string) {
	w, err := s.e.takeWay(ctx, s.sub.Server, j.Attempt)
	p := s.e.relays.Of(w.Via)
	defer func() { j.settleRate(p) }()
	for s.begin(j, w, ""); err == nil; {
		session, unreachable := p.Get(j.span.opening(ctx), w.Via)
		next := lifecycle.StepOver
		switch {
		case errors.Is(unreachable, context.Canceled):
			return lifecycle.NoSession, "no connection to the mail server came free in time"
		case unreachable != nil:
			j.Blame(relay.FailureOf(unreachable))
			end, why = lifecycle.NoSession, unreachable.Error()
		default:
			next, end, why = s.try(ctx, p, session, j)
		}
		switch {
		case next != lifecycle.StepOver && ctx.Err() != nil:
			return lifecycle.Stopped, ""
		case next != lifecycle.StepOver:
			w, err = s.e.brake.Keep(w)
			j.way = w
			continue
		case ctx.Err() == nil && !w.Diverts() && s.e.brake.MayTake(w) != nil && j.BeginAnew():
			// Its mail server was changed after the attempt began. The caller still waits.
			if w, err = s.e.takeWay(ctx, w.Server, j.Attempt); err == nil {
				j.settleRate(p)
				p = s.e.relays.Of(w.Via)
				s.begin(j, w, "")
			}
			continue
		case ctx.Err() != nil, w.Diverts(), unreachable == nil && (end != lifecycle.RelayFault || s.e.relays.Suspended(w.Server) == nil):
			return end, why
		}
		// The mail server itself has failed. What it did not take goes on at once.
		d, ok := s.e.detour(ctx, w.Server, j.Attempt)
		if !ok {
			return end, why
		}
		j.settleRate(p)
		w, p = d, s.e.relays.Of(d.Via)
		s.begin(j, w, why)
	}
	return lifecycle.NoSession, err.Error()
}

// begin lets the mail go a way and tells the caller through which mail server. A mark of the
// way before is taken back first: while this one waits for its connection, the mail must not
// count as one that may have left.
func (s *liveSend) begin(j *job, w brake.Way, why string) {
	if j.HasStaleMark() {
		s.e.ledger.Record(j.Progress(), nil)
	}
	j.take(w, why, s.e.now())
	s.GoesThrough(j.Number(), j.Started, w.Via.Name)
}

// try runs one transaction on a session of r and gives the session back.
func (s *liveSend) try(ctx context.Context, r *relay.Relay, session Session, j *job) (next lifecycle.Step, end lifecycle.End, why string) {
	defer r.Put(session)
	if why := s.takeRate(ctx, r, j); why != "" {
		j.Blame(smtpx.FailRate)
		return lifecycle.StepOver, lifecycle.NoSession, why
	}
	// unless the session says more
	t := transacted{next: lifecycle.StepOver, end: lifecycle.RelayFault}
	err := s.e.transact(ctx, r, session, j, s.passed, func(done transacted) {
		t = done // a suspension is what the next Get says
		s.report(j, t.positions)
	})
	if err == nil {
		_ = session.Flush(ctx) // what it says has been heard; a dead session is found by Usable
	}
	if st := t.recorded(j); st != nil {
		s.e.ledger.Record(st, nil)
	}
	return t.next, t.end, ""
}

// passed closes the way back behind the gate, unless the mail was cut first.
func (s *liveSend) passed(gate error) error {
	if gate == nil && !s.PassDot() {
		return errors.New(s.CutReason())
	}
	return gate
}

// report tells of the recipients among the positions for whom the relay has taken the mail or
// refused it for good: that stays true. What is not known, or not given up yet, counts only
// once it is durable and ours, because another replica that has taken the mail over may record
// and do something else: see complete.
func (s *liveSend) report(j *job, positions []int) {
	for _, p := range positions {
		if r, now := j.Result(p); now && (r.Status == store.RecipientAccepted || r.Status == store.RecipientRejected) {
			s.Tell(p, r)
		}
	}
}

// finish settles the mail and completes the stream once that is durable.
func (s *liveSend) finish(j *job, end lifecycle.End, why string) {
	defer s.e.releaseMemory(j)
	switch reason := s.CutReason(); {
	case end == lifecycle.Lost, s.Dropped():
		j.span.over(lost, smtpx.FailNone)
		s.e.ledger.Let(s.Mail.ID, store.BornClaim)
		s.complete(nil, false)
		return
	case end == lifecycle.Panicked:
	case reason != "":
		end, why = lifecycle.CutByCaller, reason
	case s.e.workCtx.Err() != nil:
		end = lifecycle.Stopped
	}
	v := j.Finish(end, why, s.sub.Server.Limits, s.e.now())
	s.e.attempted(j.Mail, v)
	j.span.over(v.Outcome, v.Failure)
	s.settle(v.Settlement, func() { s.e.ended(j.Mail, v) })
}

// settle records how the mail stands, calls durable once that is written, and completes the
// stream.
func (s *liveSend) settle(st *store.Settlement, durable func()) {
	settled := make(chan bool, 1)
	s.e.ledger.Record(st, func(mine bool) {
		if mine {
			durable()
		}
		settled <- mine
	})
	select {
	case mine := <-settled:
		s.complete(st, mine)
	case <-s.e.workCtx.Done():
		// Shutting down while the database is away: the mark, if any, makes the next replica
		// report it.
		select {
		case mine := <-settled:
			s.complete(st, mine)
		case <-time.After(2 * time.Second):
			s.complete(nil, false)
		}
	}
}

// complete ends what the callers hear with the mail, as it is recorded.
func (s *liveSend) complete(st *store.Settlement, mine bool) {
	if mine && st != nil {
		s.Complete(lifecycle.Settled(s.Mail, st, s.e.now()))
		return
	}
	// The journal belongs to somebody else now; what it says is the truth, once it says how the
	// mail ended.
	m, err := s.e.journal.Mail(context.WithoutCancel(s.e.workCtx), store.Everything, s.Mail.ID)
	if err != nil || m.Owner != 0 {
		s.Unanswered("the result could not be recorded; the journal will tell")
		return
	}
	s.Complete(m)
}

// settleUnheard ends a send whose commit was not heard of: the caller gave up, or the
// database broke. If the row was written it is ours and nobody else will touch it while this
// process lives, so it is settled as failed with the reason, not left "sending".
func (s *liveSend) settleUnheard() {
	defer s.e.live.Remove(s.Send)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		// The same id again writes nothing twice, and tells whether the first try was written.
		res, err := s.e.journal.Enqueue(s.e.workCtx, s.Mail)
		if err == nil {
			if res.Err == nil && !res.Duplicate {
				s.Accepted() // a caller with the same request_id may have joined
				s.finish(s.job(), lifecycle.CutByCaller, "")
			} else {
				s.e.ledger.Let(s.Mail.ID, store.BornClaim)
			}
			return
		}
		select {
		case <-s.e.workCtx.Done():
			return // the next replica finds it without a mark and sends it
		case <-time.After(wait):
		}
	}
}
