package store

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
)

// The audit log is a chain. Row n holds SHA-256 over the hash of row n-1 and all that row n
// says, so that a row that was changed, taken out or put in between breaks every link behind
// it. Triggers refuse update and delete; the chain shows what somebody did who went round them.
// It has no key: whoever may write the database can build a chain anew from any row on. That is
// why the service writes the chain's head to its log, where the database's owner cannot reach:
// see [AuditHead].
//
// The hash covers a row's texts by a commitment under a salt of the row. An erased text takes
// its salt with it: nobody can try out what it was, and the chain holds on. Another row, which
// is linked like any other, vouches for what stands in its place. Rows of before there were
// salts were chained by their texts themselves: who has the old hash can try addresses against
// it.

// AuditRow is one row of the audit log.
type AuditRow struct {
	ID int64 // its place in the order of writing; a cursor for [Store.AuditRows]
	// its number in the chain, from 1 on without a gap; 0 = not linked yet
	Seq    int64
	Hash   []byte          // 32 bytes; nil = not linked yet
	Time   time.Time       // to the microsecond
	Actor  string          // who: "" = an unauthenticated local caller
	Action string          // the rpc's name
	Team   string          // whose mail or mail server; "" = the system
	Target string          // a mail server's name, a mail's id, or how many mails
	Reason string          // in the caller's words
	Detail json.RawMessage // before and after without secrets; nil = none
}

// auditRecord is a row as the database has it.
type auditRecord struct {
	ID                                  int64
	Seq                                 sql.NullInt64
	Hash                                []byte
	Time                                dbTime
	Actor, Action, Team, Target, Reason string
	Detail                              sql.NullString
	// nil = chained by its texts themselves, as before there were any
	Salt, Commitment []byte
	Erased           bool // a text of it was changed by EraseRecipient
}

func (r *auditRecord) row() AuditRow {
	out := AuditRow{ID: r.ID, Seq: r.Seq.Int64, Hash: r.Hash, Time: r.Time.Time, Actor: r.Actor, Action: r.Action, Team: r.Team, Target: r.Target, Reason: r.Reason}
	if r.Detail.Valid {
		out.Detail = json.RawMessage(r.Detail.String)
	}
	return out
}

// texts are what a person may have written into the row.
func (r *auditRecord) texts() []any {
	var detail any
	if r.Detail.Valid {
		detail = r.Detail.String
	}
	return []any{r.Actor, r.Action, r.Team, r.Target, r.Reason, detail}
}

// commit is a hash of the row's texts that says nothing of them without its salt.
func (r *auditRecord) commit() []byte {
	b, _ := json.Marshal(r.texts()) // strings always can be
	m := hmac.New(sha256.New, r.Salt)
	m.Write(b)
	return m.Sum(nil)
}

// digest is what a row by which texts were erased says of each row that it changed: how that
// row reads since.
func (r *auditRecord) digest() string {
	// strings and numbers always can be
	b, _ := json.Marshal(append([]any{r.Seq.Int64}, r.texts()...))
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// link is the hash of the row as number seq behind a row whose hash is before. The fields stand
// in one JSON array, so that no two rows can be told in the same bytes.
func (r *auditRecord) link(before []byte, seq int64) []byte {
	if r.Commitment != nil {
		b, _ := json.Marshal([]any{"2", hex.EncodeToString(before), seq, r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), hex.EncodeToString(r.Commitment)})
		sum := sha256.Sum256(b)
		return sum[:]
	}
	var detail any
	if r.Detail.Valid {
		detail = r.Detail.String
	}
	b, _ := json.Marshal([]any{hex.EncodeToString(before), seq, r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"),
		// strings and numbers always can be
		r.Actor, r.Action, r.Team, r.Target, r.Reason, detail})
	sum := sha256.Sum256(b)
	return sum[:]
}

// AuditHead is the end of the chain: how many rows it has, and the hash of the last. The zero
// value is the head of an empty one. Its text, which [ParseAuditHead] reads, belongs into a log
// that is kept elsewhere.
type AuditHead struct {
	Seq  int64
	Hash []byte
}

