package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
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

// faulty is a journal whose writes can be made to fail.
type faulty struct {
	engine.Journal
	settle atomic.Pointer[func(*store.Settlement) error]
	renew  atomic.Pointer[error]
	load   atomic.Pointer[func(*store.Claimed) error]
	claims atomic.Int32 // that found something
}

func (f *faulty) Claim(ctx context.Context, owner store.ReplicaID, server string, n int, above int16) ([]*store.Claimed, error) {
	cs, err := f.Journal.Claim(ctx, owner, server, n, above)
	if len(cs) > 0 {
		f.claims.Add(1)
	}
	return cs, err
}

func (f *faulty) LoadRaw(ctx context.Context, c *store.Claimed) ([]byte, error) {
	if fn := f.load.Load(); fn != nil {
		if err := (*fn)(c); err != nil {
			return nil, err
		}
	}
	return f.Journal.LoadRaw(ctx, c)
}

func (f *faulty) Settle(s *store.Settlement) <-chan store.Settled {
	if fn := f.settle.Load(); fn != nil {
		if err := (*fn)(s); err != nil {
			c := make(chan store.Settled, 1)
			c <- store.Settled{Err: err}
			return c
		}
	}
	return f.Journal.Settle(s)
}

func (f *faulty) Renew(ctx context.Context, r store.ReplicaID, ttl time.Duration) error {
	if err := f.renew.Load(); err != nil {
		return *err
	}
	return f.Journal.Renew(ctx, r, ttl)
}

func dup(relay *smtpxtest.Server) map[string]int {
	seen := map[string]int{}
	for _, m := range relay.Mails() {
		id, _, _ := strings.Cut(strings.TrimPrefix(string(m.Data), "Message-ID: <"), "@")
		seen[id]++
	}
	return seen
}

// TestNoReplyAfterTheDot (F3, F4): silence and resets after the dot, half of them taken by the relay, are UNKNOWN; bulk goes again flagged with the same
// bytes, invoices wait for a person; nothing is lost and nothing doubled unflagged.
func TestNoReplyAfterTheDot(t *testing.T) {
	var n atomic.Int32
	var mu sync.Mutex
	bytesOf := map[string]string{}
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb != "DOT" {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		id, _, _ := strings.Cut(c.Arg, "\r\n")
		if was, ok := bytesOf[id]; ok {
			if was != c.Arg {
				t.Errorf("%s has other bytes on the second attempt", id)
			}
			return nil // the second time everything is well
		}
		bytesOf[id] = c.Arg
		switch n.Add(1) % 20 {
		case 3:
			return &smtpxtest.Action{Hang: true}
		case 7:
			return &smtpxtest.Action{Reset: true}
		case 11: // taken, and the answer lost
			return &smtpxtest.Action{Reply: "2", Close: true}
		}
		return nil
	}}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.times.Dot = 2 * time.Second
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 4})
	var ms []*store.NewMail
	for i := range 200 {
		kind := store.KindBulk
		if i%4 == 0 {
			kind = store.KindInvoice
		}
		ms = append(ms, newMail(s, kind, "u@y.example"))
	}
	r.queue(s, ms...)
	first := r.batch("")
	if first.Failed+first.Deferred != 0 || first.Unknown < 15 {
		t.Errorf("%+v", first)
	}
	again := 0
	for _, m := range ms {
		got := r.mail(m.ID)
		switch {
		case got.Status == store.MailSent:
		case m.Kind == store.KindInvoice && got.Status == store.MailUnknown && got.DueTime == nil:
		case m.Kind == store.KindBulk && got.PossibleDuplicate && got.DueTime != nil && statuses(got) == "u":
			again++
			if _, _, _, err := r.store.Modify(ctx(t), store.Everything, nil, &store.MailFilter{MessageID: m.MessageID}, false, store.Audit{}, func(m *store.Mail) (*store.Change, error) {
				return &store.Change{Kind: store.SettleRetry, Status: m.Status, RunAt: time.Now().Add(-time.Second), Attempts: m.Attempts, PossibleDuplicate: true}, nil
			}); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("%s: %s %s %+v", m.Kind, got.Status, got.LastError, got.Progress.Results)
		}
	}
	r.batch("")
	counts := dup(relay)
	flagged := 0
	for _, m := range ms {
		got := r.mail(m.ID)
		if m.Kind == store.KindBulk && (got.Status != store.MailSent || counts[m.ID.String()] == 0) {
			t.Errorf("bulk mail %s after the second batch: %s, arrived %d times", m.ID, got.Status, counts[m.ID.String()])
		}
		if counts[m.ID.String()] > 1 {
			flagged++
			if !got.PossibleDuplicate {
				t.Errorf("unflagged duplicate %s", m.ID)
			}
		}
	}
	t.Logf("F3 F4 200 mails, %d without a reply after the dot, %d sent again flagged, %d arrived twice, 0 unflagged", first.Unknown, again, flagged)
}

