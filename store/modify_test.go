package store_test

import (
	"errors"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// largeControl times control calls over n waiting mails of the seeded journals, each well
// inside the deadline of a call.
func largeControl(t *testing.T, s *store.Store, n int) {
	err := errors.Join(
		s.Exec("update due set mail_server = 'big' where id in (select id from due where run_at is not null and owner is null order by id limit "+strconv.Itoa(n)+")"),
		s.Exec("update mail set mail_server = 'big' where id in (select id from due where mail_server = 'big')"))
	if err != nil {
		t.Fatal(err)
	}
	waiting := []store.MailStatus{store.MailQueued, store.MailDeferred, store.MailPartiallySent}
	begin, err := s.LastChange(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a := store.Audit{Actor: "me", Action: "Large"}
	steps := 0
	do := func(name string, dryRun bool, sts []store.MailStatus, decide func(*store.Mail, *store.MailServer) (*store.Change, error)) {
		t.Helper()
		at := time.Now()
		matched, changed, failures, err := s.Modify(ctx, store.Everything, nil, &store.MailFilter{MailServer: "big", Statuses: sts}, dryRun, a, decide)
		if err != nil || matched != n || changed != n || len(failures) > 0 {
			t.Fatalf("%s: %d matched, %d changed, %v, %v", name, matched, changed, failures, err)
		}
		took := time.Since(at)
		t.Logf("%s: %d mails in %v, %.0f/s; 100,000 would take %v", name, n, took.Round(time.Millisecond), float64(n)/took.Seconds(), (took * 100000 / time.Duration(n)).Round(time.Millisecond))
		if !dryRun {
			steps++
		}
	}
	hold := func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, ResumeAt: *m.DueTime, LastError: "held: wait"}, nil
	}
	do("count", true, waiting, hold)
	do("hold", false, waiting, hold)
	do("release", false, []store.MailStatus{store.MailHeld}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: *m.ResumeTime}, nil
	})
	var ids []uuid.UUID
	if err := s.Select(&ids, "select id from due where mail_server = 'big' order by id limit 1000"); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	if matched, changed, failures, err := s.Modify(ctx, store.Everything, ids, nil, true, a, hold); err != nil || matched != len(ids) || changed != len(ids) || len(failures) > 0 {
		t.Fatalf("by id: %d %d %v %v", matched, changed, failures, err)
	}
	t.Logf("%d by id counted in %v", len(ids), time.Since(at).Round(time.Millisecond))
	do("cancel", false, nil, func(*store.Mail, *store.MailServer) (*store.Change, error) {
		return &store.Change{Kind: store.SettleArchive, Status: store.MailCancelled, LastError: "cancelled: enough"}, nil
	})
	var archived int
	if err := s.Get(&archived, "select count(*) from archive where mail_server = 'big' and status = 'cancelled'"); err != nil || archived != n {
		t.Errorf("%d archived, want %d, %v", archived, n, err)
	}
	largeAudit(t, s, steps)
	seen := 0
	for more := true; more; {
		var cs []store.MailChange
		if cs, begin, more, err = s.Changes(ctx, store.Everything, store.MailFilter{MailServer: "big"}, begin, 500); err != nil {
			t.Fatal(err)
		}
		seen += len(cs)
	}
	if seen != steps*n {
		t.Errorf("%d changes to be watched, want %d", seen, steps*n)
	}
}

// largeAudit compares the audit with what largeControl did, steps times over the same mails:
// each transaction of 500 mails leaves one row for each team it touched, with how many of its
// mails and the first of them.
func largeAudit(t *testing.T, s *store.Store, steps int) {
	t.Helper()
	var mails []struct {
		ID   uuid.UUID
		Team string
	}
	var rows []struct{ Team, Target string }
	if err := errors.Join(s.Select(&mails, "select id, team from mail where mail_server = 'big' order by id"),
		s.Select(&rows, "select team, target from audit where action = 'Large'")); err != nil {
		t.Fatal(err)
	}
	left := map[string]int{} // rows still wanted, by team and target
	teams := map[string]bool{}
	for chunk := range slices.Chunk(mails, 500) {
		first, count := map[string]uuid.UUID{}, map[string]int{}
		for _, m := range chunk {
			if count[m.Team]++; count[m.Team] == 1 {
				first[m.Team] = m.ID
			}
		}
		for team, n := range count {
			left[team+": "+strconv.Itoa(n)+" mails from "+first[team].String()] += steps
			teams[team] = true
		}
	}
	if len(teams) < 2 {
		t.Errorf("the mails are of %d teams: too few to tell whose rows they are", len(teams))
	}
	for _, r := range rows {
		left[r.Team+": "+r.Target]--
	}
	for row, n := range left {
		if n != 0 {
			t.Errorf("audit row %q: %d too few", row, n)
		}
	}
}

