package memory

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

const (
	modifyChunk    = 500 // mails of one audit row
	modifyFailures = 100
)

// Modify changes due mails by people's word: those with the ids, or those that f selects.
// Marked mail is left alone, and what a replica has is changed only by what stops it.
func (s *Store) Modify(_ context.Context, sc store.Scope, ids []uuid.UUID, f *store.MailFilter, dryRun bool, a store.Audit, decide store.Decide) (matched, changed int, failures []store.ModifyFailure, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(id uuid.UUID, err error) {
		if len(failures) < modifyFailures {
			failures = append(failures, store.ModifyFailure{ID: id, Err: err})
		}
	}
	var rs []*row
	if f != nil {
		for _, r := range s.order {
			if !r.archived() && r.selected(sc, f) {
				rs = append(rs, r)
			}
		}
		matched = len(rs)
	} else {
		seen := map[uuid.UUID]bool{}
		for _, id := range ids {
			r := s.mails[id]
			switch {
			case seen[id]:
			case r == nil || !r.seen(sc):
				fail(id, store.ErrNotFound)
			case r.archived():
				matched++
				fail(id, store.ErrFinished)
			default:
				matched++
				rs = append(rs, r)
			}
			seen[id] = true
		}
	}
	for chunk := range slices.Chunk(rs, modifyChunk) {
		n, first := 0, (*row)(nil)
		for _, r := range chunk {
			if r.owner != 0 && !r.dataAt.IsZero() && !s.Faults.ModifyOwned {
				fail(r.m.ID, store.ErrSending)
				continue
			}
			c, err := s.decided(r, decide)
			switch {
			case err != nil:
				fail(r.m.ID, err)
			case c != nil:
				if n++; !dryRun {
					s.apply(r, c)
				}
				if first == nil {
					first = r
				}
			}
		}
		changed += n
		if n > 0 && !dryRun {
			s.audits = append(s.audits, AuditRow{a, first.m.Team, strconv.Itoa(n) + " mails from " + first.m.ID.String(), nil})
		}
	}
	return matched, changed, failures, nil
}

// ModifyMail changes one due mail by a person's word and returns it as that left it.
func (s *Store) ModifyMail(_ context.Context, sc store.Scope, id uuid.UUID, a store.Audit, decide store.Decide) (*store.Mail, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.mails[id]
	switch {
	case r == nil || !r.seen(sc):
		return nil, store.ErrNotFound
	case r.archived():
		return nil, store.ErrFinished
	case r.owner != 0:
		return nil, store.ErrSending
	}
	c, err := decide(r.view(), clone(s.servers[r.m.MailServer]))
	if err != nil {
		return nil, err
	}
	s.apply(r, c)
	s.audits = append(s.audits, AuditRow{a, r.m.Team, id.String(), c.Detail})
	return r.view(), nil
}

func (s *Store) apply(r *row, c *store.Change) {
	r.status, r.attempts, r.dup, r.last, r.runAt, r.resumeAt, r.crashes = c.Status, c.Attempts, c.PossibleDuplicate, c.LastError, time.Time{}, time.Time{}, 0
	if r.owner != 0 {
		r.claim += 1000 // as the databases do
	}
	r.owner, r.dataAt, r.begun = 0, time.Time{}, false
	if c.Unguards {
		r.m.Guard = ""
	}
	if c.Progress != nil {
		r.progress = copyProgress(*c.Progress)
	}
	switch c.Kind {
	case store.SettleArchive:
		r.finish = s.clock()
	case store.SettleRetry:
		r.runAt = micro(c.RunAt)
	}
	if s.Faults.HeldIsDue && c.Status == store.MailHeld {
		r.runAt = micro(c.ResumeAt)
	}
	if !c.ResumeAt.IsZero() {
		r.resumeAt = micro(c.ResumeAt)
	}
	s.log(r, r.status)
}
