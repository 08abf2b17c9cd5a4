package engine_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// boom panics while it loads one mail.
type boom struct {
	engine.Journal
	id string
}

func (b *boom) LoadRaw(c context.Context, m *store.Claimed) ([]byte, error) {
	if m.ID.String() == b.id {
		panic("poison")
	}
	return b.Journal.LoadRaw(c, m)
}

// TestPoison (F20): a mail that makes the service panic is put aside with the reason; all
// others are delivered.
func TestPoison(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{}).Start(t)
	var j *boom
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &boom{Journal: s}; return j })
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 3})
	var ms []*store.NewMail
	for range 1000 {
		ms = append(ms, newMail(s, store.KindBulk, "u@y.example"))
	}
	j.id = ms[500].ID.String()
	r.queue(s, ms...)
	r.batch("")
	for i, m := range ms {
		got := r.mail(m.ID)
		if i == 500 {
			if got.Status != store.MailFailed || !strings.Contains(got.LastError, "quarantined") {
				t.Errorf("poison: %s %q", got.Status, got.LastError)
			}
			continue
		}
		if got.Status != store.MailSent {
			t.Errorf("%s %q", got.Status, got.LastError)
		}
	}
	if n := len(relay.Mails()); n != 999 {
		t.Errorf("%d of 999 arrived", n)
	}
}

// adopt does what an engine does with the mail of a dead replica, and lets nothing wait.
func adopt(t *testing.T, st *store.Store, me store.ReplicaID) {
	t.Helper()
	_, adopted, err := st.Recover(ctx(t), me, 100)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, c := range adopted {
		v := lifecycle.Crash(c, me, now)
		if v.Kind == store.SettleRetry {
			if v.Crashes > 1 && v.RunAt.Before(now.Add(time.Minute)) {
				t.Errorf("after %d deaths it is due in %v", v.Crashes, v.RunAt.Sub(now))
			}
			v.RunAt = now.Add(-time.Second)
		}
		if a := <-st.Settle(v.Settlement); a.Err != nil || !a.Mine {
			t.Fatalf("%+v", a)
		}
	}
}

// TestFiveCrashes (F20): a mail of which five owners died in a row is not tried again; those
// that the dead only held, and did not touch, are.
func TestFiveCrashes(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			relay := (&smtpxtest.Server{}).Start(t)
			r := newRig(t, dsn, nil)
			s := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
			poison, held := newMail(s, store.KindBulk, "u@y.example"), newMail(s, store.KindBulk, "u@y.example")
			r.queue(s, poison, held)
			for crash := range 5 {
				id, err := r.store.Register(ctx(t), "dies", -time.Second)
				if err != nil {
					t.Fatal(err)
				}
				cs, err := r.store.Claim(ctx(t), id, "bulk", 10, store.AnyPriority)
				if err != nil || len(cs) != 2 {
					t.Fatalf("%d %v", len(cs), err)
				}
				for _, c := range cs {
					if c.ID == poison.ID && c.Crashes != crash || c.ID == held.ID && c.Crashes != min(crash, 1) {
						t.Errorf("after %d deaths %+v", crash, c)
					}
					if begin := lifecycle.Begin(c, id, time.Now()).BeginSuspect(); c.ID == poison.ID && begin != nil {
						if a := <-r.store.Settle(begin); a.Err != nil || !a.Mine {
							t.Fatalf("%+v", a)
						}
					}
				}
				next, err := r.store.Register(ctx(t), "rescues", time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				adopt(t, r.store, next)
			}
			deadline := time.Now().Add(patience)
			for r.mail(held.ID).Status != store.MailSent && time.Now().Before(deadline) {
				// on SQLite the engine's own lease was taken for dead as well: it takes a new
				// one within 5 s
				r.batch("")
				<-time.After(100 * time.Millisecond)
			}
			if got := r.mail(poison.ID); got.Status != store.MailFailed || !strings.Contains(got.LastError, "quarantined") {
				t.Errorf("%s %q", got.Status, got.LastError)
			}
			if got := r.mail(held.ID); got.Status != store.MailSent || len(relay.Mails()) != 1 {
				t.Errorf("the one that was held: %s %q, %d arrived", got.Status, got.LastError, len(relay.Mails()))
			}
		})
	}
}

