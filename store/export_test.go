package store

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
)

// What the tests outside see of the inside: outside, because storetest imports this package.

// LoggedChanges is how many rows the log of changes has.
func (s *Store) LoggedChanges() (n int, err error) {
	err = s.read.Get(&n, "select count(*) from change")
	return n, err
}

// Statement is a named statement.
type Statement struct {
	Name, Index, Text string
}

// Statements are those of a dialect.
func Statements(d string) ([]Statement, error) {
	all, err := readStatements("", map[string]dialect{"postgres": onPostgres{}, "sqlite": onSQLite{}}[d])
	out := make([]Statement, len(all))
	for i, x := range all {
		text := x.text
		for strings.HasPrefix(text, "--") {
			_, text, _ = strings.Cut(text, "\n")
		}
		out[i] = Statement{x.name, x.index, text}
	}
	return out, err
}

// RecordUse begins to record what stores ask for, and returns how to look whether a statement
// was.
func RecordUse() func(dialectName, statement string) bool {
	var names sync.Map
	used = func(d, name string) { names.Store(d+" "+name, true) }
	return func(d, statement string) bool {
		_, ok := names.Load(d + " " + statement)
		return ok
	}
}

// ForgetCounted lets the next count look again whether the counters are complete. It is no
// method of the store, of which TestOneConnection calls each.
func ForgetCounted(s *Store) { s.hasCounted.Store(false) }

// Exec runs SQL on the writing connection.
func (s *Store) Exec(query string, args ...any) error {
	_, err := s.write.Exec(query, args...)
	return err
}

// Get reads one value on the writing connection.
func (s *Store) Get(out any, query string, args ...any) error {
	return s.write.Get(out, s.write.Rebind(query), args...)
}

// JournalQuery is what a page of a journal asks the database.
func (s *Store) JournalQuery(archive bool, sc Scope, f MailFilter, after Cursor, n int) (string, []any) {
	if archive {
		return s.archiveQuery(sc, &f, after, n)
	}
	return s.dueQuery(sc, &f, after, n)
}

// FindQueries are what a page of FindMails asks the database.
func (s *Store) FindQueries(ctx context.Context, sc Scope, f FindFilter, after, low uuid.UUID, n int) (texts []string, args [][]any, err error) {
	src, err := s.findSource(ctx, &f)
	if err != nil {
		return nil, nil, err
	}
	cond, _ := s.findCond(sc, &f, src)
	end, ends := src.narrowed(after, uuid.Nil)
	page, pages := s.findPage(src, cond, after, low, n)
	return []string{end + " order by " + src.id + " desc limit 1 offset 50", page}, [][]any{ends, pages}, nil
}

// MaxCompared is how many mails one FindMails compares.
const MaxCompared = maxCompared

