package store_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// damage makes every write to a due mail fail as if its page were damaged, and returns what
// mends it.
func damage(t *testing.T, s *store.Store, id uuid.UUID) (mend func()) {
	t.Helper()
	qs := []string{`create trigger damaged before update on due when old.id = '` + id.String() + `' begin select raise(abort, 'damaged'); end`}
	drop := "drop trigger damaged"
	if s.Dialect() == "postgres" {
		qs = []string{
			`create function damaged() returns trigger language plpgsql as $$
			begin raise exception 'invalid page in block 7' using errcode = 'XX001'; end $$`,
			`create trigger damaged before update or delete on due for each row when (old.id = '` + id.String() + `') execute function damaged()`,
		}
		drop = "drop trigger damaged on due"
	}
	for _, q := range qs {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := s.Exec(drop); err != nil {
			t.Fatal(err)
		}
	}
}

// TestClaimPastDamage: a mail that the database cannot write keeps nobody's mail from being
// claimed. It is found once, remembered, and claimed as soon as it is mended.
func TestClaimPastDamage(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		r := register(t, s)
		var ms []*store.NewMail
		for range 20 {
			ms = append(ms, newMail("ss"))
		}
		enqueue(t, s, ms...)
		bad := ms[7].ID
		mend := damage(t, s, bad)
		cs, err := s.Claim(ctx, r, "ss", 20, store.AnyPriority)
		if err != nil || len(cs) != 19 {
			t.Fatalf("%d of 19 well ones are claimed, %v", len(cs), err)
		}
		for _, c := range cs {
			if c.ID == bad {
				t.Error("the damaged one is claimed")
			}
		}
		enqueue(t, s, newMail("ss"))
		if cs, err := s.Claim(ctx, r, "ss", 20, store.AnyPriority); err != nil || len(cs) != 1 {
			t.Errorf("later: %d claimed, %v, want the new one", len(cs), err)
		}
		if n := s.DamagedMails(); n != 1 {
			t.Errorf("%d are known to be damaged", n)
		}
		var noted []string
		if err := s.Select(&noted, "select cast(mail_id as text) from damage"); err != nil || len(noted) != 1 || noted[0] != bad.String() {
			t.Errorf("the database says %v, %v", noted, err)
		}
		mend()
		s.ForgetDamage()
		if cs, err := s.Claim(ctx, r, "ss", 20, store.AnyPriority); err != nil || len(cs) != 1 || cs[0].ID != bad {
			t.Errorf("mended: %v, %v", cs, err)
		}
	})
}

// TestRecoverPastDamage: a dead replica's mail is rescued but for what the database cannot
// write, and so is that once it is mended.
func TestRecoverPastDamage(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		dead := register(t, s)
		ms := owned(t, s, dead, 20)
		marked := ms[12]
		if !settle(t, s, &store.Settlement{ID: marked.ID, Owner: dead, Claim: store.BornClaim, Kind: store.SettleMark}) {
			t.Fatal("not its owner's")
		}
		me := register(t, s)
		bury(t, s, dead)
		mend := damage(t, s, ms[7].ID)
		for range 2 { // it stays so
			released, adopted, err := s.Recover(ctx, me, 100)
			if err != nil {
				t.Fatal(err)
			}
			if len(adopted) > 0 && (released != 18 || adopted[0].ID != marked.ID) {
				t.Errorf("%d released, %d adopted", released, len(adopted))
			}
		}
		if left, err := s.Owned(ctx, dead); err != nil || len(left) != 1 {
			t.Errorf("%d are left, %v, want the damaged one", len(left), err)
		}
		mend()
		s.ForgetDamage()
		if n, _, err := s.Recover(ctx, me, 100); err != nil || n != 1 {
			t.Errorf("mended: %d released, %v", n, err)
		}
	})
}

// bury takes a replica for dead.
func bury(t *testing.T, s *store.Store, r store.ReplicaID) {
	t.Helper()
	epoch := "0"
	if s.Dialect() == "postgres" {
		epoch = "'epoch'"
	}
	if err := s.Exec("update replica set alive_until = "+epoch+" where id = "+placeholder(s), int64(r)); err != nil {
		t.Fatal(err)
	}
}

func placeholder(s *store.Store) string {
	if s.Dialect() == "postgres" {
		return "$1"
	}
	return "?1"
}

// TestUnregisterPastDamage: an orderly end gives back what it can.
func TestUnregisterPastDamage(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		r := register(t, s)
		ms := owned(t, s, r, 20)
		damage(t, s, ms[7].ID)
		if err := s.Unregister(ctx, r); err != nil {
			t.Fatal(err)
		}
		if left, err := s.Owned(ctx, r); err != nil || len(left) != 1 {
			t.Errorf("%d are left, %v, want the damaged one", len(left), err)
		}
		if err := s.Renew(ctx, r, time.Minute); !errors.Is(err, store.ErrStale) {
			t.Errorf("its lease goes on: %v", err)
		}
	})
}

