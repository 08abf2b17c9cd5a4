package engine

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// flight is one php-mode mail on its way. It outlives its caller: once the dot may have left,
// it waits for the reply alone. Callers with the same request_id watch the same flight.
type flight struct {
	e      *Engine
	sub    *delivery.Submission
	caller callers

	mu      sync.Mutex
	events  []delivery.Event
	changed chan struct{} // closed and replaced at each change
	done    bool
	known   []store.RecipientResult // what the caller was told, by position

	// unix nanoseconds: since then the mail is durable and this replica's; 0 = not yet
	began atomic.Int64
}

// callers knows whether anybody still waits for a flight, and cuts it before the dot when
// nobody does.
type callers struct {
	mu      sync.Mutex
	waiting int
	pastDot bool
	taken   bool // its mail is not this replica's any more: nothing is written
	reason  string
	cut     context.CancelFunc
}

func (c *callers) join() {
	c.mu.Lock()
	c.waiting++
	c.mu.Unlock()
}

// gone takes one caller away. The last one cuts the flight if nothing has left yet.
func (c *callers) gone(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting > 0 {
		c.waiting--
	}
	if c.waiting == 0 && !c.pastDot {
		c.reason = reason
		c.cut()
	}
}

// passDot closes the way back, false when the flight was cut first.
func (c *callers) passDot() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason != "" {
		return false
	}
	c.pastDot = true
	return true
}

func (c *callers) isTaken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken
}

func (c *callers) cutReason() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

func newFlight(e *Engine, sub *delivery.Submission) *flight {
	return &flight{e: e, sub: sub, changed: make(chan struct{}), known: make([]store.RecipientResult, len(sub.Mail.Recipients)), caller: callers{waiting: 1, cut: func() {}}}
}

func (f *flight) add(ev delivery.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, ev)
	f.done = ev.Completed != nil
	close(f.changed)
	f.changed = make(chan struct{})
}

// accepted tells that the mail is durable.
func (f *flight) accepted() {
	m := f.sub.Mail
	f.add(delivery.Event{MailID: m.ID, Time: f.e.now(), Accepted: &delivery.Accepted{Server: m.MailServer, Mode: m.Mode, Route: m.Route}})
}

// watch tells observe everything from the beginning until completed.
func (f *flight) watch(ctx context.Context, duplicate bool, observe func(delivery.Event) error) error {
	if duplicate {
		f.caller.join()
	}
	tell := func(events []delivery.Event) error {
		for _, ev := range events {
			if ev.Accepted != nil && duplicate {
				a := *ev.Accepted
				a.Duplicate = true
				ev.Accepted = &a
			}
			if err := observe(ev); err != nil {
				f.caller.gone("cancelled: the caller went away before the mail left")
				return err
			}
		}
		return nil
	}
	over, ending, began := ctx.Done(), f.e.workCtx.Done(), time.Now()
	var late <-chan time.Time
	for i := 0; ; {
		f.mu.Lock()
		events, changed, done := f.events[i:], f.changed, f.done
		f.mu.Unlock()
		if err := tell(events); err != nil || done {
			return err
		}
		i += len(events)
		select {
		case <-changed:
		case <-over:
			over = nil
			f.caller.gone(callerGone(ctx))
			if f.pastDot() {
				return tell(f.unanswered(i, "the mail has left and the relay had not answered when the caller's time ran out; the journal will be completed by the reply"))
			}
			// Cut before the dot: the end is a moment away, and the caller should hear it.
			t := time.NewTimer(cutWait(time.Since(began)))
			defer t.Stop()
			late = t.C
		case <-ending:
			ending = nil // before the dot the flight is being cut, and its end is a moment away
			if f.pastDot() {
				return tell(f.unanswered(i, "the mail has left and the relay had not answered when the service stopped; the journal will say what becomes of it"))
			}
		case <-late:
			return ctx.Err()
		}
	}
}

