package engine_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

func cancelled(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
	return lifecycle.Cancel(m, "wrong prices"), nil
}

func held(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
	return lifecycle.Hold(m, "wrong prices")
}

// TestStopInMidRun: hundreds of mails wait in memory for the few connections of a slow relay
// when a person stops the batch that they are of. Only those leave that are behind their mark,
// which the call names. Held ones leave when they are released, and nothing leaves twice.
func TestStopInMidRun(t *testing.T) {
	t.Parallel()
	const mails, connections = 500, 5
	for database, dsn := range storetest.DSNs(t) {
		for name, stop := range map[string]store.Decide{"cancel": cancelled, "hold": held} {
			t.Run(name+" "+database, func(t *testing.T) {
				relay := (&smtpxtest.Server{Delay: 10 * time.Millisecond}).Start(t)
				r := newRig(t, dsn, nil)
				s := r.server("stop-"+name, store.ModeDaemon, relay, store.Limits{MaxConnections: connections})
				var ms []*store.NewMail
				for range mails {
					m := newMail(s, store.KindInvoice, "u@y.example")
					m.BatchID = name
					ms = append(ms, m)
				}
				r.queue(s, ms...)
				if _, err := r.RunBatch(ctx(t), s.Name, false); err != nil {
					t.Fatal(err)
				}
				until(t, "the batch is under way over all connections", func() bool { return len(relay.Mails()) >= 60 && r.owned() > mails/2 })
				sending := []store.MailStatus{store.MailQueued, store.MailSending}
				matched, changed, failures, err := r.store.Modify(ctx(t), store.Everything, nil, &store.MailFilter{BatchID: name, Statuses: sending}, false, store.Audit{Actor: "me"}, stop)
				arrived := len(relay.Mails())
				if err != nil || matched != changed+len(failures) {
					t.Fatalf("%d matched, %d changed, %d failures, %v", matched, changed, len(failures), err)
				}
				if changed < mails/2 {
					t.Errorf("%d of %d mails were stopped: most of them waited for a connection", changed, matched)
				}
				for _, f := range failures {
					if !errors.Is(f.Err, store.ErrSending) && !errors.Is(f.Err, store.ErrFinished) {
						t.Errorf("%s: %v", f.ID, f.Err)
					}
				}
				want := map[string]store.MailStatus{"cancel": store.MailCancelled, "hold": store.MailHeld}[name]
				left := func() (left, stopped int) {
					for _, m := range ms {
						switch r.mail(m.ID).Status {
						case store.MailSent:
							left++
						case want:
							stopped++
						}
					}
					return left, stopped
				}
				if _, stopped := left(); stopped != changed {
					t.Errorf("%d are %s, the call said %d", stopped, want, changed)
				}
				until(t, "what was behind its mark has its result", func() bool { n, _ := left(); return n == mails-changed })
				if n := len(relay.Mails()); n != mails-changed || n > arrived+connections {
					t.Errorf("%d had arrived at the call, %d in the end; %d were stopped", arrived, n, changed)
				}
				if n := relay.Conns(); n > 3*connections {
					t.Errorf("%d connections: each stopped mail costs one", n)
				}
				if name == "hold" {
					now := time.Now()
					_, n, failures, err := r.store.Modify(ctx(t), store.Everything, nil, &store.MailFilter{BatchID: name, Statuses: []store.MailStatus{store.MailHeld}}, false, store.Audit{Actor: "me"},
						func(m *store.Mail, _ *store.MailServer) (*store.Change, error) { return lifecycle.Release(m, now) })
					if err != nil || n != changed {
						t.Fatalf("%d released of %d, %v %v", n, changed, failures, err)
					}
					r.batch(s.Name)
					for id, n := range dup(relay) {
						if n != 1 {
							t.Errorf("%s arrived %d times", id, n)
						}
					}
					if n := len(relay.Mails()); n != mails {
						t.Errorf("%d arrived of %d", n, mails)
					}
				}
			})
		}
	}
}

