package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Part is a part of a finished mail that has a time of its own to be kept.
type Part string

// The parts, each within the one before it: whose metadata goes, all of it goes.
const (
	PartMetadata Part = "metadata" // the mail itself: it is not known any more
	PartBody     Part = "body"     // all of its content
	// its files of 64 KiB and more, and those that were uploaded
	PartAttachments Part = "attachments"
)

// Removed says what of a mail's content is gone.
type Removed string

// What may be gone. An erased mail has lost its body, and a recipient's name.
const (
	RemovedNothing     Removed = ""
	RemovedAttachments Removed = "attachments"
	RemovedBody        Removed = "body"
	RemovedErased      Removed = "erased"
)

// KeepRule says that Part of the mails of Kind is removed when they have been finished for Age.
type KeepRule struct {
	Kind Kind
	Part Part
	Age  time.Duration
}

// Name is kind/part.
func (r KeepRule) Name() string { return string(r.Kind) + "/" + string(r.Part) }

// Purged is what one step of a rule did.
type Purged struct {
	Looked  int           // mails that it looked at
	Mails   int           // mails that it removed, or whose part it removed
	Held    int           // mails that a legal hold kept
	Bytes   int64         // of their own that those mails had
	Took    time.Duration // for how long the writing transaction was open
	Through bool          // nothing is left that the rule is about
	Behind  time.Duration // for how long the next mail should have been removed
}

const (
	// holderTime is for how long a process that removes keeps the others away.
	holderTime = 30 * time.Second
	// purgeMargin is longer than the commit of a result takes: a mail's finish time is that of
	// its transaction's begin, and a rule must not pass mail that is not there yet.
	purgeMargin = time.Minute
	// purgePage bounds how many mails of the archive one step looks at: some more than it may
	// remove, because some are of another kind.
	purgePage, leastPage = 1000, 200
)

// ErrNotHolder: another process removes what is kept no longer.
var ErrNotHolder = errors.New("another process does it")

// purgeRow is a mail of the archive as a rule sees it; all but ID and DoneAt is null for mail
// of another kind.
type purgeRow struct {
	ID         uuid.UUID
	DoneAt     dbTime `db:"done_at"`
	Team       sql.NullString
	Reference  sql.NullString
	MessageID  sql.NullString `db:"message_id"`
	Recipients []byte
	Labels     []byte
	Layout     []byte
	Removed    sql.NullString
	Bytes      sql.NullInt64
}

// ruleState is how far a rule has come.
type ruleState struct {
	At     dbTime
	MailID uuid.NullUUID `db:"mail_id"`
}

