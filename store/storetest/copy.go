package storetest

import (
	"database/sql"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Dump writes a PostgreSQL database into a file, as pg_dump does.
func Dump(t testing.TB, dsn string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dump")
	runTool(t, "pg_dump", "--format=custom", "--compress=0", "--file", file, dsn)
	return file
}

// Restore restores a dump into a database, in place of what is there.
func Restore(t testing.TB, file, dsn string) {
	t.Helper()
	runTool(t, "pg_restore", "--clean", "--if-exists", "--exit-on-error", "--dbname", dsn, file)
}

func runTool(t testing.TB, name string, args ...string) {
	t.Helper()
	path, err := program(name)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// Unfollow makes a standby get nothing more from its primary.
func (c *Cluster) Unfollow() error {
	db, err := sql.Open("postgres", c.DSN())
	if err != nil {
		return err
	}
	defer db.Close()
	for _, q := range []string{"alter system set primary_conninfo = ''", "select pg_reload_conf()"} {
		if _, err := db.Exec(q); err != nil {
			return err
		}
	}
	for end := time.Now().Add(10 * time.Second); ; {
		var n int
		if err := db.QueryRow("select count(*) from pg_stat_wal_receiver").Scan(&n); err != nil || n == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the standby follows its primary still")
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Follows waits until a standby has all that its primary has now.
func (c *Cluster) Follows(primary *Cluster) error {
	var lsn string
	ask := func(dsn, q string, into any, args ...any) error {
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			return err
		}
		defer db.Close()
		return db.QueryRow(q, args...).Scan(into)
	}
	if err := ask(primary.DSN(), "select pg_current_wal_flush_lsn()::text", &lsn); err != nil {
		return err
	}
	for end := time.Now().Add(10 * time.Second); ; {
		var has bool
		if err := ask(c.DSN(), "select pg_last_wal_replay_lsn() >= $1::pg_lsn", &has, lsn); err != nil || has {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the standby does not reach %s", lsn)
		}
		<-time.After(20 * time.Millisecond)
	}
}
