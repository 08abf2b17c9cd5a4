package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestRecoverInPages: marked mails of several dead replicas come page by page, each once;
// unmarked ones are free at the first call; the living keep theirs.
func TestRecoverInPages(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		const marked, unmarked = 750, 330
		var dead []store.ReplicaID
		ms := make([]*store.NewMail, marked+unmarked)
		for k := range 3 {
			// one after the other: on SQLite a successor is the end of those before
			dead = append(dead, register(t, s))
			var own []*store.NewMail
			for i := k; i < len(ms); i += 3 {
				ms[i] = newMail("ss", func(m *store.NewMail) { m.Owner = dead[k] })
				own = append(own, ms[i])
			}
			enqueue(t, s, own...)
		}
		var answers []<-chan store.Settled
		for i, m := range ms[:marked] {
			answers = append(answers, s.Settle(&store.Settlement{ID: m.ID, Owner: dead[i%3], Claim: store.BornClaim, Kind: store.SettleMark}))
		}
		for _, a := range answers {
			if r := <-a; r.Err != nil || !r.Mine {
				t.Fatalf("mark: %+v", r)
			}
		}
		for _, r := range dead {
			if err := s.Renew(ctx, r, -time.Second); err != nil && !errors.Is(err, store.ErrStale) {
				t.Fatal(err)
			}
		}
		me := register(t, s)
		mine := newMail("ss", func(m *store.NewMail) { m.Owner = me })
		enqueue(t, s, mine)
		seen := map[uuid.UUID]bool{}
		for page := 0; ; page++ {
			released, adopted, err := s.Recover(ctx, me, 200)
			if err != nil || released != map[bool]int{true: unmarked}[page == 0] {
				t.Fatalf("page %d: %d released, %v", page, released, err)
			}
			if len(adopted) == 0 {
				break
			}
			for _, c := range adopted {
				if seen[c.ID] || !c.Marked || c.Crashes != 1 {
					t.Fatalf("adopted %+v, seen %v", c, seen[c.ID])
				}
				seen[c.ID] = true
			}
		}
		if len(seen) != marked {
			t.Errorf("%d adopted", len(seen))
		}
		if m, err := s.Mail(ctx, store.Everything, mine.ID); err != nil || m.Owner != me {
			t.Errorf("the living one's mail: %+v %v", m, err)
		}
		var left int
		if err := s.Get(&left, "select count(*) from replica"); err != nil || left != 1 {
			t.Errorf("%d replicas are left, %v", left, err)
		}
	})
}

// TestUnregisterIsNoDeath: what was counted before a suspect was begun is taken back when its
// owner ends in good order before the mark. A death behind that counts from there.
func TestUnregisterIsNoDeath(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		m := newMail("ss")
		enqueue(t, s, m)
		claim := func(want int) (store.ReplicaID, *store.Claimed) {
			t.Helper()
			r := register(t, s)
			cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority)
			if err != nil || len(cs) != 1 || cs[0].Crashes != want || cs[0].Begun {
				t.Fatalf("got %+v %v, want one mail that %d owners died of and none has begun", cs, err, want)
			}
			return r, cs[0]
		}
		begin := func(r store.ReplicaID, c *store.Claimed) {
			t.Helper()
			if !settle(t, s, &store.Settlement{ID: m.ID, Owner: r, Claim: c.Claim, Kind: store.SettleBegin, Crashes: c.Crashes + 1}) {
				t.Fatal("begin refused")
			}
		}
		r, c := claim(0)
		begin(r, c)
		if !settle(t, s, &store.Settlement{ID: m.ID, Owner: r, Claim: c.Claim, Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now().Add(-time.Second), Crashes: 1}) {
			t.Fatal("retry refused")
		}
		for range 2 {
			r, c = claim(1)
			begin(r, c)
			if err := s.Unregister(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		claim(1)
	})
}

// TestUnregister: an orderly end gives back what was not marked, counts no crash, and leaves
// the marked to whoever rescues.
func TestUnregister(t *testing.T) {
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		free, marked := newMail("ss", func(m *store.NewMail) { m.Owner = r }), newMail("ss", func(m *store.NewMail) { m.Owner = r })
		enqueue(t, s, free, marked)
		if !settle(t, s, &store.Settlement{ID: marked.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark}) {
			t.Fatal("mark refused")
		}
		begin, err := s.LastChange(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Unregister(ctx, r); err != nil {
			t.Fatal(err)
		}
		if m, err := s.Mail(ctx, store.Everything, free.ID); err != nil || m.Status != store.MailQueued || m.Owner != 0 {
			t.Errorf("%+v %v", m, err)
		}
		if m, err := s.Mail(ctx, store.Everything, marked.ID); err != nil || m.Owner != r {
			t.Errorf("%+v %v", m, err)
		}
		cs, _, _, err := s.Changes(ctx, store.Everything, store.MailFilter{}, begin, 10)
		if err != nil || len(cs) != 1 || cs[0].Mail.ID != free.ID || cs[0].Status != store.MailQueued {
			t.Errorf("changes: %+v %v", cs, err)
		}
		me := register(t, s)
		if n, adopted, err := s.Recover(ctx, me, 10); err != nil || n != 0 || len(adopted) != 1 || adopted[0].ID != marked.ID {
			t.Errorf("rescued: %d %v %v", n, adopted, err)
		}
		if cs, err := s.Claim(ctx, me, "ss", 10, store.AnyPriority); err != nil || len(cs) != 1 || cs[0].Crashes != 0 {
			t.Errorf("claimed: %+v %v", cs, err)
		}
		if err := s.Unregister(ctx, me+1000); err != nil {
			t.Errorf("somebody who never was: %v", err)
		}
	})
}
