package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// CopiedReason is why an SQLite database holds what is due in it once it was copied.
const CopiedReason = "it was copied to PostgreSQL, which sends its mail since"

// notCopied are tables that say something of a process or of the database itself, not of mail.
var notCopied = []string{"goose_db_version", "damage", "damaged_page", "installation", "change", "change_forgotten", "rate_share", "connection_slot",
	"count_delta", "count_queue", "count_batch", "count_state"}

// CopyTable is what was copied of a table.
type CopyTable struct {
	Name string
	Rows int64
}

// Copy moves everything from an SQLite database to an empty PostgreSQL database: mail servers,
// both journals, content, the audit log, tokens. No service may run on either of them. It is
// done as a whole or not at all: PostgreSQL gets one transaction.
//
// The source holds all that is due in it before that transaction is committed, so that never
// both can send. Where it is cut off between the two, nothing is sent by either until somebody
// adopts the source. Who watches begins anew: positions of the change log are not carried over.
//
// stateFile is that of the source's service: it is told before PostgreSQL commits, so that a
// file of the source from before the copy is known for an old one.
func Copy(ctx context.Context, from, to, stateFile string, opt Options) (tables []CopyTable, err error) {
	return copyDatabase(ctx, from, to, stateFile, opt, (*sqlx.Tx).Commit)
}

