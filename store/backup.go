package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Backup writes a copy of an SQLite database into a new file, also while a service uses it: of
// one moment, complete, and without the places that are free. The service goes on meanwhile.
// The file is durable when Backup returns; one that could not be finished is removed.
//
// PostgreSQL has programs of its own for this.
func Backup(ctx context.Context, dsn, file string) error {
	path, ok := strings.CutPrefix(dsn, "sqlite:")
	if !ok || path == "" {
		return errors.New("backup: it is for SQLite; for PostgreSQL take pg_dump or its continuous archiving")
	}
	to, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	// Nobody else may read it, and nothing is overwritten.
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	err = f.Close()
	if err == nil {
		err = backup(ctx, path, to)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("backup: %w", err), os.Remove(to))
	}
	return nil
}

func backup(ctx context.Context, path, to string) error {
	s := &Store{}
	if err := s.readSQLite(ctx, path); err != nil {
		return err
	}
	defer s.closeDBs()
	// An empty file is as good as none to it.
	if _, err := s.read.ExecContext(ctx, "vacuum into ?", to); err != nil {
		return err
	}
	for _, name := range []string{to, filepath.Dir(to)} {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
