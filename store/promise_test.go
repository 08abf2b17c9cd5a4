package store_test

import (
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestClaimIsFair: every team gets its share of a page, and what is left of it goes to those
// who have more; by priority inside a team, and a claim above a priority takes nothing else.
func TestClaimIsFair(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		var ms []*store.NewMail
		add := func(team string, priority int16, n int) {
			for range n {
				ms = append(ms, newMail("ss", func(m *store.NewMail) { m.Team, m.Priority = team, priority }))
			}
		}
		add("big", 10, 100)
		add("small", 10, 3)
		add("", 20, 5)
		add("big", 40, 2)
		enqueue(t, s, ms...)
		if cs, err := s.Claim(ctx, r, "ss", 50, 10); err != nil || len(cs) != 7 {
			t.Fatalf("above 10: %d, %v", len(cs), err)
		} else {
			for _, c := range cs {
				if c.Priority <= 10 {
					t.Errorf("priority %d", c.Priority)
				}
				settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now().Add(-time.Hour)})
			}
		}
		cs, err := s.Claim(ctx, r, "ss", 30, store.AnyPriority)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, c := range cs {
			got[c.Team]++
		}
		if got["small"] != 3 || got[""] != 5 || got["big"] != 22 || cs[0].Priority != 40 || cs[1].Priority != 40 {
			t.Errorf("first page %v", got)
		}
		rest := 0
		for {
			cs, err := s.Claim(ctx, r, "ss", 30, store.AnyPriority)
			if err != nil {
				t.Fatal(err)
			}
			if len(cs) == 0 {
				break
			}
			rest += len(cs)
		}
		if rest != 110-30 {
			t.Errorf("%d in later pages", rest)
		}
	})
}

// TestBreaker: changes are serialised and read back whole.
func TestBreaker(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				_, err := s.ChangeBreaker(ctx, "ss", func(now time.Time, b *store.Breaker) bool {
					b.Version, b.Failures, b.Reason, b.RetryAt = 3, b.Failures+1, "down", now.Add(time.Minute)
					return true
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		before, err := s.Breakers(ctx)
		b := before["ss"]
		if err != nil || len(before) != 1 || b.Failures != 10 || b.Version != 3 || b.Reason != "down" || time.Until(b.RetryAt) < 50*time.Second || !b.ProbeUntil.IsZero() {
			t.Fatalf("%+v %v", b, err)
		}
		if _, err := s.ChangeBreaker(ctx, "ss", func(_ time.Time, b *store.Breaker) bool { b.Failures = 0; return false }); err != nil {
			t.Fatal(err)
		}
		if after, err := s.Breakers(ctx); err != nil || after["ss"].Failures != 10 {
			t.Errorf("a refused change was written: %+v %v", after["ss"], err)
		}
	})
}

// TestDeathBetweenTransactions: a mail whose owner goes after the first hundred recipients have
// it is partially sent, not queued.
func TestDeathBetweenTransactions(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		m := newMail("ss")
		enqueue(t, s, m)
		r := register(t, s)
		if cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority); err != nil || len(cs) != 1 {
			t.Fatal(cs, err)
		}
		nothing := &store.Progress{Results: []store.RecipientResult{{Status: store.RecipientRejected}, {Status: store.RecipientPending}}}
		some := &store.Progress{Results: []store.RecipientResult{{Status: store.RecipientAccepted}, {Status: store.RecipientPending}}}
		for _, c := range []struct {
			p      *store.Progress
			status store.MailStatus // handed over
			want   store.MailStatus // without its owner
		}{{nothing, "", store.MailQueued}, {some, store.MailPartiallySent, store.MailPartiallySent}} {
			if !settle(t, s, &store.Settlement{ID: m.ID, Owner: r, Claim: tokenOf(t, s, m.ID), Kind: store.SettleProgress, Status: c.status, Progress: c.p}) {
				t.Fatal("progress refused")
			}
			if got, err := s.Mail(ctx, store.Everything, m.ID); err != nil || got.Status != c.want || got.Owner != r {
				t.Fatalf("still its owner's: %+v %v", got, err)
			}
			if err := s.Unregister(ctx, r); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Mail(ctx, store.Everything, m.ID); err != nil || got.Status != c.want || got.DueTime == nil {
				t.Fatalf("want %s: %+v %v", c.want, got, err)
			}
			r = register(t, s)
			if cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority); err != nil || len(cs) != 1 {
				t.Fatal(cs, err)
			}
		}
	})
}

// TestDeathsAreCounted: an owner's death counts once for what it held, and again only for what
// the next ones had begun. What two owners died of is adopted. The owner's word ends the count.
func TestDeathsAreCounted(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		held, begun := newMail("ss"), newMail("ss")
		enqueue(t, s, held, begun)
		crashes := func(want map[uuid.UUID]int) store.ReplicaID {
			t.Helper()
			r := register(t, s)
			cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority)
			if err != nil || len(cs) != 2 {
				t.Fatal(cs, err)
			}
			for _, c := range cs {
				if c.Crashes != want[c.ID] {
					t.Errorf("%d deaths, want %d", c.Crashes, want[c.ID])
				}
			}
			return r
		}
		die := func(r store.ReplicaID) (next store.ReplicaID, suspects []*store.Claimed) {
			t.Helper()
			if s.Dialect() != "sqlite" { // where one process is alive by definition
				if err := s.Renew(ctx, r, -time.Second); err != nil {
					t.Fatal(err)
				}
			}
			next = register(t, s)
			_, suspects, err := s.Recover(ctx, next, 10)
			if err != nil {
				t.Fatal(err)
			}
			return next, suspects
		}
		if _, suspects := die(crashes(map[uuid.UUID]int{})); len(suspects) > 0 {
			t.Errorf("after one death %d mails wait for their new owner's word", len(suspects))
		}
		r := crashes(map[uuid.UUID]int{held.ID: 1, begun.ID: 1})
		if !settle(t, s, &store.Settlement{ID: begun.ID, Owner: r, Claim: tokenOf(t, s, begun.ID), Kind: store.SettleBegin, Crashes: 2}) {
			t.Fatal("begin refused")
		}
		if settle(t, s, &store.Settlement{ID: held.ID, Owner: r + 77, Claim: tokenOf(t, s, held.ID), Kind: store.SettleBegin, Crashes: 9}) {
			t.Fatal("a stale owner began")
		}
		// What two owners died of waits for the word of its new owner, the rest is claimed
		// again.
		next, suspects := die(r)
		if len(suspects) != 1 || suspects[0].ID != begun.ID || suspects[0].Crashes != 2 || !suspects[0].Begun {
			t.Fatalf("%d suspects, want the one that was begun: %+v", len(suspects), suspects)
		}
		if !settle(t, s, &store.Settlement{ID: begun.ID, Owner: next, Claim: suspects[0].Claim, Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now().Add(-time.Second), Crashes: 2}) {
			t.Fatal("retry refused")
		}
		r = crashes(map[uuid.UUID]int{held.ID: 1, begun.ID: 2})
		for _, m := range []*store.NewMail{held, begun} {
			if !settle(t, s, &store.Settlement{ID: m.ID, Owner: r, Claim: tokenOf(t, s, m.ID), Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now().Add(-time.Second)}) {
				t.Fatal("retry refused")
			}
		}
		crashes(map[uuid.UUID]int{})
	})
}