// cutWait is how long a caller whose time is over after so long waits for the end of a flight
// that was cut: what the deadline interceptor keeps back for it, a fifth of the whole, 50 ms at
// least and a second at most.
func cutWait(waited time.Duration) time.Duration {
	return min(900*time.Millisecond, max(40*time.Millisecond, waited/5))
}

func (f *flight) pastDot() bool {
	f.caller.mu.Lock()
	defer f.caller.mu.Unlock()
	return f.caller.pastDot
}

// unanswered is what a caller hears last who has heard seen events and cannot wait any longer:
// what has happened since, unknown for every recipient of which nothing is known, and the mail
// as it is known now. The journal will say more.
func (f *flight) unanswered(seen int, why string) []delivery.Event {
	now := f.e.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	events := slices.Clone(f.events[seen:])
	if f.done {
		return events
	}
	m := lifecycle.Unanswered(f.sub.Mail, f.known, why, now)
	for p, r := range m.Progress.Results {
		if f.known[p].Status == "" {
			events = append(events, delivery.Event{MailID: m.ID, Time: now, Recipient: &delivery.Recipient{Recipient: m.Recipients[p], Result: r}})
		}
	}
	return append(events, delivery.Event{MailID: m.ID, Time: now, Completed: m})
}

// run delivers the mail. It owns the job.
func (f *flight) run() {
	defer f.e.flights.remove(f)
	f.began.Store(time.Now().UnixNano())
	ctx, cut := context.WithCancel(f.e.workCtx)
	defer cut()
	f.caller.mu.Lock()
	f.caller.cut = cut
	cutAlready := f.caller.reason != ""
	f.caller.mu.Unlock()
	if cutAlready {
		cut()
	}
	j := f.job()
	if err := f.e.load(ctx, j); err != nil {
		f.finish(j, lifecycle.Unreadable, "read the message: "+err.Error())
		return
	}
	end, why := f.guarded(ctx, j)
	f.finish(j, end, why)
}

// job is the flight's mail as a job: its caller waits.
func (f *flight) job() *job {
	m := f.sub.Mail
	j := newJob(m.Claimed(f.sub.Server.HoldUnknown), m.Owner, f.e.now())
	j.Interactive = true
	return j
}

// guarded delivers, and survives what a single mail may do to the process. It returns how the
// attempt ended and what more there is to say about it.
func (f *flight) guarded(ctx context.Context, j *job) (end lifecycle.End, why string) {
	defer func() {
		if p := recover(); p != nil {
			f.e.log.Error("panic while sending a mail: quarantined", "mail_id", j.Mail.ID, "panic", p, "stack", string(debug.Stack()))
			end, why = lifecycle.Panicked, panicText(p)
		}
	}()
	return f.deliver(ctx, j)
}

// rationWait is how long a php-mode mail waits for its mail server's limit per minute; a caller
// is better told than kept longer.
const rationWait = 10 * time.Second