func copyDatabase(ctx context.Context, from, to, stateFile string, opt Options, commit func(*sqlx.Tx) error) (tables []CopyTable, err error) {
	if !strings.HasPrefix(from, "sqlite:") || strings.HasPrefix(to, "sqlite:") {
		return nil, errors.New("copy: it goes from sqlite:PATH to postgres://USER@HOST/DB")
	}
	src, err := Open(ctx, from, opt) // its lock keeps a service away
	if err != nil {
		return nil, fmt.Errorf("copy: from: %w", err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if err := src.rememberSource(ctx, stateFile); err != nil {
		return nil, fmt.Errorf("copy: from: %w", err)
	}
	dst, err := Open(ctx, to, opt)
	if err != nil {
		return nil, fmt.Errorf("copy: to: %w", err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	pool, err := copyPool(to)
	if err != nil {
		return nil, fmt.Errorf("copy: to: %w", err)
	}
	defer pool.Close()
	tx, err := sqlx.NewDb(pool, "postgres").BeginTxx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("copy: to: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing behind a commit
	c := &copier{src: src, tx: tx, mark: rand.Int64N(math.MaxInt64-1) + 1}
	if err := c.all(ctx); err != nil {
		return nil, fmt.Errorf("copy: %w", err)
	}
	if err := src.holdCopied(ctx, stateFile); err != nil {
		return nil, fmt.Errorf("copy: hold what is due in the source: %w", err)
	}
	if err := commit(tx); err != nil {
		switch there, ask := c.committed(ctx, pool); {
		case ask != nil:
			return nil, fmt.Errorf("copy: unknown whether everything is in PostgreSQL: %w; it cannot be asked: %w; the source holds its mail: "+
				"when PostgreSQL answers again, look there for the mail servers; if they are there, all is, and the source must not be adopted; "+
				"if not, `maildispatchd adopt` lets the source go on", err, ask)
		case !there:
			return nil, fmt.Errorf("copy: nothing is in PostgreSQL, and the source holds its mail until `maildispatchd adopt`: %w", err)
		}
	}
	return c.done, nil
}

// copyAsked is how long PostgreSQL is asked whether it has committed a copy.
const copyAsked = time.Minute

// committed asks on a new connection whether the copy's transaction was committed. The row of
// its mark is locked by it for as long as the server has not ended it.
func (c *copier) committed(ctx context.Context, pool *sql.DB) (there bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), copyAsked)
	defer cancel()
	for {
		var mark int64
		// Not on a connection of the pool that is broken too.
		err = pool.QueryRowContext(ctx, "select generation from change_forgotten for update").Scan(&mark)
		if err == nil {
			return mark == c.mark, nil
		}
		select {
		case <-ctx.Done():
			return false, err
		case <-time.After(time.Second):
		}
	}
}

// rememberSource compares the source with what its machine knows of it, as a start of the
// service does: what is due in an old file is held, and goes over as held.
func (s *Store) rememberSource(ctx context.Context, stateFile string) error {
	l, err := s.newLineage(stateFile)
	if err != nil {
		return err
	}
	var row installationRow
	if err := s.write.GetContext(ctx, &row, l.sql["installation"]); err != nil {
		return err
	}
	_, had, err := l.state.get(row.ID)
	if row.Beat > 0 && !had {
		return errors.Join(fmt.Errorf("%s does not know the database: give the --key-file of the service that used it", stateFile), err)
	}
	_, err = s.Remember(ctx, stateFile)
	return err
}

// copyPool are connections of the driver itself, which knows COPY, and whose statements may
// take as long as a table takes.
func copyPool(dsn string) (*sql.DB, error) {
	cfg, err := pgConfig(dsn, pq.TargetSessionAttrsReadWrite)
	if err != nil {
		return nil, err
	}
	cfg.BinaryParameters = false
	cfg.Runtime["statement_timeout"], cfg.Runtime["idle_in_transaction_session_timeout"] = "0", "0"
	c, err := pq.NewConnectorConfig(cfg)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(c), nil
}

// holdCopied holds what is due in a database that was copied, as in one that was restored. The
// state file knows of it first: a crash between the two leaves a database that is held at its
// next start.
func (s *Store) holdCopied(ctx context.Context, stateFile string) error {
	l, err := s.newLineage(stateFile)
	if err != nil {
		return err
	}
	return s.tx(patient(ctx, holdStatement), func(tx *sqlx.Tx) error {
		var row installationRow
		if err := tx.GetContext(ctx, &row, l.sql["installation_lock"]); err != nil {
			return err
		}
		found, err := s.holdAll(ctx, tx, l, CopiedReason)
		if err != nil {
			return err
		}
		row.Beat, row.BackAt.Time, row.BackWhy = row.Beat+beatLeap, found.Since, CopiedReason
		if err := l.state.put(row.ID, func(e *stateEntry) { e.Beat = max(e.Beat, row.Beat) }); err != nil {
			return err
		}
		return s.writeInstallation(ctx, tx, l, &row)
	})
}

// copier is one copy under way.
type copier struct {
	src  *Store
	tx   *sqlx.Tx // of the target
	mark int64    // the generation of its change log, by which the copy is known
	done []CopyTable
}

func (c *copier) all(ctx context.Context) error {
	var used int
	if err := c.tx.GetContext(ctx, &used, "select (select count(*) from mail_server) + (select count(*) from (select 1 from mail limit 1) m) + (select count(*) from audit)"); err != nil {
		return err
	}
	if used > 0 {
		return errors.New("the PostgreSQL database is in use already: give an empty one")
	}
	var names []string
	if err := c.src.read.SelectContext(ctx, &names, "select name from sqlite_schema where type = 'table' and name not like 'sqlite_%' order by name"); err != nil {
		return err
	}
	// What another table refers to comes first.
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	for _, name := range names {
		if slices.Contains(notCopied, name) {
			continue
		}
		n, err := c.table(ctx, name)
		if err != nil {
			return fmt.Errorf("table %s: %w", name, err)
		}
		c.done = append(c.done, CopyTable{name, n})
	}
	var on bool
	if err := c.src.read.GetContext(ctx, &on, "select access_on from installation"); err != nil {
		return err
	}
	for _, q := range []struct {
		text string
		args []any
	}{
		{"update installation set access_on = $1", []any{on}},
		{"update change_forgotten set generation = $1", []any{c.mark}},
		// the target counts anew what it has got
		{"delete from count_delta", nil},
		{"update count_state set counted = false", nil},
		// whoever had mail when the source's process died is dead
		{"update replica set alive_until = 'epoch'", nil},
	} {
		if _, err := c.tx.ExecContext(ctx, q.text, q.args...); err != nil {
			return err
		}
	}
	return nil
}

func rank(table string) int { return slices.Index([]string{"mail_server"}, table) * -1 }

// table copies one table and compares how many rows both have then.
func (c *copier) table(ctx context.Context, name string) (int64, error) {
	var columns []struct{ Name, Type, Identity string }
	q := `select column_name as name, data_type as type, is_identity as identity from information_schema.columns where table_schema = current_schema() and table_name = $1 order by ordinal_position`
	if err := c.tx.SelectContext(ctx, &columns, q, name); err != nil {
		return 0, err
	}
	if len(columns) == 0 {
		return 0, errors.New("PostgreSQL has no such table")
	}
	names := make([]string, len(columns))
	for i, col := range columns {
		names[i] = col.Name
	}
	rows, err := c.src.read.QueryContext(ctx, fmt.Sprintf("select %s from %s", strings.Join(names, ", "), name))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	n := int64(0)
	if _, err := c.tx.ExecContext(ctx, "delete from "+name); err != nil {
		// what the schema itself begins with
		return n, err
	}
	into, err := c.tx.PrepareContext(ctx, fmt.Sprintf("copy %s (%s) from stdin", name, strings.Join(names, ", ")))
	if err != nil {
		return 0, err
	}
	values, refs := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		refs[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(refs...); err != nil {
			return n, err
		}
		for i, col := range columns {
			if values[i], err = postgresValue(values[i], col.Type); err != nil {
				return n, fmt.Errorf("column %s: %w", col.Name, err)
			}
		}
		if _, err := into.ExecContext(ctx, values...); err != nil {
			return n, err
		}
		n++
	}
	if err := rows.Err(); err != nil {
		return n, err
	}
	if _, err := into.ExecContext(ctx); err != nil {
		return n, err
	}
	if err := into.Close(); err != nil {
		return n, err
	}
	for _, col := range columns {
		if col.Identity == "YES" {
			q := fmt.Sprintf("select setval(pg_get_serial_sequence('%s', '%s'), (select coalesce(max(%s), 0) + 1 from %s), false)", name, col.Name, col.Name, name)
			if _, err := c.tx.ExecContext(ctx, q); err != nil {
				return n, err
			}
		}
	}
	var there int64
	if err := c.tx.GetContext(ctx, &there, "select count(*) from "+name); err != nil {
		return n, err
	}
	if there != n {
		return n, fmt.Errorf("%d rows were read and %d are there", n, there)
	}
	return n, nil
}

// postgresValue is a value of SQLite as a column of PostgreSQL takes it.
func postgresValue(v any, typ string) (any, error) {
	n, isInt := v.(int64)
	switch typ {
	case "timestamp with time zone":
		if isInt {
			return time.UnixMicro(n).UTC(), nil
		}
	case "date":
		if isInt {
			return time.Unix(n*86400, 0).UTC().Format(time.DateOnly), nil
		}
	case "boolean":
		if isInt {
			return n != 0, nil
		}
	case "bytea":
		if text, ok := v.(string); ok {
			return []byte(text), nil
		}
	case "text", "json", "jsonb", "uuid", "character varying":
		if b, ok := v.([]byte); ok {
			return string(b), nil
		}
		if isInt {
			return nil, fmt.Errorf("a number stands in a %s", typ)
		}
	}
	return v, nil
}
