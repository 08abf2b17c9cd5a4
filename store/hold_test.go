package store_test

import (
	"fmt"
	"testing"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestForcedDeleteIsWatched: what a forced delete holds, watchers hear of, each mail once.
func TestForcedDeleteIsWatched(t *testing.T) {
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		enqueue(t, s, newMail("ss"), newMail("ss"))
		at, err := s.LastChange(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, held, err := s.DeleteServer(ctx, store.Everything, "ss", 0, true, store.Audit{}); err != nil || held.Held != 2 {
			t.Fatalf("held %+v, %v, want 2", held, err)
		}
		var got []store.MailStatus
		until(t, "both changes are told", func() bool {
			cs, next, _, err := s.Changes(ctx, store.Everything, store.MailFilter{}, at, 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range cs {
				got = append(got, c.Status)
			}
			at = next
			return len(got) >= 2
		})
		if fmt.Sprint(got) != "[held held]" {
			t.Errorf("got %v, want two held", got)
		}
	})
}

// TestForcedDeleteKeepsTheOrder: a mail that a younger transaction changes while a delete is
// under way is held behind that change, not before it.
func TestForcedDeleteKeepsTheOrder(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
		t.Fatal(err)
	}
	plain, late := newMail("ss"), newMail("ss")
	enqueue(t, s, plain, late)
	tx, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // committed below
	if _, err := tx.Exec("lock table due in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		held store.DeletedMail
		err  error
	}
	deleted := make(chan answer, 1)
	go func() {
		_, held, err := s.DeleteServer(ctx, store.Everything, "ss", 0, true, store.Audit{})
		deleted <- answer{held, err}
	}()
	until(t, "the delete waits", func() bool {
		var n int
		if err := s.Get(&n, "select count(*) from pg_locks where not granted and relation = 'due'::regclass and database = (select oid from pg_database where datname = current_database())"); err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	// a savepoint gets a number of its own, which is younger than the delete's
	if _, err := tx.Exec("savepoint younger"); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("update due set attempts = attempts + 1 where id = $1", late.ID); err != nil {
		t.Fatal(err)
	}
	var younger int64
	if err := tx.QueryRow("select xmin::text::bigint from due where id = $1", late.ID).Scan(&younger); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if a := <-deleted; a.err != nil || a.held.Held != 2 {
		t.Fatalf("held %+v, %v, want 2", a.held, a.err)
	}
	told := func(m *store.NewMail) (xid int64) {
		t.Helper()
		if err := s.Get(&xid, "select xid from change where status = 'held' and mail_id = ?", m.ID); err != nil {
			t.Fatal(err)
		}
		return xid
	}
	if told(plain) >= younger {
		t.Fatal("the delete was not the older one: the test shows nothing")
	}
	if got := told(late); got <= younger {
		t.Errorf("held by %d, want behind %d, which changed the mail before", got, younger)
	}
}
