package store

import (
	"context"
	"embed"
	"fmt"
	"strings"
	"sync"

	"github.com/jmoiron/sqlx"
)

//go:embed queries
var queries embed.FS

// statements holds every named statement, prepared.
type statements struct {
	prepared map[string]*sqlx.Stmt
	writing  map[string]*sqlx.Stmt // the same for use inside a transaction
	used     *sync.Map             // names that were asked for; the conformance suite wants all of them
}

// get returns a statement; a name that does not exist is a bug that the first call shows.
func (q statements) get(name string) *sqlx.Stmt {
	st, ok := q.prepared[name]
	if !ok {
		panic("store: no statement " + name)
	}
	q.used.Store(name, true)
	return st
}

// in returns a statement to run inside tx.
func (q statements) in(ctx context.Context, tx *sqlx.Tx, name string) *sqlx.Stmt {
	q.get(name)
	return tx.StmtxContext(ctx, q.writing[name])
}

// prepare reads the .sql files and prepares every statement, reading ones on the reading pool.
func prepare(ctx context.Context, d dialect, read, write *sqlx.DB) (statements, error) {
	q := statements{prepared: map[string]*sqlx.Stmt{}, writing: map[string]*sqlx.Stmt{}, used: &sync.Map{}}
	for _, file := range []string{"common", string(d)} {
		sts, err := named(file)
		if err != nil {
			return q, err
		}
		for _, n := range sts {
			db := write
			if n.reads {
				db = read
			}
			st, err := db.PreparexContext(ctx, db.Rebind(n.text))
			if err != nil {
				return q, fmt.Errorf("database: statement %s: %w", n.name, err)
			}
			q.prepared[n.name], q.writing[n.name] = st, st
			if db != write {
				if q.writing[n.name], err = write.PreparexContext(ctx, db.Rebind(n.text)); err != nil {
					return q, fmt.Errorf("database: statement %s: %w", n.name, err)
				}
			}
		}
	}
	return q, nil
}

// namedStatement is one statement of a .sql file.
type namedStatement struct {
	name, text string
	reads      bool
}

func named(file string) ([]namedStatement, error) {
	b, err := queries.ReadFile("queries/" + file + ".sql")
	if err != nil {
		return nil, err
	}
	var out []namedStatement
	for _, part := range strings.Split(string(b), "-- name: ")[1:] {
		head, text, _ := strings.Cut(part, "\n")
		name, kind, _ := strings.Cut(strings.TrimSpace(head), " ")
		out = append(out, namedStatement{name, strings.TrimSuffix(strings.TrimSpace(text), ";"), kind == "(read)"})
	}
	return out, nil
}
