package store_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// teams enqueues one mail due at a time for each of n teams.
func teams(t testing.TB, s storetest.Store, n int, at time.Time) {
	t.Helper()
	var ms []*store.NewMail
	for i := range n {
		ms = append(ms, newMail("ss", func(m *store.NewMail) { m.Team, m.RunAt = fmt.Sprintf("t%d", i), at }))
	}
	enqueue(t, s, ms...)
}

// TestClaimNeverMoreThanAsked: limits are counted by what was asked for; with more teams than
// that, others have their turn each time.
func TestClaimNeverMoreThanAsked(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		teams(t, s, 100, time.Now())
		first := map[string]bool{}
		for range 20 {
			cs, err := s.Claim(ctx, r, "ss", 5, store.AnyPriority)
			if err != nil || len(cs) != 5 {
				t.Fatalf("%d claimed, %v", len(cs), err)
			}
			first[cs[0].Team] = true
			for _, c := range cs {
				settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleRetry, Status: store.MailQueued, RunAt: c.RunAt})
			}
		}
		if len(first) < 5 {
			t.Errorf("the same %d teams begin each of 20 pages", len(first))
		}
	})
}

// TestClaimAsManyAsAsked: what other teams have due later, or little of, takes nothing off a
// page.
func TestClaimAsManyAsAsked(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		teams(t, s, 499, time.Now().Add(time.Hour))
		var ms []*store.NewMail
		for i := range 1000 {
			ms = append(ms, newMail("ss", func(m *store.NewMail) { m.Team, m.Priority = "big", int16(10*(i%2)) }))
		}
		enqueue(t, s, ms...)
		if cs, err := s.Claim(ctx, r, "ss", 500, store.AnyPriority); err != nil || len(cs) != 500 {
			t.Errorf("%d of 1,000 due are claimed, %v", len(cs), err)
		}
		teams(t, s, 100, time.Now())
		cs, err := s.Claim(ctx, r, "ss", 400, store.AnyPriority)
		small := 0
		for _, c := range cs {
			if c.Team != "big" {
				small++
			}
		}
		if err != nil || len(cs) != 400 || small != 100 {
			t.Errorf("%d claimed, %d of small teams, %v", len(cs), small, err)
		}
	})
}

// TestDueServersBesideMuchLater: looking for mail servers with due mail does not read what is
// due later. The best of ten, so that a busy machine does not matter.
func TestDueServersBesideMuchLater(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		for _, name := range []string{"busy", "ready", "void"} {
			if _, _, err := s.CreateServer(ctx, newServer(name, ""), store.Audit{}); err != nil {
				t.Fatal(err)
			}
		}
		id, at := "printf('%08x-0000-7000-8000-000000000000', i)", "cast(unixepoch() as integer) * 1000000 + 86400000000 + i"
		if s.Dialect() == "postgres" {
			id, at = "(lpad(to_hex(i), 8, '0') || '-0000-7000-8000-000000000000')::uuid", "now() + interval '1 day' + i * interval '1 millisecond'"
		}
		if err := s.Exec("insert into due (id, team, mail_server, priority, status, run_at) with recursive g(i) as (select 1 union all select i + 1 from g where i < 100000) " +
			"select " + id + ", 't' || (i % 3), 'busy', 10, 'queued', " + at + " from g"); err != nil {
			t.Fatal(err)
		}
		enqueue(t, s, newMail("ready"), newMail("unlisted"))
		best := time.Hour
		for range 10 {
			begin := time.Now()
			got, err := s.DueServers(ctx)
			if err != nil || len(got) != 1 || got[0] != "ready" {
				t.Fatalf("%v, %v", got, err)
			}
			best = min(best, time.Since(begin))
		}
		if best > 3*time.Millisecond {
			t.Errorf("it took %v", best)
		}
	})
}

