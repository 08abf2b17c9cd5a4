package store_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

func cancelIt(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
	return &store.Change{Kind: store.SettleArchive, Status: store.MailCancelled, Attempts: m.Attempts, LastError: "cancelled", Stops: true}, nil
}

func holdIt(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
	return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, ResumeAt: *m.DueTime, Attempts: m.Attempts, LastError: "held", Stops: true}, nil
}

// TestStopReachesTheMark: what stops a mail takes it from its owner until the mark, and keeps
// what is known of its recipients. From then on nothing counts that the owner writes, also when
// it gets the mail again. Behind the mark the stop fails, and says so. A dry run counts the
// same.
func TestStopReachesTheMark(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		for name, stop := range map[string]store.Decide{"cancel": cancelIt, "hold": holdIt} {
			r := register(t, s)
			own := func(m *store.NewMail) { m.Owner = r }
			free, waits, partly, marked := newMail(name), newMail(name, own), newMail(name, own), newMail(name, own)
			enqueue(t, s, free, waits, partly, marked)
			write := func(m *store.NewMail, kind store.SettleKind) *store.Settlement {
				return &store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Kind: kind, Progress: &store.Progress{}}
			}
			known := write(partly, store.SettleProgress)
			known.Status, known.Progress = store.MailPartiallySent, &store.Progress{Results: []store.RecipientResult{{Status: store.RecipientAccepted}}}
			if !settle(t, s, known) || !settle(t, s, write(marked, store.SettleMark)) {
				t.Fatal("not its owner's")
			}
			f := &store.MailFilter{MailServer: name}
			for _, dry := range []bool{true, false} {
				matched, changed, fails, err := s.Modify(ctx, store.Everything, nil, f, dry, store.Audit{Actor: "me"}, stop)
				if err != nil || matched != 4 || changed != 3 || len(fails) != 1 || fails[0].ID != marked.ID || !errors.Is(fails[0].Err, store.ErrSending) {
					t.Fatalf("%s, dry %v: %d %d %v %v", name, dry, matched, changed, fails, err)
				}
				if m, _ := s.Mail(ctx, store.Everything, waits.ID); dry && (m.Status != store.MailQueued || m.Owner != r) {
					t.Fatalf("%s: a dry run changed something: %s", name, m.Status)
				}
			}
			want := map[string]store.MailStatus{"cancel": store.MailCancelled, "hold": store.MailHeld}[name]
			for _, m := range []*store.NewMail{free, waits, partly} {
				got, err := s.Mail(ctx, store.Everything, m.ID)
				if err != nil || got.Status != want || got.Owner != 0 || got.Archived != (name == "cancel") || name == "hold" && got.ResumeTime == nil {
					t.Errorf("%s: got %+v %v", name, got, err)
				}
				if m == partly && (len(got.Progress.Results) != 1 || got.Progress.Results[0].Status != store.RecipientAccepted) {
					t.Errorf("%s: what was known is lost: %+v", name, got.Progress)
				}
			}
			refused := func() {
				t.Helper()
				for _, m := range []*store.NewMail{waits, partly} {
					for _, kind := range []store.SettleKind{store.SettleMark, store.SettleProgress, store.SettleArchive, store.SettlePark, store.SettleRetry, store.SettleBegin} {
						for claim := int64(store.BornClaim); claim < store.BornClaim+20; claim++ {
							// some writes raise it
							st := write(m, kind)
							st.Status, st.Claim = store.MailQueued, claim
							if settle(t, s, st) {
								t.Fatalf("%s: write %s under token %d is taken", name, kind, claim)
							}
						}
					}
				}
			}
			refused()
			if name == "hold" {
				_, changed, fails, err := s.Modify(ctx, store.Everything, []uuid.UUID{waits.ID, partly.ID}, nil, false, store.Audit{Actor: "me"},
					func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
						return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: *m.ResumeTime}, nil
					})
				if err != nil || changed != 2 {
					t.Fatalf("release: %d %v %v", changed, fails, err)
				}
				cs, err := s.Claim(ctx, r, name, 10, store.AnyPriority)
				if err != nil || len(cs) != 2 {
					t.Fatalf("claimed again: %d %v", len(cs), err)
				}
				refused()
			}
		}
	})
}

// TestOwnedIsLeftAlone: what does not stop a mail is not done to one that a replica has.
func TestOwnedIsLeftAlone(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		m := newMail("ss", func(m *store.NewMail) { m.Owner = r })
		enqueue(t, s, m)
		for what, decide := range map[string]store.Decide{
			"a change": func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
				return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now()}, nil
			},
			"nothing":   func(*store.Mail, *store.MailServer) (*store.Change, error) { return nil, nil },
			"a refusal": func(*store.Mail, *store.MailServer) (*store.Change, error) { return nil, errors.New("no") },
		} {
			_, changed, fails, err := s.Modify(ctx, store.Everything, []uuid.UUID{m.ID}, nil, false, store.Audit{}, decide)
			if err != nil || changed != 0 || len(fails) != 1 || !errors.Is(fails[0].Err, store.ErrSending) {
				t.Errorf("%s: %d %v %v", what, changed, fails, err)
			}
		}
		if !settle(t, s, &store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleMark}) {
			t.Error("its owner has lost it")
		}
	})
}

