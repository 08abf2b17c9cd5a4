package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// where builds a condition out of fixed fragments; values are always bound.
type where struct {
	s     *Store
	parts []string
	args  []any
	head  []any // of what stands before the condition; only a source has any
}

func newWhere(s *Store) *where { return &where{s: s} }

func (w *where) add(cond string, args ...any) {
	w.parts = append(w.parts, cond)
	w.args = append(w.args, args...)
}

func (w *where) sql() string {
	if len(w.parts) == 0 {
		return "1 = 1"
	}
	return strings.Join(w.parts, " and ")
}

func (w *where) in(column string, values []string) {
	if len(values) == 0 {
		w.add("1 = 0")
		return
	}
	args := make([]any, len(values))
	for i, v := range values {
		args[i] = v
	}
	w.add(column+" in (?"+strings.Repeat(", ?", len(values)-1)+")", args...)
}

// scope limits column to what sc sees and, with team, to that team.
func (w *where) scope(column string, sc Scope, team *string) {
	if !sc.All {
		w.in(column, sc.Teams)
	}
	if team != nil {
		w.add(column+" = ?", *team)
	}
}

// mails limits mails to what sc sees and, with team, to that team. hot is the alias of the
// journal's own table, m of mail.
func (w *where) mails(hot string, sc Scope, team *string) {
	w.scope(hot+".team", sc, team)
	if sc.Caller != "" {
		w.add("m.caller = ?", sc.Caller)
	}
}

// filter adds the conditions that both journals share. hot is the alias of the journal's own
// table, m of mail.
func (w *where) filter(f *MailFilter, hot string) {
	if f.MailServer != "" {
		w.add(hot+".mail_server = ?", f.MailServer)
	}
	if f.Kind != "" {
		w.add("m.kind = ?", f.Kind)
	}
	if f.RequestID != "" {
		// mail_request begins with the team: one probe for each that there is
		w.add(hot+`.id in (with recursive t(team) as (
  select '' union all
  select (select y.team from mail y where y.request_id is not null and y.team > t.team order by y.team limit 1) from t where t.team is not null
) select z.id from t cross join mail z where z.team = t.team and z.request_id = ?)`, f.RequestID)
	}
	if f.BatchID != "" {
		w.add("m.batch_id = ?", f.BatchID)
	}
	terms := func(t string) {
		w.add(hot+".id in (select mail_id from term where term = ?)", t)
	}
	if f.MessageID != "" {
		id := strings.Trim(f.MessageID, "<>")
		if is, mail := ownMessageID(id); is {
			w.add(hot+".id in (select o.id from mail o where o.id = ? union all select t.mail_id from term t where t.term = ?)", mail, messageIDTerm(id))
		} else {
			terms(messageIDTerm(id))
		}
		w.add("m.message_id = ?", id)
	}
	if f.Recipient != "" {
		terms(recipientTerm(f.Recipient))
	}
	if f.Reference != "" {
		terms(referenceTerm(f.Reference))
		w.add("m.reference = ?", f.Reference)
	}
	for k, v := range f.Labels {
		terms(labelTerm(k, v))
	}
	if !f.Since.IsZero() {
		w.add("m.create_time >= ?", w.s.t(&f.Since))
	}
	if !f.Until.IsZero() {
		w.add("m.create_time < ?", w.s.t(&f.Until))
	}
}

// statuses adds the condition on a due mail's status, of which "sending" is not stored. The
// rule is mailViewRow's.
func (w *where) statuses(sts []MailStatus) {
	if len(sts) == 0 {
		return
	}
	var stored []string
	conds := []string{"1 = 0"}
	for _, st := range sts {
		switch st {
		case MailSending:
			conds = append(conds, "(d.owner is not null and d.data_at is not null)")
		case MailSent, MailCancelled: // no due mail is
		default:
			stored = append(stored, string(st))
		}
	}
	if len(stored) > 0 {
		conds = append(conds, "(d.data_at is null and d.status in (?"+strings.Repeat(", ?", len(stored)-1)+"))")
		for _, v := range stored {
			w.args = append(w.args, v)
		}
	}
	w.parts = append(w.parts, "("+strings.Join(conds, " or ")+")")
}

