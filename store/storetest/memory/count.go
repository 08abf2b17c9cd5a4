package memory

import (
	"context"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// KeepCounts has nothing to do: here everything is counted when somebody asks.
func (s *Store) KeepCounts(context.Context) error { return nil }

// CountBatch counts a team's batch.
func (s *Store) CountBatch(_ context.Context, sc store.Scope, team, batchID string) (*store.BatchCount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &store.BatchCount{ByStatus: map[store.MailStatus]int{}}
	for _, r := range s.order {
		if r.m.BatchID != batchID || r.m.Team != team || !r.seen(sc) {
			continue
		}
		c.Mails++
		if r.owner != 0 && !r.dataAt.IsZero() {
			c.ByStatus[store.MailSending]++
		} else {
			c.ByStatus[r.status]++
		}
		if r.owner != 0 || !r.runAt.IsZero() {
			c.Waiting++
		}
		if r.dup {
			c.Doubtful++
		}
		if t := micro(r.m.CreateTime); c.First.IsZero() || t.Before(c.First) {
			c.First = t
		}
		if r.finish.After(c.Last) {
			c.Last = r.finish
		}
	}
	if c.Mails == 0 {
		return nil, store.ErrNotFound
	}
	return c, nil
}

// CountQueue counts what sc sees of the due-out journal.
func (s *Store) CountQueue(_ context.Context, sc store.Scope, team *string, server string) (*store.QueueCount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock()
	c := &store.QueueCount{ByStatus: map[store.MailStatus]int{}, Lanes: map[int16]store.Lane{}, DueByServer: map[store.ServerLane]store.Lane{}, Time: now}
	for _, r := range s.order {
		if sc.Caller != "" || !sees(sc, r.m.Team) || team != nil && *team != r.m.Team || server != "" && server != r.m.MailServer {
			continue
		}
		if r.archived() {
			if r.status == store.MailSent && r.finish.After(now.Add(-time.Minute)) {
				c.Sent++
			}
			continue
		}
		st := r.statusNow()
		c.ByStatus[st]++
		switch {
		case st == store.MailSending || r.runAt.IsZero():
		case r.runAt.Unix() > now.Unix():
			c.Scheduled++
		default:
			l := store.ServerLane{MailServer: r.m.MailServer, Priority: r.m.Priority}
			c.Lanes[r.m.Priority], c.DueByServer[l] = and(c.Lanes[r.m.Priority], r.runAt), and(c.DueByServer[l], r.runAt)
		}
	}
	return c, nil
}

func and(l store.Lane, due time.Time) store.Lane {
	l.Waiting++
	if l.Oldest.IsZero() || due.Before(l.Oldest) {
		l.Oldest = due
	}
	return l
}