// TestStopAmongMarks: workers claim and mark while everything is cancelled again and again. A
// mail is cancelled or its mark is taken, never both, the calls say how many they stopped, and
// nobody waits for anybody in a circle.
func TestStopAmongMarks(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		const n = 1500
		r := register(t, s)
		var ms []*store.NewMail
		for range n {
			ms = append(ms, newMail("ss"))
		}
		enqueue(t, s, ms...)
		var wg sync.WaitGroup
		var sent, refused atomic.Int32
		mark := func(cs []*store.Claimed) {
			var marks, ends []<-chan store.Settled
			for _, c := range cs {
				marks = append(marks, s.Settle(&store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleMark}))
			}
			for i, a := range marks {
				switch got := <-a; {
				case got.Err != nil:
					t.Error(got.Err)
				case got.Mine:
					sent.Add(1)
					ends = append(ends, s.Settle(&store.Settlement{ID: cs[i].ID, Owner: r, Claim: cs[i].Claim, Kind: store.SettleArchive, Status: store.MailSent}))
				default:
					refused.Add(1)
				}
			}
			for _, a := range ends {
				if got := <-a; got.Err != nil || !got.Mine {
					t.Errorf("a marked mail was taken from its owner: %+v", got)
				}
			}
		}
		var stopped int
		began := make(chan struct{})
		once := sync.OnceFunc(func() { close(began) })
		for range 3 {
			wg.Go(func() {
				for {
					cs, err := s.Claim(ctx, r, "ss", 100, store.AnyPriority)
					if err != nil {
						t.Error(err)
					}
					if len(cs) == 0 {
						return
					}
					once()
					for len(cs) > 0 { // small groups: what is at the end has to wait
						k := min(10, len(cs))
						mark(cs[:k])
						cs = cs[k:]
					}
				}
			})
		}
		<-began
		for left := 1; left > 0; {
			ctx := t.Context()
			matched, changed, failures, err := s.Modify(ctx, store.Everything, nil, &store.MailFilter{MailServer: "ss"}, false, store.Audit{}, cancelIt)
			if err != nil {
				t.Fatal(err)
			}
			stopped += changed
			left = matched - changed
			for _, f := range failures {
				if !errors.Is(f.Err, store.ErrSending) && !errors.Is(f.Err, store.ErrFinished) {
					t.Errorf("%s: %v", f.ID, f.Err)
				}
			}
			if missing := left - len(failures); missing != 0 && len(failures) < 100 {
				t.Errorf("%d of %d mails were neither changed nor told", missing, matched)
			}
		}
		wg.Wait()
		count := func(st store.MailStatus) int {
			return len(pages(t, s, true, store.Everything, store.MailFilter{Statuses: []store.MailStatus{st}}, 500))
		}
		if got := count(store.MailCancelled); got != stopped {
			t.Errorf("%d are cancelled, the calls said %d", got, stopped)
		}
		if got := count(store.MailSent); got != int(sent.Load()) || got+stopped != n {
			t.Errorf("%d sent, %d marks taken, %d stopped, of %d", got, sent.Load(), stopped, n)
		}
		t.Logf("%d stopped, %d sent, %d marks refused", stopped, sent.Load(), refused.Load())
		if refused.Load() == 0 {
			t.Error("no mark was refused: the test shows nothing")
		}
	})
}

// TestForcedDeleteReachesTheMark: a mail server that is deleted by force takes its mail from
// its owners until the mark, and holds it with what waits. Nothing counts that they write after
// that. What is behind its mark is its owner's still.
func TestForcedDeleteReachesTheMark(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		if _, _, err := s.CreateServer(ctx, newServer("gone", ""), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		r := register(t, s)
		own := func(m *store.NewMail) { m.Owner = r }
		free, waits, marked := newMail("gone"), newMail("gone", own), newMail("gone", own)
		enqueue(t, s, free, waits, marked)
		write := func(m *store.NewMail, kind store.SettleKind) *store.Settlement {
			return &store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Kind: kind, Status: store.MailSent, Progress: &store.Progress{}}
		}
		if !settle(t, s, write(marked, store.SettleMark)) {
			t.Fatal("not its owner's")
		}
		if _, n, err := s.DeleteServer(ctx, store.Everything, "gone", 0, true, store.Audit{Actor: "me"}); err != nil || n != (store.DeletedMail{Held: 2, Leaving: 1}) {
			t.Fatalf("got %+v, %v, want the two held that are not marked, and one leaving", n, err)
		}
		for _, m := range []*store.NewMail{free, waits} {
			if got, err := s.Mail(ctx, store.Everything, m.ID); err != nil || got.Status != store.MailHeld || got.Owner != 0 || got.ResumeTime == nil {
				t.Errorf("got %+v, %v, want it held with its due time", got, err)
			}
		}
		if settle(t, s, write(waits, store.SettleMark)) || settle(t, s, write(waits, store.SettleArchive)) {
			t.Error("a write of the former owner is taken")
		}
		if !settle(t, s, write(marked, store.SettleArchive)) {
			t.Error("the result of what had left is refused")
		}
	})
}
