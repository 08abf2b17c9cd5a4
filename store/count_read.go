package store

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
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
	counted, err := s.counted(ctx)
	if err != nil {
		return nil, err
	}
	var rows []struct {
		Status   MailStatus
		Mails    int
		Waiting  int
		Doubtful int
		First    dbTime
		Last     dbTime
		Marked   bool
	}
	name := "batch_count"
	if !counted {
		name = "batch_count_rows"
	}
	err = s.q.get(name).SelectContext(ctx, &rows, batchID, team, sc.Caller)
	if err != nil {
		return nil, s.fault(err)
	}
	c := &BatchCount{ByStatus: map[MailStatus]int{}}
	for _, r := range rows {
		if r.Marked {
			c.ByStatus[r.Status] -= r.Mails
			c.ByStatus[MailSending] += r.Mails
			continue
		}
		if r.Mails == 0 {
			continue
		}
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
	if c.Mails == 0 {
		return nil, ErrNotFound
	}
	maps.DeleteFunc(c.ByStatus, func(_ MailStatus, n int) bool { return n == 0 })
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
	if !oldest.IsZero() && (l.Oldest.IsZero() || oldest.Before(l.Oldest)) {
		l.Oldest = oldest
	}
	return l
}

// CountQueue counts what sc sees of the due-out journal, of one team or mail server where they
// are given; nothing for a scope of one caller. A mail counts as due from the beginning of the
// second in which it is.
func (s *Store) CountQueue(ctx context.Context, sc Scope, team *string, server string) (*QueueCount, error) {
	lag, err := s.WatchLag(ctx)
	if err != nil {
		return nil, err
	}
	counted, err := s.counted(ctx)
	if err != nil {
		return nil, err
	}
	tx, err := s.look.BeginTxx(ctx, s.dialect.inspection()) // all of it is of one moment
	if err != nil {
		return nil, s.fault(err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	q := &queueLook{s: s, tx: tx, sc: sc, team: team, server: server, counted: counted, c: &QueueCount{ByStatus: map[MailStatus]int{}, Lanes: map[int16]Lane{},
		DueByServer: map[ServerLane]Lane{}, WatchLag: lag}}
	if err := q.all(ctx); err != nil {
		return nil, s.fault(err)
	}
	return q.c, nil
}

// queueLook is one count of the due-out journal.
type queueLook struct {
	s       *Store
	tx      *sqlx.Tx
	sc      Scope
	team    *string
	server  string
	counted bool
	c       *QueueCount
}

func (q *queueLook) all(ctx context.Context) error {
	if q.sc.Caller != "" { // whose a mail is does not stand in the journals
		q.sc = Scope{}
	}
	// What the snapshot has was written before this moment.
	var one int
	if err := q.tx.GetContext(ctx, &one, "select 1"); err != nil {
		return err
	}
	var err error
	if q.c.Time, err = q.s.dialect.clockIn(ctx, q.tx); err != nil {
		return err
	}
	for _, f := range []func(context.Context) error{q.counts, q.marked, q.oldest} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	maps.DeleteFunc(q.c.ByStatus, func(_ MailStatus, n int) bool { return n == 0 })
	maps.DeleteFunc(q.c.Lanes, func(_ int16, l Lane) bool { return l.Waiting == 0 })
	maps.DeleteFunc(q.c.DueByServer, func(_ ServerLane, l Lane) bool { return l.Waiting == 0 })
	return nil
}

func (q *queueLook) narrow(alias string) *where {
	w := newWhere(q.s)
	w.scope(alias+".team", q.sc, q.team)
	if q.server != "" {
		w.add(alias+".mail_server = ?", q.server)
	}
	return w
}

func (q *queueLook) rows(ctx context.Context, into any, text string, args ...any) error {
	return q.tx.SelectContext(ctx, into, q.tx.Rebind(text), args...)
}

// add adds mails of a status: parked, due later or due.
func (q *queueLook) add(st MailStatus, priority int16, server string, second int64, mails int) {
	switch now := q.c.Time.Unix(); {
	case st == MailSent:
		if second > now-60 {
			q.c.Sent += mails
		}
		return
	case second > now:
		q.c.Scheduled += mails
	case second >= 0:
		q.lane(priority, server, mails, time.Time{})
	}
	q.c.ByStatus[st] += mails
}

func (q *queueLook) lane(priority int16, server string, mails int, oldest time.Time) {
	l := ServerLane{server, priority}
	q.c.Lanes[priority] = q.c.Lanes[priority].and(mails, oldest)
	q.c.DueByServer[l] = q.c.DueByServer[l].and(mails, oldest)
}

// counts adds what the counters have.
func (q *queueLook) counts(ctx context.Context) error {
	w := q.narrow("c")
	from := toldQueue
	if !q.counted {
		ago := q.c.Time.Add(-time.Minute)
		from = q.s.fullQueue() + `
  union all select a.team, a.mail_server, m.priority, m.kind, a.status, ` + q.s.dialect.unixSecond("a.done_at") + `, 1 from archive a join mail m on m.id = a.id where a.done_at > ?`
		w.args = append([]any{q.s.t(&ago)}, w.args...)
	}
	w.add("c.status <> 'cancelled'")
	var rows []struct {
		Status   MailStatus
		Priority int16
		Server   string `db:"mail_server"`
		Second   int64
		N        int
	}
	if err := q.rows(ctx, &rows, "select status, priority, mail_server, second, sum(n) as n from ("+from+") c where "+w.sql()+" group by status, priority, mail_server, second", w.args...); err != nil {
		return err
	}
	for _, r := range rows {
		q.add(r.Status, r.Priority, r.Server, r.Second, r.N)
	}
	return nil
}

// marked takes out what is marked: it is being sent. What a replica has besides waits, and may
// be the oldest that does. Served by due_owner.
func (q *queueLook) marked(ctx context.Context) error {
	w := q.narrow("d")
	w.add("d.owner is not null")
	var rows []struct {
		Status   MailStatus
		Priority int16
		Server   string `db:"mail_server"`
		Marked   bool
		Mails    int
		Oldest   dbTime
	}
	text := `select d.status, d.priority, d.mail_server, d.data_at is not null as marked, count(*) as mails, min(d.run_at) as oldest
from due d where ` + w.sql() + ` group by d.status, d.priority, d.mail_server, d.data_at is not null`
	if err := q.rows(ctx, &rows, text, w.args...); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Marked {
			q.c.ByStatus[MailSending] += r.Mails
			q.c.ByStatus[r.Status] -= r.Mails
			q.lane(r.Priority, r.Server, -r.Mails, time.Time{})
			continue
		}
		q.lane(r.Priority, r.Server, 0, r.Oldest.Time)
	}
	return nil
}

// oldest looks for the first of what nobody has in each lane.
func (q *queueLook) oldest(ctx context.Context) error {
	var rows []struct {
		Server   string `db:"mail_server"`
		Team     string
		Priority int16
		RunAt    dbTime `db:"run_at"`
	}
	if err := q.tx.StmtxContext(ctx, q.s.q.get("lanes")).SelectContext(ctx, &rows); err != nil {
		return err
	}
	for _, r := range rows {
		seen := (q.sc.All || slices.Contains(q.sc.Teams, r.Team)) && (q.team == nil || *q.team == r.Team) && (q.server == "" || q.server == r.Server)
		if seen && r.RunAt.Unix() <= q.c.Time.Unix() {
			q.lane(r.Priority, r.Server, 0, r.RunAt.Time)
		}
	}
	return nil
}
