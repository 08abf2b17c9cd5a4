package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// modifyRow is a change as the statement reads it.
type modifyRow struct {
	ID       uuid.UUID  `json:"id"`
	Done     bool       `json:"done"`
	Status   MailStatus `json:"status"`
	RunAt    *int64     `json:"run_at,omitempty"`
	ResumeAt *int64     `json:"resume_at,omitempty"`
	Attempts int        `json:"attempts"`
	Progress *Progress  `json:"progress"`
	Dup      bool       `json:"dup"`
	Err      string     `json:"err"`
}

func (s onPostgres) writeChanges(ctx context.Context, tx *sqlx.Tx, changes []change) error {
	rows := make([]modifyRow, len(changes))
	for i, x := range changes {
		c := x.c
		r := modifyRow{ID: x.m.ID, Done: c.Kind == SettleArchive, Status: c.Status, Attempts: c.Attempts, Progress: c.Progress, Dup: c.PossibleDuplicate, Err: c.LastError}
		if c.Kind == SettleRetry {
			at := c.RunAt.UnixMicro()
			r.RunAt = &at
		}
		if !c.ResumeAt.IsZero() {
			at := c.ResumeAt.UnixMicro()
			r.ResumeAt = &at
		}
		rows[i] = r
	}
	b, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	var n int
	if err := s.q.in(ctx, tx, "modify").GetContext(ctx, &n, string(b)); err != nil {
		return err
	}
	if n != len(changes) {
		return fmt.Errorf("%d of %d locked mails were changed", n, len(changes))
	}
	return nil
}