// String is the number and the hash in hexadecimal digits, as in "12:9f86…".
func (h AuditHead) String() string { return fmt.Sprintf("%d:%x", h.Seq, h.Hash) }

// ParseAuditHead reads what [AuditHead.String] wrote.
func ParseAuditHead(text string) (AuditHead, error) {
	n, sum, _ := strings.Cut(text, ":")
	seq, err := strconv.ParseInt(n, 10, 64)
	hash, err2 := hex.DecodeString(sum)
	if err != nil || err2 != nil || seq < 1 || len(hash) != sha256.Size {
		return AuditHead{}, errors.New("an audit head is a number, a colon and 64 hexadecimal digits, as the service's log has it")
	}
	return AuditHead{seq, hash}, nil
}

// statementIn gives a statement to run inside tx.
type statementIn func(ctx context.Context, tx *sqlx.Tx, name string) (*sqlx.Stmt, error)

// ready gives statements that are prepared, for transactions of the writing pool.
func (s *Store) ready(ctx context.Context, tx *sqlx.Tx, name string) (*sqlx.Stmt, error) {
	return s.q.in(ctx, tx, name), nil
}

// unready prepares a statement for tx alone: at the start of the service, and for transactions
// of another pool, when a database is found to have gone back.
func (s *Store) unready(ctx context.Context, tx *sqlx.Tx, name string) (*sqlx.Stmt, error) {
	all, err := readStatements("", s.dialect)
	if err != nil {
		return nil, err
	}
	for _, st := range all {
		if st.name == name {
			return tx.PreparexContext(ctx, st.text)
		}
	}
	return nil, fmt.Errorf("no statement %s", name)
}