const mailColumns = `m.id, m.team, m.mail_server, m.mode, m.kind, m.priority, m.reference, m.sender, m.subject, m.message_id, m.size_bytes, m.recipients, m.labels,
  m.request_id, m.route, m.create_time, m.expire_time, m.batch_id, m.resent_from, m.resend_reason, m.caller, m.guard, m.removed`

const dueColumns = mailColumns + `, d.status, d.run_at, d.resume_at, d.attempts, d.owner, d.possible_duplicate, d.progress, d.last_error,
  d.data_at is not null as marked`

const archiveColumns = mailColumns + `, a.status, a.done_at, a.attempts, a.possible_duplicate, a.result as progress, a.last_error`

type mailViewRow struct {
	ID                uuid.UUID
	Team              string
	MailServer        string `db:"mail_server"`
	Mode              Mode
	Kind              Kind
	Priority          int16
	Reference         string
	Sender            string
	Subject           string
	MessageID         string `db:"message_id"`
	SizeBytes         int64  `db:"size_bytes"`
	Recipients        []byte
	Labels            []byte
	RequestID         sql.NullString `db:"request_id"`
	BatchID           sql.NullString `db:"batch_id"`
	ResentFrom        uuid.NullUUID  `db:"resent_from"`
	ResendReason      sql.NullString `db:"resend_reason"`
	Caller            sql.NullString
	Guard             sql.NullString
	Removed           sql.NullString
	Route             string
	CreateTime        dbTime `db:"create_time"`
	ExpireTime        dbTime `db:"expire_time"`
	Status            MailStatus
	RunAt             dbTime `db:"run_at"`
	ResumeAt          dbTime `db:"resume_at"`
	DoneAt            dbTime `db:"done_at"`
	Attempts          int
	Owner             sql.NullInt64
	PossibleDuplicate bool `db:"possible_duplicate"`
	Progress          []byte
	LastError         string `db:"last_error"`
	Marked            bool
}

// mail is what people see of the row. A mail is being sent from its mark on. Before that its
// replica may keep it in memory for minutes, and then it waits like any other.
func (r *mailViewRow) mail() (*Mail, error) {
	m := &Mail{ID: r.ID, Team: r.Team, MailServer: r.MailServer, Mode: r.Mode, Kind: r.Kind, Priority: r.Priority, Reference: r.Reference, From: r.Sender,
		Subject: r.Subject, MessageID: r.MessageID, SizeBytes: r.SizeBytes, RequestID: r.RequestID.String, BatchID: r.BatchID.String,
		ResentFrom: r.ResentFrom.UUID, ResendReason: r.ResendReason.String, Route: r.Route, CreateTime: r.CreateTime.Time,
		ExpireTime: r.ExpireTime.ptr(), Status: r.Status, DueTime: r.RunAt.ptr(), FinishTime: r.DoneAt.ptr(), Archived: !r.DoneAt.IsZero(),
		Attempts: r.Attempts, Owner: ReplicaID(r.Owner.Int64), PossibleDuplicate: r.PossibleDuplicate, LastError: r.LastError,
		Caller: r.Caller.String, Guard: r.Guard.String, Removed: Removed(r.Removed.String)}
	if r.Owner.Valid && r.Marked {
		m.Status, m.DueTime, m.Marked = MailSending, nil, true
	}
	if m.Status == MailHeld {
		m.ResumeTime = r.ResumeAt.ptr()
	}
	for _, j := range []struct {
		b []byte
		v any
	}{{r.Recipients, &m.Recipients}, {r.Labels, &m.Labels}, {r.Progress, &m.Progress}} {
		if len(j.b) > 0 {
			if err := json.Unmarshal(j.b, j.v); err != nil {
				m.Unreadable = fmt.Errorf("mail %s: %w: %w", r.ID, ErrUnreadable, err)
				if m.LastError == "" {
					m.LastError = unreadable(err)
				}
			}
		}
	}
	return m, nil
}

func (s *Store) mails(ctx context.Context, from sqlx.QueryerContext, q string, args []any) ([]*Mail, error) {
	var rows []mailViewRow
	if err := sqlx.SelectContext(ctx, from, &rows, s.read.Rebind(q), args...); err != nil {
		return nil, s.fault(err)
	}
	ms := make([]*Mail, len(rows))
	for i := range rows {
		m, err := rows[i].mail()
		if err != nil {
			return nil, err
		}
		ms[i] = m
	}
	return ms, nil
}

