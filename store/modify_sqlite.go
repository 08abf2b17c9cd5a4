package store

import (
	"context"
	"encoding/json"

	"github.com/jmoiron/sqlx"
)

func (s onSQLite) writeChanges(ctx context.Context, tx *sqlx.Tx, changes []change) error {
	modify, remove, archive := s.q.in(ctx, tx, "due_modify"), s.q.in(ctx, tx, "due_delete"), s.q.in(ctx, tx, "archive_insert")
	now := s.nowArg()
	for _, x := range changes {
		c := x.c
		b, err := json.Marshal(c.Progress)
		if err != nil {
			return err
		}
		if c.Kind == SettleArchive {
			if _, err := archive.ExecContext(ctx, now, c.Status, c.Attempts, c.PossibleDuplicate, c.LastError, string(b), x.m.ID); err != nil {
				return err
			}
			if _, err := remove.ExecContext(ctx, x.m.ID); err != nil {
				return err
			}
			continue
		}
		var runAt any
		if c.Kind == SettleRetry {
			runAt = s.t(&c.RunAt)
		}
		if _, err := modify.ExecContext(ctx, c.Status, runAt, s.t(&c.ResumeAt), c.Attempts, string(b), c.PossibleDuplicate, c.LastError, x.m.ID); err != nil {
			return err
		}
	}
	return nil
}