// TestChangesKeepTheOrder: while mails are claimed and settled, and people change them, the
// last change that a watcher hears of a mail is what it is in the end.
func TestChangesKeepTheOrder(t *testing.T) {
	s := storetest.Open(t, storetest.PostgresDSN(t))
	r := register(t, s)
	var ids []uuid.UUID
	var ms []*store.NewMail
	for i := range 500 {
		m := newMail("ss", func(m *store.NewMail) { m.RunAt = time.Now().Add(-time.Hour + time.Duration(i)*time.Millisecond) })
		ms, ids = append(ms, m), append(ids, m.ID)
	}
	enqueue(t, s, ms...)
	at, err := s.LastChange(ctx)
	if err != nil {
		t.Fatal(err)
	}
	contested := ids[len(ids)-30:]
	last, words := map[uuid.UUID]store.MailStatus{}, 0
	for range 15 {
		words += claimsBesideChanges(t, s, r, contested)
		for more := true; more; {
			var cs []store.MailChange
			if cs, at, more, err = s.Changes(ctx, store.Everything, store.MailFilter{}, at, 5000); err != nil {
				t.Fatal(err)
			}
			for _, c := range cs {
				last[c.Mail.ID] = c.Status
			}
		}
		for _, id := range contested {
			m, err := s.Mail(ctx, store.Everything, id)
			if err != nil {
				t.Fatal(err)
			}
			if heard := last[id]; heard != "" && heard != m.Status {
				t.Fatalf("the last that is heard of %s is %s, and it is %s", id, heard, m.Status)
			}
		}
	}
	if words == 0 || len(last) < len(ids) {
		t.Errorf("%d changes by people, %d mails heard of: nothing was tried", words, len(last))
	}
}

// claimsBesideChanges claims and settles all mail of a mail server again and again for a
// moment, while people change some of it, and says how often they did.
func claimsBesideChanges(t *testing.T, s *store.Store, r store.ReplicaID, ids []uuid.UUID) int {
	t.Helper()
	var over atomic.Bool
	var words atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		for !over.Load() {
			cs, err := s.Claim(ctx, r, "ss", 500, store.AnyPriority)
			if err != nil {
				t.Error(err)
				return
			}
			var answers []<-chan store.Settled
			for _, c := range cs {
				answers = append(answers, s.Settle(&store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleRetry, Status: store.MailQueued, RunAt: c.RunAt}))
			}
			for _, a := range answers {
				<-a
			}
		}
	})
	for range 3 {
		wg.Go(func() {
			for !over.Load() {
				_, n, _, err := s.Modify(ctx, store.Everything, ids, nil, false, store.Audit{},
					func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
						return &store.Change{Kind: store.SettleRetry, Status: store.MailDeferred, RunAt: *m.DueTime, Attempts: m.Attempts}, nil
					})
				if err != nil {
					t.Error(err)
					return
				}
				words.Add(int32(n))
			}
		})
	}
	<-time.After(200 * time.Millisecond)
	over.Store(true)
	wg.Wait()
	return int(words.Load())
}

// TestPersonBehindAYoungerChange: a person's change that locks its mails before somebody
// younger changes one of them has to begin again with that one, or its change would be told
// before the one that it overwrites.
func TestPersonBehindAYoungerChange(t *testing.T) {
	s := storetest.Open(t, storetest.PostgresDSN(t))
	ms := []*store.NewMail{newMail("ss"), newMail("ss"), newMail("ss")} // their ids rise
	enqueue(t, s, ms...)
	at, err := s.LastChange(ctx)
	if err != nil {
		t.Fatal(err)
	}
	become := func(status store.MailStatus, ms ...*store.NewMail) error {
		var ids []uuid.UUID
		for _, m := range ms {
			ids = append(ids, m.ID)
		}
		_, n, failures, err := s.Modify(ctx, store.Everything, ids, nil, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettleRetry, Status: status, RunAt: time.Now(), Attempts: m.Attempts}, nil
		})
		if err == nil && n != len(ms) {
			err = fmt.Errorf("%d of %d changed, %v", n, len(ms), failures)
		}
		return err
	}
	between, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := between.Exec("select 1 from due where id = $1 for update", ms[1].ID); err != nil {
		t.Fatal(err)
	}
	older := make(chan error, 1)
	go func() { older <- become(store.MailDeferred, ms...) }()
	until(t, "the older one has the first and waits for the second", func() bool {
		var n int
		err := s.Get(&n, "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
		return err == nil && n > 0
	})
	if err := become(store.MailQueued, ms[2]); err != nil {
		t.Fatal(err)
	}
	if err := between.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-older; err != nil {
		t.Fatal(err)
	}
	cs, _, _, err := s.Changes(ctx, store.Everything, store.MailFilter{}, at, 100)
	if err != nil {
		t.Fatal(err)
	}
	var heard []store.MailStatus
	for _, c := range cs {
		if c.Mail.ID == ms[2].ID {
			heard = append(heard, c.Status)
		}
	}
	if fmt.Sprint(heard) != fmt.Sprint([]store.MailStatus{store.MailQueued, store.MailDeferred}) {
		t.Errorf("heard %v, want what the younger one did, then what became of it", heard)
	}
}
