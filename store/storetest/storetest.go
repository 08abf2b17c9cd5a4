// Package storetest gives tests a real, fresh, private database: SQLite in a temporary folder,
// or PostgreSQL.
//
// PostgreSQL is the server that MAILDISPATCH_TEST_POSTGRES names (a URL whose user may create
// databases), else a private cluster that is started from the programs on this machine, else
// the test fails with the line that installs them. Nothing is ever skipped.
package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq" // the driver

	"github.com/maildispatch/maildispatch/store"
)

// Each runs f once for each database, as a parallel subtest with a store of its own.
func Each(t *testing.T, f func(t *testing.T, s *store.Store)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, Open(t, SQLiteDSN(t))) })
	t.Run("postgres", func(t *testing.T) { f(t, Open(t, PostgresDSN(t))) })
}

// DSNs are one fresh database of each kind, by name.
func DSNs(t testing.TB) map[string]string {
	t.Helper()
	return map[string]string{"sqlite": SQLiteDSN(t), "postgres": PostgresDSN(t)}
}

// EmptyDSNs are DSNs without the schema.
func EmptyDSNs(t testing.TB) map[string]string {
	t.Helper()
	return map[string]string{"sqlite": EmptySQLiteDSN(t), "postgres": EmptyPostgresDSN(t)}
}

