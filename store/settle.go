package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

type settleOp struct {
	s     *Settlement
	plain bool // s stands for one whose data the database refused
	done  chan Settled
}

// Settle hands over one conditional write to a mail and returns where its answer will be. Writes are committed in groups and strictly in the order
// they were handed over: none is committed later than one that came after it. The quick ones have an order of their own; a mail's writes are all quick or none.
func (s *Store) Settle(st *Settlement) <-chan Settled {
	op := &settleOp{s: st, done: make(chan Settled, 1)}
	if st.Quick {
		s.quick.in <- op
	} else {
		s.settle.in <- op
	}
	return op.done
}

// flushSettle writes a batch, cut where the same mail comes a second time, so that its writes keep their order, and where another owner's begin.
func (s *Store) flushSettle(ops []*settleOp) {
	for len(ops) > 0 {
		seen := make(map[uuid.UUID]bool, len(ops))
		n := 0
		most := len(ops)
		if !ops[0].s.Quick {
			most = min(most, s.bulkItems())
		}
		for n < most && ops[n].s.Owner == ops[0].s.Owner && !seen[ops[n].s.ID] {
			seen[ops[n].s.ID] = true
			n++
		}
		s.flushDistinct(ops[:n])
		ops = ops[n:]
	}
}

func (s *Store) flushDistinct(ops []*settleOp) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if !ops[0].s.Quick {
		defer s.bulkTurn(ctx)()
	}
	s.writeDistinct(ctx, ops)
}

func (s *Store) writeDistinct(ctx context.Context, ops []*settleOp) {
	var mine map[uuid.UUID]bool
	var err error
	for try := 0; ; try++ {
		if s.dialect == postgres {
			mine, err = s.settlePostgres(ctx, ops)
		} else {
			mine, err = s.settleSQLite(ctx, ops)
		}
		lost := errors.Is(s.fault(err), ErrUnavailable)
		if err == nil || try == 3 || !(retryable(err) || lost) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(50<<try) * time.Millisecond):
		}
	}
	if err != nil && dataFault(err) {
		s.settleApart(ctx, ops, err)
		return
	}
	for _, op := range ops {
		a := Settled{Mine: mine[op.s.ID]}
		switch {
		case err != nil:
			a.Err = s.fault(err)
		case !a.Mine:
			a.Mine, a.Err = s.writtenBefore(ctx, op.s)
		}
		op.done <- a
	}
}

// settleApart writes a batch that the database refused for the data of a row. Halves find that row; it is written with plain words in place
// of its own, and the others as they are. What is refused even so is answered with the fault.
func (s *Store) settleApart(ctx context.Context, ops []*settleOp, err error) {
	if n := len(ops); n > 1 {
		s.writeDistinct(ctx, ops[:n/2])
		s.writeDistinct(ctx, ops[n/2:])
		return
	}
	op := ops[0]
	if op.plain {
		s.log.Error("a result cannot be stored", "mail_id", op.s.ID, "status", op.s.Status, "error", err)
		op.done <- Settled{Err: fmt.Errorf("store result: %w", err)}
		return
	}
	s.log.Error("the database refused the data of a result: stored with plain words", "mail_id", op.s.ID, "status", op.s.Status,
		"last_error", op.s.LastError, "attempts", op.s.Attempts, "error", err, "refused", s.refused.Add(1))
	op.s, op.plain = plain(op.s), true
	s.writeDistinct(ctx, ops)
}

// RefusedResults is how many results were stored with plain words because the database refused their data, since Open.
func (s *Store) RefusedResults() int64 { return s.refused.Load() }

// writtenBefore says whether a result that is not the owner's to write any more was written by it under this token: the answer to an earlier try was lost.
func (s *Store) writtenBefore(ctx context.Context, st *Settlement) (bool, error) {
	if st.Kind == SettleMark || st.Kind == SettleProgress || st.Kind == SettleBegin {
		return false, nil // these leave the mail its owner's
	}
	var n int
	err := s.q.get("settled_under").GetContext(ctx, &n, st.ID, st.Claim, st.ID, st.Claim)
	return n > 0, s.fault(err)
}

// settleRow is a settlement as the statement reads it. A finished mail has only the fields that are always there.
type settleRow struct {
	ID       uuid.UUID  `json:"id"`
	Claim    int64      `json:"c"`
	Kind     SettleKind `json:"k,omitempty"`
	Status   MailStatus `json:"status,omitempty"`
	RunAt    *int64     `json:"run_at,omitempty"`
	Attempts int        `json:"attempts"`
	Crashes  int        `json:"crashes,omitempty"`
	Progress *Progress  `json:"progress,omitempty"`
	Dup      bool       `json:"dup"`
	Err      string     `json:"err"`
}

func (s *Store) settlePostgres(ctx context.Context, ops []*settleOp) (map[uuid.UUID]bool, error) {
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
			marks = fmt.Appendf(marks, `{"id":"%s","c":%d}`, st.ID, st.Claim)
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
	owner := int64(ops[0].s.Owner)
	if err := s.q.get("settle").SelectContext(ctx, &lost, f, x, string(append(marks, ']')), owner, owner, owner); err != nil {
		return nil, err
	}
	for _, id := range lost {
		delete(mine, id)
	}
	return mine, nil
}

// listJSON is a list for json_to_recordset, which takes no null.
func listJSON(rows []settleRow) (string, error) {
	if len(rows) == 0 {
		return "[]", nil
	}
	b, err := json.Marshal(rows)
	return string(b), err
}

// progressOf is what is stored: never null for a finished mail.
func progressOf(st *Settlement) *Progress {
	if st.Progress == nil && st.Kind == SettleArchive {
		return &Progress{}
	}
	return storableProgress(st.Progress)
}

func (s *Store) settleSQLite(ctx context.Context, ops []*settleOp) (map[uuid.UUID]bool, error) {
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
