package store

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// The invariants of a database, of which an inspection finds every breach:
//
//	I1  every mail is in exactly one of the due-out journal and the archive, in the one
//	    of its own team and mail server
//	I2  states and times agree: what waits to be sent has a due time, what waits for a
//	    person has none, what is finished is in the archive and has its time
//	I3  no stale lease: what is being sent is owned by a replica that lives, or by a
//	    dead one while no other lives to rescue it; no mark without owner
//	I4  results are as many as the recipients, and the mail's status says what they say
//	I5  a recipient that was tried again after an attempt of unknown outcome is flagged,
//	    unless a person had said that nothing arrived
//	I6  the message is whole: its length is what was accepted, its shared pieces are
//	    there and hash to their names, its Message-ID is the mail's, and each recipient
//	    can be found by. It is written once, so what is whole now is what every attempt
//	    sends
//	I7  at most one default a team, which is not deleted, and one mail or mail server a
//	    (team, request_id)
//	I8  the audit log is whole: its rows are numbered without a gap, and each is linked
//	    to the one before it
//	I9  the database can read and write every mail
//	I10 the counters of batches and of the queue say what a full count says
//
// I1 to I5 and I7 to I10 look at every row; so does I6 at lengths. Its hashes and its reading
// of whole messages are limited, see [InspectOptions].
var invariants = []struct{ name, says string }{
	{"I1", "every mail is in exactly one journal"},
	{"I2", "states and times agree"},
	{"I3", "no lease is stale, no mark without owner"},
	{"I4", "results agree with recipients and status"},
	{"I5", "possible duplicates are flagged"},
	{"I6", "messages are whole"},
	{"I7", "defaults and request_ids are unique"},
	{"I8", "the audit log is whole"},
	{"I9", "the database can read and write every mail"},
	{"I10", "the counters are right"},
}

// rescueGrace is how long after a replica was taken for dead its mail may still wait for its
// rescue.
const rescueGrace = time.Minute

// Inspector reads a database beside the service that uses it: it takes no lock, changes nothing
// and migrates nothing.
type Inspector struct {
	s  *Store // of which only the reading side is open
	st map[string]string
}

// OpenInspector opens dsn for reading. The schema has to be this program's.
func OpenInspector(ctx context.Context, dsn string) (*Inspector, error) {
	in := &Inspector{s: &Store{now: time.Now}, st: map[string]string{}}
	err := in.open(ctx, dsn)
	if err == nil {
		err = in.current(ctx)
	}
	if err != nil {
		_ = in.s.closeDBs() // the first error says more
		return nil, err
	}
	sts, err := readStatements("inspect_", in.s.dialect)
	if err != nil {
		return nil, err
	}
	for _, n := range sts {
		in.st[n.name] = n.text
	}
	return in, nil
}

func (in *Inspector) open(ctx context.Context, dsn string) error {
	file, isFile := strings.CutPrefix(dsn, "sqlite:")
	switch {
	case CheckDSN(dsn) != nil:
		return CheckDSN(dsn)
	case isFile:
		in.s.dialect = onSQLite{in.s}
		return in.s.readSQLite(ctx, file)
	}
	return in.s.openPostgres(ctx, dsn, Pools{}, pq.TargetSessionAttrsAny)
}

// current refuses a schema that the statements do not know.
func (in *Inspector) current(ctx context.Context) error {
	files, err := fs.Glob(migrations, "migrations/"+in.s.dialect.name()+"/*.sql")
	if err != nil {
		return err
	}
	last, _, _ := strings.Cut(path.Base(files[len(files)-1]), "_")
	want, err := strconv.Atoi(last)
	if err != nil {
		return err
	}
	var have int
	if err := in.s.read.GetContext(ctx, &have, "select coalesce(max(version_id), 0) from goose_db_version where is_applied"); err != nil {
		return fmt.Errorf("database: this is none of maildispatch's, or `maildispatchd migrate` has never run: %w", err)
	}
	if have > want {
		return newerSchema(int64(have), int64(want))
	}
	if have < want {
		return fmt.Errorf("database: its schema is at %d and this program's at %d: run `maildispatchd migrate`", have, want)
	}
	return nil
}

