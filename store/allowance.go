package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
)

// AllowanceTake takes out of an allowance: so many in any period, over all replicas.
type AllowanceTake struct {
	Key    []byte // 16 bytes that tell allowances apart
	Limit  int64
	Period time.Duration
	Used   int64 // taken already, before anybody was asked
	// of an earlier grant, what was not used, and the slot of that grant
	Back, BackSlot int64
	Want           int64
	// so many at least are needed; only the grant's Next heeds it
	Need int64
}

// AllowanceGrant answers an AllowanceTake.
type AllowanceGrant struct {
	Granted int64 // between 0 and Want
	Slot    int64 // to be given with Back
	Left    int64 // what can be granted still
	// Granted is below Need: when there may be enough; 0 = never, the limit is too low
	Next time.Duration
}

// AllowanceSlots is how many parts a period has. What was taken is counted by parts, and the
// part under way counts with the whole period before it: no period sees more than the limit,
// and who always wants more gets at least 20/21 of it.
const AllowanceSlots = 20

// TakeAllowances answers each take in its place. On PostgreSQL the database's clock counts.
func (s *Store) TakeAllowances(ctx context.Context, takes []AllowanceTake) ([]AllowanceGrant, error) {
	order := make([]int, len(takes))
	for i := range order {
		order[i] = i
	}
	// the same order everywhere, so that replicas do not wait for each other in a circle
	slices.SortFunc(order, func(a, b int) int { return bytes.Compare(takes[a].Key, takes[b].Key) })
	out := make([]AllowanceGrant, len(takes))
	err := s.tx(ctx, func(tx *sqlx.Tx) error {
		for _, i := range order {
			var err error
			if out[i], err = s.takeAllowance(ctx, tx, &takes[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

func (s *Store) takeAllowance(ctx context.Context, tx *sqlx.Tx, t *AllowanceTake) (g AllowanceGrant, err error) {
	now, err := s.dialect.clock(ctx, tx)
	if err != nil {
		return g, err
	}
	until := func() any { e := now.Add(t.Period + 2*t.width()); return s.t(&e) }
	if _, err := s.q.in(ctx, tx, "allowance_make").ExecContext(ctx, t.Key, until()); err != nil {
		return g, err
	}
	var text string
	if err := s.q.in(ctx, tx, "allowance_lock").GetContext(ctx, &text, t.Key); err != nil {
		return g, err
	}
	if now, err = s.dialect.clock(ctx, tx); err != nil { // after the wait for the lock
		return g, err
	}
	var u allowanceUse
	if err := json.Unmarshal([]byte(text), &u); err != nil {
		return g, fmt.Errorf("allowance %x: %w", t.Key, err)
	}
	g = u.take(now, t)
	b, err := json.Marshal(u)
	if err != nil {
		return g, err
	}
	_, err = s.q.in(ctx, tx, "allowance_write").ExecContext(ctx, string(b), until(), t.Key)
	return g, err
}

// ForgetAllowances forgets those of which nothing counts any more.
func (s *Store) ForgetAllowances(ctx context.Context) error {
	now, err := s.Now(ctx)
	if err != nil {
		return err
	}
	_, err = s.q.get("allowance_forget").ExecContext(ctx, s.t(&now))
	return s.fault(err)
}

// width is how long a slot is.
func (t *AllowanceTake) width() time.Duration { return max(1, t.Period/AllowanceSlots) }

// allowanceUse is what was taken, as pairs of a slot's number and a count, the oldest first.
type allowanceUse [][2]int64

// take brings u up to now and takes what t wants, as far as there is.
func (u *allowanceUse) take(now time.Time, t *AllowanceTake) AllowanceGrant {
	width := int64(t.width())
	slot := now.UnixNano() / width
	back := t.Back
	next := allowanceUse{}
	sum := int64(0)
	for _, s := range *u {
		n, at := s[1], min(s[0], slot) // a clock that was ahead counts from now on
		if s[0] == t.BackSlot {
			gone := min(back, n)
			n, back = n-gone, back-gone
		}
		if n <= 0 || at < slot-AllowanceSlots {
			continue
		}
		sum += n
		if k := len(next); k > 0 && next[k-1][0] == at {
			next[k-1][1] += n
		} else {
			next = append(next, [2]int64{at, n})
		}
	}
	left := max(0, t.Limit-sum-t.Used)
	g := AllowanceGrant{Granted: max(0, min(t.Want, left)), Slot: slot}
	g.Left = left - g.Granted
	if n := g.Granted + t.Used; n > 0 {
		if k := len(next); k > 0 && next[k-1][0] == slot {
			next[k-1][1] += n
		} else {
			next = append(next, [2]int64{slot, n})
		}
	}
	*u = next
	if g.Granted < t.Need && t.Need <= t.Limit {
		free := t.Limit - sum - t.Used - g.Granted
		for _, s := range next {
			if free += s[1]; free >= t.Need-g.Granted {
				g.Next = max(time.Millisecond, time.Duration((s[0]+AllowanceSlots+1)*width-now.UnixNano()))
				break
			}
		}
	}
	return g
}

// KnownRequests says which of the request_ids a team has used for a mail.
func (s *Store) KnownRequests(ctx context.Context, team string, ids []string) (map[string]bool, error) {
	w := newWhere(s)
	w.add("team = ?", team)
	w.in("request_id", ids)
	var got []string
	// Served by mail_request.
	if err := s.read.SelectContext(ctx, &got, s.read.Rebind("select request_id from mail where "+w.sql()), w.args...); err != nil {
		return nil, s.fault(err)
	}
	known := make(map[string]bool, len(got))
	for _, id := range got {
		known[id] = true
	}
	return known, nil
}

// QueueDepths counts each team's mails in the due-out journal.
func (s *Store) QueueDepths(ctx context.Context) (map[string]int64, error) {
	var rows []struct {
		Team  string
		Mails int64
	}
	// due_team is read whole.
	if err := s.read.SelectContext(ctx, &rows, "select team, count(*) as mails from due group by team"); err != nil {
		return nil, s.fault(err)
	}
	out := make(map[string]int64, len(rows))
	for _, r := range rows {
		out[r.Team] = r.Mails
	}
	return out, nil
}
