package memory

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

func sees(sc store.Scope, team string) bool { return sc.All || slices.Contains(sc.Teams, team) }

// seen reports whether sc lets a mail through.
func (r *row) seen(sc store.Scope) bool {
	return sees(sc, r.m.Team) && (sc.Caller == "" || sc.Caller == r.m.Caller)
}

func ptr(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (r *row) view() *store.Mail {
	m := r.m
	v := &store.Mail{ID: m.ID, Team: m.Team, MailServer: m.MailServer, Mode: m.Mode, Kind: m.Kind, Reference: m.Reference, Status: r.status, From: m.From,
		Subject: m.Subject, MessageID: m.MessageID, SizeBytes: m.SizeBytes, Recipients: slices.Clone(m.Recipients), Progress: copyProgress(r.progress),
		Labels: maps.Clone(m.Labels), RequestID: m.RequestID, BatchID: m.BatchID, ResentFrom: m.ResentFrom, ResendReason: m.Reason, Route: m.Route,
		Attempts: r.attempts, PossibleDuplicate: r.dup, LastError: r.last, Priority: m.Priority, CreateTime: micro(m.CreateTime), DueTime: ptr(r.runAt),
		FinishTime: ptr(r.finish), Archived: r.archived(), Owner: r.owner, Caller: m.Caller, Guard: m.Guard}
	if m.ExpireTime != nil {
		v.ExpireTime = ptr(micro(*m.ExpireTime))
	}
	if r.owner != 0 && !r.dataAt.IsZero() {
		v.Status, v.DueTime, v.Marked = store.MailSending, nil, true
	}
	if v.Status == store.MailHeld {
		v.ResumeTime = ptr(r.resumeAt)
	}
	return v
}

func (r *row) statusNow() store.MailStatus {
	if r.owner != 0 && !r.dataAt.IsZero() {
		return store.MailSending
	}
	return r.status
}

// matches holds the filter against everything but the status.
func (r *row) matches(sc store.Scope, f *store.MailFilter) bool {
	m := r.m
	if !r.seen(sc) || f.Team != nil && *f.Team != m.Team || f.MailServer != "" && f.MailServer != m.MailServer || f.Kind != "" && f.Kind != m.Kind ||
		f.Reference != "" && f.Reference != m.Reference || f.RequestID != "" && f.RequestID != m.RequestID || f.BatchID != "" && f.BatchID != m.BatchID ||
		f.MessageID != "" && strings.Trim(f.MessageID, "<>") != m.MessageID ||
		!f.Since.IsZero() && m.CreateTime.Before(f.Since) || !f.Until.IsZero() && !m.CreateTime.Before(f.Until) {
		return false
	}
	for k, v := range f.Labels {
		if got, ok := m.Labels[k]; !ok || got != v {
			return false
		}
	}
	return f.Recipient == "" || slices.ContainsFunc(m.Recipients, func(x store.Recipient) bool { return strings.EqualFold(x.Mailbox, f.Recipient) })
}

func (r *row) selected(sc store.Scope, f *store.MailFilter) bool {
	return r.matches(sc, f) && (len(f.Statuses) == 0 || slices.Contains(f.Statuses, r.statusNow()))
}

// ListDue lists up to n unfinished mails in the order they were taken, after the cursor's id.
func (s *Store) ListDue(_ context.Context, sc store.Scope, f store.MailFilter, after store.Cursor, n int) ([]*store.Mail, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*store.Mail
	for _, r := range s.order {
		if len(out) == n {
			break
		}
		if !r.archived() && bytes.Compare(r.m.ID[:], after.ID[:]) > 0 && r.selected(sc, &f) {
			out = append(out, r.view())
		}
	}
	return out, nil
}

// ListArchive lists up to n finished mails, the last finished first, after the cursor.
func (s *Store) ListArchive(_ context.Context, sc store.Scope, f store.MailFilter, after store.Cursor, n int) ([]*store.Mail, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := func(at, bt time.Time, a, b uuid.UUID) int { return cmp.Or(bt.Compare(at), bytes.Compare(b[:], a[:])) }
	var rs []*row
	for _, r := range s.order {
		if r.archived() && r.selected(sc, &f) && (after.ID == uuid.Nil || last(after.Time, r.finish, after.ID, r.m.ID) < 0) {
			rs = append(rs, r)
		}
	}
	slices.SortFunc(rs, func(a, b *row) int { return last(a.finish, b.finish, a.m.ID, b.m.ID) })
	var out []*store.Mail
	for _, r := range rs[:min(n, len(rs))] {
		out = append(out, r.view())
	}
	return out, nil
}

// FindMails lists up to n mails of both journals that f takes, the highest id first.
func (s *Store) FindMails(_ context.Context, sc store.Scope, f store.FindFilter, after uuid.UUID, n int) (out []*store.Mail, next uuid.UUID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range slices.Backward(s.order) {
		if after != uuid.Nil && bytes.Compare(r.m.ID[:], after[:]) >= 0 || !r.seen(sc) {
			continue
		}
		if v := r.view(); f.Takes(v) {
			if len(out) == n {
				return out, out[n-1].ID, nil
			}
			out = append(out, v)
		}
	}
	return out, uuid.Nil, nil
}

// Mail reads one mail of either journal. ErrNotFound, also outside the scope.
func (s *Store) Mail(_ context.Context, sc store.Scope, id uuid.UUID) (*store.Mail, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.mails[id]
	if r == nil || !r.seen(sc) {
		return nil, store.ErrNotFound
	}
	return r.view(), nil
}

// RawMail writes a mail's raw message to w. ErrNotFound, also outside the scope.
func (s *Store) RawMail(_ context.Context, sc store.Scope, id uuid.UUID, w io.Writer) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.mails[id]
	if r == nil || !r.seen(sc) {
		return 0, store.ErrNotFound
	}
	b, err := s.raw(r.m)
	if err != nil {
		return 0, err
	}
	n, err := w.Write(b)
	return int64(n), err
}

