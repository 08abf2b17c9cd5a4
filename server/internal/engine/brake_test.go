package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
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

// patience is how long a test waits for what comes at once on an idle machine. What has to be
// quick is measured where it counts.
const patience = 2 * time.Minute

// until polls until ok, and fails after a while. It asks less often the longer it takes: some
// questions read every mail.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	pause := 5 * time.Millisecond
	for deadline := time.Now().Add(patience); !ok(); <-time.After(pause) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		pause = min(2*pause, 80*time.Millisecond)
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

// owned counts mails that a replica has, on their way or in its memory.
func (r *rig) owned() int {
	r.t.Helper()
	ms, err := r.store.ListDue(ctx(r.t), store.Everything, store.MailFilter{}, store.Cursor{}, 5000)
	if err != nil {
		r.t.Fatal(err)
	}
	return len(slices.DeleteFunc(ms, func(m *store.Mail) bool { return m.Owner == 0 }))
}

// dots is when the dots of mails came to a relay. Its sessions write, the test reads.
type dots struct {
	mu   sync.Mutex
	came []time.Time
}

func (d *dots) relay(t *testing.T, delay time.Duration) *smtpxtest.Server {
	return (&smtpxtest.Server{Delay: delay, On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "DOT" {
			d.mu.Lock()
			d.came = append(d.came, time.Now())
			d.mu.Unlock()
		}
		return nil
	}}).Start(t)
}

// between counts the dots that came after from and not after to; a zero to is now.
func (d *dots) between(from, to time.Time) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, at := range d.came {
		if at.After(from) && (to.IsZero() || !at.After(to)) {
			n++
		}
	}
	return n
}

// TestChangeInMidRun: what is changed at a mail server while many mails leave through it is
// obeyed within a second by every replica, whoever changed it: from then on only what was
// behind its mark still leaves. What was claimed goes back, and nothing is lost.
func TestChangeInMidRun(t *testing.T) {
	t.Parallel()
	const connections = 5
	mails := 400
	if os.Getenv("MAILDISPATCH_TEST_FULL") == "1" {
		mails = 2000
	}
	for name, test := range map[string]struct {
		change func(s *store.MailServer, other int)
		rest   store.MailStatus // of what did not leave; "" = all leave in the end
	}{
		"switched off":     {func(s *store.MailServer, _ int) { s.Status = store.ServerUnavailable }, store.MailQueued},
		"a lower limit":    {func(s *store.MailServer, _ int) { s.Limits.MailsPerMinute = 60 }, store.MailQueued},
		"another port":     {func(s *store.MailServer, other int) { s.SMTP.Port = other }, ""},
		"deleted by force": {nil, store.MailHeld},
	} {
		for where, run := range map[string]struct {
			replicas int
			// the first replica changes it; else somebody changes it in the database
			here bool
		}{"by this process": {1, true}, "by another replica": {1, false}, "under two replicas": {2, false}} {
			t.Run(name+" "+where, func(t *testing.T) {
				t.Parallel()
				dsn := storetest.SQLiteDSN(t)
				if run.replicas > 1 {
					dsn = storetest.PostgresDSN(t)
				}
				var left, moved dots
				old, next := left.relay(t, 20*time.Millisecond), moved.relay(t, 0)
				r := newRig(t, dsn, nil)
				s := r.server("bulk", store.ModeDaemon, old, store.Limits{MaxConnections: connections})
				ms := r.bulk(s, mails)
				replicas := []*rig{r}
				for len(replicas) < run.replicas {
					replicas = append(replicas, newRig(t, dsn, nil))
				}
				for _, r := range replicas {
					if _, err := r.RunBatch(ctx(t), "bulk", false); err != nil {
						t.Fatal(err)
					}
				}
				until(t, "the batch is under way", func() bool { return left.between(time.Time{}, time.Time{}) >= 50 })
				if test.change != nil {
					r.change("bulk", run.here, func(s *store.MailServer) { test.change(s, next.Port()) })
				} else {
					if _, _, err := r.store.DeleteServer(ctx(t), store.Everything, "bulk", 0, true, store.Audit{}); err != nil {
						t.Fatal(err)
					}
					if run.here {
						r.ServerChanged(ctx(t), "bulk")
					}
				}
				obey := time.Now().Add(obeyed)
				all := func() int { return left.between(time.Time{}, time.Time{}) + moved.between(time.Time{}, time.Time{}) }
				most := connections // behind their marks
				switch name {
				case "another port":
					until(t, "the rest leaves through the new port", func() bool { return all() >= mails })
				case "a lower limit":
					seconds := 2 * time.Second
					until(t, "two more seconds are over", func() bool { return time.Now().After(obey.Add(seconds)) })
					most += 6 + 2 + 1 // a tenth of the limit at once, and one a second
					if n := left.between(obey, obey.Add(seconds)); n > most {
						t.Errorf("%d mails left from %v to %v after the change, want %d at most", n, obeyed, obeyed+seconds, most)
					}
					// Giving back takes as long as the database needs for it. What it must not
					// do is to stay claimed.
					claimed := run.replicas * (4 + 1) * connections
					until(t, fmt.Sprintf("at most %d mails are still claimed", claimed), func() bool { return r.owned() <= claimed })
					return
				default:
					until(t, "a second in which nothing more may leave is over", func() bool { return time.Now().After(obey.Add(time.Second)) })
					until(t, "what was claimed is given back", func() bool { return r.owned() == 0 })
					for _, r := range replicas { // no pass claims any more
						if _, err := r.RunBatch(ctx(t), "", true); err != nil {
							t.Fatal(err)
						}
					}
				}
				if n := left.between(obey, time.Time{}); n > most {
					t.Errorf("%d mails left %v and later after the change, want %d at most", n, obeyed, most)
				}
				if test.rest != "" && all() == mails {
					t.Error("all had left before the change was to be obeyed")
				}
				for id, n := range dup(old) {
					if n != 1 {
						t.Errorf("%s arrived %d times", id, n)
					}
				}
				became := map[store.MailStatus]int{}
				until(t, "every result is durable", func() bool {
					clear(became)
					for _, m := range ms {
						became[r.mail(m.ID).Status]++
					}
					return r.owned() == 0
				})
				if n := became[store.MailSent]; n != all() || n+became[test.rest] != mails {
					t.Errorf("%d dots came; the mails are %v, want the rest %q", all(), became, test.rest)
				}
			})
		}
	}
}