// takeRate takes one mail out of the mail server's limits. It says why there is none to be had
// in time.
func (f *flight) takeRate(ctx context.Context, r *relay.Relay, j *job) (why string) {
	for relay.Limited(j.way.via) && !j.spent && !j.rated {
		n, next, err := r.TakeRate(ctx, j.way.via, 1)
		wait := next.Sub(f.e.now())
		switch {
		case err != nil:
			return "read the mail server's limits: " + err.Error()
		case n > 0:
			j.rated = true
			return ""
		case wait > rationWait:
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
func (f *flight) deliver(ctx context.Context, j *job) (end lifecycle.End, why string) {
	w, err := f.e.takeWay(ctx, f.sub.Server, j.Attempt)
	p := f.e.relays.Of(w.via)
	defer func() { j.settleRate(p) }()
	for f.begin(j, w, ""); err == nil; {
		session, unreachable := p.Get(ctx, w.via)
		next := lifecycle.StepOver
		switch {
		case errors.Is(unreachable, context.Canceled):
			return lifecycle.NoSession, "no connection to the mail server came free in time"
		case unreachable != nil:
			j.Blame(relay.FailureOf(unreachable))
			end, why = lifecycle.NoSession, unreachable.Error()
		default:
			next, end, why = f.try(ctx, p, session, j)
		}
		switch {
		case next != lifecycle.StepOver && ctx.Err() != nil:
			return lifecycle.Stopped, ""
		case next != lifecycle.StepOver:
			w, err = f.e.keepWay(w)
			j.way = w
			continue
		case ctx.Err() != nil, w.diverts(), unreachable == nil && (end != lifecycle.RelayFault || f.e.relays.Suspended(w.server) == nil):
			return end, why
		}
		// The mail server itself has failed. What it did not take goes on at once.
		d, ok := f.e.detour(ctx, w.server, j.Attempt)
		if !ok {
			return end, why
		}
		j.settleRate(p)
		w, p = d, f.e.relays.Of(d.via)
		f.begin(j, w, why)
	}
	return lifecycle.NoSession, err.Error()
}

// begin lets the mail go a way and tells the caller through which mail server.
func (f *flight) begin(j *job, w way, why string) {
	j.take(w, why, f.e.now())
	f.add(delivery.Event{MailID: j.Mail.ID, Time: j.Started, Attempt: &store.Attempt{Number: j.Number(), Start: j.Started, Server: w.via.Name}})
}

// try runs one transaction on a session of r and gives the session back.
func (f *flight) try(ctx context.Context, r *relay.Relay, session Session, j *job) (next lifecycle.Step, end lifecycle.End, why string) {
	defer r.Put(session)
	if why := f.takeRate(ctx, r, j); why != "" {
		j.Blame(smtpx.FailRate)
		return lifecycle.StepOver, lifecycle.NoSession, why
	}
	if s := j.tellsWay(); s != nil {
		f.e.ledger.Record(s, nil)
	}
	before := j.Left()
	next, end = f.transact(ctx, r, session, j)
	if next == lifecycle.StepNext || next == lifecycle.StepFree && (j.HasStaleMark() || j.Left() < before) {
		f.e.ledger.Record(j.Progress(), nil)
	}
	return next, end, ""
}

// transact runs one transaction and reports its results. Without an outcome the relay is at
// fault.
func (f *flight) transact(ctx context.Context, r *relay.Relay, s Session, j *job) (next lifecycle.Step, end lifecycle.End) {
	j.AtMost(r.MaxRecipients())
	positions := j.Next()
	next, end = lifecycle.StepOver, lifecycle.RelayFault
	began := time.Now()
	err := s.Submit(ctx, &smtpx.Transaction{
		From: j.Mail.From, To: j.mailboxes(positions), Raw: j.raw, UTF8: j.Mail.UTF8,
		Gate: func(ctx context.Context) error {
			if err := f.e.gate(ctx, j); err != nil {
				return err
			}
			if !f.caller.passDot() {
				return errors.New(f.caller.cutReason())
			}
			j.spend(r)
			return nil
		},
		Done: func(o smtpx.Outcome) {
			before := j.Left()
			// a suspension is what the next Get says
			o, _ = r.Judge(ctx, j.way.via, o)
			next, end = j.After(positions, o, f.e.now()), j.End()
			if o.Took > 0 {
				r.Took(o.Took)
			}
			shown, text := shows(o, j.Left() < before, next)
			// a suspension is what the next Get says
			_ = r.Report(ctx, s, j.way.via, began, shown, text)
			f.report(j, positions)
		},
	})
	if err == nil {
		_ = s.Flush(ctx) // Done has the outcome; a dead session is found by Usable
	}
	return next, end
}

// report tells of the recipients among the positions for whom the relay has taken the mail or
// refused it for good: that stays true. What is not known, or not given up yet, counts only
// once it is durable and ours, because another replica that has taken the mail over may record
// and do something else: see complete.
func (f *flight) report(j *job, positions []int) {
	for _, p := range positions {
		if r, now := j.Result(p); now && (r.Status == store.RecipientAccepted || r.Status == store.RecipientRejected) {
			f.tell(p, r)
		}
	}
}

// tell tells the caller of one recipient, once.
func (f *flight) tell(position int, r store.RecipientResult) {
	f.mu.Lock()
	told := f.known[position].Status != ""
	f.known[position] = r
	f.mu.Unlock()
	if !told {
		m := f.sub.Mail
		f.add(delivery.Event{MailID: m.ID, Time: r.Time, Recipient: &delivery.Recipient{Recipient: m.Recipients[position], Result: r}})
	}
}

// finish settles the mail and completes the stream once that is durable.
func (f *flight) finish(j *job, end lifecycle.End, why string) {
	defer f.e.unload(j)
	switch reason := f.caller.cutReason(); {
	case end == lifecycle.Lost, f.caller.isTaken():
		f.e.ledger.Let(f.sub.Mail.ID, store.BornClaim)
		f.complete(nil, false)
		return
	case end == lifecycle.Panicked:
	case reason != "":
		end, why = lifecycle.CutByCaller, reason
	case f.e.workCtx.Err() != nil:
		end = lifecycle.Stopped
	}
	f.settle(j.Finish(end, why, f.sub.Server.Limits, f.e.now()).Settlement)
}

func (f *flight) settle(s *store.Settlement) {
	settled := make(chan bool, 1)
	f.e.ledger.Record(s, func(mine bool) { settled <- mine })
	select {
	case mine := <-settled:
		f.complete(s, mine)
	case <-f.e.workCtx.Done():
		// Shutting down while the database is away: the mark, if any, makes the next replica
		// report it.
		select {
		case mine := <-settled:
			f.complete(s, mine)
		case <-time.After(2 * time.Second):
			f.complete(nil, false)
		}
	}
}

// complete tells of all recipients that are decided and ends the stream with the mail, as it is
// recorded.
func (f *flight) complete(s *store.Settlement, mine bool) {
	now := f.e.now()
	var m *store.Mail
	if mine && s != nil {
		m = lifecycle.Settled(f.sub.Mail, s, now)
	} else {
		// The journal belongs to somebody else now; what it says is the truth, once it says how
		// the mail ended.
		var err error
		m, err = f.e.journal.Mail(context.WithoutCancel(f.e.workCtx), store.Everything, f.sub.Mail.ID)
		if err != nil || m.Owner != 0 {
			for _, ev := range f.unanswered(len(f.events), "the result could not be recorded; the journal will tell") {
				f.add(ev)
			}
			return
		}
	}
	for p, r := range m.Progress.Results {
		if r.Status != store.RecipientPending && r.Status != "" {
			f.tell(p, r)
		}
	}
	f.add(delivery.Event{MailID: m.ID, Time: now, Completed: m})
}

// settleUnheard ends a flight whose commit was not heard of: the caller gave up, or the
// database broke. If the row was written it is ours and nobody else will touch it while this
// process lives, so it is settled as failed with the reason, not left "sending".
func (f *flight) settleUnheard() {
	defer f.e.flights.remove(f)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		// The same id again writes nothing twice, and tells whether the first try was written.
		res, err := f.e.journal.Enqueue(f.e.workCtx, f.sub.Mail)
		if err == nil {
			if res.Err == nil && !res.Duplicate {
				f.accepted() // a caller with the same request_id may have joined
				f.finish(f.job(), lifecycle.CutByCaller, "")
			} else {
				f.e.ledger.Let(f.sub.Mail.ID, store.BornClaim)
			}
			return
		}
		select {
		case <-f.e.workCtx.Done():
			return // the next replica finds it without a mark and sends it
		case <-time.After(wait):
		}
	}
}
