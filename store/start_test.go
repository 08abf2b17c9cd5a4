package store_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// pooler gives each transaction of a client whichever session is free, as PgBouncer does with
// pool_mode=transaction, and returns the address that leads through it.
func pooler(t *testing.T, dsn string, sessions int, newestFirst bool) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.Host = l.Addr().String()
	p := &transactionPooler{server: server, newestFirst: newestFirst}
	p.back = sync.NewCond(&p.mu)
	p.left = sessions
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.all = append(p.all, c)
			p.mu.Unlock()
			wg.Go(func() { _ = p.serve(c); _ = c.Close() })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		p.ended = true
		for _, c := range p.all {
			_ = c.Close()
		}
		p.back.Broadcast()
		p.mu.Unlock()
		wg.Wait()
	})
	return u.String()
}

type transactionPooler struct {
	server      string
	newestFirst bool

	mu      sync.Mutex // guards the rest
	back    *sync.Cond
	free    []net.Conn
	left    int // sessions that may still be opened
	ended   bool
	all     []net.Conn
	welcome []byte // what a session is greeted with
}

// take waits for a free session and greets the first ones with startup.
func (p *transactionPooler) take(startup []byte) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.free) == 0 && !p.ended {
		if p.left == 0 {
			p.back.Wait()
			continue
		}
		p.left--
		c, err := net.Dial("tcp", p.server)
		if err != nil {
			return nil, err
		}
		p.all = append(p.all, c)
		if _, err := c.Write(startup); err != nil {
			return nil, err
		}
		var hello bytes.Buffer
		if _, err := answer(c, &hello); err != nil {
			return nil, err
		}
		p.welcome = hello.Bytes()
		p.free = append(p.free, c)
	}
	if p.ended {
		return nil, io.ErrClosedPipe
	}
	i := 0
	if p.newestFirst {
		i = len(p.free) - 1
	}
	c := p.free[i]
	p.free = append(p.free[:i:i], p.free[i+1:]...)
	return c, nil
}

func (p *transactionPooler) give(c net.Conn) {
	p.mu.Lock()
	p.free = append(p.free, c)
	p.back.Signal()
	p.mu.Unlock()
}

// answer copies messages until the server is ready for the next question, and says in what
// state.
func answer(from io.Reader, to io.Writer) (byte, error) {
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(from, head); err != nil {
			return 0, err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(from, body); err != nil {
			return 0, err
		}
		if _, err := to.Write(append(head, body...)); err != nil {
			return 0, err
		}
		if head[0] == 'Z' {
			return body[0], nil
		}
	}
}

func (p *transactionPooler) serve(client net.Conn) error {
	buf := make([]byte, 64<<10)
	n, err := client.Read(buf)
	if err != nil {
		return err
	}
	startup := bytes.Clone(buf[:n])
	s, err := p.take(startup)
	if err != nil {
		return err
	}
	p.mu.Lock()
	hello := p.welcome
	p.mu.Unlock()
	p.give(s)
	if _, err := client.Write(hello); err != nil {
		return err
	}
	var session net.Conn
	for {
		if n, err = client.Read(buf); err != nil || buf[0] == 'X' {
			return err
		}
		if session == nil {
			if session, err = p.take(startup); err != nil {
				return err
			}
		}
		if _, err := session.Write(buf[:n]); err != nil {
			return err
		}
		state, err := answer(session, client)
		if err != nil {
			return err
		}
		if state == 'I' {
			p.give(session)
			session = nil
		}
	}
}

// TestTransactionPooler: it is refused at the start, however many sessions it has and whichever
// it prefers.
func TestTransactionPooler(t *testing.T) {
	t.Parallel()
	for _, sessions := range []int{1, 2, 5} {
		for _, newest := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d sessions, newest first %v", sessions, newest), func(t *testing.T) {
				t.Parallel()
				s, err := store.Open(ctx, pooler(t, storetest.PostgresDSN(t), sessions, newest), store.Options{})
				if err == nil {
					t.Fatal("opened through a transaction pooler", s.Close())
				}
				if !strings.Contains(err.Error(), "pool_mode=session") {
					t.Errorf("got %v, want what to do about the pooler", err)
				}
			})
		}
	}
}

