package store

import (
	"context"
	"time"
)

// BatchCount is what has become of a batch's mails, at one moment. As sending counts what is
// marked; what a replica has besides counts as what it would be without it.
type BatchCount struct {
	Mails    int
	ByStatus map[MailStatus]int
	Waiting  int // being sent, or tried again by itself
	Doubtful int // a copy may have been delivered before
	First    time.Time
	Last     time.Time // finished; zero while none is
}

// CountBatch counts a team's batch exactly. ErrNotFound: no mail was taken under this id, or sc
// does not see the team.
func (s *Store) CountBatch(ctx context.Context, sc Scope, team, batchID string) (*BatchCount, error) {
	if !sc.sees(team) {
		return nil, ErrNotFound
	}
	var rows []struct {
		Status   MailStatus
		Mails    int
		Waiting  int
		Doubtful int
		First    dbTime
		Last     dbTime
	}
	if err := s.q.get("batch_count").SelectContext(ctx, &rows, batchID, team, sc.Caller); err != nil {
		return nil, s.fault(err)
	}
	if len(rows) == 0 {
		return nil, ErrNotFound
	}
	c := &BatchCount{ByStatus: map[MailStatus]int{}}
	for _, r := range rows {
		c.Mails += r.Mails
		c.ByStatus[r.Status] += r.Mails
		c.Waiting += r.Waiting
		c.Doubtful += r.Doubtful
		if c.First.IsZero() || r.First.Before(c.First) {
			c.First = r.First.Time
		}
		if r.Last.After(c.Last) {
			c.Last = r.Last.Time
		}
	}
	return c, nil
}

// QueueCount is the due-out journal at one moment.
type QueueCount struct {
	ByStatus  map[MailStatus]int
	Scheduled int // due later
	Lanes     map[int16]Lane
	// DueByServer is the same for each mail server.
	DueByServer map[ServerLane]Lane
	Sent        int       // finished as sent in the last minute
	Time        time.Time // by the clock that decides
	WatchLag    time.Duration
}

// Lane is the mail of one priority that is due and whose dot is not on its way: most of what a
// replica has only waits in its memory for a connection, and grows old there like any other.
type Lane struct {
	Waiting int
	Oldest  time.Time // when the oldest was due
}

// ServerLane is the mail of one priority of one mail server.
type ServerLane struct {
	MailServer string
	Priority   int16
}

// and adds what another lane has.
func (l Lane) and(mails int, oldest time.Time) Lane {
	l.Waiting += mails
	if l.Oldest.IsZero() || oldest.Before(l.Oldest) {
		l.Oldest = oldest
	}
	return l
}

// CountQueue counts what sc sees of the due-out journal, of one team or mail server where they
// are given; nothing for a scope of one caller. The due-out journal is read whole: it is small.
func (s *Store) CountQueue(ctx context.Context, sc Scope, team *string, server string) (*QueueCount, error) {
	now, err := s.Now(ctx)
	if err != nil {
		return nil, err
	}
	narrow := func(alias string) *where {
		w := newWhere(s)
		w.scope(alias+".team", sc, team)
		if sc.Caller != "" {
			w.add("1 = 0") // whose a mail is does not stand in the journals
		}
		if server != "" {
			w.add(alias+".mail_server = ?", server)
		}
		return w
	}
	var rows []struct {
		Status   MailStatus
		Priority int16
		Server   string `db:"mail_server"`
		Place    int    // 0 parked, 1 marked, 2 due later, 3 due
		Mails    int
		Oldest   dbTime
	}
	w := narrow("d")
	q := `select d.status, d.priority, d.mail_server,
  case when d.owner is not null and d.data_at is not null then 1 when d.run_at is null then 0 when d.run_at > ? then 2 else 3 end as place, count(*) as mails, min(d.run_at) as oldest
from due d where ` + w.sql() + ` group by 1, 2, 3, 4`
	if err := s.read.SelectContext(ctx, &rows, s.read.Rebind(q), append([]any{s.t(&now)}, w.args...)...); err != nil {
		return nil, s.fault(err)
	}
	lag, err := s.WatchLag(ctx)
	if err != nil {
		return nil, err
	}
	c := &QueueCount{ByStatus: map[MailStatus]int{}, Lanes: map[int16]Lane{}, DueByServer: map[ServerLane]Lane{}, Time: now, WatchLag: lag}
	for _, r := range rows {
		st := r.Status
		switch r.Place {
		case 1:
			st = MailSending
		case 2:
			c.Scheduled += r.Mails
		case 3:
			c.Lanes[r.Priority] = c.Lanes[r.Priority].and(r.Mails, r.Oldest.Time)
			l := ServerLane{r.Server, r.Priority}
			c.DueByServer[l] = c.DueByServer[l].and(r.Mails, r.Oldest.Time)
		}
		c.ByStatus[st] += r.Mails
	}
	// Served by archive_team, archive_server or archive_done.
	w = narrow("a")
	ago := now.Add(-time.Minute)
	w.add("a.done_at > ?", s.t(&ago))
	w.add("a.status = ?", MailSent)
	err = s.read.GetContext(ctx, &c.Sent, s.read.Rebind("select count(*) from archive a where "+w.sql()), w.args...)
	return c, s.fault(err)
}
