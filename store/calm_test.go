package store_test

import (
	"database/sql"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestCalm: while callers are about one statement of bulk runs at a time, and quick writes do not wait for it. A lock on a table holds up the bulk here.
func TestCalm(t *testing.T) {
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
	for _, calm := range []bool{false, true} {
		if calm {
			s.Calm(time.Minute)
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
		if calm {
			want = 1
		}
		for deadline := time.Now().Add(10 * time.Second); waiting() != want && time.Now().Before(deadline); {
			<-time.After(10 * time.Millisecond)
		}
		<-time.After(200 * time.Millisecond) // a second one would come now
		if n := waiting(); n != want {
			t.Errorf("calm %v: %d statements of bulk at once, want %d", calm, n, want)
		}
		select {
		case a := <-s.Settle(&store.Settlement{ID: urgent.ID, Owner: me, Claim: store.BornClaim, Kind: store.SettleMark, Quick: true}):
			if a.Err != nil || !a.Mine {
				t.Errorf("quick mark: %+v", a)
			}
		case <-time.After(5 * time.Second):
			t.Error("a quick mark waits for bulk")
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		bulk.Wait()
	}
}
