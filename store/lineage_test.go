package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// world is what the mail servers out there have got, which no restore takes back.
type world struct {
	t       *testing.T
	arrived map[uuid.UUID]int
	silent  int // arrivals after the first one that nothing flagged
}

func newWorld(t *testing.T) *world { return &world{t: t, arrived: map[uuid.UUID]int{}} }

// service is one process that serves a database.
type service struct {
	*world
	s     *store.Store
	r     store.ReplicaID
	found store.WentBack
	close func() error
}

// serve starts as the service does.
func (w *world) serve(dsn, state string) *service {
	w.t.Helper()
	s, err := store.Open(ctx, dsn, store.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	x := &service{world: w, s: s, close: sync.OnceValue(s.Close)}
	// the test has closed it, or does not look at it any more
	w.t.Cleanup(func() { _ = x.close() })
	if x.found, err = s.Remember(ctx, state); err != nil {
		w.t.Fatal(err)
	}
	x.register()
	return x
}

func (x *service) register() {
	x.t.Helper()
	x.r = register(x.t, x.s)
	if _, _, err := x.s.Recover(ctx, x.r, 1000); err != nil {
		x.t.Fatal(err)
	}
}

// stop ends it, properly or as a crash does.
func (x *service) stop(crash bool) {
	x.t.Helper()
	if !crash {
		if err := x.s.Unregister(ctx, x.r); err != nil {
			x.t.Fatal(err)
		}
	}
	if err := x.close(); err != nil {
		x.t.Fatal(err)
	}
}

// queue accepts n mails.
func (x *service) queue(n int) {
	x.t.Helper()
	ms := make([]*store.NewMail, n)
	for i := range ms {
		ms[i] = newMail("s")
	}
	enqueue(x.t, x.s, ms...)
}

// send lets up to n mails leave, as far as results get: all the way, to the mark, or to the
// claim.
func (x *service) send(n int, how string) int {
	x.t.Helper()
	cs, err := x.s.Claim(ctx, x.r, "s", n, store.AnyPriority)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, c := range cs {
		if how == "claimed" {
			continue
		}
		st := store.Settlement{ID: c.ID, Owner: x.r, Claim: c.Claim, Kind: store.SettleMark}
		if !settle(x.t, x.s, &st) {
			continue
		}
		if x.arrived[c.ID]++; x.arrived[c.ID] > 1 && !c.PossibleDuplicate {
			x.silent++
		}
		if how == "marked" {
			continue
		}
		st.Kind, st.Status, st.Attempts, st.PossibleDuplicate = store.SettleArchive, store.MailSent, 1, c.PossibleDuplicate
		st.Progress = everyone(len(c.Recipients))
		settle(x.t, x.s, &st)
	}
	return len(cs)
}

// beat renews the lease.
func (x *service) beat() error { return x.s.Renew(ctx, x.r, time.Minute) }

// isHeld fails unless everything that was due is held for the reason and nothing can be
// claimed.
func (x *service) isHeld(what string) {
	x.t.Helper()
	if x.s.WentBack().Since.IsZero() {
		x.t.Fatalf("%s: nobody noticed", what)
	}
	if n := x.send(1000, "sent"); n > 0 {
		x.t.Errorf("%s: %d mails left", what, n)
	}
	var other int
	q := "select count(*) from due where owner is not null or run_at is not null or not possible_duplicate or status = 'held' and last_error <> ?"
	if err := x.s.Get(&other, q, store.WentBackReason); err != nil || other > 0 {
		x.t.Errorf("%s: %d mails are not held, or not flagged: %v", what, other, err)
	}
}

// isStopped fails unless an operation that ran when the backup was made is over, and says why.
func (x *service) isStopped(what string, id uuid.UUID) {
	x.t.Helper()
	if got, err := x.s.TakeOperation(ctx, x.r); err != nil || got != nil {
		x.t.Errorf("%s: the operation goes on by itself: %+v, %v", what, got, err)
	}
	if got, err := x.s.Operation(ctx, id); err != nil || got.State != store.OperationStopped || got.Request != "{}" || got.Error != x.s.WentBack().Why {
		x.t.Errorf("%s: got %+v, %v; want it stopped for the same reason as mail is held", what, got, err)
	}
}

// adopt lets go what is held, as `maildispatchd adopt` does, and sends it.
func (x *service) adopt(what string) {
	x.t.Helper()
	f := &store.MailFilter{Statuses: []store.MailStatus{store.MailHeld}}
	_, n, failures, err := x.s.Modify(ctx, store.Everything, nil, f, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: *m.ResumeTime, PossibleDuplicate: m.PossibleDuplicate}, nil
	})
	if err == nil && len(failures) == 0 {
		err = x.s.Adopted(ctx)
	}
	if err != nil || len(failures) > 0 {
		x.t.Fatal(err, failures)
	}
	if err := x.beat(); err != nil {
		x.t.Fatal(err)
	}
	if b := x.s.WentBack(); !b.Since.IsZero() {
		x.t.Errorf("%s: adopted, and still %+v", what, b)
	}
	if got := x.send(1000, "sent"); got != n {
		x.t.Errorf("%s: %d mails were let go and %d left", what, n, got)
	}
	if x.silent > 0 {
		x.t.Errorf("%s: %d mails arrived twice without a flag", what, x.silent)
	}
}

