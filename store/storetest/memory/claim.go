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

// DueServers names the mail servers that have claimable mail now, deleted and unavailable ones
// too.
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

// Claim makes up to most due mails of a mail server me's: most when that many are due. Every
// team that waits gets an equal share, a team's by priority, then by due time; where there are
// more teams than most, others take part each time. Only those of a priority above the given
// one are looked at. A replica that was taken for dead gets none.
func (s *Store) Claim(_ context.Context, me store.ReplicaID, server string, most int, above int16) ([]*store.Claimed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.lives(me) {
		return nil, nil
	}
	now := s.clock()
	var names []string
	teams := map[string][]*row{}
	for _, r := range s.order {
		if r.m.MailServer == server && r.m.Priority > above && (r.due(now) || s.Faults.ClaimEarly && r.due(r.runAt)) {
			if teams[r.m.Team] == nil {
				names = append(names, r.m.Team)
			}
			teams[r.m.Team] = append(teams[r.m.Team], r)
		}
	}
	slices.Sort(names)
	for _, rs := range teams {
		slices.SortStableFunc(rs, before)
	}
	s.turn++
	var due []*row
	for rank, more := 0, true; more && len(due) < most; rank++ {
		more = false
		for i := range names {
			rs := teams[names[(s.turn+i)%len(names)]]
			if rank < len(rs) && len(due) < most {
				due, more = append(due, rs[rank]), true
			}
		}
	}
	slices.SortFunc(due, before)
	out := make([]*store.Claimed, len(due))
	for i, r := range due {
		out[i] = s.take(r, me)
	}
	return out, nil
}

// lives says whether somebody may take mail: who is not known, or was taken for dead, may not.
func (s *Store) lives(r store.ReplicaID) bool {
	x := s.replicas[r]
	return x != nil && !x.alive.IsZero() || s.Faults.DeadTake
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
		if s.braked(r) {
			return false
		}
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

// writtenBefore says whether a result that is not the owner's to write any more was written by
// it under this token.
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
			if m.begun { // an end in good order is no death
				m.crashes, m.begun = m.crashes-1, false
			}
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

// Recover takes over what has no living owner: unmarked mails become claimable, up to most
// marked ones and suspects become me's. Nobody buries itself.
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
			case len(adopted) < most && s.lives(me):
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

// Owned is what r has.
func (s *Store) Owned(_ context.Context, r store.ReplicaID) ([]store.Ownership, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []store.Ownership
	for _, m := range s.order {
		if m.owner == r && !m.archived() {
			out = append(out, store.Ownership{ID: m.m.ID, Claim: m.claim})
		}
	}
	return out, nil
}

// TakeBack ends what r has and does not know of, where it still has it under that token:
// unmarked mails become claimable as they were, marked ones and those that somebody died of
// become r's anew.
func (s *Store) TakeBack(_ context.Context, r store.ReplicaID, lost []store.Ownership) (released int, adopted []*store.Claimed, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range lost {
		m := s.mails[o.ID]
		switch {
		case m == nil || m.archived() || m.owner != r || m.claim != o.Claim:
		case m.dataAt.IsZero() && !m.begun || s.Faults.TakeBackMarked:
			m.owner, m.dataAt = 0, time.Time{}
			m.claim++
			released++
			s.log(m, m.status)
		default:
			adopted = append(adopted, s.take(m, r))
		}
	}
	return released, adopted, nil
}
