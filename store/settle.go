package store

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"
)

type settleOp struct {
	s     *Settlement
	plain bool // s stands for one whose data the database refused
	done  chan Settled
	end   func() // of the interactive work that this is; nil = somebody's bulk
}

// answer gives the op its one answer.
func (op *settleOp) answer(a Settled) {
	op.done <- a
	if op.end != nil {
		op.end()
	}
}

// Settle hands over one conditional write to a mail and returns where its one answer will be:
// when the write is durable (Mine), when it is refused because the mail is not the owner's
// under its token any more (not Mine), or when the store is closed (Err). It is never the
// database's being away: the store repeats the write by itself. Err is also a write that the
// database does not take in any words, which is a fault of ours.
//
// Writes are committed in groups and strictly in the order they were handed over: none is
// committed later than one that came after it. The quick ones have an order of their own; a
// mail's writes are all quick or none. When too many wait already, Settle waits.
func (s *Store) Settle(st *Settlement) <-chan Settled {
	op := &settleOp{s: st, done: make(chan Settled, 1)}
	if st.Quick {
		op.end = s.interactive.begin()
		s.quick.hand(op)
	} else {
		s.settle.hand(op)
	}
	return op.done
}

// RefusedResults is how many results were stored with plain words because the database refused
// their data, since Open.
func (s *Store) RefusedResults() int64 { return s.refused.Load() }

// writtenBefore finds, among results that are not their owner's to write any more, those that
// it has written under the same token: the answer to an earlier try was lost. Progress leaves
// the mail its owner's, unmarked under the next token: no later write of the owner's can have
// been made yet. Marks repeat without harm.
func (s *Store) writtenBefore(ctx context.Context, ops []*settleOp, mine map[uuid.UUID]bool) error {
	var rows []settleRow
	for _, op := range ops {
		switch op.s.Kind {
		case SettleArchive, SettlePark, SettleRetry, settleUnreadable:
			if !mine[op.s.ID] {
				rows = append(rows, settleRow{ID: op.s.ID, Claim: op.s.Claim})
			}
		case SettleProgress:
			if !mine[op.s.ID] {
				rows = append(rows, settleRow{ID: op.s.ID, Claim: op.s.Claim + 1, Owner: int64(op.s.Owner)})
			}
		}
	}
	if len(rows) == 0 {
		return nil
	}
	list, err := listJSON(rows)
	if err != nil {
		return err
	}
	var ids []uuid.UUID
	if err := s.q.get("settled_under").SelectContext(ctx, &ids, list); err != nil {
		return err
	}
	for _, id := range ids {
		mine[id] = true
	}
	return nil
}

// settleRow is a settlement as the statement reads it. A finished mail has only the fields that
// are always there.
type settleRow struct {
	ID       uuid.UUID  `json:"id"`
	Claim    int64      `json:"c"`
	Owner    int64      `json:"o,omitempty"`
	Kind     SettleKind `json:"k,omitempty"`
	Status   MailStatus `json:"status,omitempty"`
	RunAt    *int64     `json:"run_at,omitempty"`
	Attempts int        `json:"attempts"`
	Crashes  int        `json:"crashes,omitempty"`
	Progress *Progress  `json:"progress,omitempty"`
	Dup      bool       `json:"dup"`
	Err      string     `json:"err"`
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
