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

// guard takes a mail out of the guard's budgets, or holds it. It returns what it took.
//
// The address comes first, and a mail that is held for it is taken out of nothing: one address
// that gets mail again and again does not stop its team.
func (q *Quota) guard(ctx context.Context, m *store.NewMail) ([]want, error) {
	g := &q.limits.Guard
	took := q.addresses(m)
	if len(took) > 0 {
		short, _, err := q.take(ctx, took)
		if err != nil {
			return nil, err
		}
		if short != nil {
			to := short.whose[strings.IndexByte(short.whose, 0)+1:]
			q.hold(m, BudgetAddress, g.Address, fmt.Sprintf("held: more than %d mails an hour to %s", g.Address, to))
			return nil, nil
		}
	}
	budgets := q.budgets(m)
	if len(budgets) == 0 {
		return took, nil
	}
	short, _, err := q.take(ctx, budgets)
	if err != nil {
		q.back(took)
		return nil, err
	}
	if short == nil {
		return append(took, budgets...), nil
	}
	q.back(took)
	limit := int(short.limit)
	what := map[string]string{BudgetBatch: fmt.Sprintf("more than %d mails in one batch", limit), BudgetCaller: fmt.Sprintf("more than %d mails an hour from %s", limit, m.Caller),
		BudgetKind: fmt.Sprintf("more than %d mails an hour of kind %s", limit, m.Kind), BudgetTeam: fmt.Sprintf("more than %d mails an hour from team %q", limit, m.Team)}
	q.hold(m, short.name, limit, "held: "+what[short.name])
	return nil, nil
}

// addresses are what a mail wants of the budgets of its recipients. Copies that nobody sees
// (bcc) are for archives, which get all there is: beside recipients in to or cc they do not
// count, unless a resend has added them.
func (q *Quota) addresses(m *store.NewMail) []want {
	limit := q.limits.Guard.Address
	if limit == 0 {
		return nil
	}
	few := min(limit/sliceFrac, sketchMost)
	now := q.now()
	seen := func(r store.Recipient) bool { return r.Kind != "bcc" }
	blind := !slices.ContainsFunc(m.Recipients, seen)
	var ws []want
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
			n := q.sketch.seen(now, h.Sum64(), few)
			q.sketchMu.Unlock()
			if n < few {
				continue
			}
		}
		ws = append(ws, want{name: BudgetAddress, whose: m.Team + "\x00" + to, limit: int64(limit), period: time.Hour, n: 1, used: int64(few)})
	}
	return ws
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

// hold makes a mail one that is held, and raises the alarm.
func (q *Quota) hold(m *store.NewMail, budget string, limit int, why string) {
	m.Held, m.Guard = why+release, budget
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
