// Package memory is the store without a database: the third implementation beside PostgreSQL
// and SQLite, for tests only.
//
// It holds the same conditional rules in a few maps behind one mutex, so each call is a
// transaction that nobody can see half of. The conformance suite of package store runs over it,
// which is what makes it a witness: whatever a simulation finds with it is a fault of the rules
// or of their users, not of SQL.
//
// It stands below storetest and not below store, because no service runs on it: nothing is kept
// when the process ends. It keeps no text that a database would refuse, knows no plans, no
// sizes and no time that a statement takes. What it does with lost answers and silent
// connections is the business of whoever wraps it.
//
// Where several orders are possible it takes one that depends on its content alone (ids,
// times), never on a map, so that a simulation with the same seed sees the same answers.
package memory
