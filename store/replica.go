package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Register takes a new replica id, alive for ttl by the database's clock. On SQLite, which
// serves one process, everybody else is dead by definition.
func (s *Store) Register(ctx context.Context, name string, ttl time.Duration) (ReplicaID, error) {
	return s.dialect.register(ctx, name, ttl)
}

// Renew extends the lease of r. ErrStale: somebody has taken r for dead; what it owned is not
// its own any more.
func (s *Store) Renew(ctx context.Context, r ReplicaID, ttl time.Duration) error {
	res, err := s.q.get("replica_renew").ExecContext(ctx, s.dialect.leaseEnd(ttl), int64(r))
	if err != nil {
		return s.fault(err)
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return ErrStale
	}
	if err != nil {
		return s.fault(err)
	}
	return s.beat(ctx)
}

// Unregister gives back what r owns and has not marked, and ends its lease. Marked mails stay
// with the dead id until Recover settles them.
func (s *Store) Unregister(ctx context.Context, r ReplicaID) error {
	// So that a backup that was made while r lived is older than what is remembered.
	if err := s.beat(ctx); err != nil {
		s.log.Warn("the last beat was not written", "error", err)
	}
	return s.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := s.q.in(ctx, tx, "replica_release").ExecContext(ctx, int64(r)); err != nil {
			return err
		}
		res, err := s.q.in(ctx, tx, "replica_unregister").ExecContext(ctx, int64(r))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			return err
		}
		_, err = s.q.in(ctx, tx, "replica_end").ExecContext(ctx, int64(r))
		return err
	})
}

// Recover takes over what belongs to nobody who lives: replicas whose lease has run out, by the
// database's clock, and those that are not known any more, whatever was written in their name
// after their end. Mails become claimable; up to max of those that may have left (Marked), or
// that an owner before died of as well (Crashes above 1), become me's: their new owner has to
// say what becomes of them. Nobody buries itself. On SQLite nobody is buried by time: whoever
// was there before is dead when its successor registers.
//
// After an error mails may be me's that it does not know of: see Owned.
func (s *Store) Recover(ctx context.Context, me ReplicaID, max int) (released int, adopted []*Claimed, err error) {
	var rows []claimedRow
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		rows, released = nil, 0
		if err := s.dialect.bury(ctx, tx, me); err != nil {
			return err
		}
		var gone []int64
		if err := s.q.in(ctx, tx, "owners_gone").SelectContext(ctx, &gone); err != nil {
			return err
		}
		if len(gone) > 0 {
			if err := s.recoverFrom(ctx, tx, gone, me, max, &released, &rows); err != nil {
				return err
			}
		}
		_, err = s.q.in(ctx, tx, "replica_forget").ExecContext(ctx)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	return released, s.claimedOf(me, rows), nil
}

func (s *Store) recoverFrom(ctx context.Context, tx *sqlx.Tx, gone []int64, me ReplicaID, max int, released *int, rows *[]claimedRow) error {
	b, err := json.Marshal(gone)
	if err != nil {
		return err
	}
	res, err := s.q.in(ctx, tx, "recover_unmarked").ExecContext(ctx, string(b))
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return err
	}
	*released = int(n)
	*rows, err = s.dialect.adoptMarked(ctx, tx, string(b), me, max)
	return err
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
	return out, s.fault(err)
}

// TakeBack ends what r has and does not know of, where it still has it under that token:
// unmarked mails become claimable as they were. Those that may have left (Marked), or that
// somebody died of (Begun), become r's anew. A mail that the database cannot read or write,
// because it is damaged at that place, stays as it is and holds up no other; the error is its
// own when there is no other.
func (s *Store) TakeBack(ctx context.Context, r ReplicaID, lost []Ownership) (released int, adopted []*Claimed, err error) {
	if len(lost) == 0 {
		return 0, nil, nil
	}
	released, rows, err := s.takeBack(ctx, r, lost)
	if err == nil {
		return released, s.claimedOf(r, rows), nil
	}
	n := len(lost)
	if n == 1 || !damaged(err) && !dataFault(err) {
		return 0, nil, err
	}
	done := false // for one half at least
	for _, half := range [][]Ownership{lost[:n/2], lost[n/2:]} {
		k, cs, fault := s.TakeBack(ctx, r, half)
		released, adopted = released+k, append(adopted, cs...)
		switch {
		case fault == nil:
			done = true
		case len(half) == 1:
			s.log.Error("a mail cannot be given back", "mail_id", half[0].ID, "error", fault)
		}
	}
	if done {
		err = nil
	}
	return released, adopted, err
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