// TestPassWaitsForTheSuccessor: a pass that waits returns when all that was due is settled,
// also when a change of the configuration ends the drain that it waits for and another goes on.
func TestPassWaitsForTheSuccessor(t *testing.T) {
	t.Parallel()
	const mails = 200
	var left, moved dots
	old, next := left.relay(t, 10*time.Millisecond), moved.relay(t, 0)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	s := r.server("bulk", store.ModeDaemon, old, store.Limits{MaxConnections: 2})
	r.bulk(s, mails)
	type answer struct {
		delivery.Counts
		error
	}
	passed := make(chan answer)
	go func() {
		c, err := r.RunBatch(ctx(t), "bulk", true)
		passed <- answer{c, err}
	}()
	until(t, "the batch is under way", func() bool { return left.between(time.Time{}, time.Time{}) >= 10 })
	r.change("bulk", true, func(s *store.MailServer) { s.SMTP.Port = next.Port() })
	got := <-passed
	if n := moved.between(time.Time{}, time.Time{}); got.error != nil || got.Sent != mails || got.Released != 0 || n == 0 {
		t.Errorf("the pass counted %+v (%v), %d through the new port; want all %d sent", got.Counts, got.error, n, mails)
	}
}

// blind is a journal that does not answer what the mail servers' versions are, while it says
// so.
type blind struct {
	engine.Journal
	silent atomic.Bool
}

func (b *blind) ServerVersions(ctx context.Context, names []string) (map[string]int64, error) {
	if b.silent.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return b.Journal.ServerVersions(ctx, names)
}

// TestBrakeWithoutAnAnswer: a mail server that another replica switches off is obeyed within a
// second although the database does not say so. When it answers again, nothing is lost or
// doubled.
func TestBrakeWithoutAnAnswer(t *testing.T) {
	const mails = 500
	relay := (&smtpxtest.Server{Delay: 10 * time.Millisecond}).Start(t)
	var j *blind
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &blind{Journal: s}; return j })
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 2})
	r.bulk(s, mails)
	if _, err := r.RunBatch(ctx(t), "bulk", false); err != nil {
		t.Fatal(err)
	}
	until(t, "the batch is under way", func() bool { return len(relay.Mails()) >= 20 })
	j.silent.Store(true)
	r.change("bulk", false, func(s *store.MailServer) { s.Status = store.ServerUnavailable })
	time.Sleep(obeyed) // what it is given
	before := len(relay.Mails())
	if before == mails {
		t.Fatal("all had left before the change was to be obeyed")
	}
	time.Sleep(time.Second) // in which nothing more may come
	if n := len(relay.Mails()) - before; n > 2 {
		t.Errorf("%d mails left %v and later after the change, want 2 at most, on their way already", n, obeyed)
	}
	j.silent.Store(false)
	r.change("bulk", true, func(s *store.MailServer) { s.Status = store.ServerAvailable })
	until(t, "the rest leaves", func() bool { r.batch(""); return len(relay.Mails()) >= mails })
	for id, n := range dup(relay) {
		if n != 1 {
			t.Errorf("%s arrived %d times", id, n)
		}
	}
}

