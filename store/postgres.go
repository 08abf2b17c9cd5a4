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

// Pool of one process: 2 enqueue flushers, 2 settle flushers, claims, the rest reads.
const (
	poolSize     = 12
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
	u.RawQuery = q.Encode()
	db, err := sqlx.Open("postgres", u.String())
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	db.SetMaxOpenConns(poolSize)
	db.SetMaxIdleConns(poolSize)
	db.SetConnMaxLifetime(poolLifetime)
	db.SetConnMaxIdleTime(poolIdle)
	s.write, s.read = db, db
	pctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := db.PingContext(pctx); err != nil {
		return fmt.Errorf("database: cannot reach PostgreSQL at %s: %w", u.Host, err)
	}
	return nil
}
