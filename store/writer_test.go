package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// away makes PostgreSQL unreachable through p, and returns what ends that.
func away(p *storetest.Proxy) (back func()) {
	p.Cut(func(bool, []byte) bool { return true })
	return func() { p.Cut(nil) }
}

// owned enqueues n mails that r owns.
func owned(t testing.TB, s storetest.Store, r store.ReplicaID, n int) []*store.NewMail {
	t.Helper()
	ms := make([]*store.NewMail, n)
	for i := range ms {
		ms[i] = newMail("ss", func(m *store.NewMail) { m.Owner = r })
	}
	enqueue(t, s, ms...)
	return ms
}

// TestResultsAfterAnOutage: what waited for the database is durable soon after it is back, in
// groups and not one by one, and without an error to anybody. 5,000 results take well below a
// second where nothing else runs; one by one they took minutes.
func TestResultsAfterAnOutage(t *testing.T) {
	p, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
	s := storetest.Open(t, dsn)
	ms := owned(t, s, register(t, s), 5000)
	r := ms[0].Owner
	back := away(p)
	var answers []<-chan store.Settled
	for _, m := range ms {
		answers = append(answers, s.Settle(&store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1}))
	}
	select {
	case a := <-answers[0]:
		t.Fatalf("answered without a database: %+v", a)
	case <-time.After(time.Second): // the outage
	}
	back()
	began := time.Now()
	for i, a := range answers {
		if a := <-a; !a.Mine || a.Err != nil {
			t.Fatalf("result %d: %+v", i, a)
		}
	}
	took := time.Since(began)
	t.Logf("5,000 results are durable %v after the end of the outage", took.Round(time.Millisecond))
	if took > 15*time.Second {
		t.Errorf("5,000 results took %v", took)
	}
}

// TestNothingOvertakes: when a write of a mail fails, those behind it wait. The results of one
// transaction never take away the mark of the next.
func TestNothingOvertakes(t *testing.T) {
	t.Parallel()
	p, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
	s := storetest.Open(t, dsn)
	r := register(t, s)
	for name, answer := range map[string]bool{"the question is lost": false, "the answer is lost": true} {
		t.Run(name, func(t *testing.T) {
			ms := owned(t, s, r, 3)
			m := ms[1]
			var cuts atomic.Int32
			p.Cut(func(a bool, b []byte) bool { // the write, several times
				return a == answer && (!answer && bytes.Contains(b, []byte("of the first")) || answer && cuts.Load() > 0) && cuts.Add(1) <= 4
			})
			if answer {
				cuts.Store(1)
			}
			mark := &store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark}
			progress := resultWith(m.ID, r, store.SettleProgress, "of the first")
			next := &store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim + 1, Kind: store.SettleMark}
			answers := []<-chan store.Settled{s.Settle(mark), s.Settle(progress), s.Settle(next)}
			for _, other := range []*store.NewMail{ms[0], ms[2]} {
				answers = append(answers, s.Settle(resultWith(other.ID, r, store.SettlePark, "no")))
			}
			for i, a := range answers {
				if a := <-a; !a.Mine || a.Err != nil {
					t.Fatalf("write %d: %+v", i, a)
				}
			}
			p.Cut(nil)
			if cuts.Load() < 2 {
				t.Fatal("nothing was lost")
			}
			var marked bool
			if err := s.Get(&marked, "select data_at is not null from due where id = ?", m.ID); err != nil || !marked {
				t.Errorf("the second mark is gone: %v", err)
			}
		})
	}
}

// TestFullLine: more writes than the line holds make whoever hands over wait, and lose none.
func TestFullLine(t *testing.T) {
	t.Parallel()
	p, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
	s := storetest.Open(t, dsn)
	r := register(t, s)
	ms := owned(t, s, r, 500)
	back := away(p)
	const times = 20
	var handed atomic.Int32
	all := make(chan (<-chan store.Settled), times*len(ms))
	go func() {
		for range times {
			for _, m := range ms {
				all <- s.Settle(&store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark})
				handed.Add(1)
			}
		}
		close(all)
	}()
	until(t, "the line is full", func() bool {
		n := handed.Load()
		<-time.After(50 * time.Millisecond)
		return n > 5000 && n == handed.Load()
	})
	if n := handed.Load(); n == times*500 {
		t.Fatal("the line has no end")
	}
	back()
	n := 0
	for a := range all {
		if a := <-a; !a.Mine || a.Err != nil {
			t.Fatalf("%+v", a)
		}
		n++
	}
	if n != times*len(ms) {
		t.Errorf("%d answers", n)
	}
}

// TestClosedStoreAnswers: what a store cannot write any more is answered with an error,
// whenever it was handed over.
func TestClosedStoreAnswers(t *testing.T) {
	t.Parallel()
	p, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
	s, err := store.Open(ctx, dsn, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := register(t, s)
	ms := owned(t, s, r, 1000)
	defer away(p)()
	var answers []<-chan store.Settled
	for i, m := range ms {
		answers = append(answers, s.Settle(&store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark, Quick: i%2 == 0}))
	}
	closed := make(chan struct{})
	go func() { defer close(closed); _ = s.Close() }()
	for i, a := range answers {
		if a := <-a; !errors.Is(a.Err, store.ErrClosed) {
			t.Fatalf("write %d: %+v", i, a)
		}
	}
	<-closed
	if a := <-s.Settle(&store.Settlement{ID: ms[0].ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark}); !errors.Is(a.Err, store.ErrClosed) {
		t.Errorf("after the end: %+v", a)
	}
}

// TestDamageHoldsUpNobody: a row that PostgreSQL cannot read or write, because its page or an
// index is damaged, is found among the others of its group, which are written. It is repeated
// for a while, because a fault of the server may pass, and then answered with the fault.
func TestDamageHoldsUpNobody(t *testing.T) {
	t.Parallel()
	for _, passes := range []bool{false, true} {
		t.Run(fmt.Sprintf("passes %v", passes), func(t *testing.T) {
			s := storetest.Open(t, storetest.PostgresDSN(t))
			s.DamageWait(200 * time.Millisecond)
			if passes {
				s.DamageWait(time.Minute)
			}
			r := register(t, s)
			ms := owned(t, s, r, 20)
			bad := ms[7]
			for _, q := range []string{
				`create function damaged() returns trigger language plpgsql as $$
				begin raise exception 'invalid page in block 7' using errcode = 'XX001'; end $$`,
				`create trigger damaged before delete on due for each row when (old.id = '` + bad.ID.String() + `') execute function damaged()`,
			} {
				if err := s.Exec(q); err != nil {
					t.Fatal(err)
				}
			}
			answers := map[uuid.UUID]<-chan store.Settled{}
			for _, m := range ms {
				answers[m.ID] = s.Settle(&store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1})
			}
			for _, m := range ms[:7] {
				if a := <-answers[m.ID]; !a.Mine || a.Err != nil {
					t.Errorf("a mail before the damage: got %+v", a)
				}
			}
			if passes {
				if err := s.Exec("drop trigger damaged on due"); err != nil {
					t.Fatal(err)
				}
			}
			for _, m := range ms[8:] {
				if a := <-answers[m.ID]; !a.Mine || a.Err != nil {
					t.Errorf("a mail behind the damage: got %+v", a)
				}
			}
			if a := <-answers[bad.ID]; passes != (a.Err == nil) || passes != a.Mine {
				t.Errorf("the damaged one: got %+v", a)
			}
		})
	}
}
