package memory

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/maildispatch/maildispatch/store"
)

func clone(m *store.MailServer) *store.MailServer {
	if m == nil {
		return nil
	}
	c := *m
	if m.SMTP != nil {
		x := *m.SMTP
		if x.OAuth != nil {
			o := *x.OAuth
			x.OAuth = &o
		}
		c.SMTP = &x
	}
	c.Annotations = map[string]string{}
	maps.Copy(c.Annotations, m.Annotations)
	return &c
}

func (s *Store) record(a store.Audit, m *store.MailServer) {
	s.audits = append(s.audits, AuditRow{Audit: a, Team: m.Team, Target: m.Name})
}

// CreateServer saves a mail server.
func (s *Store) CreateServer(_ context.Context, m *store.MailServer, a store.Audit) (out *store.MailServer, duplicate bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.RequestID != "" {
		for _, x := range s.servers {
			if x.Team == m.Team && x.RequestID == m.RequestID {
				if bytes.Equal(x.Fingerprint, m.Fingerprint) {
					return clone(x), true, nil
				}
				return nil, false, store.ErrRequestIDReused
			}
		}
	}
	if s.servers[m.Name] != nil {
		return nil, false, store.ErrExists
	}
	if err := s.oneDefault(m); err != nil {
		return nil, false, err
	}
	if err := s.checkFallback(m); err != nil {
		return nil, false, err
	}
	c := clone(m)
	c.Version, c.CreateTime, c.UpdateTime = 1, s.clock(), s.clock()
	s.servers[m.Name] = c
	s.record(a, c)
	return clone(c), false, nil
}

func (s *Store) defaultOf(team string) *store.MailServer {
	for _, x := range s.servers {
		if x.Team == team && x.IsDefault {
			return x
		}
	}
	return nil
}

// oneDefault refuses a second default of a team.
func (s *Store) oneDefault(m *store.MailServer) error {
	if d := s.defaultOf(m.Team); m.IsDefault && d != nil && d.Name != m.Name {
		return &store.DefaultExistsError{Team: m.Team, Current: d.Name}
	}
	return nil
}

// usersOf are the mail servers that have this one as their fallback, and how many of them are
// not deleted.
func (s *Store) usersOf(name string) (users []*store.MailServer, living int) {
	for _, n := range slices.Sorted(maps.Keys(s.servers)) {
		if m := s.servers[n]; m.Fallback == name {
			users = append(users, clone(m))
			if m.DeleteTime == nil {
				living++
			}
		}
	}
	return users, living
}

func (s *Store) checkFallback(m *store.MailServer) error {
	users, _ := s.usersOf(m.Name)
	return m.CanFallBack(s.servers[m.Fallback], len(users) > 0)
}

// CheckFallback says whether m could be saved with the fallback that it names.
func (s *Store) CheckFallback(_ context.Context, m *store.MailServer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkFallback(m)
}

func (s *Store) server(sc store.Scope, name string) (*store.MailServer, error) {
	m := s.servers[name]
	if m == nil || !sees(sc, m.Team) {
		return nil, store.ErrNotFound
	}
	return clone(m), nil
}

// Server reads one mail server, also a deleted one. ErrNotFound, also outside the scope.
func (s *Store) Server(_ context.Context, sc store.Scope, name string) (*store.MailServer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server(sc, name)
}

// DefaultServer is a team's default mail server, "" for the system's, available or not.
// ErrNotFound.
func (s *Store) DefaultServer(_ context.Context, team string) (*store.MailServer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.defaultOf(team); d != nil {
		return clone(d), nil
	}
	return nil, store.ErrNotFound
}

// Servers lists up to n mail servers by name, after afterName.
func (s *Store) Servers(_ context.Context, sc store.Scope, f store.ServerFilter, afterName string, n int) ([]*store.MailServer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []*store.MailServer{}
	for _, name := range slices.Sorted(maps.Keys(s.servers)) {
		m := s.servers[name]
		if len(out) < n && name > afterName && sees(sc, m.Team) && (f.Team == nil || *f.Team == m.Team) && (f.Mode == "" || f.Mode == m.Mode) &&
			(f.Status == "" || f.Status == m.Status) && (f.ShowDeleted || m.DeleteTime == nil) {
			out = append(out, clone(m))
		}
	}
	return out, nil
}

// lock reads a mail server for change.
func (s *Store) lock(sc store.Scope, name string, ifVersion int64) (*store.MailServer, error) {
	m, err := s.server(sc, name)
	if err == nil && ifVersion != 0 && ifVersion != m.Version {
		return nil, store.ErrVersion
	}
	return m, err
}

// write stores a changed mail server as its next version.
func (s *Store) write(m *store.MailServer, a store.Audit) *store.MailServer {
	m.Version, m.UpdateTime = s.servers[m.Name].Version+1, s.clock()
	s.servers[m.Name] = clone(m)
	s.record(a, m)
	return m
}

