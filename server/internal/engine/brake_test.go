package engine_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// obeyed is how soon a change of a mail server is obeyed by every replica.
const obeyed = time.Second

// bulk queues n mails of s.
func (r *rig) bulk(s *store.MailServer, n int) []*store.NewMail {
	r.t.Helper()
	var ms []*store.NewMail
	for range n {
		ms = append(ms, newMail(s, store.KindBulk, "u@y.example"))
	}
	for i := 0; i < n; i += 500 {
		r.queue(s, ms[i:min(n, i+500)]...)
	}
	return ms
}

// until polls until ok, and fails after a while.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// change changes a mail server, in this process or as another replica does.
func (r *rig) change(name string, here bool, change func(*store.MailServer)) {
	r.t.Helper()
	_, err := r.store.UpdateServer(ctx(r.t), store.Everything, name, 0, store.Audit{}, func(s *store.MailServer) error { change(s); return nil })
	if err != nil {
		r.t.Fatal(err)
	}
	if here {
		r.ServerChanged(ctx(r.t), name)
	}
}

// sending counts mails that a replica has.
func (r *rig) sending() int {
	r.t.Helper()
	ms, err := r.store.ListDue(ctx(r.t), store.Everything, store.MailFilter{Statuses: []store.MailStatus{store.MailSending}}, store.Cursor{}, 1000)
	if err != nil {
		r.t.Fatal(err)
	}
	return len(ms)
}

// TestChangeInMidRun: what is changed at a mail server while thousands of mails leave through it is
// obeyed within a second, whoever changed it. What was claimed goes back, and nothing is lost.
func TestChangeInMidRun(t *testing.T) {
	const mails = 3000
	for name, test := range map[string]struct {
		change func(s *store.MailServer, other int)
		most   int // that may still arrive at the old place in the two seconds after the first
		moved  bool
	}{
		"switched off":     {change: func(s *store.MailServer, _ int) { s.Status = store.ServerUnavailable }},
		"a lower limit":    {change: func(s *store.MailServer, _ int) { s.Limits.MailsPerMinute = 60 }, most: 6 + 2 + 1},
		"another port":     {change: func(s *store.MailServer, other int) { s.SMTP.Port = other }, moved: true},
		"deleted by force": {},
	} {
		for where, here := range map[string]bool{"by this process": true, "by another replica": false} {
			t.Run(name+" "+where, func(t *testing.T) {
				old, next := (&smtpxtest.Server{Delay: time.Millisecond}).Start(t), (&smtpxtest.Server{}).Start(t)
				r := newRig(t, storetest.SQLiteDSN(t), nil)
				s := r.server("bulk", store.ModeDaemon, old, store.Limits{MaxConnections: 4})
				ms := r.bulk(s, mails)
				if _, err := r.RunBatch(ctx(t), "bulk", false); err != nil {
					t.Fatal(err)
				}
				until(t, "the batch is under way", func() bool { return len(old.Mails()) >= 200 })
				if test.change != nil {
					r.change("bulk", here, func(s *store.MailServer) { test.change(s, next.Port()) })
				} else {
					if _, _, err := r.store.DeleteServer(ctx(t), store.Everything, "bulk", 0, true, store.Audit{}); err != nil {
						t.Fatal(err)
					}
					if here {
						r.ServerChanged(ctx(t), "bulk")
					}
				}
				time.Sleep(obeyed) // what it is given
				before := len(old.Mails())
				if before == mails {
					t.Fatal("all had left before the change was to be obeyed")
				}
				if test.moved {
					until(t, "the rest leaves through the new port", func() bool { return len(old.Mails())+len(next.Mails()) >= mails })
				} else {
					time.Sleep(2 * time.Second) // in which nothing more may come
				}
				if n := len(old.Mails()) - before; n > test.most {
					t.Errorf("%d mails left %v and later after the change, want %d at most", n, obeyed, test.most)
				}
				if n := r.sending(); !test.moved && n > 40+4 {
					t.Errorf("%d mails are still claimed", n)
				}
				for id, n := range dup(old) {
					if n != 1 {
						t.Errorf("%s arrived %d times", id, n)
					}
				}
				if test.change == nil { // what was being sent is held by the next pass
					_, _ = r.RunBatch(ctx(t), "", true)
					for _, m := range ms {
						if got := r.mail(m.ID); got.Status != store.MailHeld && got.Status != store.MailSent {
							t.Fatalf("after a pass: %s: %q", got.Status, got.LastError)
						}
					}
				}
			})
		}
	}
}

// TestUnreadableMailServer: a mail server that cannot be read keeps no other from its pass.
func TestUnreadableMailServer(t *testing.T) {
	relay := (&smtpxtest.Server{}).Start(t)
	var j *faulty
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
	for i := range 3 {
		s := r.server(fmt.Sprint("s", i), store.ModeDaemon, relay, store.Limits{})
		r.queue(s, newMail(s, store.KindBulk, "u@y.example"))
	}
	broken := func(name string) error {
		if name == "s1" {
			return errors.New("a row that cannot be read")
		}
		return nil
	}
	j.server.Store(&broken)
	if _, err := r.RunBatch(ctx(t), "", true); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("got %v", err)
	}
	until(t, "the other two leave", func() bool { return len(relay.Mails()) == 2 })
}

// TestChangeReachesPHPMode: a php-mode mail whose call had read an older configuration leaves under
// the newest one, and not at all when that says so.
func TestChangeReachesPHPMode(t *testing.T) {
	for where, here := range map[string]bool{"by this process": true, "by another replica": false} {
		t.Run(where, func(t *testing.T) {
			old, next := (&smtpxtest.Server{}).Start(t), (&smtpxtest.Server{}).Start(t)
			r := newRig(t, storetest.SQLiteDSN(t), nil)
			s := r.server("now", store.ModePHP, old, store.Limits{})
			send := func() *store.Mail {
				t.Helper()
				done, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example"))
				if err != nil {
					t.Fatal(err)
				}
				return done
			}
			send() // its session stays, idle
			r.change("now", here, func(s *store.MailServer) { s.SMTP.Port = next.Port() })
			changed := time.Now()
			until(t, "mail goes to the new port", func() bool { send(); return len(next.Mails()) > 0 })
			if took := time.Since(changed); took > 2*obeyed {
				t.Errorf("it took %v", took)
			}
			before := len(old.Mails())
			if done := send(); done.Status != store.MailSent || len(old.Mails()) != before {
				t.Errorf("%s, %d more at the old port", done.Status, len(old.Mails())-before)
			}
			r.change("now", here, func(s *store.MailServer) { s.Status = store.ServerUnavailable })
			until(t, "no mail leaves any more", func() bool { return send().Status != store.MailSent })
			before = len(next.Mails())
			if done := send(); done.Status != store.MailFailed || !strings.Contains(done.LastError, "switched off") || len(next.Mails()) != before {
				t.Errorf("%s: %q", done.Status, done.LastError)
			}
		})
	}
}