// TestReplyThenSilence (F5): a mail answered 250 is sent, whatever the connection does afterwards.
func TestReplyThenSilence(t *testing.T) {
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "QUIT" || c.Verb == "RSET" || c.Verb == "NOOP" {
			return &smtpxtest.Action{Hang: true}
		}
		return nil
	}}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MailsPerConnection: 2})
	var ms []*store.NewMail
	for range 6 {
		ms = append(ms, newMail(s, store.KindBulk, "u@y.example"))
	}
	r.queue(s, ms...)
	began := time.Now()
	if c := r.batch(""); c.Sent != 6 {
		t.Errorf("%+v", c)
	}
	took := time.Since(began)
	if took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	doubled := 0
	for id, n := range dup(relay) {
		if n != 1 {
			doubled++
			t.Errorf("%s arrived %d times", id, n)
		}
	}
	t.Logf("F5 mails=6 doubled=%d connections=%d all_closed_after=%v", doubled, relay.Conns(), took.Round(time.Millisecond))
}

// TestGoingAway (F7): 421 and closed connections at each phase lose nothing, double nothing and cost no attempt before the body.
func TestGoingAway(t *testing.T) {
	for _, verb := range []string{"MAIL", "RCPT", "DATA"} {
		for _, a := range []smtpxtest.Action{{Reply: "421 4.3.2 going down\r\n", Close: true}, {Close: true}, {Reset: true}} {
			t.Run(fmt.Sprintf("%s %q close=%v", verb, a.Reply, a.Close), func(t *testing.T) {
				relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
					if c.Verb == verb && c.Conn%2 == 1 && c.Nth == 3 {
						return &a
					}
					return nil
				}}).Start(t)
				r := newRig(t, storetest.SQLiteDSN(t), nil)
				s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 2})
				var ms []*store.NewMail
				for range 20 {
					ms = append(ms, newMail(s, store.KindBulk, "u@y.example"))
				}
				r.queue(s, ms...)
				r.batch("")
				counts := dup(relay)
				for _, m := range ms {
					got := r.mail(m.ID)
					if got.Status == store.MailSent && counts[m.ID.String()] == 1 {
						continue
					}
					if got.Attempts != 0 || got.DueTime == nil || counts[m.ID.String()] != 0 {
						t.Errorf("%s: %d attempts, arrived %d times, %s", got.Status, got.Attempts, counts[m.ID.String()], got.LastError)
					}
				}
			})
		}
	}
}

// TestGoneBehindIdleSessions: a relay that goes away while php-mode sessions to it lie idle is down, not short of connections: its breaker opens at once,
// and neither a pass nor a stop waits until those sessions are swept.
func TestGoneBehindIdleSessions(t *testing.T) {
	relay := (&smtpxtest.Server{}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	s := r.server("now", store.ModePHP, relay, store.Limits{MaxConnections: 2})
	if done, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example")); err != nil || done.Status != store.MailSent {
		t.Fatalf("%+v %v", done, err)
	}
	relay.Close()
	var ms []*store.NewMail
	for range 20 {
		ms = append(ms, newMail(s, store.KindBulk, "u@y.example"))
	}
	r.queue(s, ms...)
	began := time.Now()
	if c := r.batch(""); c.Released != 20 {
		t.Errorf("%+v", c)
	}
	took := time.Since(began)
	if bs, err := r.store.Breakers(ctx(t)); err != nil || bs["now"] == nil || bs["now"].Failures != 1 {
		t.Errorf("%+v %v", bs["now"], err)
	}
	if took > idleSweep/2 {
		t.Errorf("the pass took %v", took)
	}
	t.Logf("F21 pass_at_a_relay_gone=%v", took.Round(time.Millisecond))
}

const idleSweep = 20 * time.Second // after which an idle session is closed anyhow