// linkAudit links the rows that are not in the chain, up to 500 of them: the ones that this
// transaction wrote, and any that others left. It reports how many it linked.
//
// A transaction that has locked mails must not wait here: another process may hold the lock and
// be frozen. Without wait it leaves its rows to whoever links next, at the latest
// [Store.AuditHead], which the service asks every minute.
func (s *Store) linkAudit(ctx context.Context, tx *sqlx.Tx, in statementIn, wait bool) (int, error) {
	if locked, err := s.dialect.lockAudit(ctx, tx, in, wait); err != nil || !locked {
		return 0, err
	}
	head, err := auditHead(ctx, tx, in)
	if err != nil {
		return 0, err
	}
	unlinked, err := in(ctx, tx, "audit_unlinked")
	if err != nil {
		return 0, err
	}
	var rows []auditRecord
	if err := unlinked.SelectContext(ctx, &rows); err != nil || len(rows) == 0 {
		return 0, err
	}
	link, err := in(ctx, tx, "audit_link")
	if err != nil {
		return 0, err
	}
	for i := range rows {
		r := &rows[i]
		r.Salt = make([]byte, 16)
		_, _ = rand.Read(r.Salt) // never fails
		r.Commitment = r.commit()
		head.Seq++
		head.Hash = r.link(head.Hash, head.Seq)
		if _, err := link.ExecContext(ctx, head.Seq, head.Hash, r.Salt, r.Commitment, r.ID); err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

func auditHead(ctx context.Context, tx *sqlx.Tx, in statementIn) (AuditHead, error) {
	var head AuditHead
	st, err := in(ctx, tx, "audit_head")
	if err != nil {
		return head, err
	}
	err = st.GetContext(ctx, &head)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return head, err
}

// AuditHead links what an older version left in the log, and returns the head of the chain.
func (s *Store) AuditHead(ctx context.Context) (head AuditHead, err error) {
	for {
		linked := 0
		err = s.tx(ctx, func(tx *sqlx.Tx) error {
			var err error
			if linked, err = s.linkAudit(ctx, tx, s.ready, true); err == nil {
				head, err = auditHead(ctx, tx, s.ready)
			}
			return err
		})
		if err != nil || linked == 0 {
			return head, err
		}
	}
}

// AuditFilter narrows a listing of the audit log; zero fields do not narrow.
type AuditFilter struct {
	Team                  *string
	Actor, Action, Target string
	Since, Until          time.Time // from Since on, before Until
}

// AuditRows lists up to n rows of the scope's teams, the newest first, before the row with the
// id before; 0 = from the newest on.
func (s *Store) AuditRows(ctx context.Context, sc Scope, f AuditFilter, before int64, n int) ([]AuditRow, error) {
	all, teams := sc.args()
	if before == 0 {
		before = 1<<63 - 1
	}
	var team string
	if f.Team != nil {
		team = *f.Team
	}
	var rows []auditRecord
	err := s.q.get("audit_rows").SelectContext(ctx, &rows, before, all, teams, f.Team == nil, team, f.Actor, f.Action, f.Target, s.t(&f.Since), s.t(&f.Until), n)
	if err != nil {
		return nil, s.fault(err)
	}
	out := make([]AuditRow, len(rows))
	for i := range rows {
		out[i] = rows[i].row()
	}
	return out, nil
}

// eraseAction is the action of rows that vouch for what other rows say since a text of theirs
// was erased.
const eraseAction = "EraseRecipient"

// vouches is what the row says of other rows: their digests by their numbers.
func (r *auditRecord) vouches() map[int64]string {
	var detail struct {
		Rows map[int64]string `json:"rows"`
	}
	if r.Action != eraseAction || json.Unmarshal([]byte(r.Detail.String), &detail) != nil {
		return nil
	}
	return detail.Rows
}

// auditChain walks the chain from its begin, and looks for the head that a log remembers.
func (l *look) auditChain(known AuditHead, inv *Invariant) error {
	var head AuditHead
	erased := map[int64]string{} // rows with an erased text that nobody has vouched for yet
	vouchers := map[int64]map[int64]string{}
	breach := func(seq int64, format string, args ...any) {
		if len(inv.Breaches) < maxBreaches {
			inv.Breaches = append(inv.Breaches, Breach{fmt.Sprintf("row %d of the audit log", seq), fmt.Sprintf(format, args...)})
		}
	}
	for {
		var rows []auditRecord
		if err := l.get(&rows, "I8", head.Seq); err != nil {
			return err
		}
		if len(rows) == 0 {
			break
		}
		for i := range rows {
			r := &rows[i]
			seq := r.Seq.Int64
			switch {
			case seq != head.Seq+1:
				breach(seq, "follows row %d: rows between them were taken out", head.Seq)
			case r.Erased && r.Commitment == nil:
				// its hash was of texts that are gone; a later row vouches for those in their
				// place
			case !bytes.Equal(r.link(head.Hash, seq), r.Hash), !r.Erased && r.Commitment != nil && !bytes.Equal(r.commit(), r.Commitment):
				breach(seq, "was changed, or the one before it")
			}
			if r.Erased {
				erased[seq] = r.digest()
			}
			if of := r.vouches(); of != nil {
				vouchers[seq] = of
			}
			// From what it says on, so that one change is one breach.
			head = AuditHead{seq, r.Hash}
			if seq == known.Seq && !bytes.Equal(r.Hash, known.Hash) {
				breach(seq, "is not the one that the log remembers: the chain was built anew")
			}
		}
	}
	// A row that was changed itself vouches for others once somebody has vouched for it.
	for again := true; again; {
		again = false
		for by, of := range vouchers {
			if _, doubtful := erased[by]; doubtful {
				continue
			}
			for seq, digest := range of {
				if erased[seq] == digest {
					delete(erased, seq)
					again = true
				}
			}
		}
	}
	for _, seq := range slices.Sorted(maps.Keys(erased)) {
		breach(seq, "was changed, and no erasure says so")
	}
	if known.Seq > head.Seq {
		breach(known.Seq, "is missing: the log ends with row %d", head.Seq)
	}
	l.r.AuditHead = head
	return nil
}
