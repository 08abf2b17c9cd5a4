package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// FindFilter is an AND of its set fields, over both journals.
type FindFilter struct {
	MailFilter
	ID uuid.UUID
	// an id, reference, request_id, Message-ID or recipient
	Text                         string
	Domain                       string   // of a recipient; compared without case
	Subject                      []string // words in it; compared without case
	Failure                      string   // of a recipient: a word of smtpx.Failure
	PossibleDuplicate            bool
	FinishedSince, FinishedUntil time.Time // finished at or after, before
}

// maxCompared is how many mails one FindMails compares with what no index serves. With an
// archive in memory a call of so many takes tens of milliseconds: see BenchmarkFindMails.
const maxCompared = 10_000

// maxIDSkew is how far an id's time may be from its mail's create_time: the id goes by the
// clock of the machine, create_time by that of the database.
const maxIDSkew = time.Hour

// FindMails lists up to n mails of both journals that f takes and whose ids are below after
// (zero = the first page), the highest first: ids are ordered by time. It compares at most
// maxCompared of them. next is where to go on; zero = there is nothing more.
//
// Both journals are read in one statement, so a mail that moves between them is found once. A
// page covers a range of ids that is fixed before it is read: what comes or goes meanwhile
// moves no other mail out of it.
func (s *Store) FindMails(ctx context.Context, sc Scope, f FindFilter, after uuid.UUID, n int) (ms []*Mail, next uuid.UUID, err error) {
	src, err := s.findSource(ctx, &f)
	if err != nil {
		return nil, next, err
	}
	cond, exact := s.findCond(sc, &f, src)
	compared := maxCompared
	if exact {
		compared = n + 1
	}
	low, err := s.findEnd(ctx, src, after, compared)
	if err != nil {
		return nil, next, err
	}
	for from := after; ; {
		q, args := s.findPage(src, cond, from, low, n+1)
		page, err := s.mails(ctx, s.read, q, args)
		if err != nil {
			return nil, next, err
		}
		for _, m := range page {
			if !f.Takes(m) {
				continue
			}
			if len(ms) == n {
				return ms, ms[n-1].ID, nil
			}
			ms = append(ms, m)
		}
		if len(page) <= n {
			return ms, low, nil
		}
		from = page[n].ID
	}
}

// source is where the ids of a search come from: a table, or something that reads like one,
// under the alias x, with its column of ids and what narrows it.
type source struct {
	from, id string
	where    *where
	lookedUp int // fields that it holds for all of its mails
}

// findSource chooses what narrows the search most. What it has used it takes out of f, if
// nothing is left to compare.
func (s *Store) findSource(ctx context.Context, f *FindFilter) (*source, error) {
	w := newWhere(s)
	src := &source{from: "mail x", id: "x.id", where: w}
	terms := func(ts ...string) *source {
		w.in("x.term", ts)
		src.from, src.id, src.lookedUp = "term x", "x.mail_id", 1
		return src
	}
	id := strings.Trim(f.MessageID, "<>")
	own, mail := ownMessageID(id)
	switch {
	case f.ID != uuid.Nil:
		w.add("x.id = ?", f.ID)
	case f.Text != "":
		q := "(select mail_id as id from term where term in (?, ?, ?)"
		args := []any{referenceTerm(f.Text), recipientTerm(f.Text), messageIDTerm(strings.Trim(f.Text, "<>"))}
		if is, m := ownMessageID(strings.Trim(f.Text, "<>")); is {
			// also where it is the id itself
			q, args = q+" union select o.id from mail o where o.id = ?", append(args, m)
		}
		src.from, w.head = q+" union select z.id from "+requestMails+") x", append(args, f.Text)
	case f.RequestID != "":
		src.from, w.head = "(select z.id from "+requestMails+") x", []any{f.RequestID}
		f.RequestID = ""
	case f.MessageID != "" && own:
		// the mail of that id, or one that says so in a message of its own
		src.from, w.head = "(select o.id from mail o where o.id = ? union select t.mail_id from term t where t.term = ?) x", []any{mail, messageIDTerm(id)}
		src.lookedUp = 1
	case f.MessageID != "":
		return terms(messageIDTerm(id)), nil
	case f.Reference != "":
		return terms(referenceTerm(f.Reference)), nil
	case f.Recipient != "":
		return terms(recipientTerm(f.Recipient)), nil
	case f.BatchID != "":
		w.add("x.batch_id = ?", f.BatchID)
		// mail_batch goes by team, and nearly always a batch is one team's
		var teams []string
		q := `with recursive t(team) as (
  select (select min(y.team) from mail y where y.batch_id = ?)
  union all
  select (select min(y.team) from mail y where y.batch_id = ? and y.team > t.team) from t where t.team is not null
) select team from t where team is not null limit 2`
		if err := s.read.SelectContext(ctx, &teams, s.read.Rebind(q), f.BatchID, f.BatchID); err != nil {
			return nil, s.fault(err)
		}
		if len(teams) == 1 {
			w.add("x.team = ?", teams[0])
		}
		f.BatchID = ""
	case len(f.Labels) > 0:
		for k, v := range f.Labels {
			return terms(labelTerm(k, v)), nil
		}
	case len(f.Statuses) > 0 && !slices.Contains(f.Statuses, MailSent) && !slices.Contains(f.Statuses, MailCancelled):
		src.from = "due x"
		if f.Team != nil {
			w.add("x.team = ?", *f.Team)
		}
	}
	return src, nil
}

