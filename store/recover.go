package store

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Recover takes over what belongs to nobody who lives: replicas whose lease has run out, by the
// database's clock, and those that are not known any more, whatever was written in their name
// after their end. Mails become claimable; up to max of those that may have left (Marked), or
// that an owner before died of as well (Crashes above 1), become me's: their new owner has to
// say what becomes of them. Nobody buries itself. On SQLite nobody is buried by time: whoever
// was there before is dead when its successor registers.
//
// A mail that the database cannot read or write stays as it is and holds up no other. After an
// error, or where an answer was lost, mails may be me's that it does not know of: see Owned.
func (s *Store) Recover(ctx context.Context, me ReplicaID, max int) (released int, adopted []*Claimed, err error) {
	gone, ids, err := s.ownerless(ctx, me)
	if err != nil {
		return 0, nil, err
	}
	var rows []claimedRow
	for chunk := range slices.Chunk(s.damage.without(ids, s.now()), ownedChunk) {
		_, err = s.past(ctx, chunk, func(ids []uuid.UUID) error {
			n, got, err := s.recoverThese(ctx, ids, gone, me, max-len(rows))
			released, rows = released+n, append(rows, got...)
			return err
		})
		if err != nil {
			break
		}
	}
	if err == nil {
		// It looks whether they own anything: where a page of that cannot be read, they stay.
		if _, err = s.q.get("replica_forget").ExecContext(ctx); damaged(err) {
			err = nil
		}
	}
	if err != nil && released+len(rows) == 0 {
		return 0, nil, s.fault(err)
	}
	return released, s.claimedOf(me, rows), nil
}

// ownerless is what belongs to nobody who lives, and to whom it belonged as JSON. Whose lease
// has run out is buried first, but for me.
func (s *Store) ownerless(ctx context.Context, me ReplicaID) (gone string, ids []uuid.UUID, err error) {
	var owners []int64
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		gone, owners, ids = "", nil, nil
		if err := s.dialect.bury(ctx, tx, me); err != nil {
			return err
		}
		if err := s.q.in(ctx, tx, "owners_gone").SelectContext(ctx, &owners); err != nil || len(owners) == 0 {
			return err
		}
		gone = jsonText(owners)
		return s.q.in(ctx, tx, "owned_by").SelectContext(ctx, &ids, gone)
	})
	if damaged(err) {
		owners, ids, err = s.ownerlessPast(ctx, me, err)
		gone = jsonText(owners)
	}
	return gone, ids, err
}

// ownedChunk is how many mails change their owner in one transaction, where they are found
// first.
const ownedChunk = 5000

// recoverThese is one transaction of a recovery.
func (s *Store) recoverThese(ctx context.Context, ids []uuid.UUID, gone string, me ReplicaID, max int) (released int, rows []claimedRow, err error) {
	list, err := idsJSON(ids)
	if err != nil {
		return 0, nil, err
	}
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		res, err := s.q.in(ctx, tx, "recover_unmarked").ExecContext(ctx, list, gone)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if released = int(n); err != nil {
			return err
		}
		rows, err = s.dialect.adoptMarked(ctx, tx, list, gone, me, max)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	return released, rows, nil
}

func idsJSON(ids []uuid.UUID) (string, error) {
	if len(ids) == 0 {
		return "[]", nil
	}
	b, err := json.Marshal(ids)
	return string(b), err
}

// Ownership is one mail that a replica has, and under which token.
type Ownership struct {
	ID    uuid.UUID `json:"id"`
	Claim int64     `json:"c"`
}

// Owned is what r has. A replica that compares it with what it knows of finds the mails that
// became its own by a write whose answer was lost.
func (s *Store) Owned(ctx context.Context, r ReplicaID) ([]Ownership, error) {
	var out []Ownership
	err := s.q.get("owned").SelectContext(ctx, &out, int64(r))
	if damaged(err) {
		out, err = s.ownedPast(ctx, r, err)
	}
	return out, s.fault(err)
}

// TakeBack ends what r has and does not know of, where it still has it under that token:
// unmarked mails become claimable as they were. Those that may have left (Marked), or that
// somebody died of (Begun), become r's anew. A mail that the database cannot read or write
// stays as it is and holds up no other.
func (s *Store) TakeBack(ctx context.Context, r ReplicaID, lost []Ownership) (released int, adopted []*Claimed, err error) {
	claims, ids := make(map[uuid.UUID]int64, len(lost)), make([]uuid.UUID, len(lost))
	for i, o := range lost {
		claims[o.ID], ids[i] = o.Claim, o.ID
	}
	var rows []claimedRow
	_, err = s.past(ctx, s.damage.without(ids, s.now()), func(ids []uuid.UUID) error {
		these := make([]Ownership, len(ids))
		for i, id := range ids {
			these[i] = Ownership{id, claims[id]}
		}
		n, got, err := s.takeBack(ctx, r, these)
		released, rows = released+n, append(rows, got...)
		return err
	})
	if err != nil && released+len(rows) == 0 {
		return 0, nil, err
	}
	return released, s.claimedOf(r, rows), nil
}

// takeBack is one transaction.
func (s *Store) takeBack(ctx context.Context, r ReplicaID, lost []Ownership) (released int, rows []claimedRow, err error) {
	b, err := json.Marshal(lost)
	if err != nil {
		return 0, nil, err
	}
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		res, err := s.q.in(ctx, tx, "take_back").ExecContext(ctx, string(b), int64(r))
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if released = int(n); err != nil {
			return err
		}
		rows, err = s.dialect.takeBackMarked(ctx, tx, string(b), r)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	return released, rows, nil
}