// isWatched fails unless a watcher of before the restore is told that it missed something, also
// if all that shows it is its position, and one that began after it sees what was queued.
func (x *service) isWatched(what string, old, from store.Position, queued int) {
	x.t.Helper()
	if _, _, _, err := x.s.Changes(ctx, store.Everything, store.MailFilter{}, old, 100); !errors.Is(err, store.ErrForgotten) {
		x.t.Errorf("%s: a watcher of before: got %v, want that it is told", what, err)
	}
	until(x.t, what+": a new watcher sees what is new", func() bool {
		cs, next, _, err := x.s.Changes(ctx, store.Everything, store.MailFilter{}, from, 100)
		for _, c := range cs {
			if queued--; c.Status != store.MailQueued {
				x.t.Fatalf("%s: got a change to %s, want queued", what, c.Status)
			}
		}
		if from = next; err != nil {
			x.t.Fatal(err)
		}
		return queued == 0
	})
	if _, err := x.s.ForgetChanges(ctx, -time.Hour); err != nil {
		x.t.Fatal(err)
	}
	var kept int
	if err := x.s.Get(&kept, "select count(*) from change"); err != nil || kept > 0 {
		x.t.Errorf("%s: %d changes cannot be forgotten, %v", what, kept, err)
	}
	at, err := x.s.LastChange(ctx)
	if err != nil {
		x.t.Fatal(err)
	}
	if _, _, _, err := x.s.Changes(ctx, store.Everything, store.MailFilter{}, at, 100); err != nil {
		x.t.Errorf("%s: a new watcher: %v", what, err)
	}
}

func (x *service) goesOn(what string) {
	x.t.Helper()
	if !x.found.Since.IsZero() {
		x.t.Fatalf("%s: taken for one that went back: %s", what, x.found.Why)
	}
	x.queue(1)
	if n := x.send(1000, "sent"); n == 0 {
		x.t.Errorf("%s: nothing leaves", what)
	}
}

func stateIn(t *testing.T) string { return filepath.Join(t.TempDir(), "key.state") }

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func without(t *testing.T, files ...string) {
	t.Helper()
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// turn is a way in which a database goes back. backup is called while the first service runs,
// and what it returns is called when that has ended. The second service is started with what
// that returns.
type turn struct {
	name   string
	backup func(t *testing.T, x *service, dsn, state string) (restore func() (dsn, state string))
}

func sqliteBackup(t *testing.T, x *service) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backup.db")
	if err := x.s.Exec("vacuum into '" + file + "'"); err != nil {
		t.Fatal(err)
	}
	return file
}