// Purge is one step of a rule: it looks at a page of the archive behind where the rule stands,
// and removes at most so many mails, or that part of them, in one short transaction. Mail of
// the due-out journal is out of its reach, and a legal hold wins: both are conditions of the
// statements. me is the process; ErrNotHolder when another one is at it. Mail that the database
// cannot remove is left out, told, and kept until the rules begin anew.
func (s *Store) Purge(ctx context.Context, me string, r KeepRule, most int) (p Purged, err error) {
	now, err := s.Now(ctx)
	if err != nil {
		return p, err
	}
	before := now.Add(-r.Age - purgeMargin)
	st, err := s.ruleState(ctx, r.Name())
	if err != nil {
		return p, err
	}
	page := min(purgePage, max(leastPage, 2*most))
	var rows []purgeRow
	if err := s.q.get("purge_page").SelectContext(ctx, &rows, s.dialect.time(st.At.Time), st.MailID.UUID, s.t(&before), page, r.Kind); err != nil {
		return p, s.fault(err)
	}
	p.Through = len(rows) < page
	damaged := set(s.damage.list(s.now()))
	var todo []*purgeRow
	for i := range rows {
		x := &rows[i]
		if !x.Team.Valid || damaged[x.ID] || !r.Part.applies(x) {
			continue
		}
		if len(todo) == most {
			rows, p.Through = rows[:i], false
			break
		}
		todo = append(todo, x)
	}
	if p.Looked = len(rows); p.Looked == 0 {
		return p, s.ruleThrough(ctx, me, r.Name())
	}
	last := rows[len(rows)-1]
	p.Behind = before.Sub(last.DoneAt.Time)
	began := s.now()
	at := map[uuid.UUID]*purgeRow{}
	ids := make([]uuid.UUID, len(todo))
	for i, x := range todo {
		ids[i], at[x.ID] = x.ID, x
	}
	// All in one transaction, unless it meets damage.
	moved := false
	move := func(ctx context.Context, tx *sqlx.Tx, mails int) error {
		_, err := s.q.in(ctx, tx, "rule_moved").ExecContext(ctx, r.Name(), s.t(&last.DoneAt.Time), last.ID, mails, st.MailID)
		return err
	}
	bad, err := s.past(ctx, ids, func(part []uuid.UUID) error {
		of := make([]*purgeRow, len(part))
		for i, id := range part {
			of[i] = at[id]
		}
		var gone []*purgeRow
		whole := len(part) == len(ids)
		err := s.workTx(ctx, func(tx *sqlx.Tx) (err error) {
			began = s.now()
			if err := s.holdPurge(ctx, tx, me); err != nil {
				return err
			}
			if gone, err = s.removePart(ctx, tx, r.Part, of); err != nil || !whole {
				return err
			}
			return move(ctx, tx, len(gone))
		})
		if err != nil {
			return err
		}
		moved = moved || whole
		p.Mails += len(gone)
		for _, x := range gone {
			p.Bytes += x.Bytes.Int64
		}
		return nil
	})
	p.Held = len(todo) - len(bad) - p.Mails
	if err == nil && !moved {
		err = s.workTx(ctx, func(tx *sqlx.Tx) error {
			if err := s.holdPurge(ctx, tx, me); err != nil {
				return err
			}
			return move(ctx, tx, p.Mails)
		})
	}
	p.Took = s.now().Sub(began)
	if err == nil && p.Through {
		p.Behind = 0
		err = s.ruleThrough(ctx, me, r.Name())
	}
	return p, err
}

// applies says whether a mail still has the part.
func (p Part) applies(r *purgeRow) bool {
	switch p {
	case PartMetadata:
		return true
	case PartBody:
		return r.Removed.String != string(RemovedBody) && r.Removed.String != string(RemovedErased)
	default:
		return !r.Removed.Valid && len(filesOf(r.Layout)) > 0
	}
}