// TestStopTellsTheCaller: a php-mode mail is stopped while it waits for a connection. Its
// caller hears that at once, and not when a connection comes free.
func TestStopTellsTheCaller(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]store.Decide{"cancel": cancelled, "hold": held} {
		t.Run(name, func(t *testing.T) {
			gate := make(chan struct{})
			open := sync.OnceFunc(func() { close(gate) })
			relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb == "DOT" {
					<-gate
				}
				return nil
			}}).Start(t)
			defer open()
			r := newRig(t, storetest.SQLiteDSN(t), nil)
			s := r.server("php", store.ModePHP, relay, store.Limits{MaxConnections: 1})
			first, second := newMail(s, store.KindOther, "u@y.example"), newMail(s, store.KindOther, "u@y.example")
			var others sync.WaitGroup
			others.Go(func() { _, _ = r.send(ctx(t), s, first) })
			until(t, "the first is behind its mark", func() bool {
				m, err := r.store.Mail(context.Background(), store.Everything, first.ID)
				return err == nil && m.Marked
			})
			type answer struct {
				m   *store.Mail
				err error
			}
			heard := make(chan answer, 1)
			go func() {
				m, err := r.send(ctx(t), s, second)
				heard <- answer{m, err}
			}()
			until(t, "the second is accepted", func() bool {
				_, err := r.store.Mail(context.Background(), store.Everything, second.ID)
				return err == nil
			})
			_, changed, failures, err := r.store.Modify(ctx(t), store.Everything, []uuid.UUID{first.ID, second.ID}, nil, false, store.Audit{Actor: "me"}, stop)
			if err != nil || changed != 1 || len(failures) != 1 || failures[0].ID != first.ID {
				t.Fatalf("%d changed, %v %v", changed, failures, err)
			}
			want := map[string]store.MailStatus{"cancel": store.MailCancelled, "hold": store.MailHeld}[name]
			select {
			case a := <-heard:
				if a.err != nil || a.m.Status != want {
					t.Errorf("its caller hears %+v %v, want %s", a.m, a.err, want)
				}
			case <-time.After(10 * time.Second):
				t.Error("its caller hears nothing while the connection is busy")
			}
			open()
			others.Wait()
			if n := len(relay.Mails()); n != 1 || r.mail(second.ID).Status != want {
				t.Errorf("%d arrived; the second is %s", n, r.mail(second.ID).Status)
			}
		})
	}
}

// TestForcedDeleteInMidRun: hundreds of mails wait in memory for the few connections of a slow
// relay when their mail server is deleted by force. All that are not behind their mark are held
// at once, the answer counts them, and nothing else leaves.
func TestForcedDeleteInMidRun(t *testing.T) {
	t.Parallel()
	const mails, connections = 500, 5
	for database, dsn := range storetest.DSNs(t) {
		t.Run(database, func(t *testing.T) {
			relay := (&smtpxtest.Server{Delay: 10 * time.Millisecond}).Start(t)
			r := newRig(t, dsn, nil)
			s := r.server("gone", store.ModeDaemon, relay, store.Limits{MaxConnections: connections})
			ms := r.bulk(s, mails)
			if _, err := r.RunBatch(ctx(t), s.Name, false); err != nil {
				t.Fatal(err)
			}
			until(t, "the batch is under way over all connections", func() bool { return len(relay.Mails()) >= 60 && r.owned() > mails/2 })
			_, n, err := r.store.DeleteServer(ctx(t), store.Everything, s.Name, 0, true, store.Audit{Actor: "me"})
			arrived := len(relay.Mails())
			if err != nil {
				t.Fatal(err)
			}
			if n.Held < mails/2 {
				t.Errorf("%d of %d mails were held: most of them waited for a connection", n.Held, mails)
			}
			count := func() (left, stopped int) {
				for _, m := range ms {
					switch r.mail(m.ID).Status {
					case store.MailSent:
						left++
					case store.MailHeld:
						stopped++
					}
				}
				return left, stopped
			}
			if _, stopped := count(); stopped < n.Held {
				t.Errorf("%d are held, the call said %d", stopped, n.Held)
			}
			// Of what was marked, at most one mail a connection, some may be cut at the gate
			// after all. Then it is held too: of those the call has said how many.
			var left, stopped int
			until(t, "what was behind its mark has its result", func() bool { left, stopped = count(); return left+stopped == mails })
			if got := len(relay.Mails()); got != left || got > arrived+connections || stopped > n.Held+n.Leaving {
				t.Errorf("%d had arrived at the call, %d in the end, %d of them sent; the call said %+v, %d are held", arrived, got, left, n, stopped)
			}
		})
	}
}
