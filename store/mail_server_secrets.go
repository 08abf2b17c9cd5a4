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

// Reseal lets change put sealed values of a mail server in the place of others, and says how
// many: the secrets are the same, sealed by another key. Nothing else may change. The version
// stays: nobody has changed the mail server, its sessions and its breaker stand. change is
// called with the row locked, so that no value is lost that is stored meanwhile.
func (s *Store) Reseal(ctx context.Context, name string, a Audit, change func(*MailServer) int) (n int, err error) {
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		m, err := s.lockServer(ctx, tx, Everything, name, 0)
		if err != nil {
			return err
		}
		if n = change(m); n == 0 {
			return nil
		}
		if err := s.writeServer(ctx, tx, m); err != nil {
			return err
		}
		return s.auditDetail(ctx, tx, a, m.Team, m.Name, map[string]any{"secrets": n})
	})
	return n, err
}
