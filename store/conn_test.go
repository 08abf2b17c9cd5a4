package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// admin runs statements on a connection of its own to the server of dsn, whatever the server
// is.
func admin(t *testing.T, dsn string, statements ...string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/postgres"
	db, err := sql.Open("postgres", u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, st := range statements {
		if _, err := db.Exec(st); err != nil {
			t.Fatalf("%s: %v", st, err)
		}
	}
}

func databaseOf(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

// accepted says whether a mail is accepted, with each call's error but that the database is
// unavailable a failure of the test.
func accepted(t *testing.T, s *store.Store) bool {
	t.Helper()
	c, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	res, err := s.Enqueue(c, newMail("ss"))
	if err != nil && !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("got the error %v, want that the database is unavailable", err)
	}
	return err == nil && res.Err == nil
}

// acceptedWithin waits for a mail to be accepted.
func acceptedWithin(t *testing.T, s *store.Store, d time.Duration) {
	t.Helper()
	began := time.Now()
	for !accepted(t, s) {
		if time.Since(began) > d {
			t.Fatalf("no mail is accepted within %v", d)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// TestReadOnlyServer: a database that refuses writes is unavailable, neither full nor a puzzle,
// and used again as soon as it takes them. No connection stays with what was.
func TestReadOnlyServer(t *testing.T) {
	t.Parallel()
	dsn := storetest.PostgresDSN(t)
	s := storetest.Open(t, dsn)
	name := databaseOf(t, dsn)
	if !accepted(t, s) {
		t.Fatal("refused while all is well")
	}
	turn := func(to string) {
		admin(t, dsn, "alter database "+name+" set default_transaction_read_only = "+to,
			"select pg_terminate_backend(pid) from pg_stat_activity where datname = '"+name+"'")
	}
	turn("on")
	for range 6 {
		if accepted(t, s) {
			t.Error("accepted by a read-only server")
		}
	}
	if _, err := s.ListDue(ctx, store.Everything, store.MailFilter{}, store.Cursor{}, 10); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a list: got %v, want that the database is unavailable", err)
	}
	turn("off")
	acceptedWithin(t, s, 5*time.Second)
}

// TestStandby: of several servers the one that can be written is used. When it ends and the
// standby is promoted, mail is accepted again within 5 seconds; until then the database is
// unavailable.
func TestStandby(t *testing.T) {
	t.Parallel()
	first := cluster(t)
	second, err := first.StartStandby()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = second.Stop("immediate") }) // ended by the test, or not any more
	both := fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", second.Port, first.Port)
	if _, err := store.Open(ctx, second.DSN(), store.Options{}); err == nil || !strings.Contains(err.Error(), "read-only") && !strings.Contains(err.Error(), "standby") {
		t.Fatalf("a standby alone: got %v, want that it is one", err)
	}
	s := storetest.Open(t, both) // the standby stands first
	if !accepted(t, s) {
		t.Fatal("refused while the primary is well")
	}
	if err := first.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if accepted(t, s) {
			t.Fatal("accepted by a standby")
		}
	}
	if err := second.Promote(); err != nil {
		t.Fatal(err)
	}
	acceptedWithin(t, s, 5*time.Second)
}

func cluster(t *testing.T, settings ...string) *storetest.Cluster {
	t.Helper()
	c, err := storetest.StartCluster(settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop("immediate") }) // ended by the test, or not any more
	return c
}

// TestServerHasNoMoreConnections: a call waits for a connection that stands, and does not fail.
func TestServerHasNoMoreConnections(t *testing.T) {
	t.Parallel()
	dsn := storetest.PostgresDSN(t)
	name := databaseOf(t, dsn)
	role := "few_" + name
	// makes the schema
	storetest.Open(t, dsn)
	// the limit is not for superusers themselves
	admin(t, dsn, "create role "+role+" login connection limit 6", "grant postgres to "+role)
	t.Cleanup(func() { admin(t, dsn, "drop role "+role) })
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	few := storetest.Open(t, u.String())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for range 40 {
		wg.Go(func() {
			var err error
			for range 5 {
				if _, err = few.Server(ctx, store.Everything, "nobody"); !errors.Is(err, store.ErrNotFound) {
					break
				}
				if _, err = few.CountQueue(ctx, store.Everything, nil, ""); err != nil {
					break
				}
			}
			if err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(errs) > 0 {
		t.Errorf("%d of 40 callers failed, such as %v", len(errs), errs[0])
	}
}

// TestSilentConnection: a call whose answer stops ends within 15 seconds; the next one is well,
// and a connection that rests longer than that is not ended.
func TestSilentConnection(t *testing.T) {
	t.Parallel()
	p, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
	s := storetest.Open(t, dsn)
	muted := p.Mute(func(startup, _ []byte) bool { return bytes.Contains(startup, []byte("maildispatch/lease")) })
	began := time.Now()
	_, err := s.Register(ctx, "r", time.Minute)
	if d := time.Since(began); !errors.Is(err, store.ErrUnavailable) || d > 15*time.Second {
		t.Fatalf("got %v after %v, want that the database is unavailable within 15 s", err, d)
	}
	<-muted
	r := register(t, s)
	var before, after int
	pids := "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'maildispatch/lease' and backend_start < now() - interval '5 seconds'"
	until(t, "the lease's connection has rested", func() bool {
		if err := s.Get(&before, pids); err != nil {
			t.Fatal(err)
		}
		return before == 1
	})
	if err := s.Renew(ctx, r, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := s.Get(&after, pids); err != nil || after != 1 {
		t.Errorf("the connection that rested was replaced: %d %v", after, err)
	}
}