// requestMails are the mails of a request_id: mail_request begins with the team, so there is
// one probe for each team.
const requestMails = `(with recursive t(team) as (
  select '' union all
  select (select y.team from mail y where y.request_id is not null and y.team > t.team order by y.team limit 1) from t where t.team is not null
) select z.id from t cross join mail z where z.team = t.team and z.request_id = ?) z`

// findCond is what a mail of the source is compared with in the database; exact =
// nearly every mail of the source is taken.
func (s *Store) findCond(sc Scope, f *FindFilter, src *source) (w *where, exact bool) {
	w = newWhere(s)
	rest := f.MailFilter
	rest.Statuses, rest.Team = nil, nil
	// Takes compares these, and the source has looked them up or does not need to.
	rest.MessageID, rest.Reference, rest.Recipient, rest.Labels = "", "", "", nil
	w.mails("m", sc, f.Team)
	w.filter(&rest, "m")
	if len(f.Statuses) > 0 {
		w.statuses(f.Statuses)
		var archived []string
		for _, st := range f.Statuses {
			if st == MailSent || st == MailCancelled {
				archived = append(archived, string(st))
			}
		}
		if len(archived) > 0 {
			last := len(w.parts) - 1
			w.parts[last] = "(" + w.parts[last] + " or a.status in (?" + strings.Repeat(", ?", len(archived)-1) + "))"
			for _, st := range archived {
				w.args = append(w.args, st)
			}
		}
	}
	if f.PossibleDuplicate {
		w.add("coalesce(d.possible_duplicate, a.possible_duplicate)")
	}
	if !f.FinishedSince.IsZero() {
		w.add("a.done_at >= ?", s.t(&f.FinishedSince))
	}
	if !f.FinishedUntil.IsZero() {
		w.add("a.done_at < ?", s.t(&f.FinishedUntil))
	}
	// What follows lets through too much, never too little; Takes decides.
	if f.Domain != "" {
		w.add(s.dialect.textOf("m.recipients")+` like ? escape '\'`, `%@`+likeText(lowerASCII(f.Domain))+`"%`)
	}
	if f.Failure != "" {
		w.add(s.dialect.textOf("coalesce(d.progress, a.result)")+` like ? escape '\'`, `%"f":"`+likeText(f.Failure)+`"%`)
	}
	for _, word := range f.Subject {
		if part := longestASCII(word); part != "" {
			w.add(s.dialect.textOf("m.subject")+` like ? escape '\'`, `%`+likeText(lowerASCII(part))+`%`)
		}
	}
	exact = len(w.parts) == 0 && f.compared(src) == 0
	if !f.Since.IsZero() { // ids are ordered by time, so the search has an end
		src.where.add(src.id+" >= ?", idAt(f.Since.Add(-maxIDSkew)))
	}
	return w, exact
}

// compared counts what only Takes looks at, and the source has not looked up.
func (f *FindFilter) compared(src *source) (n int) {
	for _, given := range []bool{f.Domain != "", len(f.Subject) > 0, f.Failure != "", f.Reference != "", f.MessageID != "", f.Recipient != "", len(f.Labels) > 0} {
		if given {
			n++
		}
	}
	return n - src.lookedUp
}

// narrowed is the source between two ids: below from and down to low, zero = no bound.
func (src *source) narrowed(from, low uuid.UUID) (string, []any) {
	w := &where{s: src.where.s, parts: slices.Clone(src.where.parts), args: slices.Concat(src.where.head, src.where.args)}
	if from != uuid.Nil {
		w.add(src.id+" < ?", from)
	}
	if low != uuid.Nil {
		w.add(src.id+" >= ?", low)
	}
	return "select " + src.id + " as id from " + src.from + " where " + w.sql(), w.args
}

// findEnd is the id of the last of so many mails of the source below from; zero = it has no
// more than that.
func (s *Store) findEnd(ctx context.Context, src *source, from uuid.UUID, many int) (low uuid.UUID, err error) {
	q, args := src.narrowed(from, uuid.Nil)
	err = s.read.GetContext(ctx, &low, s.read.Rebind(q+" order by "+src.id+" desc limit 1 offset ?"), append(args, many-1)...)
	if errors.Is(err, sql.ErrNoRows) {
		return uuid.Nil, nil
	}
	return low, s.fault(err)
}

