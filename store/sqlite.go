package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/jmoiron/sqlx"
)

// ErrLocked: another process has the SQLite database open.
var ErrLocked = errors.New("another process uses this database")

// Reading connections: for lists, counts, watchers and downloads, and for the engine, which
// never waits for those.
const (
	sqliteReaders    = 4
	sqliteOwnReaders = 2
)

func init() { sqlx.BindDriver("sqlite", sqlx.QUESTION) }

// openSQLite opens the file with one writing and six reading connections. Its lock keeps a
// second process out: replicas need PostgreSQL. synchronous=FULL: a commit that was reported
// survives a power cut; with group commit it costs nothing that can be measured. The caches are
// outside Go's heap and its limit: 32 MiB for the writer, which also claims, and 16 for each
// reader.
func (s *Store) openSQLite(ctx context.Context, path string) error {
	s.dialect = onSQLite{s}
	if path == "" || path == ":memory:" {
		return errors.New("database: sqlite: needs the path of a file")
	}
	abs, err := resolveSQLite(path)
	if err != nil {
		return err
	}
	if s.unlock, err = lockSQLite(path, abs); err != nil {
		return err
	}
	if s.write, err = sqliteDB(abs, "", "page_size(8192)", "journal_mode(WAL)", "cache_size(-16384)"); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	s.write.SetMaxOpenConns(1)
	if err := s.write.PingContext(ctx); err != nil {
		return fmt.Errorf("database: cannot open %s: %w", path, err)
	}
	if err := os.Chmod(abs, 0o600); err != nil {
		// mail and sealed passwords are nobody else's business
		return fmt.Errorf("database: %w", err)
	}
	if s.read, err = sqliteDB(abs, "ro", "cache_size(-4096)"); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	s.read.SetMaxOpenConns(sqliteReaders)
	s.read.SetMaxIdleConns(sqliteReaders)
	if s.own, err = sqliteDB(abs, "ro", "cache_size(-4096)"); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	s.own.SetMaxOpenConns(sqliteOwnReaders)
	s.own.SetMaxIdleConns(sqliteOwnReaders)
	s.look, s.lease = s.read, s.write
	s.working = make(chan struct{}, 1)
	return nil
}

// readSQLite opens an existing file for reading only, beside the process that has it open and
// without its lock.
func (s *Store) readSQLite(ctx context.Context, path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	if s.read, err = sqliteDB(abs, "ro", "cache_size(-4096)"); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	s.read.SetMaxOpenConns(1)
	if err := s.read.PingContext(ctx); err != nil {
		return fmt.Errorf("database: cannot open %s: %w", path, err)
	}
	return nil
}

func sqliteDB(abs, mode string, pragmas ...string) (*sqlx.DB, error) {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": append([]string{"busy_timeout(10000)", "foreign_keys(1)", "synchronous(FULL)"}, pragmas...)}
	if mode != "" {
		q.Set("mode", mode)
	}
	return sqlx.Open("sqlite", "file:"+(&url.URL{Path: abs}).EscapedPath()+"?"+q.Encode())
}
