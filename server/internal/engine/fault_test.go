package engine_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
	server atomic.Pointer[func(name string) error]
	give   atomic.Pointer[error]
	claims atomic.Int32 // that found something
	yields atomic.Int32
}

func (f *faulty) Yield(ctx context.Context) {
	f.yields.Add(1)
	f.Journal.Yield(ctx)
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

func (f *faulty) Server(ctx context.Context, sc store.Scope, name string) (*store.MailServer, error) {
	if fn := f.server.Load(); fn != nil {
		if err := (*fn)(name); err != nil {
			return nil, err
		}
	}
	return f.Journal.Server(ctx, sc, name)
}

func (f *faulty) GiveSlot(ctx context.Context, r store.ReplicaID, s store.Slot) error {
	if err := f.give.Load(); err != nil {
		return *err
	}
	return f.Journal.GiveSlot(ctx, r, s)
}

func dup(relay *smtpxtest.Server) map[string]int {
	seen := map[string]int{}
	for _, m := range relay.Mails() {
		id, _, _ := strings.Cut(strings.TrimPrefix(string(m.Data), "Message-ID: <"), "@")
		seen[id]++
	}
	return seen
}

const idleSweep = 20 * time.Second // after which an idle session is closed anyhow

// TestNoMarkNoDot (F14): while the mark cannot be written no dot leaves; when it can be again
// everything is sent once, without a restart.
func TestNoMarkNoDot(t *testing.T) {
	t.Parallel()
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
	// What cannot be marked is not tried again and again in one pass: each try is a connection
	// cut behind its DATA.
	if n := marks.Load(); n < 1 || n > 50 {
		t.Errorf("%d marks tried for 50 mails in one pass", n)
	}
	j.settle.Store(nil)
	deadline := time.Now().Add(patience)
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

// TestUnreadableMail: a mail whose message cannot be read waits a little by itself, with the
// reason; it is not claimed again and again by one pass, and the others leave.
func TestUnreadableMail(t *testing.T) {
	t.Parallel()
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

// TestDatabaseAwayAfterTheReply (F13): the outcome is kept and written when the database is
// back; nothing is sent twice.
func TestDatabaseAwayAfterTheReply(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{}).Start(t)
	p, dsn := storetest.NewProxy(t, storetest.PostgresDSN(t))
	r := newRig(t, dsn, func(s *store.Store) engine.Journal { return s })
	s := r.server("now", store.ModePHP, relay, store.Limits{})
	// pieces that were lost: the first try of the result, and what is tried next
	var away atomic.Int32
	p.Cut(func(answer bool, b []byte) bool {
		return (away.Load() > 0 || !answer && bytes.Contains(b, []byte(`"status":"sent"`))) && away.Add(1) <= 6
	})
	m := newMail(s, store.KindInvoice, "a@y.example")
	done, err := r.send(ctx(t), s, m)
	if err != nil || done.Status != store.MailSent || r.mail(m.ID).Status != store.MailSent || len(relay.Mails()) != 1 {
		t.Fatalf("%+v %v", done, err)
	}
	if away.Load() < 6 {
		t.Error("the fault was not met")
	}
}

// TestMarkWithoutAnswer: while the database does not answer to a mark the dot waits, and at the
// end of the wait it does not leave; the mail goes back.
func TestMarkWithoutAnswer(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{}).Start(t)
	var j *silent
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &silent{Journal: s}; return j })
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
	j.on.Store(true)
	m := newMail(s, store.KindBulk, "u@y.example")
	r.queue(s, m)
	r.batch("")
	if n := len(relay.Mails()); n != 0 || j.marks.Load() != 1 {
		t.Fatalf("%d dots left, %d marks", n, j.marks.Load())
	}
	if got := r.mail(m.ID); got.Attempts != 0 || got.DueTime == nil || !strings.Contains(got.LastError, "mark before the dot") {
		t.Fatalf("%s, %d attempts, %s", got.Status, got.Attempts, got.LastError)
	}
}

// silent is a journal that does not answer to marks.
type silent struct {
	engine.Journal
	on    atomic.Bool
	marks atomic.Int32
}

func (f *silent) Settle(s *store.Settlement) <-chan store.Settled {
	if s.Kind == store.SettleMark && f.on.Load() {
		f.marks.Add(1)
		return make(chan store.Settled)
	}
	return f.Journal.Settle(s)
}

// TestStaleLeaseClosesTheGate: once a renewal is 15 s late by the monotonic clock no dot
// leaves. (Here the renewals fail and the clock is real.)
func TestStaleLeaseClosesTheGate(t *testing.T) {
	t.Parallel()
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
