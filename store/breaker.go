package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"
)

// Breaker is what all replicas know about a mail server's health. Its rules are the engine's; times are the database's.
type Breaker struct {
	MailServer  string
	Version     int64     // of the configuration it is about
	Failures    int       // to open a session, in a row; 0 = well
	Reason      string    // of the last of them
	RetryAt     time.Time // left alone until then
	ProbeUntil  time.Time // somebody tries until then
	HealedAt    time.Time // when a session ended the failures
	SuccessAt   time.Time
	FailureAt   time.Time
	LastFailure string
}

type breakerRow struct {
	MailServer  string `db:"mail_server"`
	Version     int64
	Failures    int
	Reason      string
	RetryAt     dbTime `db:"retry_at"`
	ProbeUntil  dbTime `db:"probe_until"`
	HealedAt    dbTime `db:"healed_at"`
	SuccessAt   dbTime `db:"success_at"`
	FailureAt   dbTime `db:"failure_at"`
	LastFailure string `db:"last_failure"`
}

func (r *breakerRow) breaker() *Breaker {
	return &Breaker{r.MailServer, r.Version, r.Failures, r.Reason, r.RetryAt.Time, r.ProbeUntil.Time, r.HealedAt.Time, r.SuccessAt.Time, r.FailureAt.Time, r.LastFailure}
}

// Breakers reads all there are: at most one a mail server that was ever used.
func (s *Store) Breakers(ctx context.Context) (map[string]*Breaker, error) {
	var rows []breakerRow
	if err := s.q.get("breakers").SelectContext(ctx, &rows); err != nil {
		return nil, s.fault(err)
	}
	out := make(map[string]*Breaker, len(rows))
	for i := range rows {
		out[rows[i].MailServer] = rows[i].breaker()
	}
	return out, nil
}

// ChangeBreaker reads, changes and writes a mail server's breaker in one transaction, so that replicas decide one after the other. change gets the
// database's clock; false writes nothing. A mail server without a breaker has an empty one.
func (s *Store) ChangeBreaker(ctx context.Context, server string, change func(now time.Time, b *Breaker) bool) (*Breaker, error) {
	var out *Breaker
	err := s.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := s.q.in(ctx, tx, "breaker_make").ExecContext(ctx, server); err != nil {
			return err
		}
		now, err := s.clock(ctx, tx)
		if err != nil {
			return err
		}
		var r breakerRow
		if err := s.q.in(ctx, tx, "breaker_lock").GetContext(ctx, &r, server); err != nil {
			return err
		}
		out = r.breaker()
		if !change(now, out) {
			return nil
		}
		_, err = s.q.in(ctx, tx, "breaker_write").ExecContext(ctx, out.Version, out.Failures, out.Reason, s.t(&out.RetryAt), s.t(&out.ProbeUntil), s.t(&out.HealedAt),
			s.t(&out.SuccessAt), s.t(&out.FailureAt), out.LastFailure, server)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// clock is the time that decides, inside tx: after waiting for a lock, not when the transaction began.
func (s *Store) clock(ctx context.Context, tx *sqlx.Tx) (time.Time, error) {
	if s.dialect == sqliteDia {
		return micro(s.now()), nil
	}
	var t time.Time
	err := s.q.in(ctx, tx, "clock").GetContext(ctx, &t)
	return t.UTC(), err
}

// TakeSlot takes one of a mail server's limit connections over all replicas, false when none is free. On SQLite, which one process uses, the engine's own
// count is enough and this always says yes.
func (s *Store) TakeSlot(ctx context.Context, r ReplicaID, server string, limit int) (n int, ok bool, err error) {
	if s.dialect == sqliteDia {
		return 0, true, nil
	}
	for range slotTries {
		err := s.q.get("slot_take").GetContext(ctx, &n, server, int64(r), limit, server)
		switch {
		case err == nil:
			return n, true, nil
		case !errors.Is(err, sql.ErrNoRows):
			return 0, false, s.fault(err)
		}
		var free bool // or somebody was faster
		if err := s.q.get("slot_free").GetContext(ctx, &free, limit, server); err != nil {
			return 0, false, s.fault(err)
		}
		if !free {
			return 0, false, nil
		}
	}
	return 0, false, nil
}

// slotTries: each failed one means that another replica got the slot.
const slotTries = 20

// GiveSlot gives a slot back.
func (s *Store) GiveSlot(ctx context.Context, r ReplicaID, server string, n int) error {
	if s.dialect == sqliteDia {
		return nil
	}
	_, err := s.q.get("slot_give").ExecContext(ctx, server, n, int64(r))
	return s.fault(err)
}

// TakeQuota takes up to want mails out of a mail server's limits over all replicas, 0 = no limit. A minute's limit is a bucket of a tenth of it that fills
// evenly, so that any minute sees at most 110 %; a day's limit is counted by UTC days. next says when there may be more, if not all was granted. A
// negative want gives back what was not used.
func (s *Store) TakeQuota(ctx context.Context, server string, want, perMinute, perDay int) (granted int, next time.Time, err error) {
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		granted, next = 0, time.Time{}
		now, err := s.clock(ctx, tx)
		if err != nil {
			return err
		}
		room := max(1, float64(perMinute)/10)
		if _, err := s.q.in(ctx, tx, "quota_make").ExecContext(ctx, server, room, s.t(&now), now.Format(time.DateOnly)); err != nil {
			return err
		}
		if now, err = s.clock(ctx, tx); err != nil {
			return err
		}
		var q struct {
			Tokens     float64
			RefilledAt dbTime `db:"refilled_at"`
			Day        string
			DayUsed    int `db:"day_used"`
		}
		if err := s.q.in(ctx, tx, "quota_lock").GetContext(ctx, &q, server); err != nil {
			return err
		}
		today := now.Format(time.DateOnly)
		if q.Day < today {
			q.Day, q.DayUsed = today, 0
		}
		if perMinute > 0 {
			q.Tokens = min(room, q.Tokens+max(0, now.Sub(q.RefilledAt.Time).Seconds())*float64(perMinute)/60)
		}
		granted = want
		if perMinute > 0 && float64(granted) > q.Tokens {
			granted = int(q.Tokens)
			next = now.Add(time.Duration((float64(granted+1) - q.Tokens) / float64(perMinute) * float64(time.Minute)))
		}
		if perDay > 0 && granted > perDay-q.DayUsed {
			granted = max(0, perDay-q.DayUsed)
			next = now.Truncate(24 * time.Hour).Add(24 * time.Hour)
		}
		q.Tokens = min(room, q.Tokens-float64(granted))
		q.DayUsed = max(0, q.DayUsed+granted)
		_, err = s.q.in(ctx, tx, "quota_write").ExecContext(ctx, q.Tokens, s.t(&now), q.Day, q.DayUsed, server)
		return err
	})
	if err != nil {
		return 0, time.Time{}, err
	}
	return granted, next, nil
}
