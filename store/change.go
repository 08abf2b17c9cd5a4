package store

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Position is a place in the sequence of changes. Only positions of one generation compare with
// each other: a database that went back in time, or lies in another cluster, has begun a new
// one.
type Position struct{ Generation, XID, Seq int64 }

// Before compares positions of one generation.
func (p Position) Before(q Position) bool { return p.XID < q.XID || p.XID == q.XID && p.Seq < q.Seq }

// MailChange is one change of a mail's status.
type MailChange struct {
	Position Position
	Status   MailStatus // that it changed to
	Time     time.Time
	Mail     *Mail // as it stands now, which may be later than the change
}

// ErrForgotten: changes behind the position have been forgotten meanwhile, or it is one of
// before the database was restored.
var ErrForgotten = errors.New("changes since this position are not kept any more")

// errOvertaken: the mail was changed by a transaction that began after ours; ours begins again,
// so that its change comes behind that one.
var errOvertaken = errors.New("overtaken by a later transaction")

// LastChange is the position behind everything that has happened.
func (s *Store) LastChange(ctx context.Context) (Position, error) {
	var r struct{ Generation, Horizon int64 }
	if err := s.q.get("change_horizon").GetContext(ctx, &r); err != nil {
		return Position{}, s.fault(err)
	}
	return s.dialect.position(r.Generation, r.Horizon), nil
}

// WatchLag is how long ago the first change happened that Changes does not give yet; 0 = there
// is none. On PostgreSQL nothing is given that a transaction which is still under way might
// come before, and that may be a stranger's: its server counts those of all its databases. On
// SQLite there is never a lag.
func (s *Store) WatchLag(ctx context.Context) (time.Duration, error) {
	return s.dialect.lag(ctx)
}

// Changes reads changes behind after, at most n, and returns those that sc and f let through,
// with the position to go on from. more: there are further ones already. Every change comes
// exactly once and each mail's in their order, also over replicas; a mail that is not kept any
// more is left out. That a mail is being sent is no change: it is so for a moment only, and the
// log would cost a write at the mark, before the dot.
func (s *Store) Changes(ctx context.Context, sc Scope, f MailFilter, after Position, n int) (out []MailChange, next Position, more bool, err error) {
	last, err := s.LastChange(ctx)
	if err != nil {
		return nil, after, false, err
	}
	// The horizon never moves back, so a position beyond it is of another history, also where
	// nothing else has shown that.
	if after.Generation != last.Generation || last.Before(after) {
		return nil, after, false, ErrForgotten
	}
	h := last.XID + last.Seq // one of them is 0
	var rows []struct {
		XID, Seq int64
		MailID   uuid.UUID `db:"mail_id"`
		Status   MailStatus
		Time     dbTime
	}
	if err := s.q.get("change_read").SelectContext(ctx, &rows, after.XID, after.Seq, h, n); err != nil {
		return nil, after, false, s.fault(err)
	}
	// Looked at after the changes were read: what was forgotten before that is noticed.
	var gone Position
	if err := s.q.get("change_forgotten").GetContext(ctx, &gone); err != nil {
		return nil, after, false, s.fault(err)
	}
	if after.Generation != gone.Generation || after.Before(gone) {
		return nil, after, false, ErrForgotten
	}
	if len(rows) == 0 {
		return nil, last, false, nil
	}
	next = last // all up to the horizon was read
	if len(rows) == n {
		r := rows[len(rows)-1]
		next, more = Position{last.Generation, r.XID, r.Seq}, true
	}
	ids := make(map[uuid.UUID]bool, len(rows))
	for _, r := range rows {
		ids[r.MailID] = true
	}
	mails, err := s.filtered(ctx, sc, f, ids)
	if err != nil {
		return nil, after, false, err
	}
	wanted := map[MailStatus]bool{}
	for _, st := range f.Statuses {
		wanted[st] = true
	}
	for _, r := range rows {
		if r.Status == MailSending { // a claim, logged by an older version
			continue
		}
		if m := mails[r.MailID]; m != nil && (len(wanted) == 0 || wanted[r.Status]) {
			out = append(out, MailChange{Position{last.Generation, r.XID, r.Seq}, r.Status, r.Time.Time, m})
		}
	}
	return out, next, more, nil
}

// filtered reads those of the mails that sc and f let through, whatever their status is now.
func (s *Store) filtered(ctx context.Context, sc Scope, f MailFilter, ids map[uuid.UUID]bool) (map[uuid.UUID]*Mail, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	args := make([]any, 0, len(ids))
	for id := range ids {
		args = append(args, id)
	}
	marks := "(?" + strings.Repeat(", ?", len(args)-1) + ")"
	out := make(map[uuid.UUID]*Mail, len(ids))
	// In this order: a mail that moves between the two looks is seen by the second.
	for _, j := range []struct{ alias, columns, table string }{{"d", dueColumns, "due"}, {"a", archiveColumns, "archive"}} {
		w := newWhere(s)
		w.add(j.alias+".id in "+marks, args...)
		w.mails(j.alias, sc, f.Team)
		w.filter(&f, j.alias)
		ms, err := s.mails(ctx, s.read, "select "+j.columns+" from "+j.table+" "+j.alias+" join mail m on m.id = "+j.alias+".id where "+w.sql(), w.args)
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			out[m.ID] = m
		}
	}
	return out, nil
}

const forgetPage = 5000

// ForgetChanges forgets changes older than age, a page in each transaction, and damage that
// nobody has met for an hour.
func (s *Store) ForgetChanges(ctx context.Context, age time.Duration) (int, error) {
	if err := s.forgetDamage(ctx, s.now().Add(-damageTold)); err != nil {
		return 0, err
	}
	total := 0
	for {
		n, err := s.dialect.forgetChanges(ctx, age)
		total += n
		if err != nil || n < forgetPage {
			return total, err
		}
	}
}
