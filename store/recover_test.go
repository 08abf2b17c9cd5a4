package store_test

import (
	"bytes"
	"database/sql"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// dies ends r's life without its knowing: its lease runs out, and a successor finds out. On
// SQLite a successor is all it takes.
func dies(t testing.TB, s storetest.Store, r store.ReplicaID) (successor store.ReplicaID) {
	t.Helper()
	if s.Dialect() != "sqlite" {
		if err := s.Renew(ctx, r, -time.Second); err != nil {
			t.Fatal(err)
		}
	}
	return register(t, s)
}

// TestLateBirth: a mail that is written in the name of a replica that was buried, and
// forgotten, meanwhile belongs to nobody, or is found by the next recovery.
func TestLateBirth(t *testing.T) {
	t.Parallel()
	dsn := storetest.PostgresDSN(t)
	s := storetest.Open(t, dsn)
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r := register(t, s)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("lock table term in exclusive mode"); err != nil {
		// stands for anything that makes the statement slow
		t.Fatal(err)
	}
	m := newMail("ss", func(m *store.NewMail) { m.Owner = r })
	done := make(chan error, 1)
	go func() { _, err := s.Enqueue(ctx, m); done <- err }()
	until(t, "the statement waits", func() bool {
		var n int
		err := db.QueryRow("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'").Scan(&n)
		return err == nil && n > 0
	})
	other := dies(t, s, r)
	if _, _, err := s.Recover(ctx, other, 10); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Recover(ctx, other, 10); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Mail(ctx, store.Everything, m.ID); err != nil || got.Status != store.MailQueued || got.Owner != 0 {
		t.Errorf("%+v %v", got, err)
	}
}

// TestOwnedByNobodyKnown: mail whose owner is in no list is recovered like that of a dead one,
// marked and unmarked.
func TestOwnedByNobodyKnown(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		r := register(t, s)
		ms := owned(t, s, r, 4)
		for _, m := range ms[:2] {
			if !settle(t, s, &store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark}) {
				t.Fatal("mark refused")
			}
		}
		if err := s.Exec("delete from replica"); err != nil {
			t.Fatal(err)
		}
		n, adopted, err := s.Recover(ctx, register(t, s), 10)
		if err != nil || n != 2 || len(adopted) != 2 || !adopted[0].Marked || adopted[0].Claim <= store.BornClaim {
			t.Errorf("%d released, %d adopted, %v", n, len(adopted), err)
		}
	})
}

// TestTheBuriedTakeNothing: whoever was taken for dead claims nothing, adopts nothing, and what
// it takes in is nobody's.
func TestTheBuriedTakeNothing(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		marked := owned(t, s, r, 1)[0]
		if !settle(t, s, &store.Settlement{ID: marked.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark}) {
			t.Fatal("mark refused")
		}
		next := dies(t, s, r)
		if _, adopted, err := s.Recover(ctx, next, 10); err != nil || len(adopted) != 1 {
			t.Fatal(adopted, err)
		}
		enqueue(t, s, newMail("ss"))
		born := newMail("ss", func(m *store.NewMail) { m.Owner = r })
		enqueue(t, s, born)
		if cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority); err != nil || len(cs) != 0 {
			t.Errorf("the dead claim %d, %v", len(cs), err)
		}
		if got, err := s.Mail(ctx, store.Everything, born.ID); err != nil || got.Status != store.MailQueued {
			t.Errorf("born in the name of the dead: %+v %v", got, err)
		}
		// The dead replica goes by the token of a birth. Whatever it writes, nothing of it
		// counts, not even as a repeat of what was written before.
		park := &store.Settlement{ID: born.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettlePark, Status: store.MailFailed, Progress: &store.Progress{}}
		if settle(t, s, park) {
			t.Error("the dead hear that their write counts while the mail waits")
		}
		if cs, err := s.Claim(ctx, next, "ss", 10, store.AnyPriority); err != nil || len(cs) != 2 {
			t.Errorf("the living claim %d, %v", len(cs), err)
		} else {
			for _, c := range cs {
				done := &store.Settlement{ID: c.ID, Owner: next, Claim: c.Claim, Kind: store.SettleArchive, Status: store.MailSent, Progress: &store.Progress{}}
				if !settle(t, s, done) {
					t.Error("the living may not settle what they have claimed")
				}
			}
		}
		if settle(t, s, park) {
			t.Error("the dead hear that their write counts although the mail was sent by others")
		}
		if err := s.Renew(ctx, next, time.Minute); err != nil {
			t.Fatal(err)
		}
		if _, adopted, err := s.Recover(ctx, r, 10); err != nil || len(adopted) != 0 {
			t.Errorf("the dead adopt %d, %v", len(adopted), err)
		}
	})
}

