package store_test

import (
	"database/sql"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestInteractiveWindow: while the window is open one statement of bulk runs at a time, and
// what a caller waits for does not wait for it. While such work is under way each step of bulk
// waits a moment and no longer. A lock on a table holds up the bulk here.
func TestInteractiveWindow(t *testing.T) {
	dsn := storetest.PostgresDSN(t)
	s := storetest.Open(t, dsn)
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	me, err := s.Register(ctx, "me", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	urgent := newMail("php", func(m *store.NewMail) { m.Owner = me })
	if _, err := s.Enqueue(ctx, urgent); err != nil {
		t.Fatal(err)
	}
	for _, open := range []bool{false, true} {
		s.Window(time.Time{})
		if open {
			s.Window(time.Now().Add(time.Hour))
		}
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("lock table mail in exclusive mode"); err != nil {
			t.Fatal(err)
		}
		var bulk sync.WaitGroup
		for range 4 {
			bulk.Go(func() {
				if _, err := s.EnqueueBatch(ctx, []*store.NewMail{newMail("bulk"), newMail("bulk")}); err != nil {
					t.Error(err)
				}
			})
		}
		waiting := func() (n int) {
			if err := db.QueryRow("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		want := 4
		if open {
			want = 1
		}
		for deadline := time.Now().Add(10 * time.Second); waiting() != want && time.Now().Before(deadline); {
			<-time.After(10 * time.Millisecond)
		}
		<-time.After(200 * time.Millisecond) // a second one would come now
		if n := waiting(); n != want {
			t.Errorf("window open %v: got %d statements of bulk at once, want %d", open, n, want)
		}
		select {
		case a := <-s.Settle(&store.Settlement{ID: urgent.ID, Owner: me, Claim: store.BornClaim, Kind: store.SettleMark, Quick: true}):
			if a.Err != nil || !a.Mine {
				t.Errorf("quick mark: %+v", a)
			}
		case <-time.After(5 * time.Second):
			t.Error("a quick mark waits for bulk")
		}
		if open {
			var caller sync.WaitGroup
			caller.Go(func() {
				if _, err := s.Enqueue(ctx, newMail("php", func(m *store.NewMail) { m.Mode, m.Owner = store.ModePHP, me })); err != nil {
					t.Error(err)
				}
			})
			for deadline := time.Now().Add(10 * time.Second); waiting() != want+1; <-time.After(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the caller's mail is not held up")
				}
			}
			began := time.Now()
			s.Yield(ctx) // comes back although that work is held up
			if took := time.Since(began); took < 20*time.Millisecond {
				t.Errorf("a step of bulk waited %v for work that is held up, want 20 ms", took)
			}
			defer caller.Wait()
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		bulk.Wait()
	}
}

// TestInteractiveWork: what a caller in php mode waits for opens the window, and nothing else
// does.
func TestInteractiveWork(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			s := storetest.Open(t, dsn)
			me, err := s.Register(ctx, "me", time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			now := newMail("now", func(m *store.NewMail) { m.Mode, m.Owner = store.ModePHP, me })
			queued := newMail("now", func(m *store.NewMail) { m.Mode = store.ModePHP })
			bulk := newMail("bulk", func(m *store.NewMail) { m.Mode, m.Owner = store.ModeDaemon, me })
			enqueue := func(m *store.NewMail) func() {
				return func() {
					if r, err := s.Enqueue(ctx, m); err != nil || r.Err != nil {
						t.Fatal(err, r.Err)
					}
				}
			}
			mark := func(m *store.NewMail, quick bool) func() {
				return func() {
					if a := <-s.Settle(&store.Settlement{ID: m.ID, Owner: me, Claim: store.BornClaim, Kind: store.SettleMark, Quick: quick}); a.Err != nil || !a.Mine {
						t.Fatalf("%+v", a)
					}
				}
			}
			for _, step := range []struct {
				name  string
				do    func()
				opens bool
			}{
				{"accept a mail that is sent at once", enqueue(now), true},
				{"mark it", mark(now, true), true},
				{"accept a php-mode mail that is queued", enqueue(queued), false},
				{"accept a daemon-mode mail", enqueue(bulk), false},
				{"mark it", mark(bulk, false), false},
				{"accept bulk", func() {
					if _, err := s.EnqueueBatch(ctx, []*store.NewMail{newMail("b")}); err != nil {
						t.Fatal(err)
					}
				}, false},
			} {
				s.Window(time.Time{})
				step.do()
				if opened := !s.WindowEnd().IsZero(); opened != step.opens {
					t.Errorf("%s: opened the window: %v, want %v", step.name, opened, step.opens)
				}
			}
			for deadline := time.Now().Add(10 * time.Second); s.InteractiveWork() != 0; <-time.After(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d pieces of interactive work never ended", s.InteractiveWork())
				}
			}
		})
	}
}