// TestLargeMailsShareRoom (F23): workers that each hold a large mail behind its DATA and need room for the next never wait for each other.
func TestLargeMailsShareRoom(t *testing.T) {
	relay := (&smtpxtest.Server{Delay: 40 * time.Millisecond}).Start(t) // slow enough for all workers to be hired
	const size = 300 << 10
	r := newRig(t, storetest.SQLiteDSN(t), nil, func(c *engine.Config) { c.MaxBytes = 10 * size }) // two at once, and some more
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 4})
	var ms []*store.NewMail
	for range 80 {
		m := newMail(s, store.KindBulk, "u@y.example")
		m.Raw[0].Data = append(m.Raw[0].Data, bytes.Repeat([]byte(strings.Repeat("x", 70)+"\r\n"), size/72)...)
		m.SizeBytes = int64(len(m.Raw[0].Data))
		ms = append(ms, m)
	}
	r.queue(s, ms...)
	if c := r.batch(""); c.Sent != len(ms) {
		t.Errorf("%+v", c)
	}
}

// TestNoMarkNoDot (F14): while the mark cannot be written no dot leaves; when it can be again everything is sent once, without a restart.
func TestNoMarkNoDot(t *testing.T) {
	relay := (&smtpxtest.Server{}).Start(t)
	var j *faulty
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
	var marks atomic.Int32
	full := func(st *store.Settlement) error {
		if st.Kind == store.SettleMark {
			marks.Add(1)
			return store.ErrFull
		}
		return nil
	}
	j.settle.Store(&full)
	var ms []*store.NewMail
	for range 50 {
		ms = append(ms, newMail(s, store.KindBulk, "u@y.example"))
	}
	r.queue(s, ms...)
	r.batch("")
	if n := len(relay.Mails()); n != 0 {
		t.Fatalf("%d dots left without a mark", n)
	}
	for _, m := range ms {
		if got := r.mail(m.ID); got.Attempts != 0 || got.DueTime == nil {
			t.Fatalf("%s, %d attempts, %s", got.Status, got.Attempts, got.LastError)
		}
	}
	// What cannot be marked is not tried again and again in one pass: each try is a connection cut behind its DATA.
	if n := marks.Load(); n < 1 || n > 50 {
		t.Errorf("%d marks tried for 50 mails in one pass", n)
	}
	j.settle.Store(nil)
	deadline := time.Now().Add(30 * time.Second)
	for len(relay.Mails()) < 50 && time.Now().Before(deadline) {
		r.batch("")
		<-time.After(50 * time.Millisecond)
	}
	for id, n := range dup(relay) {
		if n != 1 {
			t.Errorf("%s arrived %d times", id, n)
		}
	}
	if n := len(relay.Mails()); n != 50 {
		t.Errorf("%d mails arrived", n)
	}
}

// TestNoConnectionFree: while other replicas hold all connections that a mail server allows, a pass gives up after a while with the reason; it does not claim and
// give back without an end. When one is free the mail leaves.
func TestNoConnectionFree(t *testing.T) {
	relay := (&smtpxtest.Server{}).Start(t)
	var j *faulty
	r := newRig(t, storetest.PostgresDSN(t), func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 1})
	other, err := r.store.Register(ctx(t), "other", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	slot, ok, err := r.store.TakeSlot(ctx(t), other, "bulk", 1)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	const mails = 1200 // more than the pass keeps in memory
	var ms []*store.NewMail
	for range mails {
		ms = append(ms, newMail(s, store.KindBulk, "u@y.example"))
	}
	r.queue(s, ms...)
	c := r.batch("bulk")
	if n := j.claims.Load(); n > mails/fullPage+2 || c.Claimed == 0 || c.Claimed > mails || c.Released != c.Claimed || len(relay.Mails()) != 0 {
		t.Fatalf("%d claims found mail: %+v; %d arrived", n, c, len(relay.Mails()))
	}
	told := 0
	for _, m := range ms {
		got := r.mail(m.ID)
		if got.Status != store.MailQueued || got.Attempts != 0 {
			t.Fatalf("%s, %d attempts, %q", got.Status, got.Attempts, got.LastError)
		}
		if strings.Contains(got.LastError, "connection") {
			told++
		}
	}
	if told != c.Claimed {
		t.Errorf("%d mails were claimed, %d say why they did not leave", c.Claimed, told)
	}
	if err := r.store.GiveSlot(ctx(t), other, "bulk", slot); err != nil {
		t.Fatal(err)
	}
	if c := r.batch("bulk"); c.Sent != mails || len(relay.Mails()) != mails {
		t.Errorf("%+v; %d arrived", c, len(relay.Mails()))
	}
}

