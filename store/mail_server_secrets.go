package store

import (
	"bytes"
	"context"

	"github.com/jmoiron/sqlx"
)

// ReplaceGrant stores a refresh token that the provider has put in the place of another, both
// sealed. Nothing else changes, the version neither: nobody has changed the mail server, its
// sessions and its breaker stand. It is done only where the grant that was used is still the
// stored one. Sealed values are never equal by chance, so this is stricter than a version, and
// a change to something else does not cost the new token. ok is false where the stored one is
// another: that of a person, or of another replica.
func (s *Store) ReplaceGrant(ctx context.Context, name string, was, now []byte) (ok bool, err error) {
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		ok = false
		m, err := s.lockServer(ctx, tx, Everything, name, 0)
		if err != nil || len(was) == 0 || !bytes.Equal(m.SealedGrant(), was) {
			return err
		}
		m.SMTP.OAuth.SealedGrant = now
		ok = true
		return s.writeServer(ctx, tx, m)
	})
	return ok && err == nil, err
}