// TestNobodyBuriesItself: a replica whose renewals are late goes on with its mail, and renews
// its lease, as long as nobody else has taken it for dead. On SQLite nobody else is there.
func TestNobodyBuriesItself(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		ms := owned(t, s, r, 2)
		mark := &store.Settlement{ID: ms[0].ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark}
		if !settle(t, s, mark) {
			t.Fatal("mark refused")
		}
		if err := s.Renew(ctx, r, -time.Hour); err != nil {
			// the database, or this process, was away for longer than the lease
			t.Fatal(err)
		}
		if n, adopted, err := s.Recover(ctx, r, 10); err != nil || n+len(adopted) != 0 {
			t.Errorf("%d of its own released, %d adopted, %v", n, len(adopted), err)
		}
		if err := s.Renew(ctx, r, time.Minute); err != nil {
			t.Error(err)
		}
		if !settle(t, s, &store.Settlement{ID: ms[0].ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleArchive, Status: store.MailSent}) {
			t.Error("its result is refused")
		}
	})
}

// TestUnreadableRow: a mail whose row does not decode is settled with the reason, by a claim
// and by a recovery; the rest of its page goes on, and the journal lists it.
func TestUnreadableRow(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		r := register(t, s)
		var ms []*store.NewMail
		for range 10 {
			ms = append(ms, newMail("ss"))
		}
		enqueue(t, s, ms...)
		broken := func(i int) {
			if err := s.Exec("update mail set recipients = '[{\"a\":7}]' where id = '" + ms[i].ID.String() + "'"); err != nil {
				t.Fatal(err)
			}
		}
		settled := func(i int, want store.MailStatus) {
			t.Helper()
			var got *store.Mail
			until(t, "it is settled", func() (done bool) {
				var err error
				if got, err = s.Mail(ctx, store.Everything, ms[i].ID); err != nil {
					t.Fatal(err)
				}
				return got.Owner == 0
			})
			if got.Status != want || !strings.Contains(got.LastError, "cannot be read") || !errors.Is(got.Unreadable, store.ErrUnreadable) || got.DueTime != nil {
				t.Errorf("%+v", got)
			}
		}
		broken(3)
		cs, err := s.Claim(ctx, r, "ss", 50, store.AnyPriority)
		if err != nil || len(cs) != 9 {
			t.Fatalf("%d claimed, %v", len(cs), err)
		}
		settled(3, store.MailFailed)
		for _, c := range cs {
			if !settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleMark}) {
				t.Fatal("mark refused")
			}
		}
		broken(4)
		if _, adopted, err := s.Recover(ctx, dies(t, s, r), 50); err != nil || len(adopted) != 8 {
			t.Fatalf("%d adopted, %v", len(adopted), err)
		}
		settled(4, store.MailUnknown)
		if all, err := s.ListDue(ctx, store.Everything, store.MailFilter{}, store.Cursor{}, 50); err != nil || len(all) != 10 {
			t.Errorf("%d listed, %v", len(all), err)
		}
		word := func(*store.Mail, *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now()}, nil
		}
		if _, n, failures, err := s.Modify(ctx, store.Everything, []uuid.UUID{ms[3].ID}, nil, false, store.Audit{}, word); err != nil || n != 0 || len(failures) != 1 || !errors.Is(failures[0].Err, store.ErrUnreadable) {
			t.Errorf("%d changed, %v, %v", n, failures, err)
		}
	})
}

// TestTakeBack: a claim or a recovery whose answer is lost is an error; what it has taken is
// found by comparing, and goes back, or comes again when it is marked.
func TestTakeBack(t *testing.T) {
	t.Parallel()
	p, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
	s := storetest.Open(t, dsn)
	r := register(t, s)
	var ms []*store.NewMail
	for range 20 {
		ms = append(ms, newMail("ss"))
	}
	enqueue(t, s, ms...)
	lose := func(what string) {
		var once atomic.Bool
		p.Cut(func(answer bool, b []byte) bool {
			return answer && bytes.Contains(b, []byte(what)) && once.CompareAndSwap(false, true)
		})
	}
	lose(ms[7].MessageID)
	// An error, or nothing: the pool repeats a statement whose connection is gone.
	if cs, err := s.Claim(ctx, r, "ss", 50, store.AnyPriority); len(cs) > 0 || err != nil && !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("the answer was not lost: %d, %v", len(cs), err)
	}
	p.Cut(nil)
	had, err := s.Owned(ctx, r)
	if err != nil || len(had) != 20 {
		t.Fatalf("%d owned, %v", len(had), err)
	}
	for _, o := range had[:5] {
		if !settle(t, s, &store.Settlement{ID: o.ID, Owner: r, Claim: o.Claim, Kind: store.SettleMark}) {
			t.Fatal("mark refused")
		}
	}
	stale := append([]store.Ownership{{ID: uuid.New(), Claim: 1}}, had...)
	for i := range 3 {
		stale[10+i].Claim++ // another claim than the one that is known
	}
	n, again, err := s.TakeBack(ctx, r, stale)
	if err != nil || n != 12 || len(again) != 5 {
		t.Fatalf("%d released, %d adopted, %v", n, len(again), err)
	}
	for _, c := range again {
		if !c.Marked || len(c.Recipients) != 2 {
			t.Errorf("%+v", c)
		}
		if !settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettlePark, Status: store.MailUnknown}) {
			t.Error("what came again is not its own")
		}
	}
	if cs, err := s.Claim(ctx, r, "ss", 50, store.AnyPriority); err != nil || len(cs) != 12 || cs[0].Crashes != 0 {
		t.Errorf("%d claimed, %v", len(cs), err)
	}
}