var sqliteTurns = []turn{
	{"a backup beside another key file", func(t *testing.T, x *service, _, _ string) func() (string, string) {
		file := sqliteBackup(t, x)
		return func() (string, string) { return "sqlite:" + file, stateIn(t) }
	}},
	{"a backup over the same path", func(t *testing.T, x *service, dsn, state string) func() (string, string) {
		file := sqliteBackup(t, x)
		return func() (string, string) {
			path := strings.TrimPrefix(dsn, "sqlite:")
			without(t, path, path+"-wal", path+"-shm")
			copyFile(t, file, path)
			return dsn, state
		}
	}},
	{"a backup beside the same key file", func(t *testing.T, x *service, _, state string) func() (string, string) {
		file := sqliteBackup(t, x)
		return func() (string, string) { return "sqlite:" + file, state }
	}},
	{"a copy of the file and its log", func(t *testing.T, _ *service, dsn, state string) func() (string, string) {
		path, file := strings.TrimPrefix(dsn, "sqlite:"), filepath.Join(t.TempDir(), "copy.db")
		copyFile(t, path, file)
		copyFile(t, path+"-wal", file+"-wal")
		return func() (string, string) { return "sqlite:" + file, stateIn(t) }
	}},
}

func postgresTurns(other *storetest.Cluster) []turn {
	return []turn{
		{"a dump in another database", func(t *testing.T, _ *service, dsn, state string) func() (string, string) {
			file := storetest.Dump(t, dsn)
			return func() (string, string) {
				to := storetest.EmptyPostgresDSN(t)
				storetest.Restore(t, file, to)
				return to, stateIn(t)
			}
		}},
		{"a dump in another cluster", func(t *testing.T, x *service, dsn, state string) func() (string, string) {
			// its transactions are far ahead of the other one's
			if err := x.s.Exec("update change set xid = xid + 5000000000"); err != nil {
				t.Fatal(err)
			}
			file := storetest.Dump(t, dsn)
			return func() (string, string) {
				storetest.Restore(t, file, other.DSN())
				return other.DSN(), state
			}
		}},
		{"a dump in the same database", func(t *testing.T, _ *service, dsn, state string) func() (string, string) {
			file := storetest.Dump(t, dsn)
			return func() (string, string) {
				storetest.Restore(t, file, dsn)
				return dsn, state
			}
		}},
	}
}

