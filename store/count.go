package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
)

// Counting. Triggers append to count_delta what each statement changes: one row for each of
// (team, mail server, kind, status, batch, ...) in it. No row is written by two transactions,
// so none waits for another. KeepCounts adds the rows up into count_queue and count_batch. A
// count is the sum of both in one snapshot, so it is exact at every moment. DESIGN.md says what
// was measured.
//
// Being sent is no status here: a claim and a mark change no count. What is marked is read from
// the rows that replicas own, which are few.

const (
	countPage = 1000      // rows that one transaction adds up
	recount   = time.Hour // how long counting everything may take
)

// errCounting: another replica adds up just now.
var errCounting = errors.New("counts are being added up by another replica")

// KeepCounts adds up what was appended, page by page, and counts what was there before there
// were counters. The service calls it every second.
func (s *Store) KeepCounts(ctx context.Context) error {
	counted, err := s.counted(ctx)
	if err == nil && !counted {
		_, err = s.Recount(ctx)
	}
	for n := countPage; n == countPage && err == nil; {
		n, err = s.dialect.foldCounts(ctx)
	}
	if errors.Is(err, errCounting) {
		return nil
	}
	return err
}

// counted says whether the counters can be believed: they are once they have counted what was
// there before them.
func (s *Store) counted(ctx context.Context) (counted bool, err error) {
	if s.hasCounted.Load() {
		return true, nil
	}
	err = s.q.get("counted").GetContext(ctx, &counted)
	if counted {
		s.hasCounted.Store(true)
	}
	return counted, s.fault(err)
}

// queueOff and batchOff are by how much a total differs from what is there.
type queueOff struct {
	Team       string
	MailServer string `db:"mail_server"`
	Priority   int16
	Kind       Kind
	Status     MailStatus
	Second     int64
	N          int64
}

type batchOff struct {
	BatchID  string `db:"batch_id"`
	Team     string
	Caller   string
	Status   MailStatus
	Waiting  bool
	Doubtful bool
	N        int64
	First    dbTime
	Last     dbTime
}

// countsOff is what the counters lack, in one snapshot.
type countsOff struct {
	queue []queueOff
	batch []batchOff
}

// Recount counts everything and adds to the counters what they lack. It stops no writer: what
// is written meanwhile is counted as always. corrected is how many totals were wrong; of a
// database that never was counted, all.
func (s *Store) Recount(ctx context.Context) (corrected int, err error) {
	ctx, cancel := context.WithTimeout(patient(ctx, recount), recount)
	defer cancel()
	err = s.dialect.recount(ctx, func(tx *sqlx.Tx, off *countsOff) error {
		corrected = len(off.queue) + len(off.batch)
		queue, batch := s.q.in(ctx, tx, "count_mend_queue"), s.q.in(ctx, tx, "count_mend_batch")
		for _, r := range off.queue {
			if _, err := queue.ExecContext(ctx, r.Team, r.MailServer, r.Priority, r.Kind, r.Status, r.Second, r.N); err != nil {
				return err
			}
		}
		for _, r := range off.batch {
			if _, err := batch.ExecContext(ctx, r.BatchID, r.Team, r.Caller, r.Status, r.Waiting, r.Doubtful, r.N, s.t(r.First.ptr()), s.t(r.Last.ptr())); err != nil {
				return err
			}
		}
		_, err := s.q.in(ctx, tx, "counted_now").ExecContext(ctx, true)
		return err
	})
	return corrected, s.fault(err)
}

// readCounts finds inside tx, which sees one moment, what the counters lack.
func (s *Store) readCounts(ctx context.Context, tx *sqlx.Tx) (*countsOff, error) {
	clock, err := s.dialect.clockIn(ctx, tx)
	now := clock.Unix()
	if err != nil {
		return nil, err
	}
	off := &countsOff{}
	const at = "case when second < 0 then -1 when second <= ? then 0 else second end"
	err = tx.SelectContext(ctx, &off.queue, tx.Rebind(`select team, mail_server, priority, kind, status, at as second, sum(n) as n from (
  select team, mail_server, priority, kind, status, `+at+` as at, n from (`+s.fullQueue()+`) f
  union all
  select team, mail_server, priority, kind, status, `+at+` as at, -n from (`+toldQueue+`) t where status not in ('sent', 'cancelled')) x
group by team, mail_server, priority, kind, status, at having sum(n) <> 0`), now, now)
	if err != nil {
		return nil, err
	}
	err = tx.SelectContext(ctx, &off.batch, `select batch_id, team, caller, status, waiting, doubtful, sum(n) as n, min(first) as first, max(last) as last from (
  `+s.fullBatch()+`
  union all
  select batch_id, team, caller, status, waiting, doubtful, -n as n, cast(null as timestamptz) as first, cast(null as timestamptz) as last from (`+toldBatch+`) t) x
group by batch_id, team, caller, status, waiting, doubtful having sum(n) <> 0`)
	return off, err
}

