package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"
)

func (onPostgres) unixSecond(column string) string {
	return "floor(extract(epoch from " + column + "))::bigint"
}

func (onPostgres) clockIn(ctx context.Context, tx *sqlx.Tx) (t time.Time, err error) {
	err = tx.GetContext(ctx, &t, "select clock_timestamp()")
	return t.UTC(), err
}

func (s onPostgres) lockCounts(ctx context.Context, tx *sqlx.Tx) error {
	var locked bool
	err := s.q.in(ctx, tx, "count_lock").GetContext(ctx, &locked)
	if err == nil && !locked {
		err = errCounting
	}
	return err
}

func (s onPostgres) foldCounts(ctx context.Context) (n int, err error) {
	err = s.workTx(ctx, func(tx *sqlx.Tx) error {
		if err := s.lockCounts(ctx, tx); err != nil {
			return err
		}
		var page struct {
			N       int
			Batches string
		}
		if err := s.q.in(ctx, tx, "count_fold").GetContext(ctx, &page, countPage); err != nil {
			return err
		}
		if n = page.N; n > 0 {
			if _, err := s.q.in(ctx, tx, "count_fold_batches").ExecContext(ctx, page.Batches); err != nil {
				return err
			}
		}
		if n == countPage { // there is more
			return nil
		}
		for _, name := range []string{"count_ripen", "count_empty"} {
			if _, err := s.q.in(ctx, tx, name).ExecContext(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}

// recount reads and writes in one snapshot, with the totals to itself.
func (s onPostgres) recount(ctx context.Context, write func(tx *sqlx.Tx, off *countsOff) error) error {
	return s.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, "set transaction isolation level repeatable read"); err != nil {
			return err
		}
		if err := s.lockCounts(ctx, tx); err != nil {
			return err
		}
		off, err := s.readCounts(ctx, tx)
		if err != nil {
			return err
		}
		return write(tx, off)
	})
}