// UpdateServer reads, changes and writes a mail server. change's error is returned as it is and
// nothing is written.
func (s *Store) UpdateServer(_ context.Context, sc store.Scope, name string, ifVersion int64, a store.Audit, change func(*store.MailServer) error) (*store.MailServer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.lock(sc, name, ifVersion)
	if err != nil {
		return nil, err
	}
	if err := change(m); err != nil {
		return nil, err
	}
	if err := s.oneDefault(m); err != nil {
		return nil, err
	}
	if m.Fallback != s.servers[name].Fallback {
		if err := s.checkFallback(m); err != nil {
			return nil, err
		}
	}
	return s.write(m, a), nil
}

// ReplaceGrant stores a refresh token in the place of the one that was used.
func (s *Store) ReplaceGrant(_ context.Context, name string, was, now []byte) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.servers[name]
	switch {
	case m == nil:
		return false, store.ErrNotFound
	case len(was) == 0 || !bytes.Equal(m.SealedGrant(), was):
		return false, nil
	}
	m.SMTP.OAuth.SealedGrant = now
	return true, nil
}

// DeleteServer hides a mail server. Forced, its mail is held but for what is marked.
func (s *Store) DeleteServer(_ context.Context, sc store.Scope, name string, ifVersion int64, force bool, a store.Audit) (out *store.MailServer, n store.DeletedMail, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.lock(sc, name, ifVersion)
	switch {
	case err != nil:
		return nil, n, err
	case m.DeleteTime != nil:
		return nil, n, store.ErrDeleted
	}
	pending := 0
	for _, r := range s.order {
		if !r.archived() && r.m.MailServer == name && r.status != store.MailFailed && r.status != store.MailUnknown && !(r.status == store.MailPartiallySent && r.runAt.IsZero()) {
			pending++
		}
	}
	if pending > 0 && !force {
		return nil, n, &store.PendingError{Count: pending}
	}
	users, living := s.usersOf(name)
	if living > 0 && !force {
		return nil, n, &store.InUseError{Count: living}
	}
	for _, x := range users {
		x.Fallback = ""
		s.write(x, a)
	}
	n.Held = s.holdWaiting(name, force)
	for _, r := range s.order {
		if !r.archived() && r.m.MailServer == name && r.owner != 0 && !r.dataAt.IsZero() {
			n.Leaving++
		}
	}
	now := s.clock()
	m.DeleteTime, m.IsDefault = &now, false
	return s.write(m, a), n, nil
}

// UndeleteServer takes a deletion back. ErrNotDeleted.
func (s *Store) UndeleteServer(ctx context.Context, sc store.Scope, name string, a store.Audit) (*store.MailServer, error) {
	return s.UpdateServer(ctx, sc, name, 0, a, func(m *store.MailServer) error {
		if m.DeleteTime == nil {
			return store.ErrNotDeleted
		}
		m.DeleteTime = nil
		return nil
	})
}

// SetDefault makes a mail server the default of its team and takes that from the one before.
func (s *Store) SetDefault(_ context.Context, sc store.Scope, name string, a store.Audit) (now, previous *store.MailServer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.lock(sc, name, 0)
	switch {
	case err != nil:
		return nil, nil, err
	case m.DeleteTime != nil:
		return nil, nil, store.ErrDeleted
	case m.Status != store.ServerAvailable:
		return nil, nil, store.ErrServerUnavailable
	}
	if old := s.defaultOf(m.Team); old != nil && old.Name != name {
		old.IsDefault, old.UpdateTime, old.Version = false, s.clock(), old.Version+1
		previous = clone(old)
	}
	if !m.IsDefault {
		m.IsDefault = true
		return s.write(m, a), previous, nil
	}
	s.record(a, m)
	return m, previous, nil
}

// holdWaiting holds everything that waits at a mail server, with owned also what a replica has
// and has not marked.
func (s *Store) holdWaiting(name string, owned bool) (held int) {
	for _, r := range s.order {
		if !r.archived() && r.m.MailServer == name && (r.owner == 0 || owned && r.dataAt.IsZero()) && !r.runAt.IsZero() {
			s.apply(r, &store.Change{Kind: store.SettlePark, Status: store.MailHeld, ResumeAt: r.runAt, Attempts: r.attempts, PossibleDuplicate: r.dup,
				LastError: "held: its mail server was deleted"})
			held++
		}
	}
	return held
}

// HoldDeleted holds what waits at a mail server that is deleted.
func (s *Store) HoldDeleted(_ context.Context, server string) (held int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.servers[server]; m == nil {
		return 0, store.ErrNotFound
	} else if m.DeleteTime == nil {
		return 0, nil
	}
	return s.holdWaiting(server, false), nil
}

// ServerVersions reads the versions of the mail servers of these names, also of deleted ones.
func (s *Store) ServerVersions(_ context.Context, names []string) (map[string]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]int64{}
	for _, n := range names {
		if m := s.servers[n]; m != nil {
			out[n] = m.Version
		}
	}
	return out, nil
}
