package store

import "sync"

// What the tests outside see of the inside: outside, because storetest imports this package.

// Statement is a named statement.
type Statement struct {
	Name, Index, Text string
}

// Statements are those of a dialect.
func Statements(d string) ([]Statement, error) {
	all, err := readStatements(dialect(d))
	out := make([]Statement, len(all))
	for i, x := range all {
		out[i] = Statement{x.name, x.index, x.text}
	}
	return out, err
}

// RecordUse begins to record what stores ask for, and returns how to look whether a statement was.
func RecordUse() func(dialectName, statement string) bool {
	var names sync.Map
	used = func(d dialect, name string) { names.Store(string(d)+" "+name, true) }
	return func(d, statement string) bool {
		_, ok := names.Load(d + " " + statement)
		return ok
	}
}

// Exec runs SQL on the writing connection.
func (s *Store) Exec(query string, args ...any) error {
	_, err := s.write.Exec(query, args...)
	return err
}

// Get reads one value on the writing connection.
func (s *Store) Get(out any, query string, args ...any) error {
	return s.write.Get(out, s.write.Rebind(query), args...)
}
