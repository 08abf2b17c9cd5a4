package quota

import (
	"context"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// ByName are the limits in force by the names that errors give them; what is not there is not
// limited.
func (l Limits) ByName() map[string]int64 {
	out := map[string]int64{"calls_per_second": int64(l.CallsPerSecond), "tests_per_minute": int64(l.TestsPerMinute),
		"caller_mails_per_minute": int64(l.CallerMails), "caller_recipients_per_minute": int64(l.CallerRecipients),
		"team_mails_per_minute": int64(l.TeamMails), "team_recipients_per_minute": int64(l.TeamRecipients),
		"queue_depth": int64(l.Queue), "disk_floor_mib": int64(l.DiskMiB),
		"guard_address_per_hour": int64(l.Guard.Address), "guard_caller_per_hour": int64(l.Guard.Caller), "guard_team_per_hour": int64(l.Guard.Team), "guard_batch": int64(l.Guard.Batch)}
	for thing, t := range things {
		out[string(thing)] = t.limit(&l)
	}
	for kind, n := range l.Guard.Kinds {
		out["guard_kind_per_hour."+string(kind)] = int64(n)
	}
	for name, n := range out {
		if n == 0 {
			delete(out, name)
		}
	}
	return out
}

// Left is what is left of one limit.
type Left struct {
	Limit string
	Team  string // "" = the caller's
	Value int64
	Left  int64
}

// mostTeams is of how many teams Left tells.
const mostTeams = 100

// Left asks what is left to a caller, to its token (b; nil = without a budget of its own) and
// to its teams of what all replicas share. It counts what this process has taken in advance as
// left.
func (q *Quota) Left(ctx context.Context, caller string, b *store.Budget, teams []string) ([]Left, error) {
	if q == nil {
		return nil, nil
	}
	type of struct {
		want
		team string
	}
	var all []of
	m := &store.NewMail{Caller: caller, Budget: b}
	add := func(team string, ws []want) {
		for _, w := range ws {
			all = append(all, of{w, team})
		}
	}
	own := Quota{limits: Limits{CallerMails: q.limits.CallerMails, CallerRecipients: q.limits.CallerRecipients, Guard: Guard{Caller: q.limits.Guard.Caller}}}
	add("", append(own.quotas(m, 0, 0), own.budgets(m)...))
	m.Budget = nil
	theirs := Quota{limits: Limits{TeamMails: q.limits.TeamMails, TeamRecipients: q.limits.TeamRecipients, Guard: Guard{Team: q.limits.Guard.Team}}}
	for _, team := range teams[:min(len(teams), mostTeams)] {
		m.Team = team
		add(team, append(theirs.quotas(m, 0, 0), theirs.budgets(m)...))
	}
	if len(all) == 0 {
		return nil, nil
	}
	takes := make([]store.AllowanceTake, len(all))
	for i, x := range all {
		takes[i] = store.AllowanceTake{Key: q.key(x.name, x.whose), Limit: x.limit, Period: x.period}
	}
	gs, err := q.store.TakeAllowances(ctx, takes)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]Left, len(all))
	for i, x := range all {
		name := x.name
		if x.period == time.Hour {
			name = "guard_" + name + "_per_hour"
		}
		out[i] = Left{Limit: name, Team: x.team, Value: x.limit, Left: gs[i].Left}
		if had := q.meters[meterKey{x.name, x.whose}]; had != nil {
			out[i].Left += had.left
		}
	}
	return out, nil
}
