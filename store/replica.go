package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Register takes a new replica id, alive for ttl by the database's clock. On SQLite, which serves one process, everybody else is dead by definition.
func (s *Store) Register(ctx context.Context, name string, ttl time.Duration) (ReplicaID, error) {
	var id int64
	if s.dialect == postgres {
		err := s.q.get("replica_register").GetContext(ctx, &id, name, ttl.Microseconds())
		return ReplicaID(id), s.fault(err)
	}
	err := s.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := s.q.in(ctx, tx, "replica_bury_all").ExecContext(ctx); err != nil {
			return err
		}
		until := s.now().Add(ttl)
		return s.q.in(ctx, tx, "replica_register").GetContext(ctx, &id, name, s.t(&until))
	})
	return ReplicaID(id), err
}

// Renew extends the lease of r. ErrStale: somebody has taken r for dead; what it owned is not its own any more.
func (s *Store) Renew(ctx context.Context, r ReplicaID, ttl time.Duration) error {
	var arg any = ttl.Microseconds()
	if s.dialect == sqliteDia {
		until := s.now().Add(ttl)
		arg = s.t(&until)
	}
	res, err := s.q.get("replica_renew").ExecContext(ctx, arg, int64(r))
	if err != nil {
		return s.fault(err)
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return ErrStale
	}
	return s.fault(err)
}

// Unregister gives back what r owns and has not marked, and ends its lease. Marked mails stay with the dead id until Recover settles them.
func (s *Store) Unregister(ctx context.Context, r ReplicaID) error {
	return s.tx(ctx, func(tx *sqlx.Tx) error {
		if s.dialect == postgres {
			if _, err := s.q.in(ctx, tx, "change_release").ExecContext(ctx, int64(r)); err != nil {
				return err
			}
		}
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
		var zero any = int64(1) // in the past, so that the next Recover takes it for dead
		if s.dialect == postgres {
			zero = int64(0)
		}
		_, err = s.q.in(ctx, tx, "replica_renew").ExecContext(ctx, zero, int64(r))
		return err
	})
}

// Recover takes over from replicas whose lease has run out. Mails become claimable; up to max of those that may have left (Marked), or that an owner before
// died of as well (Crashes above 1), become me's: their new owner has to say what becomes of them.
func (s *Store) Recover(ctx context.Context, me ReplicaID, max int) (released int, adopted []*Claimed, err error) {
	var rows []claimedRow
	err = s.taking(ctx, me, &rows, func(tx *sqlx.Tx) error {
		var args []any
		if s.dialect == sqliteDia {
			args = append(args, s.nowArg())
		}
		if _, err := s.q.in(ctx, tx, "replica_bury").ExecContext(ctx, args...); err != nil {
			return err
		}
		res, err := s.q.in(ctx, tx, "recover_unmarked").ExecContext(ctx)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return err
		}
		released = int(n)
		if s.dialect == postgres {
			err = s.q.in(ctx, tx, "recover_marked").SelectContext(ctx, &rows, max, int64(me))
		} else {
			var ids []uuid.UUID
			if err = s.q.in(ctx, tx, "recover_marked").SelectContext(ctx, &ids, int64(me), max); err == nil && len(ids) > 0 {
				err = s.claimedByID(ctx, tx, ids, &rows)
			}
		}
		if err != nil {
			return err
		}
		_, err = s.q.in(ctx, tx, "replica_forget").ExecContext(ctx)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	adopted, err = claimedOf(rows)
	return released, adopted, err
}