// goBackOnce sends, is backed up in the middle of it, sends on, is restored and adopted.
func goBackOnce(t *testing.T, tu turn, dsn string, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	what := fmt.Sprintf("%s, point %d", tu.name, seed)
	state := stateIn(t)
	x := newWorld(t).serve(dsn, state)
	some := func() {
		for range rnd.IntN(4) {
			switch rnd.IntN(5) {
			case 0:
				x.queue(1 + rnd.IntN(20))
			case 1:
				x.send(1+rnd.IntN(10), "claimed")
			case 2:
				x.send(1+rnd.IntN(10), "marked")
			case 3:
				x.send(1+rnd.IntN(10), "sent")
			case 4:
				if err := x.beat(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	x.queue(20)
	some()
	// Somebody lets go what is held, and it goes on while the backup is made.
	release := &store.Operation{Action: "ReleaseMails", Scope: store.Everything, Filter: store.MailFilter{Statuses: []store.MailStatus{store.MailHeld}}, Request: `{"Action":"ReleaseMails"}`,
		Audit: store.Audit{Actor: "me", Action: "ReleaseMails"}}
	if err := x.s.BeginOperation(ctx, release); err != nil {
		t.Fatal(err)
	}
	restore := tu.backup(t, x, dsn, state)
	some()
	x.send(10, "sent")
	if err := x.beat(); err != nil { // what is younger is not promised
		t.Fatal(err)
	}
	some()
	watched, err := x.s.LastChange(ctx)
	if err != nil {
		t.Fatal(err)
	}
	x.stop(rnd.IntN(2) == 0)
	y := x.world.serve(restore())
	y.isHeld(what)
	y.isStopped(what, release.ID)
	from, err := y.s.LastChange(ctx)
	if err != nil {
		t.Fatal(err)
	}
	y.queue(3)
	y.isWatched(what, watched, from, 3)
	if n := y.send(1000, "sent"); n != 3 {
		t.Errorf("%s: %d of 3 new mails left", what, n)
	}
	y.adopt(what)
	y.stop(false)
}

// rounds is how often each way is tried, at a point of its own.
func rounds(few uint64) uint64 {
	if os.Getenv("MAILDISPATCH_TEST_FULL") == "1" {
		return 25
	}
	return few
}

// TestDatabaseThatWentBack: a database that was restored or copied, at any point, lets nothing
// leave that was due in it before somebody says so, and what leaves then is flagged.
func TestDatabaseThatWentBack(t *testing.T) {
	for _, tu := range sqliteTurns {
		t.Run("sqlite/"+tu.name, func(t *testing.T) {
			for seed := range rounds(4) {
				goBackOnce(t, tu, storetest.SQLiteDSN(t), seed)
			}
		})
	}
	other := cluster(t)
	for _, tu := range postgresTurns(other) {
		t.Run("postgres/"+tu.name, func(t *testing.T) {
			for seed := range rounds(1) {
				goBackOnce(t, tu, storetest.PostgresDSN(t), seed)
			}
		})
	}
}

// TestDatabaseThatGoesOn: what only looks like a database that went back.
func TestDatabaseThatGoesOn(t *testing.T) {
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			state := stateIn(t)
			x := newWorld(t).serve(dsn, state)
			x.goesOn("a new database")
			x.stop(false)
			x = x.world.serve(dsn, state)
			x.goesOn("started again")
			x.stop(true)
			x = x.world.serve(dsn, state)
			x.goesOn("started again after a crash")
			x.stop(false)
			moved := stateIn(t)
			copyFile(t, state, moved)
			x = x.world.serve(dsn, moved)
			x.goesOn("moved with its state file")
			x.stop(false)
			if name == "postgres" {
				x = x.world.serve(dsn, stateIn(t))
				x.goesOn("another machine")
				x.stop(false)
			}
		})
	}
}

// TestTwoCopiesOneStateFile: of two copies that share a state file, whichever is started
// second.
func TestTwoCopiesOneStateFile(t *testing.T) {
	state, dsn := stateIn(t), storetest.SQLiteDSN(t)
	x := newWorld(t).serve(dsn, state)
	x.queue(10)
	x.stop(false)
	path, file := strings.TrimPrefix(dsn, "sqlite:"), filepath.Join(t.TempDir(), "copy.db")
	copyFile(t, path, file)
	y := x.world.serve("sqlite:"+file, state)
	if n := y.send(10, "sent"); n != 10 { // it goes on from where the first one stopped
		t.Fatalf("%d of 10 left", n)
	}
	y.stop(true)
	x = x.world.serve(dsn, state)
	x.isHeld("the first one again")
	x.adopt("the first one again")
}

// TestStandbyPromoted: a replica that lives notices when the server that it is moved to lacks
// its last commits, however young they are, and nothing when it has them all.
func TestStandbyPromoted(t *testing.T) {
	for _, c := range []struct {
		name string
		lost func(x *service) // after the standby stopped following; nil = it never did
	}{
		{"without loss", nil},
		{"with the loss of results and beats", func(x *service) {
			x.send(10, "sent")
			if err := x.beat(); err != nil {
				x.t.Fatal(err)
			}
		}},
		{"with the loss of results", func(x *service) { x.send(10, "sent") }},
		{"with the loss of marks", func(x *service) { x.send(10, "marked") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			first := cluster(t)
			second, err := first.StartStandby()
			if err != nil {
				t.Fatal(err)
			}
			// ended by the test, or not any more
			t.Cleanup(func() { _ = second.Stop("immediate") })
			x := newWorld(t).serve(fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", first.Port, second.Port), stateIn(t))
			x.queue(30)
			x.send(5, "sent")
			x.send(5, "marked")
			if err := x.beat(); err != nil {
				t.Fatal(err)
			}
			if err := second.Follows(first); err != nil {
				t.Fatal(err)
			}
			mode := "fast"
			if c.lost != nil {
				mode = "immediate"
				if err := second.Unfollow(); err != nil {
					t.Fatal(err)
				}
				c.lost(x)
			}
			if err := first.Stop(mode); err != nil {
				t.Fatal(err)
			}
			if err := second.Promote(); err != nil {
				t.Fatal(err)
			}
			if c.lost == nil {
				until(t, "the lease is renewed", func() bool { return x.beat() == nil })
				if b := x.s.WentBack(); !b.Since.IsZero() {
					t.Fatalf("without loss: %+v", b)
				}
				if n := x.send(1000, "sent"); n != 20 {
					t.Errorf("%d of 20 left after the failover", n)
				}
				return
			}
			// Whatever it does first, none of the mail leaves that the lost commits were about.
			until(t, "mail can be claimed", func() bool {
				cs, err := x.s.Claim(ctx, x.r, "s", 1000, store.AnyPriority)
				if len(cs) > 0 {
					t.Errorf("%d mails were claimed", len(cs))
				}
				return err == nil
			})
			until(t, "the lease is lost", func() bool { return errors.Is(x.beat(), store.ErrStale) })
			x.register()
			x.isHeld(c.name)
			x.adopt(c.name)
		})
	}
}

// TestRestoredWhileServed: a dump that is restored under a running service is noticed with the
// next beat, and a database that is another one altogether is refused.
func TestRestoredWhileServed(t *testing.T) {
	dsn := storetest.PostgresDSN(t)
	x := newWorld(t).serve(dsn, stateIn(t))
	second := x.world.serve(dsn, stateIn(t))
	x.queue(20)
	file := storetest.Dump(t, dsn)
	x.send(10, "sent")
	for _, r := range []*service{x, second, x} {
		if err := r.beat(); err != nil {
			t.Fatal(err)
		}
	}
	storetest.Restore(t, file, dsn)
	until(t, "it is noticed", func() bool { _ = x.beat(); return !x.s.WentBack().Since.IsZero() })
	x.register()
	x.isHeld("the first replica")
	x.adopt("the first replica")
	x.queue(5)
	until(t, "the second replica loses its lease", func() bool { return errors.Is(second.beat(), store.ErrStale) })
	second.register()
	if err := second.beat(); err != nil {
		t.Fatal(err)
	}
	if n := second.send(1000, "sent"); n != 5 {
		t.Errorf("the second replica held what was new: %d of 5 left", n)
	}
	if err := x.s.Exec("update installation set id = 'another'"); err != nil {
		t.Fatal(err)
	}
	if err := x.beat(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("another database: got %v, want that it is unavailable", err)
	}
}

// TestWitnessOfRemovedMail: what retention has removed does not count as lost when a server is
// promoted, and what is younger than the last beat does.
func TestWitnessOfRemovedMail(t *testing.T) {
	s := storetest.Open(t, storetest.PostgresDSN(t))
	if _, err := s.Remember(ctx, stateIn(t)); err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	lost := func(want int, when string) {
		t.Helper()
		if n, err := s.Lost(ctx); err != nil || n != want {
			t.Errorf("%s: %d writes count as lost, %d wanted: %v", when, n, want, err)
		}
	}
	enqueue(t, s, newMail("ss", aged(20*day)), newMail("ss", aged(20*day)))
	finish(t, s)
	r := register(t, s)
	if err := s.Renew(ctx, r, time.Minute); err != nil {
		t.Fatal(err)
	}
	if n, _ := purge(t, s, 10, allOfBulk); n != 2 {
		t.Fatalf("%d mails were removed", n)
	}
	lost(0, "behind a purge")
	enqueue(t, s, newMail("ss"))
	finish(t, s)
	lost(0, "all is there")
	if err := s.Exec("delete from archive"); err != nil {
		t.Fatal(err)
	}
	lost(1, "a result is gone")
}