// TestDeathOfSomethingElse: the death of an owner that was not at a suspect takes one death
// away from it.
func TestDeathOfSomethingElse(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			st := storetest.Open(t, dsn)
			r := &rig{t: t, store: st}
			s := r.server("bulk", store.ModeDaemon, (&smtpxtest.Server{}).Start(t), store.Limits{})
			r.queue(s, newMail(s, store.KindBulk, "u@y.example"))
			for i, death := range []struct {
				begun bool
				want  int
			}{{false, 1}, {true, 2}, {true, 3}, {false, 2}, {false, 1}, {false, 1}, {true, 2}} {
				id, err := st.Register(ctx(t), "dies", -time.Second)
				if err != nil {
					t.Fatal(err)
				}
				cs, err := st.Claim(ctx(t), id, "bulk", 10, store.AnyPriority)
				if err != nil || len(cs) != 1 {
					t.Fatalf("%d %v", len(cs), err)
				}
				if death.begun {
					if a := <-st.Settle(lifecycle.Begin(cs[0], id, time.Now()).BeginSuspect()); a.Err != nil || !a.Mine {
						t.Fatalf("%+v", a)
					}
				}
				me, err := st.Register(ctx(t), "rescues", time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				adopt(t, st, me)
				cs, err = st.Claim(ctx(t), me, "bulk", 10, store.AnyPriority)
				if err != nil || len(cs) != 1 || cs[0].Crashes != death.want {
					t.Fatalf("death %d: %d %v %+v, want %d", i+1, len(cs), err, cs, death.want)
				}
				if a := <-st.Settle(lifecycle.Begin(cs[0], me, time.Now()).Finish(lifecycle.NoSession, "", store.Limits{}, time.Now()).Settlement); a.Err != nil || !a.Mine {
					t.Fatalf("%+v", a)
				}
			}
		})
	}
}

// TestSuspectIsRecorded: a mail whose owner died is recorded as being sent before it is
// touched, so that what kills the process is found, and is as good as any other once it was
// sent and nobody died.
func TestSuspectIsRecorded(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb == "RCPT" {
					return &smtpxtest.Action{Reply: "450 4.2.1 later\r\n"}
				}
				return nil
			}}).Start(t)
			var began, settled atomic.Int64
			began.Store(-1)
			settled.Store(-1)
			see := func(s *store.Settlement) error {
				switch s.Kind {
				case store.SettleBegin:
					began.Store(int64(s.Crashes))
				case store.SettleRetry:
					settled.Store(int64(s.Crashes))
				}
				return nil
			}
			r := newRig(t, dsn, func(st *store.Store) engine.Journal {
				before := &rig{t: t, store: st}
				s := before.server("bulk", store.ModeDaemon, relay, store.Limits{})
				before.queue(s, newMail(s, store.KindBulk, "u@y.example"))
				dead, err := st.Register(ctx(t), "dies", -time.Second)
				if err != nil {
					t.Fatal(err)
				}
				if cs, err := st.Claim(ctx(t), dead, "bulk", 10, store.AnyPriority); err != nil || len(cs) != 1 {
					t.Fatalf("%d %v", len(cs), err)
				}
				j := &faulty{Journal: st}
				j.settle.Store(&see)
				return j
			})
			r.batch("")
			if began.Load() != 2 || settled.Load() != 0 {
				t.Errorf("recorded as %d, settled as %d", began.Load(), settled.Load())
			}
		})
	}
}