// TestModifyShowsTheWholeMail: what decides about a mail sees of it what everybody sees, and
// one that a replica has as it is without its owner.
func TestModifyShowsTheWholeMail(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		n, owned := 0, 0
		for _, m := range journals(t, s) {
			want, err := s.Mail(ctx, store.Everything, m.ID)
			if err != nil {
				t.Fatal(err)
			}
			for _, dryRun := range []bool{true, false} {
				_, _, _, err = s.Modify(ctx, store.Everything, []uuid.UUID{m.ID}, nil, dryRun, store.Audit{}, func(got *store.Mail, _ *store.MailServer) (*store.Change, error) {
					if got.Owner != 0 {
						if got.Status != store.MailQueued || got.DueTime == nil || got.Marked {
							t.Errorf("%s: owned, and %s, due %v, marked %v", m.status, got.Status, got.DueTime, got.Marked)
						}
						owned++
					}
					if n++; !reflect.DeepEqual(got, want) {
						t.Errorf("%s: got %+v, want %+v", m.status, got, want)
					}
					return nil, nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if n == 0 || owned == 0 {
			t.Errorf("%d were decided, %d that a replica has", n, owned)
		}
	})
}

// TestModifyAmongSenders: while workers claim and settle, control calls over everything lose no
// mail, change none that is being sent, and end.
func TestModifyAmongSenders(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		const n = 500
		r := register(t, s)
		var ms []*store.NewMail
		for range n {
			ms = append(ms, newMail("ss"))
		}
		enqueue(t, s, ms...)
		var wg sync.WaitGroup
		over := make(chan struct{})
		for range 3 {
			wg.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
					}
					cs, err := s.Claim(ctx, r, "ss", 40, store.AnyPriority)
					if err != nil {
						t.Error(err)
						return
					}
					var answers []<-chan store.Settled
					for i, c := range cs {
						answers = append(answers, s.Settle(&store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleMark}))
						st := &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleRetry, Status: store.MailDeferred, RunAt: time.Now().Add(-time.Hour), Attempts: 1}
						if i%3 == 0 {
							st.Kind, st.Status = store.SettleArchive, store.MailSent
						}
						answers = append(answers, s.Settle(st))
					}
					for _, a := range answers {
						if got := <-a; got.Err != nil || !got.Mine {
							t.Errorf("a control call took a mail from its owner: %+v", got)
						}
					}
				}
			})
		}
		for i := range 6 {
			want := store.MailHeld
			sts := []store.MailStatus{store.MailQueued, store.MailDeferred}
			if i%2 == 1 {
				want, sts = store.MailQueued, []store.MailStatus{store.MailHeld}
			}
			_, _, failures, err := s.Modify(ctx, store.Everything, nil, &store.MailFilter{Statuses: sts}, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
				if m.Archived {
					t.Errorf("decided about %+v", m)
				}
				if want == store.MailHeld {
					return &store.Change{Kind: store.SettlePark, Status: want, Attempts: m.Attempts, LastError: "held"}, nil
				}
				return &store.Change{Kind: store.SettleRetry, Status: want, RunAt: time.Now().Add(-time.Hour), Attempts: m.Attempts}, nil
			})
			if err != nil {
				t.Error(err)
			}
			for _, f := range failures {
				if !errors.Is(f.Err, store.ErrSending) && !errors.Is(f.Err, store.ErrFinished) {
					t.Errorf("%s: %v", f.ID, f.Err)
				}
			}
		}
		close(over)
		wg.Wait()
		due, done := pages(t, s, false, store.Everything, store.MailFilter{}, 500), pages(t, s, true, store.Everything, store.MailFilter{}, 500)
		all := map[uuid.UUID]bool{}
		for _, id := range append(due, done...) {
			all[id] = true
		}
		if len(due)+len(done) != n || len(all) != n {
			t.Errorf("%d due and %d finished of %d", len(due), len(done), n)
		}
		if len(done) == 0 {
			t.Error("nothing was sent meanwhile: the test shows nothing")
		}
	})
}
