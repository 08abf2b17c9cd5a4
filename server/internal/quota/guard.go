package quota

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// The guard's budgets, as mails and the log name them.
const (
	BudgetAddress = "address"
	BudgetBatch   = "batch"
	BudgetCaller  = "caller"
	BudgetKind    = "kind"
	BudgetTeam    = "team"
)

const release = "; somebody else than its sender has to release it"

// charge is what one mail has cost the guard. Nothing of it lasts where the mail turns out to
// be known already, or is not accepted.
type charge struct {
	wants  []want
	sights []sight
	limit  int // of the budget that holds the mail
}

// guard takes a mail out of the guard's budgets, or holds it. It returns what it took.
//
// The address comes first, and a mail that is held for it is taken out of nothing: one address
// that gets mail again and again does not stop its team.
func (q *Quota) guard(ctx context.Context, m *store.NewMail) (c charge, err error) {
	g := &q.limits.Guard
	var took []want
	took, c.sights = q.addresses(m)
	if len(took) > 0 {
		short, _, err := q.take(ctx, took)
		if err != nil {
			q.undo(c)
			return charge{}, err
		}
		if short != nil {
			to := short.whose[strings.IndexByte(short.whose, 0)+1:]
			c.limit = g.Address
			hold(m, BudgetAddress, fmt.Sprintf("held: more than %d mails an hour to %s", g.Address, to))
			return c, nil
		}
	}
	budgets := q.budgets(m)
	if len(budgets) == 0 {
		c.wants = took
		return c, nil
	}
	short, _, err := q.take(ctx, budgets)
	if err != nil {
		c.wants = took
		q.undo(c)
		return charge{}, err
	}
	if short == nil {
		c.wants = append(took, budgets...)
		return c, nil
	}
	q.back(took)
	limit := int(short.limit)
	what := map[string]string{BudgetBatch: fmt.Sprintf("more than %d mails in one batch", limit), BudgetCaller: fmt.Sprintf("more than %d mails an hour from %s", limit, m.Caller),
		BudgetKind: fmt.Sprintf("more than %d mails an hour of kind %s", limit, m.Kind), BudgetTeam: fmt.Sprintf("more than %d mails an hour from team %q", limit, m.Team)}
	c.limit = limit
	hold(m, short.name, "held: "+what[short.name])
	return c, nil
}

// undo takes back what a mail has cost.
func (q *Quota) undo(c charge) {
	q.back(c.wants)
	q.sketchMu.Lock()
	defer q.sketchMu.Unlock()
	for _, x := range c.sights {
		q.sketch.unseen(x)
	}
}

// addresses are what a mail wants of the budgets of its recipients. Copies that nobody sees
// (bcc) are for archives, which get all there is: beside recipients in to or cc they do not
// count, unless a resend has added them.
func (q *Quota) addresses(m *store.NewMail) (ws []want, sights []sight) {
	limit := q.limits.Guard.Address
	if limit == 0 {
		return nil, nil
	}
	few := min(limit/sliceFrac, sketchMost)
	now := q.now()
	seen := func(r store.Recipient) bool { return r.Kind != "bcc" }
	blind := !slices.ContainsFunc(m.Recipients, seen)
	for i, r := range m.Recipients {
		if !seen(r) && !blind && i < len(m.Recipients)-m.Added {
			continue
		}
		to := strings.ToLower(r.Mailbox)
		if few > 0 {
			var h maphash.Hash
			h.SetSeed(q.seed)
			_, _ = h.WriteString(m.Team)
			_ = h.WriteByte(0)
			_, _ = h.WriteString(to)
			q.sketchMu.Lock()
			n, c := q.sketch.seen(now, h.Sum64(), few)
			q.sketchMu.Unlock()
			if n < few {
				sights = append(sights, c)
				continue
			}
		}
		ws = append(ws, want{name: BudgetAddress, whose: m.Team + "\x00" + to, limit: int64(limit), period: time.Hour, n: 1, used: int64(few)})
	}
	return ws, sights
}

// budgets are what a mail wants of the others.
func (q *Quota) budgets(m *store.NewMail) []want {
	g := &q.limits.Guard
	var ws []want
	add := func(name, whose string, limit int, period time.Duration) {
		if limit > 0 {
			ws = append(ws, want{name: name, whose: whose, limit: int64(limit), period: period, n: 1})
		}
	}
	if m.BatchID != "" {
		add(BudgetBatch, m.Team+"\x00"+m.BatchID, g.Batch, 24*time.Hour)
	}
	if m.Caller != "" {
		add(BudgetCaller, m.Caller, g.Caller, time.Hour)
	}
	add(BudgetKind, m.Team+"\x00"+string(m.Kind), g.Kinds[m.Kind], time.Hour)
	add(BudgetTeam, m.Team, g.Team, time.Hour)
	return ws
}

// hold makes a mail one that is held.
func hold(m *store.NewMail, budget, why string) { m.Held, m.Guard = why+release, budget }

// alarm tells the log of a mail that was accepted and is held.
func (q *Quota) alarm(m *store.NewMail, limit int) {
	budget := m.Guard
	k := alarmKey{budget, m.Team, m.Caller}
	q.alarmMu.Lock()
	defer q.alarmMu.Unlock()
	a := q.alarms[k]
	if a == nil {
		a = &alarm{}
		q.alarms[k] = a
	}
	a.mails++
	if now := q.now(); now.Sub(a.told) >= alarmEvery {
		q.log.Warn("the guard holds mail: somebody else than its sender has to release or cancel it", "budget", budget, "limit", limit, "team", m.Team, "caller", m.Caller, "mails", a.mails, "mail", m.ID)
		a.told, a.mails = now, 0
	}
}

// alarmEvery is how often the log hears of the same budget of the same caller.
const alarmEvery = time.Minute

type alarmKey struct{ budget, team, caller string }

// alarm is what the log was told of one budget. q.alarmMu guards it.
type alarm struct {
	told  time.Time
	mails int // held since
}