// Plan is how the database would execute a statement, one step a line. generic: PostgreSQL's
// plan for whatever arguments, which a prepared statement gets when it has been used for a
// while. SQLite's never depends on them.
func (s *Store) Plan(ctx context.Context, text string, args []any, generic bool) (string, error) {
	var lines []string
	if s.Dialect() == "sqlite" {
		if args == nil {
			n := strings.Count(text, "?")
			for i := range n {
				if strings.Contains(text, "?"+strconv.Itoa(i+1)) {
					n = i + 1
				}
			}
			args = make([]any, n)
		}
		var steps []struct {
			ID, Parent, NotUsed int
			Detail              string
		}
		if err := s.write.SelectContext(ctx, &steps, "explain query plan "+text, args...); err != nil {
			return "", err
		}
		for _, st := range steps {
			lines = append(lines, st.Detail)
		}
		return strings.Join(lines, "\n"), nil
	}
	if !generic {
		err := s.write.SelectContext(ctx, &lines, "explain "+s.write.Rebind(text), args...)
		return strings.Join(lines, "\n"), err
	}
	c, err := s.write.Connx(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	nulls := ""
	n := 0
	for strings.Contains(text, "$"+strconv.Itoa(n+1)) {
		n++
	}
	if n > 0 {
		nulls = "(null" + strings.Repeat(", null", n-1) + ")"
	}
	for _, q := range []string{"set plan_cache_mode = force_generic_plan", "prepare planned as " + s.write.Rebind(text)} {
		if _, err := c.ExecContext(ctx, q); err != nil {
			return "", err
		}
	}
	if err := c.SelectContext(ctx, &lines, "explain execute planned"+nulls); err != nil {
		return "", err
	}
	_, err = c.ExecContext(ctx, "deallocate planned; reset plan_cache_mode")
	return strings.Join(lines, "\n"), err
}

// Select reads values on the writing connection.
func (s *Store) Select(out any, query string) error { return s.write.Select(out, query) }

// Schema is what a version of the migrations leaves.
type Schema struct {
	Version  int64
	Columns  map[string]Column // by table.column
	Defaults map[string]bool   // columns that have one
	Indexes  map[string]bool   // by table.index, whether unique; without those of primary keys
}

// Column is a column; primary keys count as not nullable.
type Column struct{ Nullable bool }

// Schemas migrates an empty database version by version and looks at it after each.
func Schemas(ctx context.Context, dsn string) ([]Schema, error) {
	d, gd, driver, name := "postgres", goose.DialectPostgres, "postgres", dsn
	columns := `select table_name || '.' || column_name as name, is_nullable = 'YES' as nullable, column_default is not null or is_identity = 'YES' as has_default
from information_schema.columns where table_schema = 'public' and table_name not like 'goose%'`
	indexes := `select c.relname || '.' || i.relname as name, x.indisunique as uniq
from pg_index x join pg_class c on c.oid = x.indrelid join pg_class i on i.oid = x.indexrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'public' and not x.indisprimary and c.relname not like 'goose%'`
	if path, is := strings.CutPrefix(dsn, "sqlite:"); is {
		d, gd, driver, name = "sqlite", goose.DialectSQLite3, "sqlite", path
		columns = `select t.name || '.' || c.name as name, c."notnull" = 0 and c.pk = 0 as nullable, c.dflt_value is not null as has_default
from sqlite_master t join pragma_table_info(t.name) c where t.type = 'table' and t.name not like 'goose%' and t.name not like 'sqlite%'`
		indexes = `select t.name || '.' || i.name as name, i."unique" as uniq
from sqlite_master t join pragma_index_list(t.name) i where t.type = 'table' and t.name not like 'goose%' and t.name not like 'sqlite%' and i.origin = 'c'`
	}
	db, err := sqlx.Open(driver, name)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	dir, err := fs.Sub(migrations, "migrations/"+d)
	if err != nil {
		return nil, err
	}
	p, err := goose.NewProvider(gd, db.DB, dir)
	if err != nil {
		return nil, err
	}
	var out []Schema
	for _, src := range p.ListSources() {
		if _, err := p.UpTo(ctx, src.Version); err != nil {
			return nil, err
		}
		sc := Schema{src.Version, map[string]Column{}, map[string]bool{}, map[string]bool{}}
		var cs []struct {
			Name       string
			Nullable   bool
			HasDefault bool `db:"has_default"`
		}
		var is []struct {
			Name string
			Uniq bool
		}
		if err := errors.Join(db.SelectContext(ctx, &cs, columns), db.SelectContext(ctx, &is, indexes)); err != nil {
			return nil, err
		}
		for _, c := range cs {
			sc.Columns[c.Name], sc.Defaults[c.Name] = Column{c.Nullable}, c.HasDefault
		}
		for _, i := range is {
			sc.Indexes[i.Name] = i.Uniq
		}
		out = append(out, sc)
	}
	return out, nil
}

// WriteTerms says whether s writes what mail is searched by. Nothing may be going on.
func (s *Store) WriteTerms(yes bool) { s.noTerms = !yes }

// AllTransaction sets how long the transaction of EnqueueAll may take. Nothing may be going on.
func (s *Store) AllTransaction(d time.Duration) { s.allTransaction = d }

// DamageWait sets how long a write that meets damage is repeated. Nothing may be going on.
func (s *Store) DamageWait(d time.Duration) { s.damageWait = d }

// ForgetDamageNotes forgets all damage that was noted, as ForgetChanges does what is old.
func (s *Store) ForgetDamageNotes(ctx context.Context) error {
	return s.forgetDamage(ctx, s.now().Add(time.Hour))
}

// ForgetDamage lets damaged mails be tried again at once.
func (s *Store) ForgetDamage() {
	s.damage.mu.Lock()
	defer s.damage.mu.Unlock()
	clear(s.damage.known)
	clear(s.damage.pages)
}

// RecipientTerm is what term holds of a recipient.
func RecipientTerm(mailbox string) string { return recipientTerm(mailbox) }

// OneConnection leaves each pool one connection. Nothing may be going on.
func (s *Store) OneConnection() {
	for _, db := range []*sqlx.DB{s.write, s.lease, s.own, s.look, s.read} {
		db.SetMaxOpenConns(1)
	}
}

// Hold runs a statement in a transaction and ends it when release is closed.
func (s *Store) Hold(statement string, release <-chan struct{}) error {
	tx, err := s.read.Beginx() // not one of the connections that are tried
	if err != nil {
		return err
	}
	_, err = tx.Exec(statement)
	<-release
	return errors.Join(err, tx.Rollback())
}

// Begin begins a transaction on a connection that is not one of those that are tried.
func (s *Store) Begin() (*sqlx.Tx, error) { return s.read.Beginx() }

// Locked says whether a table is locked against everybody.
func (s *Store) Locked(table string) bool {
	var n int
	// copies of one database have the same numbers for their tables
	err := s.write.Get(&n, "select count(*) from pg_locks where relation = $1::regclass and mode = 'AccessExclusiveLock' and granted and database = (select oid from pg_database where datname = current_database())", table)
	return err == nil && n > 0
}

// MountedIn is what decides whether a file is mounted by itself.
func MountedIn(mounts, path string) bool { return mountedIn(mounts, path) }

// Window says until when the interactive window is open.
func (s *Store) Window(until time.Time) {
	s.interactive.mu.Lock()
	defer s.interactive.mu.Unlock()
	s.interactive.until = until
}

// WindowEnd is until when the interactive window is open.
func (s *Store) WindowEnd() time.Time {
	s.interactive.mu.Lock()
	defer s.interactive.mu.Unlock()
	return s.interactive.until
}

// InteractiveWork is how much interactive work is under way.
func (s *Store) InteractiveWork() int {
	s.interactive.mu.Lock()
	defer s.interactive.mu.Unlock()
	return s.interactive.working
}

// HoldAuditLock is a process that is frozen while it links rows of the audit log.
func (s *Store) HoldAuditLock(ctx context.Context) (release func(), err error) {
	tx, err := s.write.BeginTxx(ctx, nil)
	if err != nil {
		return nil, err
	}
	if _, err := s.dialect.lockAudit(ctx, tx, s.ready, true); err != nil {
		_ = tx.Rollback() // the first error says more
		return nil, err
	}
	return func() { _ = tx.Rollback() }, nil // nothing was written
}

// RemoveBody is the second half of Purge with a page that was read before others changed the
// mail.
func (s *Store) RemoveBody(ctx context.Context, id uuid.UUID) error {
	return s.workTx(ctx, func(tx *sqlx.Tx) error {
		_, err := s.removePart(ctx, tx, PartBody, []*purgeRow{{ID: id}})
		return err
	})
}

// Lost is how many of the writes that the witness remembers a promoted server has not got.
func (s *Store) Lost(ctx context.Context) (n int, err error) {
	l := s.lineage.Load()
	b, err := json.Marshal(l.witness.all())
	if err != nil {
		return 0, err
	}
	err = s.write.GetContext(ctx, &n, l.sql["lost"], string(b))
	return n, err
}

// CopyWith is Copy with another commit in PostgreSQL.
func CopyWith(ctx context.Context, from, to, stateFile string, commit func(*sqlx.Tx) error) ([]CopyTable, error) {
	return copyDatabase(ctx, from, to, stateFile, Options{}, commit)
}

// NoteDamagedPage notes a page as one that could not be read.
func NoteDamagedPage(ctx context.Context, s *Store, page int64) error {
	now := s.now()
	_, err := s.q.get("damaged_page_note").ExecContext(ctx, page, s.t(&now), "of a test")
	return err
}

// PagesOfDue reads the due-out journal by places: whose mail is due, and what r owns.
func PagesOfDue(ctx context.Context, s *Store, r ReplicaID) (servers []string, owned []Ownership, err error) {
	n, err := s.dialect.duePages(ctx)
	if err != nil {
		return nil, nil, err
	}
	all := duePages{0, n}
	if servers, err = s.dialect.dueServersOn(ctx, all); err != nil {
		return nil, nil, err
	}
	owned, err = s.dialect.ownedOn(ctx, all, r)
	return servers, owned, err
}