const foundColumns = mailColumns + `, coalesce(d.status, a.status) as status, d.run_at, d.resume_at, a.done_at, coalesce(d.attempts, a.attempts) as attempts, d.owner,
  coalesce(d.possible_duplicate, a.possible_duplicate) as possible_duplicate, coalesce(d.progress, a.result) as progress,
  coalesce(d.last_error, a.last_error) as last_error, d.data_at is not null as marked`

// findPage selects mails between two ids. The source comes first, in its order, and each of its
// mails is looked up by itself: a condition that seems to let few through tempts PostgreSQL to
// read the whole of mail by it, or to compare the whole source before the limit.
func (s *Store) findPage(src *source, cond *where, from, low uuid.UUID, n int) (string, []any) {
	q, args := src.narrowed(from, low)
	w := &where{s: s, parts: slices.Clone(cond.parts), args: slices.Concat(args, cond.args)}
	w.add("(d.id is not null or a.id is not null)")
	return "select " + foundColumns + " from (" + q + s.dialect.fence(" order by "+src.id+" desc offset 0") + ") c" + s.dialect.lookUp("mail", "m", false) + s.dialect.lookUp("due", "d", true) + s.dialect.lookUp("archive", "a", true) + " where " + w.sql() + " order by c.id desc limit ?", append(w.args, n)
}

// Takes reports whether f takes a mail, as far as the mail shows it: all but its caller.
func (f *FindFilter) Takes(m *Mail) bool {
	to := func(is func(mailbox string) bool) bool {
		return slices.ContainsFunc(m.Recipients, func(r Recipient) bool { return is(r.Mailbox) })
	}
	subject := ""
	if len(f.Subject) > 0 {
		subject = strings.ToLower(m.Subject)
	}
	for k, v := range f.Labels {
		if got, ok := m.Labels[k]; !ok || got != v {
			return false
		}
	}
	text := strings.Trim(f.Text, "<>")
	switch {
	case f.ID != uuid.Nil && f.ID != m.ID,
		f.Team != nil && *f.Team != m.Team, f.MailServer != "" && f.MailServer != m.MailServer, f.Kind != "" && f.Kind != m.Kind,
		f.Reference != "" && f.Reference != m.Reference, f.RequestID != "" && f.RequestID != m.RequestID, f.BatchID != "" && f.BatchID != m.BatchID,
		f.MessageID != "" && strings.Trim(f.MessageID, "<>") != m.MessageID,
		!f.Since.IsZero() && m.CreateTime.Before(f.Since), !f.Until.IsZero() && !m.CreateTime.Before(f.Until),
		len(f.Statuses) > 0 && !slices.Contains(f.Statuses, m.Status), f.PossibleDuplicate && !m.PossibleDuplicate,
		!f.FinishedSince.IsZero() && (m.FinishTime == nil || m.FinishTime.Before(f.FinishedSince)),
		!f.FinishedUntil.IsZero() && (m.FinishTime == nil || !m.FinishTime.Before(f.FinishedUntil)):
		return false
	case f.Recipient != "" && !to(func(a string) bool { return strings.EqualFold(a, f.Recipient) }):
		return false
	case f.Domain != "" && !to(func(a string) bool { return strings.EqualFold(a[strings.LastIndexByte(a, '@')+1:], f.Domain) }):
		return false
	case f.Failure != "" && !slices.ContainsFunc(m.Progress.Results, func(r RecipientResult) bool { return r.Failure == f.Failure }):
		return false
	case f.Text != "" && text != m.ID.String() && text != m.MessageID && f.Text != m.Reference && f.Text != m.RequestID &&
		!to(func(a string) bool { return strings.EqualFold(a, text) }):
		return false
	}
	return !slices.ContainsFunc(f.Subject, func(word string) bool { return !strings.Contains(subject, strings.ToLower(word)) })
}

// idAt is the lowest id of a time (RFC 9562, 5.7).
func idAt(t time.Time) (id uuid.UUID) {
	ms := max(t.UnixMilli(), 0)
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id
}

// lowerASCII is s as both databases make it: only PostgreSQL knows more letters, and not in
// every locale.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// longestASCII is the longest part of a word that every database compares alike.
func longestASCII(word string) (longest string) {
	for part := range strings.FieldsFuncSeq(word, func(r rune) bool { return r >= utf8.RuneSelf }) {
		if len(part) > len(longest) {
			longest = part
		}
	}
	return longest
}

// likeText is a text as LIKE takes it for itself.
func likeText(s string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(s)
}