// Close ends it.
func (in *Inspector) Close() error { return in.s.closeDBs() }

// InspectOptions of [Inspector.Inspect].
type InspectOptions struct {
	// Messages and ContentBytes bound how many of the newest messages are read whole and how
	// much of the newest shared content is hashed; < 0 = all.
	Messages     int
	ContentBytes int64
	// Late is how long mail may be due without being taken before it is reported.
	Late time.Duration
	// Keep are the rules of retention whose work is looked at.
	Keep []KeepRule
	// AuditHead is one that the service's log remembers; the zero value is none.
	AuditHead AuditHead
}

// Invariant is what became of one of I1 to I10.
type Invariant struct {
	Name, Says string
	Breaches   []Breach // at most 1000 a statement
}

const maxBreaches = 1000

// Breach is one breach of an invariant.
type Breach struct{ Subject, Problem string }

// Inspection is what an inspection found, all in one snapshot.
type Inspection struct {
	Now        time.Time // the clock that decides what is due
	Invariants []Invariant
	Unrescued  int // breaches of I3 that a rescue under way ends within seconds
	Mails      int // in the database
	Messages   int // of which were read whole
	Bytes      int64
	BytesRead  int64 // of shared content, and how much of it was hashed

	Waiting   []WaitingMails
	Late      []LateMails
	Suspended []SuspendedServer
	NoDefault []NoDefault
	Replicas  []ReplicaState
	WentBack  WentBack // of which Held still waits
	AuditHead AuditHead
	// rules of retention, and for how long their first mail should have been removed
	Overdue map[string]time.Duration

	DefaultUnavailable []DefaultUnavailable
}

// Broken reports whether any invariant is broken.
func (r *Inspection) Broken() bool {
	for _, i := range r.Invariants {
		if len(i.Breaches) > 0 {
			return true
		}
	}
	return false
}

// WaitingMails are mails of one mail server and status that wait for a person.
type WaitingMails struct {
	MailServer  string `db:"mail_server"`
	Team        string
	Status      MailStatus
	Quarantined bool // put aside because they may harm the service
	N           int
	Oldest      uuid.UUID
}

// LateMails are due mails of one mail server that nobody takes.
type LateMails struct {
	MailServer string `db:"mail_server"`
	N          int
	Since      dbTime
	Status     string // of the mail server; "missing" if there is none
	Deleted    bool
	Suspended  bool
}

// SuspendedServer is a mail server that is left alone.
type SuspendedServer struct {
	MailServer string `db:"mail_server"`
	Failures   int
	Reason     string
	RetryAt    dbTime `db:"retry_at"`
}

// NoDefault is a team, "" the system, whose mail has no mail server of its own to go through by
// itself. Candidate could be it; null if there is none.
type NoDefault struct {
	Team      string
	Candidate sql.NullString
}

// DefaultUnavailable is a default mail server that is switched off: its team's mail that names
// no mail server is refused. Candidate of the same team could take its place; null if there is
// none.
type DefaultUnavailable struct {
	MailServer string `db:"name"`
	Team       string
	Candidate  sql.NullString
}

// ReplicaState is one replica and how many mails it owns.
type ReplicaState struct {
	ID         ReplicaID
	Name       string
	AliveUntil dbTime `db:"alive_until"`
	Owned      int
}

// inspectStatement is how long one statement of an inspection may take.
const inspectStatement = 6 * time.Hour

