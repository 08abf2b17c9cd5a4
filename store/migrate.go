package store

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"time"

	"github.com/pressly/goose/v3"
)

// migrations are the schema's versions, a folder a database. A released one is never edited.
// due.wish and due.wish_reason (0010) are reserved: nothing writes them, because a person's
// stop ends the owner's token instead.
//
//go:embed migrations
var migrations embed.FS

// The migrations wait this long for a lock of a table, so that what waits behind them does not
// wait longer, and try again this often.
const (
	migrationLock  = 5 * time.Second
	migrationTries = 60
)

// newerSchema: a later program has changed the schema.
func newerSchema(have, known int64) error {
	return fmt.Errorf("database: the database is of a newer version (%d), this binary knows %d: run the newer one, "+
		"or say --allow-unsafe-database to go back to this one", have, known)
}

// migrate brings the schema up to date. On PostgreSQL the migrations have connections of their
// own, whose statements may take as long as an index takes to be built.
func (s *Store) migrate(ctx context.Context, allowNewer bool) error {
	dir, err := fs.Sub(migrations, "migrations/"+s.dialect.name())
	if err != nil {
		return err
	}
	db, gd, opts, done, err := s.dialect.migrations()
	if err != nil {
		return fmt.Errorf("database: migrations: %w", err)
	}
	defer func() { _ = done() }() // they have run, or the first error says more
	p, err := goose.NewProvider(gd, db, dir, opts...)
	if err != nil {
		return fmt.Errorf("database: migrations: %w", err)
	}
	for try := 1; ; try++ {
		have, known, err := p.GetVersions(ctx)
		switch {
		case err != nil:
		case have > known && !allowNewer:
			return newerSchema(have, known)
		default:
			_, err = p.Up(ctx)
		}
		if err == nil {
			return nil
		}
		if !lockTimeout(err) || try == migrationTries {
			return fmt.Errorf("database: migrate: %w", err)
		}
		s.log.Warn("a migration waits for a table", "try", try, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
