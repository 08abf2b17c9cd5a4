package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// legal is what may follow what in a mail's life.
var legal = map[store.MailStatus]string{
	"": "queued held", store.MailQueued: "sent deferred failed held cancelled", store.MailHeld: "queued cancelled", store.MailDeferred: "sent deferred failed queued held cancelled",
	store.MailFailed: "queued cancelled", store.MailSent: "", store.MailCancelled: "",
}

// TestChanges: while workers and people change mails in every way, each watcher sees every
// change once and each mail's in order, wherever it starts again.
func TestChanges(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		if _, _, err := s.CreateServer(ctx, newServer("ss", "sales"), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		begin, err := s.LastChange(ctx)
		if err != nil {
			t.Fatal(err)
		}
		const mails = 120
		done := make(chan struct{})
		var watchers, work sync.WaitGroup
		seen := make([]map[uuid.UUID][]store.MailStatus, 3)
		for i := range seen {
			seen[i] = map[uuid.UUID][]store.MailStatus{}
			watchers.Go(func() {
				at := begin
				for over := false; ; {
					n := 1 + rand.IntN(40)
					cs, next, more, err := s.Changes(ctx, store.Everything, store.MailFilter{}, at, n)
					if err != nil {
						t.Error(err)
						return
					}
					for _, c := range cs {
						seen[i][c.Mail.ID] = append(seen[i][c.Mail.ID], c.Status)
					}
					at = next
					if over && !more && len(cs) == 0 {
						return
					}
					select {
					case <-done:
						over = true
					default:
					}
				}
			})
		}
		var mu sync.Mutex
		left := mails
		for range 2 { // enqueuers
			work.Go(func() {
				for range mails / 2 {
					m := newMail("ss")
					if rand.IntN(5) == 0 {
						m.Held = "held for a test"
					}
					if res, err := s.Enqueue(ctx, m); err != nil || res.Err != nil {
						t.Error(err, res.Err)
					}
				}
			})
		}
		r := register(t, s)
		over := func() bool { mu.Lock(); defer mu.Unlock(); return left == 0 }
		end := time.Now().Add(2 * time.Minute)
		for range 2 { // workers
			work.Go(func() {
				for !over() && time.Now().Before(end) {
					cs, err := s.Claim(ctx, r, "ss", 7, store.AnyPriority)
					if err != nil {
						t.Error(err)
						return
					}
					for _, c := range cs {
						st := &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Attempts: c.Attempts + 1, RunAt: time.Now().Add(-time.Hour)}
						switch rand.IntN(4) {
						case 0:
							st.Kind, st.Status = store.SettleRetry, store.MailDeferred
						case 1:
							st.Kind, st.Status, st.LastError = store.SettlePark, store.MailFailed, "x"
						default:
							st.Kind, st.Status = store.SettleArchive, store.MailSent
							mu.Lock()
							left--
							mu.Unlock()
						}
						if a := <-s.Settle(st); a.Err != nil || !a.Mine {
							t.Error(a)
						}
					}
				}
			})
		}
		work.Go(func() { // people
			for !over() && time.Now().Before(end) {
				_, _, _, err := s.Modify(ctx, store.Everything, nil, &store.MailFilter{MailServer: "ss", Statuses: []store.MailStatus{store.MailFailed, store.MailHeld, store.MailDeferred}}, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
					if m.Status == store.MailFailed || m.Status == store.MailHeld {
						return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now().Add(-time.Hour), Attempts: m.Attempts}, nil
					}
					if rand.IntN(20) == 0 {
						return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, Attempts: m.Attempts, LastError: "held"}, nil
					}
					return nil, nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
		work.Wait()
		close(done)
		watchers.Wait()
		if !over() {
			t.Fatalf("%d mails are not finished", left)
		}
		total := 0
		for i, w := range seen {
			if len(w) != mails {
				t.Errorf("watcher %d saw %d mails", i, len(w))
			}
			for id, sts := range w {
				var was store.MailStatus
				for _, st := range sts {
					if !containsWord(legal[was], string(st)) {
						t.Errorf("watcher %d, mail %s: %s after %q in %v", i, id, st, was, sts)
						break
					}
					was = st
				}
				if was != store.MailSent {
					t.Errorf("watcher %d, mail %s ends %s", i, id, was)
				}
				if fmt.Sprint(sts) != fmt.Sprint(seen[0][id]) {
					t.Errorf("watchers disagree about %s: %v and %v", id, sts, seen[0][id])
				}
				total += len(sts)
			}
		}
		t.Logf("%d changes of %d mails seen by each of %d watchers", total/len(seen), mails, len(seen))

		// Filters, scope, forgetting.
		if cs, _, _, err := s.Changes(ctx, store.Scope{Teams: []string{"other"}}, store.MailFilter{}, begin, 100); err != nil || len(cs) != 0 {
			t.Errorf("a foreign team sees %d, %v", len(cs), err)
		}
		cs, _, _, err := s.Changes(ctx, store.Scope{Teams: []string{"sales"}}, store.MailFilter{Statuses: []store.MailStatus{store.MailSent}}, begin, 10000)
		if err != nil || len(cs) != mails {
			t.Errorf("%d sent, %v", len(cs), err)
		}
		if n, err := s.ForgetChanges(ctx, time.Hour); n != 0 || err != nil {
			t.Errorf("forgot %d young ones, %v", n, err)
		}
		logged, err := s.LoggedChanges()
		if err != nil || logged != total/len(seen) {
			t.Errorf("%d changes logged, %d told, %v", logged, total/len(seen), err)
		}
		if n, err := s.ForgetChanges(ctx, -time.Hour); n != logged || err != nil {
			t.Errorf("forgot %d of %d, %v", n, logged, err)
		}
		if _, _, _, err := s.Changes(ctx, store.Everything, store.MailFilter{}, begin, 10); !errors.Is(err, store.ErrForgotten) {
			t.Errorf("a position that is forgotten: %v", err)
		}
		at, err := s.LastChange(ctx)
		if err != nil {
			t.Fatal(err)
		}
		enqueue(t, s, newMail("ss"))
		if cs, _, _, err := s.Changes(ctx, store.Everything, store.MailFilter{}, at, 10); err != nil || len(cs) != 1 || cs[0].Status != store.MailQueued {
			t.Errorf("from now on: %v %v", cs, err)
		}
	})
}

