package e2e

import (
	"database/sql"
	"slices"
	"strings"
	"time"
)

// audits counts the rows of the audit log that an rpc wrote for a reason; target "" is any.
func (s *service) audits(action, target, reason string) int {
	s.t.Helper()
	return s.count("select count(*) from audit where action = $1 and reason = $2 and ($3 = '' or target = $3)", action, reason, target)
}

// database opens the service's own, to look at what no call shows.
func (s *service) database() *sql.DB {
	s.t.Helper()
	var driver, name string
	for _, a := range s.args {
		if dsn, is := strings.CutPrefix(a, "--database="); is {
			driver, name = "postgres", dsn
			if path, is := strings.CutPrefix(dsn, "sqlite:"); is {
				driver, name = "sqlite", path
			}
		}
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		s.t.Fatal(err)
	}
	return db
}

// count asks the database for a number.
func (s *service) count(query string, args ...any) int {
	s.t.Helper()
	db := s.database()
	defer db.Close()
	var n int
	if err := db.QueryRow(query, args...).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// expire makes an upload expire at a time from now.
func (s *service) expire(upload string, from time.Duration) {
	s.t.Helper()
	db := s.database()
	defer db.Close()
	res, err := db.Exec("update upload set expire_time = $1 where id = $2", s.instant(from), upload)
	if err != nil {
		s.t.Fatal(err)
	}
	if n, err := res.RowsAffected(); n != 1 || err != nil {
		s.t.Fatal(n, err)
	}
}

// instant is a time from now as the database keeps times.
func (s *service) instant(from time.Duration) any {
	at := time.Now().Add(from).UTC()
	if slices.ContainsFunc(s.args, func(a string) bool { return strings.HasPrefix(a, "--database=sqlite:") }) {
		return at.UnixMicro()
	}
	return at
}
