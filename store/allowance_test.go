package store_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

func allowanceKey(n byte) []byte { return append(make([]byte, 15), n) }

// TestAllowances: two replicas together get what there is, each allowance for itself.
func TestAllowances(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		var wg sync.WaitGroup
		var mu sync.Mutex
		got := map[byte]int64{}
		for i := range 4 {
			wg.Go(func() {
				for range 20 {
					takes := []store.AllowanceTake{{Key: allowanceKey(2), Limit: 100, Period: time.Hour, Want: 3}, {Key: allowanceKey(1), Limit: 50, Period: time.Hour, Want: 2}}
					if i%2 == 0 {
						takes[0], takes[1] = takes[1], takes[0]
					}
					gs, err := s.TakeAllowances(ctx, takes)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					for k, g := range gs {
						got[takes[k].Key[15]] += g.Granted
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if got[1] != 50 || got[2] != 100 {
			t.Errorf("got %v, want 50 of the first and 100 of the second", got)
		}
		if err := s.ForgetAllowances(ctx); err != nil {
			t.Fatal(err)
		}
		gs, err := s.TakeAllowances(ctx, []store.AllowanceTake{{Key: allowanceKey(1), Limit: 50, Period: time.Hour, Want: 1, Need: 1}, {Key: allowanceKey(3), Limit: 5, Period: 40 * time.Millisecond, Want: 9}})
		if err != nil || gs[0].Granted != 0 || gs[0].Next <= 0 || gs[1].Granted != 5 {
			t.Errorf("got %+v, %v; want nothing of what was used up, and all of a new one", gs, err)
		}
	})
}

// TestAllowancesAreForgotten: once nothing of one counts, its row goes.
func TestAllowancesAreForgotten(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		if _, err := s.TakeAllowances(ctx, []store.AllowanceTake{{Key: allowanceKey(1), Limit: 5, Period: 20 * time.Millisecond, Want: 1}, {Key: allowanceKey(2), Limit: 5, Period: time.Hour, Want: 1}}); err != nil {
			t.Fatal(err)
		}
		count := func() (n int) {
			if err := s.Get(&n, "select count(*) from allowance"); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for end := time.Now().Add(time.Minute); count() != 1; time.Sleep(5 * time.Millisecond) {
			if err := s.ForgetAllowances(ctx); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(end) {
				t.Fatalf("got %d rows, want that of the hour alone", count())
			}
		}
	})
}

// TestAllowanceWhileItIsForgotten: an allowance that is taken of while its row is being deleted
// begins anew.
func TestAllowanceWhileItIsForgotten(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	ctx := context.Background()
	take := []store.AllowanceTake{{Key: allowanceKey(1), Limit: 5, Period: time.Minute, Want: 1}}
	if _, err := s.TakeAllowances(ctx, take); err != nil {
		t.Fatal(err)
	}
	tx, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // committed usually
	if _, err := tx.Exec("select from allowance for update"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		gs, err := s.TakeAllowances(ctx, take)
		if err == nil && gs[0].Granted != 1 {
			err = fmt.Errorf("got %+v", gs)
		}
		done <- err
	}()
	for end, n := time.Now().Add(time.Minute), 0; n == 0; time.Sleep(time.Millisecond) {
		if err := tx.Get(&n, "select count(*) from pg_locks where not granted and transactionid = pg_current_xact_id()::xid"); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("nobody waits for the row")
		}
	}
	if _, err := tx.Exec("delete from allowance"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestUnguard: a mail that is let go is the guard's no more; another change leaves it be.
func TestUnguard(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		m := newMail("ss", func(m *store.NewMail) { m.Held, m.Guard, m.Caller = "held: much", "team", "billing" })
		enqueue(t, s, m)
		change := func(c store.Change, want string) {
			t.Helper()
			if _, changed, _, err := s.Modify(ctx, store.Everything, []uuid.UUID{m.ID}, nil, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
				return &c, nil
			}); err != nil || changed != 1 {
				t.Fatal(changed, err)
			}
			if got, err := s.Mail(ctx, store.Everything, m.ID); err != nil || got.Guard != want || got.Status != c.Status {
				t.Errorf("got guard %q and %s, %v; want %q", got.Guard, got.Status, err, want)
			}
		}
		change(store.Change{Kind: store.SettlePark, Status: store.MailHeld}, "team")
		change(store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now(), Unguards: true}, "")
		change(store.Change{Kind: store.SettlePark, Status: store.MailHeld}, "")
	})
}

// TestKnownRequests: of one team, and of mail in either journal.
func TestKnownRequests(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		for i, team := range []string{"t1", "t2"} {
			m := newMail("ss")
			m.Team, m.RequestID, m.Fingerprint, m.Held, m.Guard, m.Caller = team, fmt.Sprint("q", i), []byte("f"), "held: much", "team", "billing"
			if _, err := s.Enqueue(ctx, m); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Mail(ctx, store.Everything, m.ID); err != nil || got.Guard != "team" || got.Caller != "billing" {
				t.Errorf("got %+v, %v; want who has held it, and whose it is", got, err)
			}
		}
		known, err := s.KnownRequests(ctx, "t1", []string{"q0", "q1", "q2"})
		if err != nil || len(known) != 1 || !known["q0"] {
			t.Errorf("got %v, %v; want q0", known, err)
		}
		depths, err := s.QueueDepths(ctx)
		if err != nil || len(depths) != 2 || depths["t1"] != 1 {
			t.Errorf("got %v, %v; want one mail of each team", depths, err)
		}
	})
}