// fullPage is the engine's largest claim.
const fullPage = 500

// TestUnreadableMail: a mail whose message cannot be read waits a little by itself, with the reason; it is not claimed again and again by one pass, and the others
// leave.
func TestUnreadableMail(t *testing.T) {
	for _, dsn := range storetest.DSNs(t) {
		relay := (&smtpxtest.Server{}).Start(t)
		var j *faulty
		r := newRig(t, dsn, func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
		s := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
		var ms []*store.NewMail
		for range 20 {
			ms = append(ms, newMail(s, store.KindBulk, "u@y.example"))
		}
		bad := ms[7].ID
		var tries atomic.Int32
		broken := func(c *store.Claimed) error {
			if c.ID == bad && tries.Add(1) < 100 {
				return errors.New("a part of it is gone")
			}
			return nil
		}
		j.load.Store(&broken)
		r.queue(s, ms...)
		c := r.batch("bulk")
		got := r.mail(bad)
		if n := tries.Load(); n != 1 || c.Sent != 19 || c.Released != 1 || len(relay.Mails()) != 19 {
			t.Errorf("%d tries in one pass: %+v; %d arrived", n, c, len(relay.Mails()))
		}
		if got.Status != store.MailQueued || got.DueTime == nil || !got.DueTime.After(time.Now()) || !strings.Contains(got.LastError, "a part of it is gone") {
			t.Errorf("%s, due %v, %q", got.Status, got.DueTime, got.LastError)
		}
	}
}

// TestDatabaseAwayAfterTheReply (F13): the outcome is kept and written when the database is back; nothing is sent twice.
func TestDatabaseAwayAfterTheReply(t *testing.T) {
	relay := (&smtpxtest.Server{}).Start(t)
	var j *faulty
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
	s := r.server("now", store.ModePHP, relay, store.Limits{})
	var away atomic.Int32
	gone := func(st *store.Settlement) error {
		if st.Kind != store.SettleMark && away.Add(1) < 6 {
			return store.ErrUnavailable
		}
		return nil
	}
	j.settle.Store(&gone)
	m := newMail(s, store.KindInvoice, "a@y.example")
	done, err := r.send(ctx(t), s, m)
	if err != nil || done.Status != store.MailSent || r.mail(m.ID).Status != store.MailSent || len(relay.Mails()) != 1 {
		t.Fatalf("%+v %v", done, err)
	}
	if away.Load() < 6 {
		t.Error("the fault was not met")
	}
}

// TestStaleLeaseClosesTheGate: once a renewal is 15 s late by the monotonic clock no dot leaves. (Here the renewals fail and the clock is real.)
func TestStaleLeaseClosesTheGate(t *testing.T) {
	relay := (&smtpxtest.Server{}).Start(t)
	var j *faulty
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
	s := r.server("now", store.ModePHP, relay, store.Limits{})
	late := errors.New("no way to the database")
	j.renew.Store(&late)
	deadline := time.Now().Add(25 * time.Second)
	for {
		before := len(relay.Mails())
		done, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example"))
		if err != nil {
			t.Fatal(err)
		}
		if done.Status != store.MailSent {
			if len(relay.Mails()) != before || !strings.Contains(done.LastError, "lease") {
				t.Fatalf("%s %q, %d mails left", done.Status, done.LastError, len(relay.Mails())-before)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("dots leave 25 s after the last renewal")
		}
		<-time.After(200 * time.Millisecond)
	}
	j.renew.Store(nil)
	deadline = time.Now().Add(20 * time.Second)
	for {
		done, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example"))
		if err == nil && done.Status == store.MailSent {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not sending again after the lease is back: %+v %v", done, err)
		}
		<-time.After(200 * time.Millisecond)
	}
}

// TestHungAndCancelled (F24): after 1,000 hung sends and 1,000 cancelled ones goroutines and descriptors are where they were.
func TestHungAndCancelled(t *testing.T) {
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" && strings.Contains(c.Arg, "hang") {
			return &smtpxtest.Action{Hang: true}
		}
		return nil
	}}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.times.Rcpt = 100 * time.Millisecond
	s := r.server("now", store.ModePHP, relay, store.Limits{MaxConnections: 100})
	if _, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example")); err != nil {
		t.Fatal(err)
	}
	count := func() (int, int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(fds)
	}
	goroutines, fds := count()
	for _, hang := range []bool{true, false} {
		var wg sync.WaitGroup
		for w := range 50 {
			wg.Go(func() {
				for range 20 {
					c, cancel := context.WithCancel(ctx(t))
					to := "hang@y.example"
					if !hang {
						time.AfterFunc(time.Duration(w)*100*time.Microsecond, cancel)
						to = "a@y.example"
					}
					_, _ = r.send(c, s, newMail(s, store.KindOther, to)) // ends in every possible way
					cancel()
				}
			})
		}
		wg.Wait()
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		g, f := count()
		if g <= goroutines+5 && f <= fds+5 {
			t.Logf("goroutines %d -> %d, descriptors %d -> %d", goroutines, g, fds, f)
			break
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("goroutines %d -> %d, descriptors %d -> %d\n%s", goroutines, g, fds, f, buf[:runtime.Stack(buf, true)])
		}
		<-time.After(200 * time.Millisecond)
	}
	for after := (store.Cursor{}); ; {
		due, err := r.store.ListDue(ctx(t), store.Everything, store.MailFilter{}, after, 500)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range due {
			if m.Status == store.MailSending {
				t.Errorf("%s is still being sent", m.ID)
			}
			after.ID = m.ID
		}
		if len(due) < 500 {
			break
		}
	}
}

