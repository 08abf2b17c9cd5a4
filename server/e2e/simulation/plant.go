package simulation

import (
	"context"
	"errors"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest/memory"
)

// Plant is a fault on purpose: what the simulation has to be able to see. It stands between the
// engine and its store, or between the engine and its sessions, or in the store in memory, so
// that the code that is shipped carries no switch.
type Plant struct {
	Name string
	memory.Faults
	// changes what a claim answers
	claimed func(w *world, c *store.Claimed)
	// changes how a mail server is read
	server func(w *world, s *store.MailServer) *store.MailServer
	// changes what is written; nil: nothing is, and the answer is yes
	settle func(w *world, st *store.Settlement) *store.Settlement
	// changes what is answered
	answered func(st *store.Settlement, a store.Settled) store.Settled
	// answered before it is written
	early func(st *store.Settlement) bool
	// when it fails it is written again behind what came later
	behind func(st *store.Settlement) bool
	// what was not heard of is written once more, much later
	twice bool
	// nobody looks for what is owned and not known of
	blind bool
	// a failed enqueue is answered as done
	accepts bool
	// changes what is written
	breaker func(before, after *store.Breaker)
	// no change of a mail server is seen
	oldVersions bool
	// a mail server that is never due
	forget string
	slots  int // connections too many
	// a slot is not given back
	keepsSlot bool
	// times what was granted
	rate int
	// the day's limit is not asked for
	noDay bool
	// changes what a session says
	outcome func(w *world, o *smtpx.Outcome)
	// changes what the gate says
	gate   func(err error) error
	noGate bool
	change func(m *store.Mail, c *store.Change) // changes a person's word
}

func results(p *store.Progress, f func(r *store.RecipientResult)) {
	if p != nil {
		for i := range p.Results {
			f(&p.Results[i])
		}
	}
}

// pending makes results of a status look as if nothing had been tried.
func pending(st store.RecipientStatus) func(*world, *store.Claimed) {
	return func(_ *world, c *store.Claimed) {
		results(&c.Progress, func(r *store.RecipientResult) {
			if r.Status == st {
				*r = store.RecipientResult{Status: store.RecipientPending}
			}
		})
	}
}

func recipients(o *smtpx.Outcome, f func(r *smtpx.RecipientOutcome)) {
	for i := range o.Recipients {
		f(&o.Recipients[i])
	}
}

func isKind(k store.SettleKind) func(*store.Settlement) bool {
	return func(st *store.Settlement) bool { return st.Kind == k }
}