// Open opens a store that is closed when the test ends.
func Open(t testing.TB, dsn string) *store.Store {
	t.Helper()
	s, err := opened(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// SQLiteDSN is a database file in a folder of the test, with the schema of this program and
// nothing else in it.
func SQLiteDSN(t testing.TB) string {
	t.Helper()
	of, err := migratedFile()
	if err != nil {
		t.Fatal(err)
	}
	dsn := EmptySQLiteDSN(t)
	if err := os.WriteFile(strings.TrimPrefix(dsn, "sqlite:"), of, 0o600); err != nil {
		t.Fatal(err)
	}
	return dsn
}

// EmptySQLiteDSN names a database file that is not there yet.
func EmptySQLiteDSN(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(memoryFolder(), "maildispatch-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return "sqlite:" + filepath.Join(dir, "mail.db")
}

// migratedFile is an SQLite database with the schema. A copy takes a hundredth of what the
// migrations take under the race detector.
var migratedFile = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp(memoryFolder(), "maildispatch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "mail.db")
	if err := migrated("sqlite:" + path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// opened opens a store. A database that is there may still be slower than a service is patient,
// on a machine that does much besides.
func opened(dsn string) (*store.Store, error) {
	for end := time.Now().Add(time.Minute); ; {
		s, err := store.Open(context.Background(), dsn, store.Options{})
		var slow net.Error
		late := errors.As(err, &slow) && slow.Timeout() || errors.Is(err, store.ErrUnavailable)
		if !late || time.Now().After(end) {
			return s, err
		}
	}
}

// migrated writes the schema into an empty database. Nothing else is written before a process
// takes its place.
func migrated(dsn string) error {
	s, err := opened(dsn)
	if err != nil {
		return err
	}
	return s.Close()
}

var created atomic.Int64

// PostgresDSN makes a fresh database, with the schema of this program, and names it. It is
// dropped when the test ends.
func PostgresDSN(t testing.TB) string {
	t.Helper()
	of, err := template()
	if err != nil {
		t.Fatal(err)
	}
	return postgresDSN(t, of)
}

// EmptyPostgresDSN is PostgresDSN without the schema.
func EmptyPostgresDSN(t testing.TB) string {
	t.Helper()
	return postgresDSN(t, "")
}

func postgresDSN(t testing.TB, of string) string {
	t.Helper()
	base, err := server()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("t%d_%d", os.Getpid(), created.Add(1))
	create := "create database " + name
	if of != "" {
		create += " template " + of
	}
	if err := admin(base, create); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := admin(base, "drop database "+name+" with (force)"); err != nil {
			t.Error(err)
		}
	})
	u := *base
	u.Path = "/" + name
	return u.String()
}

// template is a database that has been migrated, for others to be copied from. It is "" where
// the server is not this process's own, which would be left with it.
var template = sync.OnceValues(func() (string, error) {
	if os.Getenv("MAILDISPATCH_TEST_POSTGRES") != "" {
		return "", nil
	}
	base, err := server()
	if err != nil {
		return "", err
	}
	const name = "migrated"
	if err := admin(base, "create database "+name); err != nil {
		return "", err
	}
	u := *base
	u.Path = "/" + name
	return name, migrated(u.String())
})

func admin(base *url.URL, statement string) error {
	db, err := sql.Open("postgres", base.String())
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

const install = "PostgreSQL is needed: apt-get install postgresql, or set MAILDISPATCH_TEST_POSTGRES to a server's URL"

// server is the PostgreSQL of this process, started once.
var server = sync.OnceValues(func() (*url.URL, error) {
	if dsn := os.Getenv("MAILDISPATCH_TEST_POSTGRES"); dsn != "" {
		return url.Parse(dsn)
	}
	c, err := StartCluster()
	if err != nil {
		return nil, err
	}
	return url.Parse(c.DSN())
})

// Cluster is a private PostgreSQL cluster. It ends with the process that started it, however
// that ends.
type Cluster struct {
	Dir  string
	Port int
	cred *syscall.Credential
	set  []string // settings, name=value
}

// DSN is its URL, for the superuser and the database postgres.
func (c *Cluster) DSN() string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", c.Port)
}

func program(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	if m, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); len(m) > 0 {
		return m[len(m)-1], nil
	}
	return "", fmt.Errorf("%s is not on this machine: %s", name, install)
}

// StartCluster makes and starts a cluster in a temporary folder, with further settings given as
// name=value.
func StartCluster(settings ...string) (*Cluster, error) { return StartClusterIn("", settings...) }

// StartClusterIn makes it below a folder, "" for that of temporary files, in memory in tests.
// initdb refuses to run as root, so root hands it to another user.
func StartClusterIn(parent string, settings ...string) (*Cluster, error) {
	initdb, err := program("initdb")
	if err != nil {
		return nil, err
	}
	if parent == "" {
		parent = memoryFolder()
	}
	root, err := os.MkdirTemp(parent, "maildispatch-pg-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{set: settings, Dir: filepath.Join(root, "data")}
	if os.Getuid() == 0 {
		if c.cred, err = otherUser(); err != nil {
			return nil, err
		}
		if err := os.Chown(root, int(c.cred.Uid), int(c.cred.Gid)); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(initdb, "-D", c.Dir, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions")
	cmd.SysProcAttr, cmd.Dir = c.attr(), root
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	if c.Port, err = freePort(); err != nil {
		return nil, err
	}
	return c, c.Start()
}

func (c *Cluster) attr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Credential: c.cred} }

// Start starts it again after Stop.
func (c *Cluster) Start() error {
	postgres, err := program("postgres")
	if err != nil {
		return err
	}
	root := filepath.Dir(c.Dir)
	// A watcher ends the cluster when this process is gone: the death signal of a parent goes
	// to the thread that forked, which Go may end early.
	script := fmt.Sprintf(`"$0" "$@" & p=$!; (while [ -d /proc/%d ]; do kill -0 $p || exit; sleep 0.5; done; kill -QUIT $p; sleep 1; rm -rf %q) & wait $p`, os.Getpid(), root)
	args := []string{"-c", script, postgres, "-D", c.Dir, "-p", strconv.Itoa(c.Port), "-k", root}
	wal := "4GB"
	if shm := memoryFolder(); shm != "" && strings.HasPrefix(root, shm) {
		wal = "1GB"
	}
	for _, set := range append([]string{"listen_addresses=127.0.0.1", "shared_buffers=256MB", "max_connections=400", "wal_compression=on", "max_wal_size=" + wal}, c.set...) {
		args = append(args, "-c", set)
	}
	cmd := exec.Command("/bin/sh", args...)
	cmd.SysProcAttr, cmd.Dir = c.attr(), root
	log, err := os.OpenFile(filepath.Join(root, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // how it ends is known by those who end it
	db, err := sql.Open("postgres", c.DSN())
	if err != nil {
		return err
	}
	defer db.Close()
	deadline := time.Now().Add(30 * time.Second)
	for {
		if err = db.Ping(); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(log.Name())
			return fmt.Errorf("PostgreSQL does not start: %w: %s", err, b)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// Stop ends it in one of the modes of pg_ctl, "fast" or "immediate", which is as a crash, or by
// "kill", as a machine that fails does.
func (c *Cluster) Stop(mode string) error {
	if mode == "kill" {
		return c.kill()
	}
	ctl, err := program("pg_ctl")
	if err != nil {
		return err
	}
	cmd := exec.Command(ctl, "stop", "-w", "-D", c.Dir, "-m", mode)
	cmd.SysProcAttr, cmd.Dir = c.attr(), filepath.Dir(c.Dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_ctl stop: %w: %s", err, out)
	}
	return nil
}

// kill ends all processes of the cluster at once, as a machine that fails does.
func (c *Cluster) kill() error {
	b, err := os.ReadFile(filepath.Join(c.Dir, "postmaster.pid"))
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	server, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return fmt.Errorf("postmaster.pid: %w", err)
	}
	pids := []int{server}
	// without it they end by themselves
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", server, server))
	for _, f := range strings.Fields(string(children)) {
		if pid, err := strconv.Atoi(f); err == nil {
			pids = append(pids, pid)
		}
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		gone := true
		for _, pid := range pids {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, state, _ := strings.Cut(string(stat), ") ")
			// a zombie holds nothing
			gone = gone && (err != nil || strings.HasPrefix(state, "Z"))
		}
		switch {
		case gone:
			return nil
		case time.Now().After(deadline):
			return errors.New("the processes of the cluster do not end")
		}
	}
}

// StartStandby makes and starts a hot standby that follows c.
func (c *Cluster) StartStandby() (*Cluster, error) {
	root, err := os.MkdirTemp(memoryFolder(), "maildispatch-pg-")
	if err != nil {
		return nil, err
	}
	sb := &Cluster{cred: c.cred, set: c.set, Dir: filepath.Join(root, "data")}
	if c.cred != nil {
		if err := os.Chown(root, int(c.cred.Uid), int(c.cred.Gid)); err != nil {
			return nil, err
		}
	}
	if err := sb.run(root, "pg_basebackup", "-D", sb.Dir, "-h", "127.0.0.1", "-p", strconv.Itoa(c.Port), "-U", "postgres", "-R", "-X", "stream", "-c", "fast"); err != nil {
		return nil, err
	}
	if sb.Port, err = freePort(); err != nil {
		return nil, err
	}
	return sb, sb.Start()
}

// Promote makes a standby a server of its own that can be written.
func (c *Cluster) Promote() error {
	return c.run(filepath.Dir(c.Dir), "pg_ctl", "promote", "-w", "-D", c.Dir)
}

// run runs one of PostgreSQL's programs as the cluster's user.
func (c *Cluster) run(folder, name string, args ...string) error {
	path, err := program(name)
	if err != nil {
		return err
	}
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr, cmd.Dir = c.attr(), folder
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func otherUser() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("no user postgres or nobody to run PostgreSQL as")
}
