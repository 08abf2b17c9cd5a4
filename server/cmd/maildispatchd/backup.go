package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/maildispatch/maildispatch/store"
)

// backup copies an SQLite database into a file, also while a service uses it.
func backup(ctx context.Context, args []string) error {
	i := slices.IndexFunc(args, func(a string) bool { return !strings.HasPrefix(a, "-") })
	if i < 0 {
		if _, err := configOf("backup FILE", args); err != nil {
			return err
		}
		return errors.New("backup: say into which file, as in maildispatchd backup FILE --database=sqlite:PATH")
	}
	c, err := configOf("backup FILE", slices.Delete(slices.Clone(args), i, i+1))
	if err != nil {
		return err
	}
	if err := store.Backup(ctx, c.Database, args[i]); err != nil {
		return failed{err}
	}
	fmt.Printf("%s is a copy of %s; the key file is not in it\n", args[i], c.Database)
	return nil
}

// copyDatabase moves everything from SQLite to PostgreSQL.
func copyDatabase(ctx context.Context, args []string) error {
	var from, to string
	c, err := configOf("copy", args, func(fs *flag.FlagSet) {
		fs.StringVar(&from, "from", "", "sqlite:PATH of a service that was stopped")
		fs.StringVar(&to, "to", "", "postgres://user@host/db?sslmode=verify-full, an empty database")
	})
	if err != nil {
		return err
	}
	if from == "" || to == "" {
		return errors.New("copy: say --from=sqlite:PATH and --to=postgres://USER@HOST/DB")
	}
	c.Database = from // whose key file lies beside it, unless --key-file says another
	tables, err := store.Copy(ctx, from, to, c.StateFile(), store.Options{AllowUnsafe: c.AllowUnsafe})
	if err != nil {
		return failed{err}
	}
	for _, t := range tables {
		if t.Rows > 0 {
			fmt.Printf("%9d %s\n", t.Rows, t.Name)
		}
	}
	fmt.Println("copied: start the service on the new database with the same key file. The old one holds all its mail and sends none of it.")
	return nil
}