// Plants are all of them.
var Plants = []Plant{
	{Name: "a write is conditional on its owner, not on its token", Faults: memory.Faults{OwnerOnly: true}, twice: true},
	{Name: "a result that was not heard of is written again after others", Faults: memory.Faults{OwnerOnly: true}, twice: true, behind: isKind(store.SettleRetry)},
	{Name: "a mark needs no owner", Faults: memory.Faults{MarkAnybody: true}},
	{Name: "a mark that is not ours is taken for ours", answered: func(st *store.Settlement, a store.Settled) store.Settled {
		if st.Kind == store.SettleMark && a.Err == nil {
			a.Mine = true
		}
		return a
	}},
	{Name: "a mark that failed is taken for written", answered: func(st *store.Settlement, a store.Settled) store.Settled {
		if st.Kind == store.SettleMark && a.Err != nil {
			return store.Settled{Mine: true}
		}
		return a
	}},
	{Name: "a mark is answered before it is durable", early: isKind(store.SettleMark)},
	{Name: "progress is written behind the next mark, whatever its token", Faults: memory.Faults{OwnerOnly: true}, behind: isKind(store.SettleProgress)},
	{Name: "a dot leaves without the gate", noGate: true},
	{Name: "what the gate refuses leaves all the same", gate: func(error) error { return nil }},
	{Name: "what was cut for its caller leaves all the same", gate: func(err error) error {
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}},
	{Name: "the dead take mail, and only what a known dead one owned is recovered", Faults: memory.Faults{KnownDeadOnly: true, DeadTake: true}},
	{Name: "recovery lets go of marked mail", Faults: memory.Faults{ReleaseMarked: true}},
	{Name: "an orderly end lets go of marked mail", Faults: memory.Faults{UnregisterMarked: true}},
	{Name: "what is owned and not known of is looked for by nobody", blind: true},
	{Name: "taking back lets go of marked mail", Faults: memory.Faults{TakeBackMarked: true}},
	{Name: "a connection slot that is not given back stays taken", keepsSlot: true},
	{Name: "a dead replica's slots stay taken", Faults: memory.Faults{SlotsForever: true}},
	{Name: "one connection too many", slots: 1},
	{Name: "the limit per minute is granted four times", rate: 4},
	{Name: "the limit per day is not asked for", noDay: true},
	{Name: "a person's stop reaches what is being sent", Faults: memory.Faults{ModifyOwned: true}},
	{Name: "held mail stays due", Faults: memory.Faults{HeldIsDue: true}},
	{Name: "a claim takes what is due later", Faults: memory.Faults{ClaimEarly: true}},
	{Name: "expire_time is not looked at", claimed: func(_ *world, c *store.Claimed) { c.ExpireTime = nil }},
	{Name: "retried to those who have it", claimed: pending(store.RecipientAccepted)},
	{Name: "retried to those who refused it for good", claimed: pending(store.RecipientRejected)},
	{Name: "the flag of a possible duplicate is dropped", settle: func(_ *world, st *store.Settlement) *store.Settlement {
		st.PossibleDuplicate = false
		return st
	}},
	{Name: "an unknown outcome is written as a temporary failure", settle: func(_ *world, st *store.Settlement) *store.Settlement {
		results(st.Progress, func(r *store.RecipientResult) {
			if r.Status == store.RecipientUnknown {
				r.Status = store.RecipientDeferred
			}
		})
		return st
	}},
	{Name: "invoices are treated as bulk", claimed: func(_ *world, c *store.Claimed) { c.Kind = store.KindBulk }},
	{Name: "a partial success is filed as sent", settle: func(_ *world, st *store.Settlement) *store.Settlement {
		if st.Kind == store.SettleRetry && st.Status == store.MailPartiallySent {
			st.Kind, st.Status = store.SettleArchive, store.MailSent
		}
		return st
	}},
	{Name: "a retry has no due time", settle: func(_ *world, st *store.Settlement) *store.Settlement {
		if st.Kind == store.SettleRetry {
			st.Kind = store.SettlePark
		}
		return st
	}},
	{Name: "mail is accepted that was not stored", accepts: true},
	{Name: "a request_id is used twice", Faults: memory.Faults{NoRequests: true}},
	{Name: "a reply is filed under the next recipient", outcome: func(_ *world, o *smtpx.Outcome) {
		if n := len(o.Recipients); n > 1 {
			last := o.Recipients[n-1]
			copy(o.Recipients[1:], o.Recipients[:n-1])
			o.Recipients[0] = last
		}
	}},
	{Name: "no reply after the dot is taken for acceptance", outcome: func(_ *world, o *smtpx.Outcome) {
		recipients(o, func(r *smtpx.RecipientOutcome) {
			if r.Status == smtpx.StatusUnknown {
				r.Status = smtpx.StatusAccepted
			}
		})
	}},
	{Name: "no reply after the dot is taken for a broken connection", outcome: func(_ *world, o *smtpx.Outcome) {
		recipients(o, func(r *smtpx.RecipientOutcome) {
			if r.Status == smtpx.StatusUnknown {
				r.Status = smtpx.StatusNotTried
			}
		})
	}},
	{Name: "a temporary refusal is taken for a permanent one", outcome: func(_ *world, o *smtpx.Outcome) {
		recipients(o, func(r *smtpx.RecipientOutcome) {
			if r.Status == smtpx.StatusDeferred {
				r.Status = smtpx.StatusRejected
			}
		})
	}},
	{Name: "a breaker never heals", breaker: func(before, after *store.Breaker) {
		if after.Failures < before.Failures {
			*after = *before
			after.RetryAt = after.RetryAt.Add(24 * time.Hour)
		}
	}},
	{Name: "a probe is kept for ever", breaker: func(_, after *store.Breaker) {
		if !after.ProbeUntil.IsZero() {
			after.ProbeUntil = after.ProbeUntil.Add(24 * time.Hour)
		}
	}},
	{Name: "a mail server is never due", forget: "s0"},
	{Name: "that another replica has switched a mail server off is not seen", oldVersions: true},
	{Name: "a person's retry forgets the flag", change: func(m *store.Mail, c *store.Change) {
		if c.Kind == store.SettleRetry {
			c.PossibleDuplicate = m.PossibleDuplicate
		}
	}},
	{Name: "an UNKNOWN mail is diverted to the fallback", claimed: func(w *world, c *store.Claimed) {
		if c.PossibleDuplicate && w.diverts(c.MailServer) {
			c.PossibleDuplicate = false
			pending(store.RecipientUnknown)(w, c)
		}
	}, settle: func(w *world, st *store.Settlement) *store.Settlement {
		if row := w.db.Look(st.ID); row != nil && row.Mail.PossibleDuplicate {
			st.PossibleDuplicate = true // that it is one is not forgotten
		}
		return st
	}},
	{Name: "the fallback's fallback is used", server: func(w *world, s *store.MailServer) *store.MailServer {
		if s.Name == w.fallback && w.diverts("s0") {
			if next, err := w.db.Server(context.Background(), store.Everything, "s2"); err == nil {
				return next
			}
		}
		return s
	}},
	{Name: "a mail is diverted to those as well who have it", claimed: func(w *world, c *store.Claimed) {
		if w.diverts(c.MailServer) {
			pending(store.RecipientAccepted)(w, c)
		}
	}},
	{Name: "an operation's brake stops no mark", Faults: memory.Faults{OperationNoBrake: true}},
	{Name: "an operation that another replica goes on with begins anew", Faults: memory.Faults{OperationAnew: true}},
	{Name: "an operation takes what was created after it began", Faults: memory.Faults{OperationUnbound: true}},
	{Name: "an operation goes on after it was stopped", Faults: memory.Faults{OperationUnstopped: true}},
	{Name: "a release forgets who has the mail", change: func(m *store.Mail, c *store.Change) {
		if m.Status == store.MailHeld {
			c.Progress = &store.Progress{}
		}
	}},
}

// faulty is a session with a fault on purpose.
type faulty struct {
	engine.Session
	w *world
}

func (f *faulty) Submit(ctx context.Context, t *smtpx.Transaction) error {
	p, c := &f.w.opt.Plant, *t
	if p.noGate {
		c.Gate = nil
	}
	if p.gate != nil {
		c.Gate = func(ctx context.Context) error { return p.gate(t.Gate(ctx)) }
	}
	if p.outcome != nil {
		c.Done = func(o smtpx.Outcome) {
			p.outcome(f.w, &o)
			t.Done(o)
		}
	}
	return f.Session.Submit(ctx, &c)
}
