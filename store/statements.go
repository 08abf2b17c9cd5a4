package store

import (
	"context"
	"embed"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"
)

//go:embed queries
var queries embed.FS

// statement is a named statement as its file has it.
type statement struct {
	name  string
	pool  string // where it runs outside of transactions: "" (write), read, look or lease
	index string // the line under the name: which index serves it
	text  string // with ? for its parameters
}

// readStatements reads what a dialect's files hold: those for both, and its own.
func readStatements(dialect string) ([]statement, error) {
	common, err := statementsOf("common")
	if err != nil {
		return nil, err
	}
	own, err := statementsOf(dialect)
	return append(common, own...), err
}

// statementsOf reads one file of store/queries.
func statementsOf(file string) ([]statement, error) {
	b, err := queries.ReadFile("queries/" + file + ".sql")
	if err != nil {
		return nil, err
	}
	var out []statement
	for _, part := range strings.Split(string(b), "-- name: ")[1:] {
		head, text, _ := strings.Cut(part, "\n")
		name, kind, _ := strings.Cut(strings.TrimSpace(head), " ")
		index, _, _ := strings.Cut(text, "\n")
		out = append(out, statement{name, strings.Trim(kind, "()"), strings.TrimPrefix(index, "-- "), strings.TrimSuffix(strings.TrimSpace(text), ";")})
	}
	return out, nil
}

// statements holds every named statement, prepared.
type statements struct {
	prepared map[string]*sqlx.Stmt
	writing  map[string]*sqlx.Stmt // the same for use inside a transaction
	dialect  string
}

// used hears of every statement that is asked for. Only the conformance suite, which wants all
// of them, sets it.
var used func(dialect, name string)

// get returns a statement; a name that does not exist is a bug that the first call shows.
func (q statements) get(name string) *sqlx.Stmt {
	st, ok := q.prepared[name]
	if !ok {
		panic("store: no statement " + name)
	}
	if used != nil {
		used(q.dialect, name)
	}
	return st
}

// in returns a statement to run inside tx.
func (q statements) in(ctx context.Context, tx *sqlx.Tx, name string) *sqlx.Stmt {
	q.get(name)
	return tx.StmtxContext(ctx, q.writing[name])
}

// prepare prepares every statement on its pool, and on the writing one for use inside
// transactions.
func prepare(ctx context.Context, s *Store) (statements, error) {
	q := statements{prepared: map[string]*sqlx.Stmt{}, writing: map[string]*sqlx.Stmt{}, dialect: s.dialect.name()}
	all, err := readStatements(s.dialect.name())
	if err != nil {
		return q, err
	}
	pools := map[string]*sqlx.DB{"": s.write, "read": s.own, "look": s.look, "lease": s.lease}
	for _, x := range all {
		db, ok := pools[x.pool]
		if !ok {
			return q, fmt.Errorf("database: statement %s is for the pool %q, which does not exist", x.name, x.pool)
		}
		st, err := db.PreparexContext(ctx, db.Rebind(x.text))
		if err != nil {
			return q, fmt.Errorf("database: statement %s: %w", x.name, err)
		}
		q.prepared[x.name], q.writing[x.name] = st, st
		if db != s.write {
			if q.writing[x.name], err = s.write.PreparexContext(ctx, s.write.Rebind(x.text)); err != nil {
				return q, fmt.Errorf("database: statement %s: %w", x.name, err)
			}
		}
	}
	return q, nil
}
