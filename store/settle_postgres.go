package store

import (
	"context"
	"strconv"

	"github.com/google/uuid"
)

func (s onPostgres) writeResults(ctx context.Context, ops []*settleOp) (map[uuid.UUID]bool, error) {
	var finished, changed []settleRow
	// Marks are half of all, and small: no reflection for them.
	marks := append(make([]byte, 0, 64+64*len(ops)), '[')
	mine := make(map[uuid.UUID]bool, len(ops))
	for _, op := range ops {
		st := op.s
		mine[st.ID] = true
		r := settleRow{ID: st.ID, Claim: st.Claim, Status: st.Status, Attempts: st.Attempts, Progress: progressOf(st), Dup: st.PossibleDuplicate, Err: storable(st.LastError)}
		switch st.Kind {
		case SettleMark:
			if len(marks) > 1 {
				marks = append(marks, ',')
			}
			marks = append(append(append(marks, `{"id":"`...), st.ID.String()...), `","c":`...)
			marks = append(strconv.AppendInt(marks, st.Claim, 10), '}')
		case SettleArchive:
			finished = append(finished, r)
		default:
			r.Kind, r.Crashes = st.Kind, st.Crashes
			if st.Kind == SettleRetry {
				at := st.RunAt.UnixMicro()
				r.RunAt = &at
			}
			changed = append(changed, r)
		}
	}
	f, err := listJSON(finished)
	if err != nil {
		return nil, err
	}
	x, err := listJSON(changed)
	if err != nil {
		return nil, err
	}
	var lost []uuid.UUID
	if err := s.q.get("settle").SelectContext(ctx, &lost, f, x, string(append(marks, ']')), int64(ops[0].s.Owner)); err != nil {
		return nil, err
	}
	for _, id := range lost {
		delete(mine, id)
	}
	return mine, nil
}
