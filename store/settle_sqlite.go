package store

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

func (s onSQLite) writeResults(ctx context.Context, ops []*settleOp) (map[uuid.UUID]bool, error) {
	mine := make(map[uuid.UUID]bool, len(ops))
	err := s.txOnce(ctx, func(tx *sqlx.Tx) error {
		clear(mine)
		now := s.nowArg()
		exec := func(id uuid.UUID, name string, args ...any) error {
			res, err := s.q.in(ctx, tx, name).ExecContext(ctx, args...)
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			if n > 0 {
				mine[id] = true
			}
			return err
		}
		for _, op := range ops {
			st := op.s
			owner := int64(st.Owner)
			var progress any
			if p := progressOf(st); p != nil {
				b, err := json.Marshal(p)
				if err != nil {
					return err
				}
				progress = string(b)
			}
			var err error
			switch st.Kind {
			case SettleMark:
				err = exec(st.ID, "settle_mark", now, st.ID, owner, st.Claim)
			case SettleBegin:
				err = exec(st.ID, "settle_begin", st.Crashes, st.ID, owner, st.Claim)
			case settleUnreadable:
				err = exec(st.ID, "settle_unreadable", st.Status, storable(st.LastError), st.ID, owner, st.Claim)
			case SettleProgress:
				err = exec(st.ID, "settle_progress", nullString(string(st.Status)), st.Attempts, progress, st.PossibleDuplicate, storable(st.LastError), st.ID, owner, st.Claim)
			case SettleArchive:
				if err = exec(st.ID, "settle_archive", now, st.Status, st.Attempts, st.PossibleDuplicate, storable(st.LastError), progress, st.ID, owner, st.Claim); err == nil && mine[st.ID] {
					err = exec(st.ID, "settle_delete", st.ID, owner, st.Claim)
				}
			default:
				var runAt any
				if st.Kind == SettleRetry {
					runAt = s.t(&st.RunAt)
				}
				err = exec(st.ID, "settle_update", st.Status, runAt, st.Crashes, st.Attempts, progress, st.PossibleDuplicate, storable(st.LastError), st.ID, owner, st.Claim)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return mine, err
}