// dueQuery selects unfinished mail in the order it was taken (ids are ordered by time). Served
// by due_team, due_server or the primary key, and by term where something is searched for.
func (s *Store) dueQuery(sc Scope, f *MailFilter, after Cursor, n int) (string, []any) {
	return s.dueSelect(dueColumns, sc, f, after, n)
}

func (s *Store) dueSelect(columns string, sc Scope, f *MailFilter, after Cursor, n int) (string, []any) {
	w := newWhere(s)
	w.mails("d", sc, f.Team)
	w.filter(f, "d")
	w.statuses(f.Statuses)
	if after.ID != uuid.Nil {
		w.add("d.id > ?", after.ID)
	}
	return "select " + columns + " from due d " + s.joinMail(f) + " mail m on m.id = d.id where " + w.sql() + " order by d.id limit ?", append(w.args, n)
}

// archiveQuery selects finished mail, the last finished first. Served by archive_team,
// archive_server or archive_done, read backwards.
func (s *Store) archiveQuery(sc Scope, f *MailFilter, after Cursor, n int) (string, []any) {
	w := newWhere(s)
	w.mails("a", sc, f.Team)
	w.filter(f, "a")
	if len(f.Statuses) > 0 {
		var v []string
		for _, st := range f.Statuses {
			if st == MailSent || st == MailCancelled { // no other is archived
				v = append(v, string(st))
			}
		}
		w.in("a.status", v)
	}
	if after.ID != uuid.Nil {
		w.add("(a.done_at, a.id) < (?, ?)", s.t(&after.Time), after.ID)
	}
	return "select " + archiveColumns + " from archive a " + s.joinMail(f) + " mail m on m.id = a.id where " + w.sql() + " order by a.done_at desc, a.id desc limit ?", append(w.args, n)
}

// joinMail joins mail to a journal. Of a batch only that batch's mail is read.
func (s *Store) joinMail(f *MailFilter) string {
	return s.dialect.joinMail(f.BatchID != "")
}

// ListDue lists up to n unfinished mails in the order they were taken, after the cursor's id.
func (s *Store) ListDue(ctx context.Context, sc Scope, f MailFilter, after Cursor, n int) ([]*Mail, error) {
	// That there is none takes a look at all of them. The counters know.
	if total, known, err := s.CountMatching(ctx, sc, f); err != nil || known && total == 0 {
		return nil, err
	}
	q, args := s.dueQuery(sc, &f, after, n)
	return s.mails(ctx, s.read, q, args)
}

// ListArchive lists up to n finished mails, the last finished first, after the cursor.
func (s *Store) ListArchive(ctx context.Context, sc Scope, f MailFilter, after Cursor, n int) ([]*Mail, error) {
	q, args := s.archiveQuery(sc, &f, after, n)
	return s.mails(ctx, s.read, q, args)
}

// Mail reads one mail of either journal. ErrNotFound, also outside the scope.
func (s *Store) Mail(ctx context.Context, sc Scope, id uuid.UUID) (*Mail, error) {
	return s.mailFrom(ctx, s.read, sc, id)
}

func (s *Store) mailFrom(ctx context.Context, from sqlx.QueryerContext, sc Scope, id uuid.UUID) (*Mail, error) {
	// A mail moves from due to archive in one commit. Looked for in that order, a move between
	// the two looks is seen by the second.
	for _, j := range []struct{ alias, columns, table string }{{"d", dueColumns, "due"}, {"a", archiveColumns, "archive"}} {
		w := newWhere(s)
		w.add(j.alias+".id = ?", id)
		// In the statement, so that a mail that is not seen takes the time of one that is not
		// there.
		w.mails(j.alias, sc, nil)
		ms, err := s.mails(ctx, from, "select "+j.columns+" from "+j.table+" "+j.alias+" join mail m on m.id = "+j.alias+".id where "+w.sql(), w.args)
		if err != nil {
			return nil, err
		}
		if len(ms) > 0 {
			return ms[0], nil
		}
	}
	return nil, ErrNotFound
}

// CountDue is the number of a mail server's mails in the due-out journal.
func (s *Store) CountDue(ctx context.Context, server string) (int, error) {
	var n int
	err := s.q.get("due_count").GetContext(ctx, &n, server)
	return n, s.fault(err)
}