// CountDue is the number of a mail server's mails in the due-out journal.
func (s *Store) CountDue(_ context.Context, server string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.order {
		if !r.archived() && r.m.MailServer == server {
			n++
		}
	}
	return n, nil
}

// LastChange is the position behind everything that has happened.
func (s *Store) LastChange(context.Context) (store.Position, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return store.Position{Seq: s.seq}, nil
}

// Changes reads changes behind after, at most n, and returns those that sc and f let through,
// with the position to go on from.
func (s *Store) Changes(_ context.Context, sc store.Scope, f store.MailFilter, after store.Position, n int) (out []store.MailChange, next store.Position, more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if after.Generation != 0 || after.Seq < s.forgot || after.Seq > s.seq {
		return nil, after, false, store.ErrForgotten
	}
	next = after
	read := 0
	for _, c := range s.changes {
		if c.seq <= after.Seq {
			continue
		}
		if read == n {
			break
		}
		read++
		next.Seq = c.seq
		r := s.mails[c.id]
		if r != nil && r.matches(sc, &f) && (len(f.Statuses) == 0 || slices.Contains(f.Statuses, c.status)) {
			out = append(out, store.MailChange{Position: store.Position{Seq: c.seq}, Status: c.status, Time: c.at, Mail: r.view()})
		}
	}
	return out, next, read == n, nil
}

// ForgetChanges forgets changes older than age.
func (s *Store) ForgetChanges(_ context.Context, age time.Duration) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, until := 0, s.clock().Add(-age)
	for n < len(s.changes) && s.changes[n].at.Before(until) {
		s.forgot = s.changes[n].seq
		n++
	}
	s.changes = s.changes[n:]
	return n, nil
}

// Row is what no caller of a store sees of a mail, for whoever checks.
type Row struct {
	Mail   *store.Mail
	Claim  int64
	Marked time.Time // zero: no mark
	// Crashes are the deaths that stand against it.
	Crashes int
}

// Look reads a mail's row, nil when there is none.
func (s *Store) Look(id uuid.UUID) *Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.mails[id]
	if r == nil {
		return nil
	}
	return &Row{r.view(), r.claim, r.dataAt, r.crashes}
}

// Rows reads all mails in the order of ids.
func (s *Store) Rows() []*Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Row, len(s.order))
	for i, r := range s.order {
		out[i] = &Row{r.view(), r.claim, r.dataAt, r.crashes}
	}
	return out
}

// Busy says whether a mail is owned, or will be claimed by itself.
func (s *Store) Busy() (ids []uuid.UUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.order {
		if !r.archived() && (r.owner != 0 || !r.runAt.IsZero()) {
			ids = append(ids, r.m.ID)
		}
	}
	return ids
}

// Replicas are those that have a row, and whether each is alive.
func (s *Store) Replicas() map[store.ReplicaID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[store.ReplicaID]bool{}
	for id := range s.replicas {
		out[id] = s.alive(id)
	}
	return out
}

// Alive says whether a replica's lease stands.
func (s *Store) Alive(r store.ReplicaID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alive(r)
}
