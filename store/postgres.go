package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // the driver
)

// Pools of one process. The named statements share the first: 2 enqueue flushers, 2 settle flushers, batches, claims. Lists, counts and the inspection have
// the second, so that no reader takes a connection from a mail under way.
const (
	poolSize     = 12
	readPoolSize = 6
	poolLifetime = 30 * time.Minute
	poolIdle     = 5 * time.Minute
)

// openPostgres connects with the settings the hot statements were measured with. sslmode has to be said, because the driver's default is about to
// change and mail content goes over this line.
func (s *Store) openPostgres(ctx context.Context, dsn string) error {
	s.dialect = postgres
	u, err := url.Parse(dsn)
	if err != nil {
		return errors.New("database: the PostgreSQL address cannot be read") // url's own error would show the password
	}
	q := u.Query()
	if q.Get("sslmode") == "" {
		return errors.New("database: say sslmode in the PostgreSQL address: sslmode=verify-full, or sslmode=disable on this machine")
	}
	set := func(k, v string) {
		if q.Get(k) == "" {
			q.Set(k, v)
		}
	}
	q.Set("binary_parameters", "yes") // one round trip, raw bytea
	set("connect_timeout", "5")
	set("application_name", "maildispatch")
	set("statement_timeout", "30000")
	set("idle_in_transaction_session_timeout", "10000") // guards the vacuum horizon
	open := func(size int) (*sqlx.DB, error) {
		u.RawQuery = q.Encode()
		db, err := sqlx.Open("postgres", u.String())
		if err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		db.SetMaxOpenConns(size)
		db.SetMaxIdleConns(size)
		db.SetConnMaxLifetime(poolLifetime)
		db.SetConnMaxIdleTime(poolIdle)
		return db, nil
	}
	// What a server process has to write out itself goes to the disk at once and in small parts. Left to the kernel, hundreds of megabytes go there every half
	// minute in one burst, and every commit waits a quarter of a second for it.
	set("backend_flush_after", "128kB")
	if s.read, err = open(readPoolSize); err != nil {
		return err
	}
	// A prepared statement keeps the plan that it got when its tables were small or had just been emptied, also when they have grown: until the next analyze
	// every claim would then read all of them. No named statement gains by reading a table as a whole.
	set("enable_seqscan", "off")
	set("enable_mergejoin", "off") // it reads an index as a whole
	set("jit", "off")              // for plans that seem dear to it, as those without an index do now: 50 ms for the few rows of replica
	if s.write, err = open(poolSize); err != nil {
		return err
	}
	pctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := s.write.PingContext(pctx); err != nil {
		return fmt.Errorf("database: cannot reach PostgreSQL at %s: %w", u.Host, err)
	}
	return nil
}