// Inspect looks at everything once.
func (in *Inspector) Inspect(ctx context.Context, opt InspectOptions) (*Inspection, error) {
	// A scan of millions of rows takes longer than any statement of the service may.
	tx, err := in.s.read.BeginTxx(patient(ctx, inspectStatement), in.s.dialect.inspection())
	if err != nil {
		return nil, in.s.fault(err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	l := &look{in: in, ctx: ctx, tx: tx, r: &Inspection{}}
	if err := l.all(opt); err != nil {
		return nil, in.s.fault(err)
	}
	return l.r, nil
}

// look is one inspection under way.
type look struct {
	in  *Inspector
	ctx context.Context
	tx  *sqlx.Tx
	r   *Inspection
	now time.Time
}

func (l *look) all(opt InspectOptions) error {
	l.now = micro(l.in.s.now())
	if q, ok := l.in.st["clock"]; ok { // SQLite goes by this machine's
		if err := l.tx.GetContext(l.ctx, &l.now, q); err != nil {
			return err
		}
	}
	l.r.Now = l.now
	t := func(d time.Duration) any { at := l.now.Add(-d); return l.in.s.t(&at) }
	for _, i := range invariants {
		inv := Invariant{Name: i.name, Says: i.says}
		if err := l.pastDamage(&inv, func() error {
			if i.name == "I8" {
				return l.auditChain(opt.AuditHead, &inv)
			}
			if i.name == "I10" {
				return l.counters(&inv)
			}
			if err := l.get(&inv.Breaches, i.name); err != nil || i.name != "I3" {
				return err
			}
			var late []Breach
			err := l.get(&late, "I3_unrescued", t(rescueGrace), t(0))
			inv.Breaches, l.r.Unrescued = append(inv.Breaches, late...), len(late)
			return err
		}); err != nil {
			return err
		}
		l.r.Invariants = append(l.r.Invariants, inv)
	}
	whole, readable := &l.r.Invariants[5], &l.r.Invariants[8]
	for _, f := range []func() error{
		func() error { return l.contents(opt.ContentBytes, whole) },
		func() error { return l.messages(opt.Messages, whole) },
	} {
		if err := l.pastDamage(whole, f); err != nil {
			return err
		}
	}
	for _, f := range []func() error{
		func() error {
			return l.tx.QueryRowxContext(l.ctx, l.in.st["totals"]).Scan(&l.r.Mails, &l.r.Bytes)
		},
		func() error { return l.get(&l.r.Waiting, "waiting") },
		func() error { return l.get(&l.r.Late, "late", t(opt.Late)) },
		func() error { return l.get(&l.r.Suspended, "suspended") },
		func() error { return l.get(&l.r.NoDefault, "no_default") },
		func() error { return l.get(&l.r.DefaultUnavailable, "default_unavailable") },
		func() error { return l.get(&l.r.Replicas, "replicas") },
		l.wentBack,
		func() error { return l.overdue(opt.Keep) },
	} {
		if err := l.pastDamage(readable, f); err != nil {
			return err
		}
	}
	return nil
}

// pastDamage looks at an invariant. Where the database cannot read what that needs, this is a
// breach of it, and the others are looked at all the same.
func (l *look) pastDamage(inv *Invariant, f func() error) error {
	if _, err := l.tx.ExecContext(l.ctx, "savepoint look"); err != nil {
		return err
	}
	err := f()
	if !rowFault(err) {
		return err
	}
	inv.Breaches = append(inv.Breaches, Breach{"the database", "cannot read what this needs: " + err.Error()})
	_, err = l.tx.ExecContext(l.ctx, "rollback to savepoint look")
	return err
}

func (l *look) get(into any, name string, args ...any) error {
	if err := l.tx.SelectContext(l.ctx, into, l.in.st[name], args...); err != nil {
		return fmt.Errorf("inspect: %s: %w", name, err)
	}
	return nil
}

// wentBack says whether the database waits to be adopted.
func (l *look) wentBack() error {
	var rows []struct {
		Since dbTime
		Why   string
		Held  int
	}
	err := l.get(&rows, "went_back", WentBackReason)
	for _, r := range rows {
		l.r.WentBack = WentBack{Since: r.Since.Time, Why: r.Why, Held: r.Held}
	}
	return err
}

// overdue says which rules of retention are behind.
func (l *look) overdue(rules []KeepRule) error {
	l.r.Overdue = map[string]time.Duration{}
	for _, r := range rules {
		before := l.now.Add(-r.Age - purgeMargin)
		var first []dbTime
		if err := l.get(&first, "overdue", r.Name(), l.in.s.t(&before)); err != nil {
			return err
		}
		if len(first) > 0 {
			l.r.Overdue[r.Name()] = before.Sub(first[0].Time)
		}
	}
	return nil
}

// messagePage is how many messages are listed at once; each is read by itself, so that large
// ones cost no memory.
const messagePage = 500

// headerMost is more than the header of any mail: 500 recipients, 50 headers of 900 octets.
const headerMost = 256 << 10
