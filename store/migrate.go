package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations
var migrations embed.FS

// migrate brings the schema up to date. On PostgreSQL an advisory lock lets any number of replicas start at once.
func migrate(ctx context.Context, d dialect, db *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations/"+string(d))
	if err != nil {
		return err
	}
	gd := goose.DialectPostgres
	var opts []goose.ProviderOption
	if d == sqliteDia {
		gd = goose.DialectSQLite3
	} else {
		l, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return err
		}
		opts = append(opts, goose.WithSessionLocker(l))
	}
	p, err := goose.NewProvider(gd, db, dir, opts...)
	if err != nil {
		return fmt.Errorf("database: migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("database: migrate: %w", err)
	}
	return nil
}
