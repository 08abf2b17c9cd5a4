package store

import (
	"context"
	"slices"
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
	had, err := s.Owned(ctx, r)
	if err != nil {
		return err
	}
	ids := make([]uuid.UUID, len(had))
	for i, o := range had {
		ids[i] = o.ID
	}
	for chunk := range slices.Chunk(s.damage.without(ids, s.now()), ownedChunk) {
		if _, err := s.past(ctx, chunk, func(ids []uuid.UUID) error {
			list, err := idsJSON(ids)
			if err != nil {
				return err
			}
			return s.repeated(func() error {
				_, err := s.q.get("replica_release").ExecContext(ctx, list, int64(r))
				return err
			})
		}); err != nil {
			return err
		}
	}
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
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
	if damaged(err) { // whether it owns anything cannot be said
		_, err = s.q.get("replica_end").ExecContext(ctx, int64(r))
		err = s.fault(err)
	}
	return err
}