// What the counters tell, as both totals have it.
const (
	toldQueue = `select team, mail_server, priority, kind, status, second, n from count_queue
  union all select team, mail_server, priority, kind, status, second, n from count_delta`
	toldBatch = `select batch_id, team, caller, status, waiting, doubtful, n from count_batch
  union all select batch_id, team, caller, status, second >= 0 and status not in ('sent', 'cancelled'), doubtful, n from count_delta where batch_id is not null`
)

// fullQueue and fullBatch are what is there, a row a mail.
func (s *Store) fullQueue() string {
	return "select d.team, d.mail_server, d.priority, m.kind, d.status, coalesce(" + s.dialect.unixSecond("d.run_at") + ", -1) as second, 1 as n from due d join mail m on m.id = d.id"
}

func (s *Store) fullBatch() string {
	const head = "select m.batch_id, m.team, coalesce(m.caller, '') as caller, "
	return head + `d.status, d.run_at is not null as waiting, d.possible_duplicate as doubtful, 1 as n, m.create_time as first, cast(null as timestamptz) as last
  from mail m join due d on m.id = d.id where m.batch_id is not null
  union all
  ` + head + `a.status, a.done_at is null, a.possible_duplicate, 1, m.create_time, a.done_at
  from mail m join archive a on m.id = a.id where m.batch_id is not null`
}

// CountUpTo counts the mails of the due-out journal that sc sees and f selects, up to n.
func (s *Store) CountUpTo(ctx context.Context, sc Scope, f MailFilter, n int) (count int, err error) {
	q, args := s.dueSelect("d.id", sc, &f, Cursor{}, n)
	err = s.read.GetContext(ctx, &count, s.read.Rebind("select count(*) from ("+q+") x"), args...)
	return count, s.fault(err)
}

// CountMatching counts them by the counters, where those know: the filter names nothing but
// team, statuses, and either a batch or mail server and kind. What is being sent counts as what
// it would be without.
func (s *Store) CountMatching(ctx context.Context, sc Scope, f MailFilter) (n int, known bool, err error) {
	counted, err := s.counted(ctx)
	if err != nil || !counted || f.Reference != "" || f.Recipient != "" || f.MessageID != "" || len(f.Labels) > 0 || f.RequestID != "" ||
		!f.Since.IsZero() || !f.Until.IsZero() {
		return 0, false, err
	}
	told := toldQueue
	w := newWhere(s)
	w.scope("c.team", sc, f.Team)
	switch {
	case f.BatchID == "" && sc.Caller != "", f.BatchID != "" && (f.MailServer != "" || f.Kind != ""):
		return 0, false, nil
	case f.BatchID != "":
		told = toldBatch
		w.add("c.batch_id = ?", f.BatchID)
		if sc.Caller != "" {
			w.add("c.caller = ?", sc.Caller)
		}
	case f.MailServer != "":
		w.add("c.mail_server = ?", f.MailServer)
	}
	if f.Kind != "" {
		w.add("c.kind = ?", f.Kind)
	}
	w.add("c.status not in ('sent', 'cancelled')")
	if len(f.Statuses) > 0 && !slices.Contains(f.Statuses, MailSending) {
		var sts []string
		for _, st := range f.Statuses {
			sts = append(sts, string(st))
		}
		w.in("c.status", sts)
	}
	err = s.look.GetContext(ctx, &n, s.look.Rebind("select coalesce(sum(n), 0) from ("+told+") c where "+w.sql()), w.args...)
	return n, err == nil, s.fault(err)
}

// breaches says where the counters differ from what is there.
func (off *countsOff) breaches() (bs []Breach) {
	for _, r := range off.queue {
		bs = append(bs, Breach{fmt.Sprintf("team %q, mail server %s", r.Team, r.MailServer),
			fmt.Sprintf("has %d more %s mails of kind %s than are counted (%s)", r.N, r.Status, r.Kind, secondText(r.Second))})
	}
	for _, r := range off.batch {
		bs = append(bs, Breach{"batch " + r.BatchID, fmt.Sprintf("of team %q has %d more %s mails than are counted", r.Team, r.N, r.Status)})
	}
	return bs[:min(len(bs), maxBreaches)]
}

func secondText(second int64) string {
	switch {
	case second < 0:
		return "parked"
	case second == 0:
		return "due"
	}
	return "due at " + time.Unix(second, 0).UTC().Format(time.RFC3339)
}

// counters compares them with a full count, once they are said to be complete.
func (l *look) counters(inv *Invariant) error {
	var counted bool
	if err := l.tx.GetContext(l.ctx, &counted, "select counted from count_state"); err != nil || !counted {
		return err
	}
	off, err := l.in.s.readCounts(l.ctx, l.tx)
	if err == nil {
		inv.Breaches = off.breaches()
	}
	return err
}