// TestTakeBackEverywhere: what a replica has and does not know of goes back as it was; what may
// have left, or what somebody died of, comes again; another claim stays.
func TestTakeBackEverywhere(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		var ms []*store.NewMail
		for range 4 {
			ms = append(ms, newMail("ss", func(m *store.NewMail) { m.Owner = r }))
		}
		enqueue(t, s, ms...)
		marked, suspect, plain, later := ms[0].ID, ms[1].ID, ms[2].ID, ms[3].ID
		for _, st := range []*store.Settlement{
			{ID: marked, Kind: store.SettleMark},
			{ID: suspect, Kind: store.SettleBegin, Crashes: 3},
		} {
			if st.Owner, st.Claim = r, store.BornClaim; !settle(t, s, st) {
				t.Fatal("write refused")
			}
		}
		had, err := s.Owned(ctx, r)
		if err != nil || len(had) != 4 {
			t.Fatal(had, err)
		}
		for i := range had {
			if had[i].ID == later {
				had[i].Claim++
			}
		}
		n, again, err := s.TakeBack(ctx, r, append(had, store.Ownership{ID: uuid.New(), Claim: 1}))
		if err != nil || n != 1 || len(again) != 2 {
			t.Fatalf("%d released, %v, %v", n, again, err)
		}
		for _, c := range again {
			if c.Marked != (c.ID == marked) || c.Begun != (c.ID == suspect) || c.Claim != store.BornClaim+1 || c.ID == suspect && c.Crashes != 3 {
				t.Errorf("came again: %+v", c)
			}
		}
		if cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority); err != nil || len(cs) != 1 || cs[0].ID != plain || cs[0].Crashes != 0 {
			t.Errorf("claimed %v, %v", cs, err)
		}
		if left, err := s.Owned(ctx, r); err != nil || len(left) != 4 {
			t.Error(left, err)
		}
	})
}

// TestTakeBackPastDamage: a mail whose row the database cannot write, because its page is
// damaged, stays as it is. All others are given back, or are the replica's anew.
func TestTakeBackPastDamage(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	r := register(t, s)
	ms := owned(t, s, r, 20)
	bad, marked := ms[7], ms[12]
	if !settle(t, s, &store.Settlement{ID: marked.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark}) {
		t.Fatal("not its owner's")
	}
	for _, q := range []string{
		`create function damaged() returns trigger language plpgsql as $$
		begin raise exception 'invalid page in block 7' using errcode = 'XX001'; end $$`,
		`create trigger damaged before update on due for each row when (old.id = '` + bad.ID.String() + `') execute function damaged()`,
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	lost, err := s.Owned(ctx, r)
	if err != nil || len(lost) != len(ms) {
		t.Fatalf("%d owned, %v", len(lost), err)
	}
	released, adopted, err := s.TakeBack(ctx, r, lost)
	if err != nil || released != len(ms)-2 || len(adopted) != 1 || adopted[0].ID != marked.ID {
		t.Errorf("got %d released, %d adopted, %v, want all but the damaged one", released, len(adopted), err)
	}
	left := []store.Ownership{{ID: bad.ID, Claim: store.BornClaim}}
	if n, _, err := s.TakeBack(ctx, r, left); err != nil || n != 0 || s.DamagedMails() != 1 {
		t.Errorf("the damaged one alone: got %d, %v, want it left out", n, err)
	}
	if err := s.Exec("drop trigger damaged on due"); err != nil {
		t.Fatal(err)
	}
	s.ForgetDamage()
	if n, _, err := s.TakeBack(ctx, r, left); err != nil || n != 1 {
		t.Errorf("mended: got %d, %v, want it released", n, err)
	}
}