// TestSuspectsGoAlone: mails that two owners died of are sent one after the other, so that a
// third death names one; all others go beside them.
func TestSuspectsGoAlone(t *testing.T) {
	t.Parallel()
	var suspects sync.Map
	var now, most atomic.Int64
	relay := (&smtpxtest.Server{Delay: 2 * time.Millisecond, On: func(c smtpxtest.Command) *smtpxtest.Action {
		_, suspect := suspects.Load(strings.TrimSuffix(strings.TrimPrefix(c.Arg, "TO:<"), ">"))
		switch {
		case c.Verb == "RCPT" && suspect:
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
		case c.Verb == "DOT" && strings.Contains(c.Arg, "suspect"):
			now.Add(-1)
		}
		return nil
	}}).Start(t)
	var all []*store.NewMail
	r := newRig(t, storetest.SQLiteDSN(t), func(st *store.Store) engine.Journal {
		before := &rig{t: t, store: st}
		s := before.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 4})
		for i := range 20 {
			m := newMail(s, store.KindBulk, fmt.Sprintf("s%d@y.example", i))
			m.Raw[0].Data = append(m.Raw[0].Data, "suspect\r\n"...)
			m.SizeBytes = int64(len(m.Raw[0].Data))
			suspects.Store(m.Recipients[0].Mailbox, true)
			all = append(all, m)
		}
		before.queue(s, all...)
		for death := range 2 {
			dead, err := st.Register(ctx(t), "dies", time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			cs, err := st.Claim(ctx(t), dead, "bulk", 50, store.AnyPriority)
			if err != nil || len(cs) != len(all) {
				t.Fatalf("%d %v", len(cs), err)
			}
			for _, c := range cs {
				if a := <-st.Settle(&store.Settlement{ID: c.ID, Owner: dead, Claim: c.Claim, Kind: store.SettleBegin, Crashes: death + 1}); a.Err != nil || !a.Mine {
					t.Fatalf("%+v", a)
				}
			}
			next, err := st.Register(ctx(t), "rescues", time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			adopt(t, st, next)
		}
		for range 200 {
			all = append(all, newMail(s, store.KindBulk, "u@y.example"))
		}
		before.queue(s, all[20:]...)
		return st
	})
	r.batch("")
	for _, m := range all {
		if got := r.mail(m.ID); got.Status != store.MailSent {
			t.Errorf("%s %q", got.Status, got.LastError)
		}
	}
	if most.Load() != 1 || relay.Conns() < 2 {
		t.Errorf("%d suspects at once over %d connections", most.Load(), relay.Conns())
	}
}

// TestTwoOwnersOfOneNumber: an owner leaves a mail after a transaction that refused one of its
// recipients for now, and the attempt does not count. The next begins with that recipient again
// and dies behind the mark: the outcome is unknown of that one too, and an invoice is not sent
// again by itself.
func TestTwoOwnersOfOneNumber(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			st := storetest.Open(t, dsn)
			r := &rig{t: t, store: st}
			s := r.server("bills", store.ModeDaemon, (&smtpxtest.Server{}).Start(t), store.Limits{})
			m := newMail(s, store.KindInvoice, "a@y.example", "b@y.example", "c@y.example")
			r.queue(s, m)
			write := func(s *store.Settlement) {
				t.Helper()
				if a := <-st.Settle(s); a.Err != nil || !a.Mine {
					t.Fatalf("%+v", a)
				}
			}
			begin := func(name string, ttl time.Duration) *lifecycle.Attempt {
				t.Helper()
				owner, err := st.Register(ctx(t), name, ttl)
				if err != nil {
					t.Fatal(err)
				}
				cs, err := st.Claim(ctx(t), owner, "bills", 10, store.AnyPriority)
				if err != nil || len(cs) != 1 {
					t.Fatalf("%d %v", len(cs), err)
				}
				a := lifecycle.Begin(cs[0], owner, time.Now())
				a.AtMost(2)
				return a
			}
			first := begin("leaves", time.Minute)
			ok, busy := smtpx.Reply{Code: 250, Text: "ok"}, smtpx.Reply{Code: 450, Enhanced: "4.2.1", Text: "busy"}
			first.After(first.Next(), smtpx.Outcome{DotSent: true, Recipients: []smtpx.RecipientOutcome{
				{Status: smtpx.StatusAccepted, Phase: smtpx.PhaseDot, Reply: ok}, {Status: smtpx.StatusDeferred, Phase: smtpx.PhaseRcpt, Reply: busy}}}, time.Now())
			write(first.Progress())
			if err := st.Unregister(ctx(t), first.Owner); err != nil {
				t.Fatal(err)
			}
			next := begin("dies", -time.Second)
			if next.Number() != 1 || next.Left() != 2 {
				t.Fatalf("attempt %d with %d recipients, want attempt 1 with 2", next.Number(), next.Left())
			}
			write(next.Mark())
			me, err := st.Register(ctx(t), "rescues", time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			_, adopted, err := st.Recover(ctx(t), me, 10)
			if err != nil || len(adopted) != 1 {
				t.Fatalf("%d %v", len(adopted), err)
			}
			write(lifecycle.Crash(adopted[0], me, time.Now()).Settlement)
			if got := r.mail(m.ID); got.Status != store.MailUnknown || statuses(got) != "auu" {
				t.Errorf("got %s, recipients %s; want it parked as unknown, auu", got.Status, statuses(got))
			}
		})
	}
}