// TestModifyPastDamage: of many mails that a person changes, the damaged one is a failure of
// its own.
func TestModifyPastDamage(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var ms []*store.NewMail
		var ids []uuid.UUID
		for range 20 {
			m := newMail("ss")
			ms, ids = append(ms, m), append(ids, m.ID)
		}
		enqueue(t, s, ms...)
		damage(t, s, ids[7])
		_, n, failures, err := s.Modify(ctx, store.Everything, ids, nil, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, ResumeAt: *m.DueTime}, nil
		})
		if err != nil || n != 19 || len(failures) != 1 || failures[0].ID != ids[7] || !errors.Is(failures[0].Err, store.ErrDamaged) {
			t.Errorf("%d changed, failures %v, %v", n, failures, err)
		}
	})
}

// TestModifyPastDamageOnce: damage that a later transaction of the same chunk meets does not
// repeat what the first one has done.
func TestModifyPastDamageOnce(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	r := register(t, s)
	good := newMail("ss")
	bad := newMail("ss", func(m *store.NewMail) { m.Owner = r })
	enqueue(t, s, good, bad)
	damage(t, s, bad.ID)
	tx, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // it has written nothing
	if _, err := tx.Exec("select 1 from due where id = $1 for update", bad.ID); err != nil {
		t.Fatal(err) // somebody is writing to it just now
	}
	decided := map[uuid.UUID]int{}
	matched, changed, failures, err := s.Modify(ctx, store.Everything, []uuid.UUID{good.ID, bad.ID}, nil, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		if decided[m.ID]++; m.ID == good.ID {
			// and lets go once the first transaction has begun
			go func() { _ = tx.Rollback() }()
		}
		if m.Status == store.MailHeld {
			return nil, store.ErrFinished
		}
		return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, ResumeAt: time.Now(), Stops: true}, nil
	})
	if err != nil || matched != 2 || changed != 1 || len(failures) != 1 || failures[0].ID != bad.ID || decided[good.ID] != 1 {
		t.Errorf("matched %d, changed %d, failures %v, decided %v, %v", matched, changed, failures, decided, err)
	}
}

// TestCommonValuesAreNoDamage: where the database refuses what a call writes for all of its
// mails, no mail is to blame.
func TestCommonValuesAreNoDamage(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	a, b := newMail("ss"), newMail("ss")
	enqueue(t, s, a, b)
	_, n, failures, err := s.Modify(ctx, store.Everything, []uuid.UUID{a.ID, b.ID}, nil, false, store.Audit{Reason: "not UTF-8: \xff"}, func(*store.Mail, *store.MailServer) (*store.Change, error) {
		return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, ResumeAt: time.Now()}, nil
	})
	if err == nil || n != 0 || len(failures) != 0 || s.DamagedMails() != 0 {
		t.Errorf("changed %d, failures %v, %d known to be damaged, %v", n, failures, s.DamagedMails(), err)
	}
}

// TestDeletePastDamage: what waits at a deleted mail server is held but for what is damaged,
// when it is deleted and at any later pass.
func TestDeletePastDamage(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		ms := []*store.NewMail{newMail("ss"), newMail("ss"), newMail("ss")}
		enqueue(t, s, ms...)
		damage(t, s, ms[1].ID)
		if _, n, err := s.DeleteServer(ctx, store.Everything, "ss", 0, true, store.Audit{}); err != nil || n.Held != 2 {
			t.Errorf("held %d, %v, want the two well ones", n.Held, err)
		}
		enqueue(t, s, newMail("ss"))
		if n, err := s.HoldDeleted(ctx, "ss"); err != nil || n != 1 {
			t.Errorf("later: held %d, %v, want the new one", n, err)
		}
	})
}

