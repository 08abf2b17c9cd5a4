package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Erasure is an address that is to be forgotten. The store knows no keys: who calls makes the
// hash and the pseudonym of it.
type Erasure struct {
	Mailbox   string   // the address
	Pseudonym string   // an address of nobody, which stands in its place
	Hash      []byte   // a keyed hash of the address, for the tombstone
	Keys      [][]byte // of allowances of the address
	DryRun    bool     // only count
	Audit     Audit    // its texts must not hold the address
}

// Redact is a text without the address.
func (e *Erasure) Redact(text string) string {
	return newEraseText(e.Mailbox, e.Pseudonym).replace(text)
}

// Erased is what an erasure has found, and has erased unless it only counted.
type Erased struct {
	Mails       int            // finished mails to the address
	First, Last time.Time      // when the first and the last of them were taken
	Texts       map[string]int // rows that name the address elsewhere, by table
	// Of an earlier erasure of the same address, the first: when it was, and what it found.
	Before      time.Time
	BeforeMails int
	BeforeFirst time.Time
	BeforeLast  time.Time
}

// EraseRefusedError: the address cannot be erased yet. Nothing was changed, unless what it
// names came while the erasure was under way: then the erasure is called again.
type EraseRefusedError struct {
	Waiting []uuid.UUID // mails of the due-out journal to the address, or that name it
	// operations that run and name it
	Operations []uuid.UUID
	Held       []uuid.UUID // mails that a legal hold keeps
	// mail servers, tokens and references of legal holds in use that name it
	Settings []string
}

func (e *EraseRefusedError) any() bool {
	return len(e.Waiting)+len(e.Operations)+len(e.Held)+len(e.Settings) > 0
}

func (e *EraseRefusedError) Error() string {
	var why []string
	if n := len(e.Waiting); n > 0 {
		why = append(why, fmt.Sprintf("%d mails of the due-out journal name it", n))
	}
	if n := len(e.Operations); n > 0 {
		why = append(why, fmt.Sprintf("%d operations that run name it", n))
	}
	if n := len(e.Held); n > 0 {
		why = append(why, fmt.Sprintf("a legal hold keeps %d mails that name it", n))
	}
	if len(e.Settings) > 0 {
		why = append(why, "it is in use by "+strings.Join(e.Settings, ", "))
	}
	return strings.Join(why, "; ")
}

const (
	erasePage = 200
	// eraseStatement is how long a statement may take that reads a whole table.
	eraseStatement = 30 * time.Minute
	mostRefused    = 100
)

// EraseRecipient forgets an address. Of finished mail to it the content goes, whoever else got
// that mail too; its metadata stay, under the pseudonym. In every other text of every table the
// pseudonym takes the place of the address. A tombstone keeps the keyed hash and when mail was
// sent.
//
// Mail that is accepted while this runs is not found; neither is the address inside of the
// content of mail to others. It is done in many transactions, the mails first:
// broken off and called again, it goes on. EraseRefusedError, before anything is changed.
func (s *Store) EraseRecipient(ctx context.Context, e *Erasure) (*Erased, error) {
	x := &eraser{s: s, e: e, text: newEraseText(e.Mailbox, e.Pseudonym), out: &Erased{Texts: map[string]int{}}, id: uuid.Must(uuid.NewV7())}
	if err := x.before(ctx); err != nil {
		return nil, s.fault(err)
	}
	tables, err := x.tables(ctx)
	if err != nil {
		return nil, s.fault(err)
	}
	x.dry = true
	if err := x.all(ctx, tables); err != nil {
		return nil, s.fault(err)
	}
	if r := &x.refused; r.any() {
		return nil, r
	}
	if e.DryRun {
		return x.out, nil
	}
	if err := x.begin(ctx); err != nil {
		return nil, s.fault(err)
	}
	x.dry, x.out.Mails, x.out.Texts = false, 0, map[string]int{}
	if err := x.all(ctx, tables); err != nil {
		return x.out, s.fault(err)
	}
	if r := &x.refused; r.any() {
		return nil, r // what came meanwhile; the rest is done
	}
	return x.out, nil
}

// eraser is one erasure under way.
type eraser struct {
	s       *Store
	e       *Erasure
	id      uuid.UUID
	text    *eraseText
	dry     bool // look only
	out     *Erased
	refused EraseRefusedError
}

// before looks for an earlier erasure of the address.
func (x *eraser) before(ctx context.Context) error {
	var r struct {
		Time, FirstTime, LastTime dbTime
		Mails                     int
	}
	row := x.s.q.get("erasure_known").QueryRowxContext(ctx, x.e.Hash)
	err := row.Scan(&r.Time, &r.Mails, &r.FirstTime, &r.LastTime)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	x.out.Before, x.out.BeforeMails, x.out.BeforeFirst, x.out.BeforeLast = r.Time.Time, r.Mails, r.FirstTime.Time, r.LastTime.Time
	return err
}

// begin writes the tombstone, and the row of the audit log that says who erases.
func (x *eraser) begin(ctx context.Context) error {
	return x.s.workTx(ctx, func(tx *sqlx.Tx) error {
		_, err := x.s.q.in(ctx, tx, "erasure_insert").ExecContext(ctx, x.id, x.e.Hash, x.e.Audit.Actor, x.s.nowArg(), x.out.Mails, x.s.t(&x.out.First), x.s.t(&x.out.Last))
		if err != nil {
			return err
		}
		for _, key := range x.e.Keys {
			if _, err := x.s.q.in(ctx, tx, "allowance_drop").ExecContext(ctx, key); err != nil {
				return err
			}
		}
		return x.s.auditDetail(ctx, tx, x.e.Audit, "", x.e.Pseudonym, map[string]any{"mails": x.out.Mails, "erasure": x.id})
	})
}

