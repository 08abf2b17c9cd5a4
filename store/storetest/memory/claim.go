package memory

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// due says whether a mail may be claimed now.
func (r *row) due(now time.Time) bool {
	return !r.archived() && r.owner == 0 && !r.runAt.IsZero() && !r.runAt.After(now)
}

// DueServers names the mail servers that have claimable mail now, deleted and unavailable ones too.
func (s *Store) DueServers(context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, seen := s.clock(), map[string]bool{}
	var names []string
	for _, r := range s.order {
		if r.due(now) && !seen[r.m.MailServer] && s.servers[r.m.MailServer] != nil {
			seen[r.m.MailServer] = true
			names = append(names, r.m.MailServer)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Claim makes up to most due mails of a mail server me's: an equal share for every team that waits,
// a team's by priority, then by due time; only those of a priority above the given one.
func (s *Store) Claim(_ context.Context, me store.ReplicaID, server string, most int, above int16) ([]*store.Claimed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock()
	var due []*row
	teams := map[string][]*row{}
	for _, r := range s.order {
		if r.m.MailServer == server && (r.due(now) || s.Faults.ClaimEarly && r.due(r.runAt)) {
			teams[r.m.Team] = append(teams[r.m.Team], r)
		}
	}
	for _, rs := range teams {
		slices.SortStableFunc(rs, before)
	}
	share := 1
	if len(teams) > 0 {
		share = max(1, most/len(teams))
	}
	for _, rs := range teams {
		rs = slices.DeleteFunc(rs, func(r *row) bool { return r.m.Priority <= above })
		due = append(due, rs[:min(len(rs), share)]...)
	}
	slices.SortFunc(due, before)
	due = due[:min(len(due), most)]
	out := make([]*store.Claimed, len(due))
	for i, r := range due {
		out[i] = s.take(r, me)
		s.log(r, store.MailSending)
	}
	return out, nil
}

// before is the order in which mails are sent.
func before(a, b *row) int {
	return cmp.Or(cmp.Compare(b.m.Priority, a.m.Priority), a.runAt.Compare(b.runAt), bytes.Compare(a.m.ID[:], b.m.ID[:]))
}

// take makes a mail me's.
func (s *Store) take(r *row, me store.ReplicaID) *store.Claimed {
	r.owner = me
	r.claim++
	hold := false
	if sv := s.servers[r.m.MailServer]; sv != nil {
		hold = sv.HoldUnknown
	}
	c := r.m.Claimed(hold)
	c.RunAt, c.Attempts, c.Crashes, c.PossibleDuplicate, c.Progress, c.Marked, c.Begun, c.Claim = r.runAt, r.attempts, r.crashes, r.dup, copyProgress(r.progress), !r.dataAt.IsZero(), r.begun, r.claim
	return c
}

func copyProgress(p store.Progress) store.Progress {
	return store.Progress{Results: slices.Clone(p.Results), Attempts: slices.Clone(p.Attempts)}
}

// Settle writes to an owned mail; the answer is there when it returns.
func (s *Store) Settle(st *store.Settlement) <-chan store.Settled {
	done := make(chan store.Settled, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := store.Settled{Mine: s.settle(st) || s.writtenBefore(st)}
	done <- a
	return done
}

// mine says whether a mail is still the one that the writer took.
func (s *Store) mine(r *row, st *store.Settlement) bool {
	return r != nil && !r.archived() && r.owner != 0 && r.owner == st.Owner && (r.claim == st.Claim || s.Faults.OwnerOnly)
}

func (s *Store) settle(st *store.Settlement) bool {
	r := s.mails[st.ID]
	now := s.clock()
	if s.Faults.MarkAnybody && st.Kind == store.SettleMark && r != nil {
		if r.owner == st.Owner {
			r.dataAt = now
		}
		return true
	}
	if !s.mine(r, st) {
		return false
	}
	switch st.Kind {
	case store.SettleMark:
		r.dataAt = now
		return true
	case store.SettleBegin:
		r.crashes, r.begun = st.Crashes, true
		return true
	case store.SettleProgress:
		r.dataAt = time.Time{}
		r.claim++
		if st.Status != "" {
			r.status = st.Status
		}
	case store.SettleArchive:
		r.finish, r.status, r.runAt, r.owner, r.dataAt = now, st.Status, time.Time{}, 0, time.Time{}
	default:
		r.status, r.runAt, r.owner, r.dataAt, r.crashes, r.begun = st.Status, time.Time{}, 0, time.Time{}, st.Crashes, false
		if st.Kind == store.SettleRetry {
			r.runAt = micro(st.RunAt)
		}
	}
	r.attempts, r.dup, r.last, r.progress = st.Attempts, st.PossibleDuplicate, st.LastError, store.Progress{}
	if st.Progress != nil {
		r.progress = copyProgress(*st.Progress)
	}
	if st.Kind != store.SettleProgress {
		s.log(r, r.status)
	}
	return true
}

// writtenBefore says whether a result that is not the owner's to write any more was written by it under this token.
func (s *Store) writtenBefore(st *store.Settlement) bool {
	r := s.mails[st.ID]
	if r == nil || st.Kind == store.SettleMark || st.Kind == store.SettleBegin {
		return false
	}
	if st.Kind == store.SettleProgress {
		return !r.archived() && r.owner == st.Owner && r.claim == st.Claim+1 && r.dataAt.IsZero()
	}
	return r.claim == st.Claim && (r.archived() || r.owner == 0)
}

// Register takes a new replica id, alive for ttl.
func (s *Store) Register(_ context.Context, name string, ttl time.Duration) (store.ReplicaID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.replicas[s.last] = &replica{name, s.clock().Add(ttl)}
	return s.last, nil
}

// Renew extends a lease. ErrStale: somebody has taken r for dead.
func (s *Store) Renew(_ context.Context, r store.ReplicaID, ttl time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.replicas[r]
	if x == nil || x.alive.IsZero() {
		return store.ErrStale
	}
	x.alive = s.clock().Add(ttl)
	return nil
}

// Unregister gives back what r owns and has not marked, and ends its lease.
func (s *Store) Unregister(_ context.Context, r store.ReplicaID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := false
	for _, m := range s.order {
		if m.owner != r || m.archived() {
			continue
		}
		if m.dataAt.IsZero() || s.Faults.UnregisterMarked {
			m.owner, m.dataAt = 0, time.Time{}
			m.claim++
			s.log(m, m.status)
		} else {
			left = true
		}
	}
	if x := s.replicas[r]; x != nil && left {
		x.alive = time.Time{}
	} else {
		delete(s.replicas, r)
	}
	return nil
}

// Recover takes over what has no living owner: unmarked mails become claimable, up to most marked ones become me's.
func (s *Store) Recover(_ context.Context, me store.ReplicaID, most int) (released int, adopted []*store.Claimed, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock()
	for id, x := range s.replicas {
		if id != me && x.alive.Before(now) {
			x.alive = time.Time{}
		}
	}
	owned := map[store.ReplicaID]bool{}
	for _, r := range s.order {
		if r.archived() || r.owner == 0 {
			continue
		}
		if x := s.replicas[r.owner]; x == nil && !s.Faults.KnownDeadOnly || x != nil && x.alive.IsZero() {
			switch {
			case r.dataAt.IsZero() && r.crashes < 2 || s.Faults.ReleaseMarked:
				r.dataAt = time.Time{}
				r.owner, r.crashes = 0, max(r.crashes, 1)
				r.claim++
				released++
				s.log(r, r.status)
			case len(adopted) < most:
				r.crashes = max(r.crashes, 1)
				adopted = append(adopted, s.take(r, me))
			}
		}
		owned[r.owner] = true
	}
	for id, x := range s.replicas {
		if x.alive.IsZero() && !owned[id] {
			delete(s.replicas, id)
		}
	}
	return released, adopted, nil
}
