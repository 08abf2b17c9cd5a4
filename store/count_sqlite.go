package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"
)

func (onSQLite) unixSecond(column string) string { return "(" + column + " / 1000000)" }

func (s onSQLite) clockIn(ctx context.Context, _ *sqlx.Tx) (time.Time, error) {
	return s.clock(ctx, nil)
}

func (s onSQLite) foldCounts(ctx context.Context) (n int, err error) {
	var waits bool
	// Most seconds of most services have nothing to add up, and no need of the writer.
	if err := s.read.GetContext(ctx, &waits, "select exists (select 1 from count_delta) or exists (select 1 from count_queue where second > 0)"); err != nil || !waits {
		return 0, s.fault(err)
	}
	err = s.workTx(ctx, func(tx *sqlx.Tx) error {
		var page struct{ Last, N int64 }
		if err := s.q.in(ctx, tx, "count_page").GetContext(ctx, &page, countPage); err != nil {
			return err
		}
		n = int(page.N)
		now := s.now().Unix()
		steps := []struct {
			name string
			args []any
		}{{"count_fold_queue", []any{page.Last, now}}, {"count_fold_batch", []any{page.Last}}, {"count_fold_batches", []any{page.Last}}, {"count_folded", []any{page.Last}},
			{"count_ripen", []any{now}}, {"count_ripened", []any{now}}, {"count_empty", nil}}
		if n == 0 {
			steps = steps[4:]
		} else if n == countPage { // there is more
			steps = steps[:4]
		}
		for _, st := range steps {
			if _, err := s.q.in(ctx, tx, st.name).ExecContext(ctx, st.args...); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}

// recount reads beside the writer. What it lacks stays right whatever is written meanwhile.
func (s onSQLite) recount(ctx context.Context, write func(tx *sqlx.Tx, off *countsOff) error) error {
	tx, err := s.read.BeginTxx(ctx, s.inspection())
	if err != nil {
		return err
	}
	off, err := s.readCounts(ctx, tx)
	_ = tx.Rollback() // nothing was written
	if err != nil {
		return err
	}
	return s.tx(ctx, func(tx *sqlx.Tx) error { return write(tx, off) })
}
