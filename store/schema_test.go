package store_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// schemas are both databases' schemas after each version of the migrations.
func schemas(t *testing.T) map[string][]store.Schema {
	t.Helper()
	out := map[string][]store.Schema{}
	for name, dsn := range storetest.EmptyDSNs(t) {
		var err error
		if out[name], err = store.Schemas(ctx, dsn); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestSchemasAreTheSame: the same versions, and after each of them the same tables, columns
// that may or may not be empty, and indexes.
func TestSchemasAreTheSame(t *testing.T) {
	t.Parallel()
	all := schemas(t)
	p, s := all["postgres"], all["sqlite"]
	if len(p) != len(s) || len(p) == 0 {
		t.Fatalf("%d versions on PostgreSQL, %d on SQLite", len(p), len(s))
	}
	for i := range p {
		if p[i].Version != s[i].Version {
			t.Fatalf("version %d on PostgreSQL is %d on SQLite", p[i].Version, s[i].Version)
		}
		for _, d := range difference(p[i].Columns, s[i].Columns) {
			t.Errorf("version %d: column %s", p[i].Version, d)
		}
		for _, d := range difference(p[i].Indexes, s[i].Indexes) {
			t.Errorf("version %d: index %s", p[i].Version, d)
		}
	}
}

func difference[V comparable](p, s map[string]V) (out []string) {
	for _, k := range slices.Sorted(maps.Keys(p)) {
		if v, ok := s[k]; !ok {
			out = append(out, k+" is missing on SQLite")
		} else if v != p[k] {
			out = append(out, fmt.Sprintf("%s is %v on PostgreSQL and %v on SQLite", k, p[k], v))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s)) {
		if _, ok := p[k]; !ok {
			out = append(out, k+" is missing on PostgreSQL")
		}
	}
	return out
}

// TestTheBinaryBeforeRunsOnTheNewSchema: no migration takes away or renames a table or column,
// and what it adds to a table need not be written.
func TestTheBinaryBeforeRunsOnTheNewSchema(t *testing.T) {
	t.Parallel()
	for name, versions := range schemas(t) {
		for i, now := range versions[1:] {
			before := versions[i]
			tables := map[string]bool{}
			for column := range before.Columns {
				table, _, _ := strings.Cut(column, ".")
				tables[table] = true
				if _, ok := now.Columns[column]; !ok {
					t.Errorf("%s: version %d takes %s away", name, now.Version, column)
				}
			}
			for column, c := range now.Columns {
				table, _, _ := strings.Cut(column, ".")
				if _, had := before.Columns[column]; !had && tables[table] && !c.Nullable && !now.Defaults[column] {
					t.Errorf("%s: version %d adds %s, which whoever does not know it cannot leave out", name, now.Version, column)
				}
			}
		}
	}
}