// TestUnsafeServer: a server that may lose what it has confirmed is refused, unless that is
// allowed.
func TestUnsafeServer(t *testing.T) {
	t.Parallel()
	for _, set := range []string{"fsync=off", "full_page_writes=off"} {
		t.Run(set, func(t *testing.T) {
			c := cluster(t, set)
			if s, err := store.Open(ctx, c.DSN(), store.Options{}); err == nil || !strings.Contains(err.Error(), set) {
				t.Fatalf("got %v %v, want that the server has %s", s, err, set)
			}
			s, err := store.Open(ctx, c.DSN(), store.Options{AllowUnsafe: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	dsn := storetest.PostgresDSN(t)
	if _, err := store.Open(ctx, dsn+"&synchronous_commit=off", store.Options{}); err == nil || !strings.Contains(err.Error(), "synchronous_commit=off") {
		t.Errorf("an address that gives up durability: got %v", err)
	}
	admin(t, dsn, "alter database "+databaseOf(t, dsn)+" set synchronous_commit = off")
	s := storetest.Open(t, dsn)
	var v string
	if err := s.Get(&v, "select current_setting('synchronous_commit')"); err != nil || v != "on" {
		t.Errorf("synchronous_commit is %q (%v) in a session, want on", v, err)
	}
}

// TestNewerSchema: a program does not touch what a later one has made, unless it is told to.
func TestNewerSchema(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			s, err := store.Open(ctx, dsn, store.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Exec("insert into goose_db_version (version_id, is_applied) values (999, true)"); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			for what, open := range map[string]func() error{
				"store":  func() error { _, err := store.Open(ctx, dsn, store.Options{}); return err },
				"doctor": func() error { _, err := store.OpenInspector(ctx, dsn); return err },
			} {
				if err := open(); err == nil || !strings.Contains(err.Error(), "the database is of a newer version (999), this binary knows ") {
					t.Errorf("%s: got %v", what, err)
				}
			}
			if s, err = store.Open(ctx, dsn, store.Options{AllowUnsafe: true}); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestMigrationWaits: a migration that meets a lock lets the lock's queue go on, and waits for
// longer than a statement of the service may take.
func TestMigrationWaits(t *testing.T) {
	t.Parallel()
	dsn := storetest.PostgresDSN(t)
	s := storetest.Open(t, dsn)
	if err := s.Exec("delete from goose_db_version where version_id = (select max(version_id) from goose_db_version)"); err != nil {
		t.Fatal(err)
	}
	lock := "lock table goose_db_version in access exclusive mode"
	release := make(chan struct{})
	var wg sync.WaitGroup
	locked := make(chan error, 1)
	wg.Go(func() { locked <- s.Hold(lock, release) })
	until(t, "the lock is held", func() bool { return s.Locked("goose_db_version") })
	opened := make(chan error, 1)
	wg.Go(func() {
		other, err := store.Open(ctx, dsn, store.Options{})
		if err == nil {
			err = other.Close()
		}
		opened <- err
	})
	select {
	case err := <-opened:
		t.Fatalf("ended while the table was locked: %v", err)
	case <-time.After(7 * time.Second): // longer than one wait for a lock
	}
	close(release)
	if err := errors.Join(<-locked); err != nil {
		t.Fatal(err)
	}
	// The last migration is applied a second time here, which may fail, but not for the lock.
	if err := <-opened; err != nil && strings.Contains(err.Error(), "lock timeout") {
		t.Error(err)
	}
	wg.Wait()
}

// TestLockIsOnTheFile: whatever name leads to a database, a second one that uses it is refused,
// and the first one is not harmed by that.
func TestLockIsOnTheFile(t *testing.T) {
	t.Parallel()
	open := func(path string) error {
		s, err := store.Open(ctx, "sqlite:"+path, store.Options{})
		if err == nil {
			err = s.Close()
		}
		return err
	}
	start := func(t *testing.T) (*store.Store, string) {
		path := filepath.Join(t.TempDir(), "mail.db")
		return storetest.Open(t, "sqlite:"+path), path
	}
	t.Run("symbolic link", func(t *testing.T) {
		_, path := start(t)
		link := filepath.Join(t.TempDir(), "other.db")
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		if err := open(link); !errors.Is(err, store.ErrLocked) {
			t.Errorf("got %v, want that it is locked", err)
		}
	})
	t.Run("symbolic link to a folder", func(t *testing.T) {
		_, path := start(t)
		link := filepath.Join(t.TempDir(), "folder")
		if err := os.Symlink(filepath.Dir(path), link); err != nil {
			t.Fatal(err)
		}
		if err := open(filepath.Join(link, "mail.db")); !errors.Is(err, store.ErrLocked) {
			t.Errorf("got %v, want that it is locked", err)
		}
	})
	t.Run("symbolic link to nothing", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "other.db")
		if err := os.Symlink(link+"x", link); err != nil {
			t.Fatal(err)
		}
		if err := open(link); err == nil || !strings.Contains(err.Error(), "to nothing") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("hard link", func(t *testing.T) {
		_, path := start(t)
		link := filepath.Join(t.TempDir(), "other.db")
		if err := os.Link(path, link); err != nil {
			t.Fatal(err)
		}
		if err := open(link); err == nil || !strings.Contains(err.Error(), "hard links") {
			t.Errorf("got %v, want that it has two names", err)
		}
	})
	t.Run("a program from before", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "mail.db")
		// flock(1) locks as a program did that knew the file with .lock only.
		cmd := exec.Command("flock", "-n", path+".lock", "sh", "-c", "echo locked; read x")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("locked\n"))); err != nil {
			t.Fatal(err)
		}
		if err := open(path); !errors.Is(err, store.ErrLocked) {
			t.Errorf("got %v, want that it is locked", err)
		}
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil && !strings.Contains(err.Error(), "exit status") {
			t.Fatal(err)
		}
		s := storetest.Open(t, "sqlite:"+path)
		if out, err := exec.Command("flock", "-n", path+".lock", "true").CombinedOutput(); err == nil {
			t.Errorf("a program from before would start beside it: %s", out)
		}
		_ = s
	})
	t.Run("second process without the lock file", func(t *testing.T) {
		s, path := start(t)
		if err := os.Remove(path + ".lock"); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("flock", "-n", path, "true").CombinedOutput(); err == nil {
			t.Errorf("the file itself is not locked: %s", out)
		}
		if err := open(path); !errors.Is(err, store.ErrLocked) {
			// this process, which must not open it
			t.Errorf("got %v, want that it is locked", err)
		}
		// SQLite's own lock of a transaction still holds against other processes.
		if err := s.Exec("begin immediate"); err != nil {
			t.Fatal(err)
		}
		if err := open(path); !errors.Is(err, store.ErrLocked) {
			t.Errorf("got %v, want that it is locked", err)
		}
		if posix, err := os.ReadFile("/proc/locks"); err != nil || !heldByUs(string(posix)) {
			t.Errorf("SQLite's lock is gone: %v", err)
		}
		if err := s.Exec("rollback"); err != nil {
			t.Fatal(err)
		}
	})
}

// TestMountedFile: a file that is mounted by itself is told from one in a folder that is
// mounted.
func TestMountedFile(t *testing.T) {
	t.Parallel()
	const mounts = `22 1 259:1 / / rw,relatime - ext4 /dev/root rw
31 22 0:26 / /data rw - tmpfs tmpfs rw
40 22 259:1 /srv/mail.db /var/lib/md/mail.db rw,relatime - ext4 /dev/root rw
41 22 259:1 /srv/a\040b /mnt/with\040blank.db rw,relatime - ext4 /dev/root rw
`
	for path, want := range map[string]bool{
		"/var/lib/md/mail.db": true,
		"/mnt/with blank.db":  true,
		"/data/mail.db":       false, // its folder is mounted, with all that is beside it
		"/srv/mail.db":        false, // the other end
		"/var/lib/md":         false,
	} {
		if got := store.MountedIn(mounts, path); got != want {
			t.Errorf("%s: got %v, want %v", path, got, want)
		}
	}
}

// heldByUs says whether this process holds a POSIX lock for writing.
func heldByUs(locks string) bool {
	for line := range strings.Lines(locks) {
		f := strings.Fields(line)
		if len(f) > 4 && f[1] == "POSIX" && f[3] == "WRITE" && f[4] == fmt.Sprint(os.Getpid()) {
			return true
		}
	}
	return false
}