// TestUnreadableMailServer: a mail server that cannot be read keeps no other from its pass.
func TestUnreadableMailServer(t *testing.T) {
	t.Parallel()
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

// TestChangeReachesPHPMode: a php-mode mail whose call had read an older configuration leaves
// under the newest one, and not at all when that says so.
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

// TestCutAtTheGateBeginsAnew: a php-mode mail whose mail server is pointed elsewhere while its
// dot is about to leave goes to the new port at once. Its caller hears once that it is sent.
func TestCutAtTheGateBeginsAnew(t *testing.T) {
	t.Parallel()
	for database, dsn := range storetest.DSNs(t) {
		t.Run(database, func(t *testing.T) {
			arrived, answer := make(chan struct{}, 1), make(chan struct{})
			old := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb == "DATA" {
					arrived <- struct{}{}
					<-answer
				}
				return nil
			}}).Start(t)
			release := sync.OnceFunc(func() { close(answer) })
			t.Cleanup(release)
			next := (&smtpxtest.Server{}).Start(t)
			r := newRig(t, dsn, nil)
			s := r.server("now", store.ModePHP, old, store.Limits{})
			m := newMail(s, store.KindInvoice, "a@y.example", "b@y.example")
			var attempts, recipients, completed []string
			heard := make(chan error, 1)
			go func() {
				heard <- r.Send(ctx(t), &delivery.Submission{Mail: m, Server: s}, func(ev delivery.Event) error {
					switch {
					case ev.Attempt != nil:
						attempts = append(attempts, ev.Attempt.Server)
					case ev.Recipient != nil:
						recipients = append(recipients, string(ev.Recipient.Result.Status))
					case ev.Completed != nil:
						completed = append(completed, string(ev.Completed.Status))
					}
					return nil
				})
			}()
			<-arrived
			r.change("now", true, func(s *store.MailServer) { s.SMTP.Port = next.Port() })
			release()
			if err := <-heard; err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(attempts, recipients, completed); got != "[now now] [accepted accepted] [sent]" {
				t.Errorf("the caller heard %s, want two attempts, both accepted once, and sent once", got)
			}
			if len(old.Mails()) != 0 || len(next.Mails()) != 1 {
				t.Errorf("arrived %d times at the old port, %d at the new one", len(old.Mails()), len(next.Mails()))
			}
			if got := r.mail(m.ID); got.Status != store.MailSent || got.Attempts != 1 || got.PossibleDuplicate {
				t.Errorf("got %s after %d attempts, possible duplicate %v", got.Status, got.Attempts, got.PossibleDuplicate)
			}
		})
	}
}

// fresh is a mail server as it is now.
func (r *rig) fresh(name string) *store.MailServer {
	r.t.Helper()
	s, err := r.store.Server(ctx(r.t), store.Everything, name)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// TestNewerThanHeard: a php-mode mail whose call has read a newer configuration than this
// process had heard of leaves at once. A change by another replica is first met that way.
func TestNewerThanHeard(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("now", store.ModePHP, relay, store.Limits{})
	r.change("now", true, func(s *store.MailServer) { s.Limits.MailsPerConnection = 7 })
	r.change("now", false, func(s *store.MailServer) { s.Limits.MailsPerConnection = 8 })
	s := r.fresh("now")
	began := time.Now()
	done, err := r.send(ctx(t), s, newMail(s, store.KindInvoice, "a@y.example"))
	if err != nil || done.Status != store.MailSent {
		t.Fatalf("after %v: %+v, %v; want it sent", time.Since(began), done, err)
	}
}

// TestReplacedWhileItWaits: a php-mode mail that waits for a connection while another replica
// points its mail server elsewhere does not leave under what its call had read, also when the
// first that this process hears of the change is the call for another mail.
func TestReplacedWhileItWaits(t *testing.T) {
	t.Parallel()
	arrived, answer := make(chan struct{}, 1), make(chan struct{})
	old := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "DOT" {
			arrived <- struct{}{}
			<-answer
		}
		return nil
	}}).Start(t)
	release := sync.OnceFunc(func() { close(answer) })
	t.Cleanup(release)
	next := (&smtpxtest.Server{}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	s := r.server("now", store.ModePHP, old, store.Limits{MaxConnections: 1})
	var calls sync.WaitGroup
	defer calls.Wait()
	send := func(s *store.MailServer, m *store.NewMail) {
		calls.Go(func() {
			if _, err := r.send(ctx(t), s, m); err != nil {
				t.Error(err)
			}
		})
		until(t, "the mail is durable", func() bool { _, err := r.store.Mail(ctx(t), store.Everything, m.ID); return err == nil })
	}
	send(s, newMail(s, store.KindOther, "first@y.example")) // it has the only connection
	<-arrived
	waiting := newMail(s, store.KindInvoice, "a@y.example")
	send(s, waiting)
	r.change("now", false, func(s *store.MailServer) { s.SMTP.Port = next.Port() })
	moved := r.fresh("now")
	other := newMail(moved, store.KindOther, "b@y.example")
	send(moved, other)
	release()
	calls.Wait()
	if n := dup(old)[waiting.ID.String()]; n != 0 {
		t.Errorf("it left %d times at the old port", n)
	}
	if n := dup(next)[other.ID.String()]; n != 1 {
		t.Errorf("the other mail arrived %d times at the new port", n)
	}
}