// removePart removes a part of those of the mails that no legal hold keeps, and returns them.
func (s *Store) removePart(ctx context.Context, tx *sqlx.Tx, part Part, rows []*purgeRow) (gone []*purgeRow, err error) {
	if len(rows) == 0 {
		return nil, nil
	}
	ids := make([]uuid.UUID, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	var free []uuid.UUID
	if err := s.q.in(ctx, tx, "purge_free").SelectContext(ctx, &free, idList(ids)); err != nil || len(free) == 0 {
		return nil, err
	}
	is := make(map[uuid.UUID]bool, len(free))
	for _, id := range free {
		is[id] = true
	}
	var terms []mailTerm
	loose := map[[32]byte]bool{}
	for _, r := range rows {
		if !is[r.ID] {
			continue
		}
		gone = append(gone, r)
		of := neededOf(r.Layout, Removed(r.Removed.String))
		if part == PartAttachments {
			still := neededOf(r.Layout, RemovedAttachments)
			of = slices.DeleteFunc(of, func(sum [32]byte) bool { return slices.Contains(still, sum) })
		}
		for _, sum := range of {
			loose[sum] = true
			terms = append(terms, mailTerm{contentTerm(sum), r.ID})
		}
		if part == PartMetadata {
			for _, t := range r.terms() {
				terms = append(terms, mailTerm{t, r.ID})
			}
		}
	}
	if err := s.loosen(ctx, tx, loose); err != nil {
		return nil, err
	}
	if err := s.dropTerms(ctx, tx, terms); err != nil {
		return nil, err
	}
	list := idList(free)
	if part == PartMetadata {
		for _, name := range []string{"purge_archive", "purge_requests", "purge_mail"} {
			if _, err := s.q.in(ctx, tx, name).ExecContext(ctx, list); err != nil {
				return nil, err
			}
		}
		return gone, nil
	}
	name, removed := "purge_body", RemovedBody
	if part == PartAttachments {
		name, removed = "purge_attachments", RemovedAttachments
	}
	_, err = s.q.in(ctx, tx, name).ExecContext(ctx, string(removed), list)
	return gone, err
}

// terms is what the mail is searched by. What cannot be read has no terms that are known.
func (r *purgeRow) terms() []string {
	m := NewMail{ID: r.ID, Reference: r.Reference.String, MessageID: r.MessageID.String}
	if json.Unmarshal(r.Recipients, &m.Recipients) != nil {
		return nil
	}
	if len(r.Labels) > 0 && json.Unmarshal(r.Labels, &m.Labels) != nil {
		return nil
	}
	return termsOf(&m)
}

// mailTerm is a row of term.
type mailTerm struct {
	Term string
	Mail uuid.UUID
}

// MarshalJSON is a list of two, as the statements take it.
func (t mailTerm) MarshalJSON() ([]byte, error) {
	// a term is a number that JavaScript's numbers cannot hold
	return fmt.Appendf(nil, `["%s","%s"]`, t.Term, t.Mail), nil
}

func (s *Store) dropTerms(ctx context.Context, tx *sqlx.Tx, terms []mailTerm) error {
	if len(terms) == 0 {
		return nil
	}
	b, err := json.Marshal(terms)
	if err != nil {
		return err
	}
	_, err = s.q.in(ctx, tx, "purge_terms").ExecContext(ctx, string(b))
	return err
}

// ruleState reads how far a rule has come; none = its begin.
func (s *Store) ruleState(ctx context.Context, name string) (st ruleState, err error) {
	err = s.q.get("rule_state").GetContext(ctx, &st, name)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return st, s.fault(err)
}

// ruleThrough records that a rule has nothing left to do.
func (s *Store) ruleThrough(ctx context.Context, me, name string) error {
	return s.workTx(ctx, func(tx *sqlx.Tx) error {
		if err := s.holdPurge(ctx, tx, me); err != nil {
			return err
		}
		_, err := s.q.in(ctx, tx, "rule_through").ExecContext(ctx, name, s.nowArg())
		return err
	})
}

// holdPurge makes me the process that removes, and keeps out legal holds until the transaction
// ends: one that was placed is seen by what follows, and one that is being placed waits.
func (s *Store) holdPurge(ctx context.Context, tx *sqlx.Tx, me string) error {
	now, err := s.dialect.clock(ctx, tx)
	if err != nil {
		return err
	}
	until := now.Add(holderTime)
	res, err := s.q.in(ctx, tx, "holder_take").ExecContext(ctx, me, s.t(&until), s.t(&now))
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, ErrNotHolder)
	}
	return nil
}

// Overdue is for how long the first mail that a rule has to look at should have been removed; 0
// = the rule is through.
func (s *Store) Overdue(ctx context.Context, r KeepRule) (time.Duration, error) {
	now, err := s.Now(ctx)
	if err != nil {
		return 0, err
	}
	st, err := s.ruleState(ctx, r.Name())
	if err != nil {
		return 0, err
	}
	before := now.Add(-r.Age - purgeMargin)
	var first []dbTime
	if err := s.q.get("rule_next").SelectContext(ctx, &first, s.dialect.time(st.At.Time), st.MailID.UUID, s.t(&before)); err != nil || len(first) == 0 {
		return 0, s.fault(err)
	}
	return before.Sub(first[0].Time), nil
}

// Progress of retention, as people see it.
type RuleProgress struct {
	Name    string // kind/part, or "contents": files that no mail needs any more
	Mails   int64  // so many were removed, or lost the part
	RunTime time.Time
}

// RetentionProgress lists what every rule has done that there is or was.
func (s *Store) RetentionProgress(ctx context.Context) ([]RuleProgress, error) {
	var rows []struct {
		Name    string
		Mails   int64
		RunTime dbTime `db:"run_time"`
	}
	if err := s.q.get("rules_done").SelectContext(ctx, &rows); err != nil {
		return nil, s.fault(err)
	}
	out := make([]RuleProgress, len(rows))
	for i, r := range rows {
		out[i] = RuleProgress{r.Name, r.Mails, r.RunTime.Time}
	}
	return out, nil
}

// DatabaseBytes is how much of the disk the database takes, without what other databases of the
// same server take.
func (s *Store) DatabaseBytes(ctx context.Context) (n int64, err error) {
	err = s.q.get("database_bytes").GetContext(ctx, &n)
	return n, s.fault(err)
}