// TestCancelledStreams (F25): whatever the point at which a caller goes away, each mail ends in exactly one journal with what became of it.
func TestCancelledStreams(t *testing.T) {
	relay := (&smtpxtest.Server{Delay: time.Millisecond}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	s := r.server("now", store.ModePHP, relay, store.Limits{MaxConnections: 8})
	var ms []*store.NewMail
	began := time.Now()
	for range 5 {
		if _, err := r.send(ctx(t), s, newMail(s, store.KindInvoice, "a@y.example", "b@y.example")); err != nil {
			t.Fatal(err)
		}
	}
	usual := time.Since(began) / 5
	var wg sync.WaitGroup
	slots := make(chan bool, 8)
	for i := range 300 {
		m := newMail(s, store.KindInvoice, "a@y.example", "b@y.example")
		ms = append(ms, m)
		slots <- true
		wg.Go(func() {
			defer func() { <-slots }()
			c, cancel := context.WithTimeout(context.Background(), time.Duration(i%60)*usual/6)
			defer cancel()
			_ = r.Send(c, &delivery.Submission{Mail: m, Server: s}, func(delivery.Event) error { return c.Err() })
		})
	}
	wg.Wait()
	r.stop() // everything is settled after it
	counts := dup(relay)
	sent, kept, never := 0, 0, 0
	for _, m := range ms {
		got, err := r.store.Mail(context.Background(), store.Everything, m.ID)
		switch n := counts[m.ID.String()]; {
		case errors.Is(err, store.ErrNotFound) && n == 0:
			never++ // the caller's time was over before it was accepted
		case err != nil:
			t.Error(err)
		case got.Status == store.MailSent && n == 1:
			sent++
		case got.Status != store.MailSent && got.Status != store.MailSending && n == 0:
			kept++
		default:
			t.Errorf("%s, arrived %d times: %s", got.Status, n, got.LastError)
		}
	}
	if sent == 0 || kept == 0 {
		t.Errorf("one-sided: %d sent, %d kept", sent, kept)
	}
	t.Logf("%d sent, %d kept in the due-out journal, %d never accepted", sent, kept, never)
}

// TestGiveWay: whoever prepares bulk waits for a php-mode mail that is under way, but not for long, and for nothing when there is none.
func TestGiveWay(t *testing.T) {
	relay := (&smtpxtest.Server{Delay: 300 * time.Millisecond}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	s := r.server("now", store.ModePHP, relay, store.Limits{})
	wait := func() time.Duration {
		began := time.Now()
		r.GiveWay(ctx(t))
		return time.Since(began)
	}
	if took := wait(); took > 100*time.Millisecond {
		t.Errorf("waited %v for nobody", took)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := r.send(ctx(t), s, newMail(s, store.KindInvoice, "a@x.example"))
		sent <- err
	}()
	longest := time.Duration(0)
	for over := false; !over; {
		select {
		case err := <-sent:
			if over = true; err != nil {
				t.Fatal(err)
			}
		default:
			longest = max(longest, wait())
		}
	}
	if longest < 15*time.Millisecond || longest > 600*time.Millisecond {
		t.Errorf("waited %v at most", longest)
	}
}
