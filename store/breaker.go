package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"
)

// Breaker is what all replicas know about a mail server's health. Its rules are the engine's;
// times are the database's.
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

// ChangeBreaker reads, changes and writes a mail server's breaker in one transaction, so that
// replicas decide one after the other. change gets the database's clock; false writes nothing.
// A mail server without a breaker has an empty one.
func (s *Store) ChangeBreaker(ctx context.Context, server string, change func(now time.Time, b *Breaker) bool) (*Breaker, error) {
	var out *Breaker
	err := s.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := s.q.in(ctx, tx, "breaker_make").ExecContext(ctx, server); err != nil {
			return err
		}
		now, err := s.dialect.clock(ctx, tx)
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