// TestPositionOfAnotherHistory: a position that the database cannot have given, because it was
// restored in a way that nothing else shows, is told to be forgotten.
func TestPositionOfAnotherHistory(t *testing.T) {
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		at, err := s.LastChange(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ahead := at
		if ahead.Seq++; at.XID > 0 {
			ahead = store.Position{Generation: at.Generation, XID: at.XID + 5_000_000_000}
		}
		for name, p := range map[string]store.Position{"ahead": ahead, "another generation": {Generation: at.Generation + 1, XID: at.XID, Seq: at.Seq}} {
			if _, _, _, err := s.Changes(ctx, store.Everything, store.MailFilter{}, p, 10); !errors.Is(err, store.ErrForgotten) {
				t.Errorf("%s: got %v, want %v", name, err, store.ErrForgotten)
			}
		}
		if _, _, _, err := s.Changes(ctx, store.Everything, store.MailFilter{}, at, 10); err != nil {
			t.Errorf("its own: got %v, want no error", err)
		}
	})
}

// TestWatchLag: while a transaction is under way in another database of the server, changes
// wait for it, and that is told.
func TestWatchLag(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		at, err := s.LastChange(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if lag, err := s.WatchLag(ctx); lag != 0 || err != nil {
			t.Errorf("nothing has happened: got %v, %v, want none", lag, err)
		}
		if s.Dialect() == "postgres" {
			release, held := make(chan struct{}), make(chan error, 1)
			stranger := storetest.Open(t, storetest.PostgresDSN(t))
			go func() { held <- stranger.Hold("select pg_current_xact_id()", release) }()
			var first, second time.Duration
			until(t, "changes wait for the stranger", func() bool {
				enqueue(t, s, newMail("ss"))
				var err1, err2 error
				first, err1 = s.WatchLag(ctx)
				second, err2 = s.WatchLag(ctx)
				if err := errors.Join(err1, err2); err != nil {
					t.Fatal(err)
				}
				return first > 0 && second > first
			})
			if q, err := s.CountQueue(ctx, store.Everything, nil, ""); err != nil || q.WatchLag <= second {
				t.Errorf("the queue's figures: got %v, %v, want more than %v", q.WatchLag, err, second)
			}
			close(release)
			if err := <-held; err != nil {
				t.Fatal(err)
			}
		} else {
			enqueue(t, s, newMail("ss"))
		}
		until(t, "no lag is left", func() bool {
			lag, err := s.WatchLag(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return lag == 0
		})
		if cs, _, _, err := s.Changes(ctx, store.Everything, store.MailFilter{}, at, 10); err != nil || len(cs) == 0 {
			t.Errorf("after the stranger: got %d changes, %v", len(cs), err)
		}
	})
}

func containsWord(words, w string) bool { return slices.Contains(strings.Fields(words), w) }