func (x *eraser) all(ctx context.Context, tables []eraseTable) error {
	if err := x.mails(ctx); err != nil {
		return err
	}
	for _, t := range tables {
		if err := x.table(ctx, t); err != nil {
			return fmt.Errorf("erase in %s: %w", t.name, err)
		}
	}
	return nil
}

// mails erases the mails to the address, which the search terms know.
func (x *eraser) mails(ctx context.Context) error {
	term, after := recipientTerm(x.e.Mailbox), uuid.Nil
	for {
		var rows []struct {
			ID         uuid.UUID
			Team       string
			Recipients []byte
			CreateTime dbTime `db:"create_time"`
			Layout     []byte
			Removed    sql.NullString
			Waits      bool
		}
		if err := x.s.q.get("erase_found").SelectContext(ctx, &rows, term, after, erasePage); err != nil {
			return err
		}
		var todo []*purgeRow
		for i := range rows {
			r := &rows[i]
			after = r.ID
			var to []Recipient
			if json.Unmarshal(r.Recipients, &to) != nil || !slices.ContainsFunc(to, func(to Recipient) bool { return strings.EqualFold(to.Mailbox, x.e.Mailbox) }) {
				// another text of the same term, or what nobody can read: the tables have it
				continue
			}
			if r.Waits {
				x.waits(r.ID)
				continue
			}
			todo = append(todo, &purgeRow{ID: r.ID, Recipients: r.Recipients, Layout: r.Layout, Removed: r.Removed})
			x.out.Mails++
			if at := r.CreateTime.Time; x.dry && (x.out.First.IsZero() || at.Before(x.out.First)) {
				x.out.First = at
			}
			if at := r.CreateTime.Time; x.dry && at.After(x.out.Last) {
				x.out.Last = at
			}
		}
		if err := x.finished(ctx, todo); err != nil {
			return err
		}
		if len(rows) < erasePage {
			return nil
		}
	}
}

func (x *eraser) waits(id uuid.UUID) {
	if len(x.refused.Waiting) < mostRefused && !slices.Contains(x.refused.Waiting, id) {
		x.refused.Waiting = append(x.refused.Waiting, id)
	}
}

// finished erases a page of finished mails to the address, or looks which of them are held.
func (x *eraser) finished(ctx context.Context, rows []*purgeRow) error {
	if len(rows) == 0 {
		return nil
	}
	ids := make([]uuid.UUID, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	return x.s.workTx(ctx, func(tx *sqlx.Tx) error {
		var name string
		if err := x.s.q.in(ctx, tx, "holder_lock").GetContext(ctx, &name); err != nil {
			return err
		}
		var free []uuid.UUID
		if err := x.s.q.in(ctx, tx, "purge_free").SelectContext(ctx, &free, idList(ids)); err != nil {
			return err
		}
		for _, r := range rows {
			switch held := !slices.Contains(free, r.ID); {
			case held && x.dry && len(x.refused.Held) < mostRefused:
				x.refused.Held = append(x.refused.Held, r.ID)
			case held && !x.dry:
				return &EraseRefusedError{Held: []uuid.UUID{r.ID}} // placed meanwhile
			case !held && !x.dry:
				if err := x.mail(ctx, tx, r); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// mail erases the content of a mail, and the address of what is known of it.
func (x *eraser) mail(ctx context.Context, tx *sqlx.Tx, r *purgeRow) error {
	var to []Recipient
	if err := json.Unmarshal(r.Recipients, &to); err != nil {
		return err
	}
	var result []byte
	if err := x.s.q.in(ctx, tx, "erase_result_of").GetContext(ctx, &result, r.ID); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	var p Progress
	readable := len(result) > 0 && json.Unmarshal(result, &p) == nil
	for i := range to {
		if !strings.EqualFold(to[i].Mailbox, x.e.Mailbox) {
			continue
		}
		to[i].Mailbox = x.e.Pseudonym
		if i < len(p.Results) {
			p.Results[i].Detail = "" // what a relay said of somebody
		}
	}
	b, err := json.Marshal(to)
	if err != nil {
		return err
	}
	if _, err := x.s.q.in(ctx, tx, "erase_mail").ExecContext(ctx, string(b), r.ID); err != nil {
		return err
	}
	if readable {
		if b, err = json.Marshal(&p); err != nil {
			return err
		}
		if _, err := x.s.q.in(ctx, tx, "erase_result").ExecContext(ctx, string(b), r.ID); err != nil {
			return err
		}
	}
	terms, loose := []mailTerm{{recipientTerm(x.e.Mailbox), r.ID}}, map[[32]byte]bool{}
	for _, sum := range contentsOf(r.Layout) {
		loose[sum] = true
		terms = append(terms, mailTerm{contentTerm(sum), r.ID})
	}
	if err := x.s.loosen(ctx, tx, loose); err != nil {
		return err
	}
	if err := x.s.dropTerms(ctx, tx, terms); err != nil {
		return err
	}
	pseudonym, err := json.Marshal([]mailTerm{{recipientTerm(x.e.Pseudonym), r.ID}})
	if err != nil {
		return err
	}
	_, err = x.s.q.in(ctx, tx, "walk_terms").ExecContext(ctx, string(pseudonym))
	return err
}
