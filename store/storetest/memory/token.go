package memory

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// CreateToken saves a token; the first one switches access on. ErrNobody.
func (s *Store) CreateToken(_ context.Context, t *store.Token, a store.Audit) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accessOn && a.Actor == "" {
		return store.ErrNobody
	}
	c := *t
	c.CreateTime, c.ExpireTime = micro(c.CreateTime), micro(c.ExpireTime)
	s.tokens[t.ID], s.accessOn = &c, true
	s.audits = append(s.audits, AuditRow{Audit: a, Target: t.ID})
	return nil
}

// Access is what a process has to know to ask callers who they are.
func (s *Store) Access(context.Context) (*store.Access, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &store.Access{On: s.accessOn, Senders: map[string][]string{}}
	for team, d := range s.senders {
		out.Senders[team] = d.Domains
	}
	for _, id := range slices.Sorted(maps.Keys(s.tokens)) {
		if t := *s.tokens[id]; t.ExpireTime.After(s.clock().Add(-24 * time.Hour)) {
			out.Tokens = append(out.Tokens, &t)
		}
	}
	return out, nil
}

// Tokens lists up to n tokens by id, after afterID.
func (s *Store) Tokens(_ context.Context, afterID string, ended bool, n int) ([]*store.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*store.Token
	for _, id := range slices.Sorted(maps.Keys(s.tokens)) {
		t := *s.tokens[id]
		if len(out) < n && id > afterID && (ended || t.RevokeTime == nil && t.ExpireTime.After(s.clock())) {
			out = append(out, &t)
		}
	}
	return out, nil
}

// RevokeToken ends a token. ErrNotFound, ErrNobody.
func (s *Store) RevokeToken(_ context.Context, id string, a store.Audit) (*store.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accessOn && a.Actor == "" {
		return nil, store.ErrNobody
	}
	t := s.tokens[id]
	if t == nil {
		return nil, store.ErrNotFound
	}
	if t.RevokeTime == nil {
		t.RevokeTime = ptr(s.clock())
		s.audits = append(s.audits, AuditRow{Audit: a, Target: id})
	}
	c := *t
	return &c, nil
}

// SetSenderDomains saves the domains of a team; none = it may send under any.
func (s *Store) SetSenderDomains(_ context.Context, team string, domains []string, a store.Audit) (*store.SenderDomains, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := store.SenderDomains{Team: team, Domains: slices.Clone(domains), UpdateTime: micro(s.clock())}
	if delete(s.senders, team); len(domains) > 0 {
		s.senders[team] = d
	}
	s.audits = append(s.audits, AuditRow{Audit: a, Team: team, Target: team})
	return &d, nil
}

// SenderDomains lists up to n teams that have such domains, after one.
func (s *Store) SenderDomains(_ context.Context, after string, n int) ([]store.SenderDomains, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []store.SenderDomains
	for _, team := range slices.Sorted(maps.Keys(s.senders)) {
		if len(out) < n && team > after {
			out = append(out, s.senders[team])
		}
	}
	return out, nil
}

// TouchToken notes that a token was used at a time.
func (s *Store) TouchToken(_ context.Context, id string, at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tokens[id]; t != nil && (t.UseTime == nil || t.UseTime.Before(at)) {
		t.UseTime = ptr(micro(at))
	}
	return nil
}