// TestFaultOfTheServerIsNoDamage: where the server fails at every row, no mail is to blame, and
// none is left out afterwards.
func TestFaultOfTheServerIsNoDamage(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	r := register(t, s)
	enqueue(t, s, newMail("ss"), newMail("ss"))
	for _, q := range []string{
		`create function ill() returns trigger language plpgsql as $$ begin raise exception 'no space in shared memory' using errcode = 'XX000'; end $$`,
		`create trigger ill before update on due for each statement execute function ill()`,
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if cs, err := s.Claim(ctx, r, "ss", 20, store.AnyPriority); err == nil || len(cs) > 0 {
		t.Errorf("got %d, %v, want the fault", len(cs), err)
	}
	if n := s.DamagedMails(); n != 0 {
		t.Errorf("%d mails are left out", n)
	}
	if err := s.Exec("drop trigger ill on due"); err != nil {
		t.Fatal(err)
	}
	if cs, err := s.Claim(ctx, r, "ss", 20, store.AnyPriority); err != nil || len(cs) != 2 {
		t.Errorf("well again: %d claimed, %v", len(cs), err)
	}
}

// TestClaimPastDamagedPage: a page of SQLite's file is overwritten that one message lies on.
func TestClaimPastDamagedPage(t *testing.T) {
	t.Parallel()
	dsn := storetest.SQLiteDSN(t)
	s, err := store.Open(ctx, dsn, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var ms []*store.NewMail
	for range 9 {
		ms = append(ms, newMail("ss", func(m *store.NewMail) { m.Raw = []store.Piece{{Data: []byte(strings.Repeat("0123456789", 4000))}} }))
	}
	enqueue(t, s, ms...)
	var pages []int64
	if err := s.Select(&pages, "select pageno from dbstat where name = 'mail' and pagetype = 'overflow' order by path limit 1"); err != nil || len(pages) != 1 {
		t.Fatalf("%v, %v", pages, err)
	}
	if err := s.Exec("pragma wal_checkpoint(truncate)"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path, _, _ := strings.Cut(strings.TrimPrefix(dsn, "sqlite:"), "?")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{255, 255, 255, 255}, (pages[0]-1)*4096); err != nil {
		// the number of the next page
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s = storetest.Open(t, dsn)
	cs, err := s.Claim(ctx, register(t, s), "ss", 20, store.AnyPriority)
	if err != nil || len(cs) != 8 || s.DamagedMails() != 1 {
		t.Errorf("%d of 8 well ones are claimed, %d known to be damaged, %v", len(cs), s.DamagedMails(), err)
	}
	in, err := store.OpenInspector(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	found, err := in.Inspect(ctx, store.InspectOptions{Messages: -1, ContentBytes: -1, Late: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range found.Invariants {
		if n := len(i.Breaches); (n > 0) != (i.Name == "I6" || i.Name == "I9") {
			t.Errorf("%s: %v, want breaches of I6, which cannot be looked at, and I9 only", i.Name, i.Breaches)
		}
	}
}

// TestOperationPastDamage: of many mails that an operation is about, the damaged one is a
// failure of its own. It is counted once, and nothing waits behind it.
func TestOperationPastDamage(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		r := register(t, s)
		const mails, n = 60, 25
		ms := make([]*store.NewMail, mails)
		for i := range ms {
			ms[i] = newMail("ss", func(m *store.NewMail) { m.BatchID, m.CreateTime = "b", m.CreateTime.Add(-time.Minute) })
		}
		enqueue(t, s, ms...)
		bad := ms[30].ID
		damage(t, s, bad)
		run := func(changed int64, decide store.Decide) {
			t.Helper()
			o := &store.Operation{Action: "HoldMails", Scope: store.Everything, Filter: store.MailFilter{BatchID: "b"}, Request: "{}", Audit: store.Audit{Actor: "me"}, Brakes: true}
			if err := s.BeginOperation(ctx, o); err != nil {
				t.Fatal(err)
			}
			if _, err := s.TakeOperation(ctx, r); err != nil {
				t.Fatal(err)
			}
			for range 2 * mails / n {
				got, _, err := s.Operate(ctx, r, o.ID, n, decide, explained)
				if err != nil || got == nil {
					t.Fatalf("a piece: %v, %v", got, err)
				}
				if o = got; o.State != store.OperationRunning {
					break
				}
			}
			if o.State != store.OperationDone || o.Matched != changed+1 || o.Changed != changed || o.Failed != 1 || len(o.Failures) != 1 || len(o.Failures[0].IDs) != 1 || o.Failures[0].IDs[0] != bad || o.Failures[0].Message != store.ErrDamaged.Error() {
				t.Errorf("got %+v, want all but the damaged one changed", o)
			}
		}
		run(mails-1, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, ResumeAt: *m.DueTime}, nil
		})
		run(mails-1, cancelled) // it is known already
		if s.DamagedMails() != 1 {
			t.Errorf("%d are known to be damaged", s.DamagedMails())
		}
	})
}

// TestOperationFaultOfTheServer: where the server fails at every row, an operation takes no
// mail for damaged, and loses none from its counts.
func TestOperationFaultOfTheServer(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	r := register(t, s)
	for range 3 {
		enqueue(t, s, newMail("ss", func(m *store.NewMail) { m.CreateTime = m.CreateTime.Add(-time.Minute) }))
	}
	o := &store.Operation{Action: "CancelMails", Scope: store.Everything, Request: "{}"}
	if err := s.BeginOperation(ctx, o); err != nil {
		t.Fatal(err)
	}
	if _, err := s.TakeOperation(ctx, r); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		`create function ill() returns trigger language plpgsql as $$ begin raise exception 'no space in shared memory' using errcode = 'XX000'; end $$`,
		`create trigger ill before update or delete on due for each statement execute function ill()`,
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if got, _, err := s.Operate(ctx, r, o.ID, 10, cancelled, explained); err == nil || s.DamagedMails() != 0 {
			t.Fatalf("%+v, %d known to be damaged, %v; want the fault", got, s.DamagedMails(), err)
		}
	}
	if err := s.Exec("drop trigger ill on due"); err != nil {
		t.Fatal(err)
	}
	got, _, err := s.Operate(ctx, r, o.ID, 10, cancelled, explained)
	if err != nil || got == nil || got.State != store.OperationDone || got.Matched != 3 || got.Changed != 3 || got.Failed != 0 {
		t.Errorf("well again: %+v, %v", got, err)
	}
}
