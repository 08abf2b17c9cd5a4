package store

import (
	"database/sql"
	"time"

	"github.com/jmoiron/sqlx"
)

// The lines in which writes wait for the database.
const (
	LineAccept      = "accept"              // mails that are being accepted
	LineResults     = "results"             // marks and results of the batch
	LineInteractive = "results_interactive" // those of mails whose caller waits
)

// Observer hears of commits. It must not wait for anything.
type Observer interface {
	// Committed: a commit of the line has made so many mails' writes durable.
	Committed(line string, mails int, took time.Duration)
}

// deaf is the Observer where none is given.
type deaf struct{}

func (deaf) Committed(string, int, time.Duration) {}

// Waiting is how many writes wait in each line.
func (s *Store) Waiting() map[string]int {
	return map[string]int{LineAccept: len(s.intake), LineResults: len(s.settle.in), LineInteractive: len(s.quick.in)}
}

// PoolStats are the connections to the database, by the name of their pool.
func (s *Store) PoolStats() map[string]sql.DBStats {
	stats := map[string]sql.DBStats{}
	seen := map[*sqlx.DB]bool{nil: true}
	for _, p := range []struct {
		name string
		db   *sqlx.DB
	}{{"mail", s.write}, {"lease", s.lease}, {"own", s.own}, {"look", s.look}, {"read", s.read}} {
		if !seen[p.db] {
			seen[p.db] = true
			stats[p.name] = p.db.Stats()
		}
	}
	return stats
}
