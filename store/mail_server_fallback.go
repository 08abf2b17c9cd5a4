package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"
)

// FallbackError says why a mail server cannot have the fallback that it names.
type FallbackError struct{ Why string }

func (e *FallbackError) Error() string { return e.Why }

// InUseError: the mail server is the fallback of others.
type InUseError struct{ Count int }

func (e *InUseError) Error() string {
	return fmt.Sprintf("it is the fallback of %d mail servers", e.Count)
}

// CanFallBack says why m cannot go on through another mail server, nil if it can. fallback is
// the one that m names, nil if there is none of that name; used says that m itself is the
// fallback of another. Mail goes on through one further mail server and never beyond it, so
// that it cannot go round.
func (m *MailServer) CanFallBack(fallback *MailServer, used bool) error {
	name := m.Fallback
	switch {
	case name == "":
		return nil
	case name == m.Name:
		return &FallbackError{"is this mail server itself"}
	case fallback == nil, fallback.Team != "" && fallback.Team != m.Team:
		return &FallbackError{fmt.Sprintf("there is no mail server %q that this one may use: it has to be of the same team or of the whole system", name)}
	case fallback.DeleteTime != nil:
		return &FallbackError{fmt.Sprintf("mail server %q is deleted", name)}
	case fallback.Fallback != "":
		return &FallbackError{fmt.Sprintf("mail server %q has the fallback %q itself: a fallback has none, so that no mail goes round", name, fallback.Fallback)}
	case used:
		return &FallbackError{"this mail server is itself the fallback of another: a fallback has none, so that no mail goes round"}
	}
	return nil
}

// CheckFallback says whether m could be saved with the fallback that it names: *FallbackError.
func (s *Store) CheckFallback(ctx context.Context, m *MailServer) error {
	return s.tx(ctx, func(tx *sqlx.Tx) error { return s.checkFallback(ctx, tx, m) })
}

// checkFallback is CheckFallback inside tx. It locks the fallback, so that of two changes that
// would make each the fallback of the other the later one sees the first.
func (s *Store) checkFallback(ctx context.Context, tx *sqlx.Tx, m *MailServer) error {
	if m.Fallback == "" || m.Fallback == m.Name {
		return m.CanFallBack(nil, false)
	}
	fallback, err := s.lockServer(ctx, tx, Everything, m.Fallback, 0)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	users, err := s.usersOf(ctx, tx, m.Name)
	if err != nil {
		return err
	}
	return m.CanFallBack(fallback, len(users) > 0)
}

// usersOf names the mail servers that have this one as their fallback, also deleted ones.
func (s *Store) usersOf(ctx context.Context, tx *sqlx.Tx, name string) (users []string, err error) {
	return users, s.q.in(ctx, tx, "server_fallback_of").SelectContext(ctx, &users, name)
}

// detachFallback takes a mail server that is to be deleted away from those whose fallback it
// is. Unless forced it refuses while one of them is not deleted itself (*InUseError).
func (s *Store) detachFallback(ctx context.Context, tx *sqlx.Tx, name string, force bool, a Audit) error {
	names, err := s.usersOf(ctx, tx, name)
	if err != nil {
		return err
	}
	living := 0
	users := make([]*MailServer, len(names))
	for i, n := range names {
		if users[i], err = s.lockServer(ctx, tx, Everything, n, 0); err != nil {
			return err
		}
		if users[i].DeleteTime == nil {
			living++
		}
	}
	if living > 0 && !force {
		return &InUseError{Count: living}
	}
	for _, m := range users {
		before := m.clone()
		m.Fallback, m.Version, m.UpdateTime = "", m.Version+1, micro(s.now())
		if err := s.writeServer(ctx, tx, m); err != nil {
			return err
		}
		if err := s.audit(ctx, tx, a, m.Team, m.Name, before, m); err != nil {
			return err
		}
	}
	return nil
}
