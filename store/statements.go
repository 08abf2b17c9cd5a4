package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jmoiron/sqlx"
)

//go:embed queries
var queries embed.FS

// statement is a named statement as its file has it.
type statement struct {
	name string
	// where it runs outside of transactions: "" (write), read, look or lease; part: it is no
	// statement, and stands in others where they have its name in braces
	pool  string
	index string   // the line under the name: which index serves it
	takes []string // its parameters, in the order in which callers give them
	text  string   // with :name for its parameters
}

// columnLists stand in braces in the text of statements: what several of them read into the
// same row.
var columnLists = strings.NewReplacer("{server}", serverColumns, "{mail}", mailColumns, "{claimed}", claimedColumns)

// parameter finds one, or a text or comment that may look like one, or the cast of PostgreSQL.
var parameter = regexp.MustCompile(`'[^']*'|--[^\n]*|::|:[a-z_0-9]+`)

// numbered is the text with mark and a number for each parameter: $1 for PostgreSQL, ?1 for
// SQLite.
func (st *statement) numbered(mark string) (string, error) {
	used := make(map[string]bool, len(st.takes))
	var unknown []string
	text := parameter.ReplaceAllStringFunc(st.text, func(p string) string {
		if p[0] != ':' || p == "::" {
			return p
		}
		i := slices.Index(st.takes, p[1:])
		if i < 0 {
			unknown = append(unknown, p)
		}
		used[p[1:]] = true
		return mark + strconv.Itoa(i+1)
	})
	if len(unknown) > 0 || len(used) != len(st.takes) {
		return "", fmt.Errorf("database: statement %s: it takes %v, and its text names other parameters (%v)", st.name, st.takes, unknown)
	}
	return text, nil
}

// readStatements reads what a dialect's files of a kind hold, those for both and its own, with
// numbers for the parameters. kind begins the names of the files; "" = those of the service.
func readStatements(kind string, d dialect) ([]statement, error) {
	var all []statement
	for _, file := range []string{kind + "common", kind + d.name()} {
		sts, err := statementsOf(file)
		if errors.Is(err, fs.ErrNotExist) && file == kind+"common" {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, sts...)
	}
	parts := []string{}
	for _, st := range all {
		if st.pool == "part" {
			parts = append(parts, "{"+st.name+"}", st.text)
		}
	}
	all = slices.DeleteFunc(all, func(st statement) bool { return st.pool == "part" })
	for i := range all {
		var err error
		all[i].text = columnLists.Replace(strings.NewReplacer(parts...).Replace(all[i].text))
		if all[i].text, err = all[i].numbered(d.mark()); err != nil {
			return nil, err
		}
	}
	return all, nil
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
		var takes []string
		if _, rest, ok := strings.Cut(text, "-- takes: "); ok {
			list, rest, _ := strings.Cut(rest, "\n")
			for strings.HasSuffix(list, ",") { // it goes on in the next line
				var more string
				more, rest, _ = strings.Cut(rest, "\n")
				list += strings.TrimLeft(more, "-")
			}
			takes = strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
		}
		out = append(out, statement{name, strings.Trim(kind, "()"), strings.TrimPrefix(index, "-- "), takes, strings.TrimSuffix(strings.TrimSpace(text), ";")})
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
	all, err := readStatements("", s.dialect)
	if err != nil {
		return q, err
	}
	pools := map[string]*sqlx.DB{"": s.write, "read": s.own, "look": s.look, "lease": s.lease}
	for _, x := range all {
		db, ok := pools[x.pool]
		if !ok {
			return q, fmt.Errorf("database: statement %s is for the pool %q, which does not exist", x.name, x.pool)
		}
		st, err := db.PreparexContext(ctx, x.text)
		if err != nil {
			return q, fmt.Errorf("database: statement %s: %w", x.name, err)
		}
		q.prepared[x.name], q.writing[x.name] = st, st
		if db != s.write {
			if q.writing[x.name], err = s.write.PreparexContext(ctx, x.text); err != nil {
				return q, fmt.Errorf("database: statement %s: %w", x.name, err)
			}
		}
	}
	return q, nil
}
