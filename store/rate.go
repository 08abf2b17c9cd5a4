package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"
)

// RateUse is what a replica says of its part of a mail server's rate limits, each time anew. It
// is state and not a change: whatever the replica was granted and neither used nor holds comes
// back, also what it was granted in an answer that it never heard.
type RateUse struct {
	// number of this call, higher than that of any before; a late one changes nothing
	Call int64
	Used int64 // mails that have left, or were refused for themselves, since this process began
	Held int   // mails that were granted and may still leave
	// how long ago the last one left
	Quiet time.Duration
}

// TakeRate takes up to want mails out of a mail server's limits over all replicas, 0 = no
// limit, and writes down what the replica has used. granted is between 0 and want; next says
// when there may be more, if not all was granted.
//
// A minute's limit is a bucket of a tenth of it that fills evenly. What is granted and has not
// left yet takes up room in the bucket, so that any minute sees at most 110 % however late it
// leaves. A day's limit is counted by UTC days, whether it is set or not, so that changing it
// gives nothing back. What a replica held when it died counts as used.
func (s *Store) TakeRate(ctx context.Context, r ReplicaID, server string, use RateUse, want, perMinute, perDay int) (granted int, next time.Time, err error) {
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		granted, next = 0, time.Time{}
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		if _, err := s.q.in(ctx, tx, "quota_make").ExecContext(ctx, server, rateRoom(perMinute), s.t(&now), now.Format(time.DateOnly)); err != nil {
			return err
		}
		var q rateRow
		if err := s.q.in(ctx, tx, "quota_lock").GetContext(ctx, &q, server); err != nil {
			return err
		}
		if now, err = s.dialect.clock(ctx, tx); err != nil { // after the wait for the lock
			return err
		}
		var mine rateShare
		err = s.q.in(ctx, tx, "rate_share").GetContext(ctx, &mine, server, int64(r))
		if errors.Is(err, sql.ErrNoRows) {
			// it was somebody before, or has just begun
			mine = rateShare{Granted: use.Used + int64(use.Held), Held: use.Held}
			_, err = s.q.in(ctx, tx, "rate_share_forget").ExecContext(ctx, server)
		}
		if err != nil {
			return err
		}
		if use.Call <= mine.Call {
			return nil
		}
		var others int
		if err := s.q.in(ctx, tx, "rate_others").GetContext(ctx, &others, server, int64(r), s.t(&now)); err != nil {
			return err
		}
		granted, next = q.take(now, mine, use, others, want, perMinute, perDay)
		held := use.Held + granted
		if _, err := s.q.in(ctx, tx, "rate_share_write").ExecContext(ctx, server, int64(r), use.Call, use.Used+int64(held), held); err != nil {
			return err
		}
		_, err = s.q.in(ctx, tx, "quota_write").ExecContext(ctx, q.Tokens, s.t(&q.RefilledAt.Time), q.Day, q.DayUsed, server)
		return err
	})
	if err != nil {
		return 0, time.Time{}, err
	}
	return granted, next, nil
}

// rateRow is what all replicas together have used of a mail server's limits.
type rateRow struct {
	Tokens     float64 // mails that may leave now; belongs to the limit per minute
	RefilledAt dbTime  `db:"refilled_at"`
	Day        string
	DayUsed    int `db:"day_used"` // granted today and not given back
}

// rateShare is what one replica has said last.
type rateShare struct {
	Call    int64
	Granted int64 // since the process began
	Held    int
}

// rateRoom is how many mails may leave at once under a limit per minute.
func rateRoom(perMinute int) float64 { return max(1, float64(perMinute)/10) }

// take brings the row up to now, settles what the replica says, and grants what there is.
func (q *rateRow) take(now time.Time, mine rateShare, use RateUse, others, want, perMinute, perDay int) (granted int, next time.Time) {
	if today := now.Format(time.DateOnly); q.Day < today {
		q.Day, q.DayUsed = today, mine.Held+others // what is under way leaves today
	}
	// negative: more has left than was granted
	back := int(mine.Granted - use.Used - int64(use.Held))
	q.DayUsed = max(0, q.DayUsed-back)
	granted = max(0, want)
	if perMinute > 0 {
		// Until the last one left the bucket had only the room beside what was held before:
		// what a hanging relay lets go at once is not followed by what would have filled
		// meanwhile.
		since := max(0, now.Sub(q.RefilledAt.Time))
		quiet := min(since, max(0, use.Quiet))
		room := func(held int) float64 { return max(0, rateRoom(perMinute)-float64(held+others)) }
		fill := func(d time.Duration) float64 { return d.Seconds() * float64(perMinute) / 60 }
		q.Tokens = max(q.Tokens, min(room(mine.Held), q.Tokens+fill(since-quiet)))
		q.Tokens = max(0, min(room(use.Held), q.Tokens+fill(quiet)+float64(back)))
		q.RefilledAt.Time = now
		if float64(granted) > q.Tokens {
			granted = int(q.Tokens)
			next = now.Add(time.Duration((float64(granted+1) - q.Tokens) / float64(perMinute) * float64(time.Minute)))
		}
	}
	if left := max(0, perDay-q.DayUsed); perDay > 0 && granted > left {
		granted = left
		next = now.Truncate(24 * time.Hour).Add(24 * time.Hour)
	}
	if perMinute > 0 {
		q.Tokens -= float64(granted)
	}
	q.DayUsed += granted
	return granted, next
}
