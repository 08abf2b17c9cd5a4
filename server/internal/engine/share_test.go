package engine_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

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
	slot, ok, err := r.store.TakeSlot(ctx(t), other, store.SlotTake{MailServer: "bulk", Limit: 1, Token: 1, Settled: 1})
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
	if err := r.store.GiveSlot(ctx(t), other, store.Slot{MailServer: "bulk", N: slot, Token: 1}); err != nil {
		t.Fatal(err)
	}
	if c := r.batch("bulk"); c.Sent != mails || len(relay.Mails()) != mails {
		t.Errorf("%+v; %d arrived", c, len(relay.Mails()))
	}
}

// TestSlotGivenBackLater: a slot that cannot be given back while the database is away is given
// back when it has returned. It is not lost for as long as the process lives.
func TestSlotGivenBackLater(t *testing.T) {
	relay := (&smtpxtest.Server{}).Start(t)
	var j *faulty
	r := newRig(t, storetest.PostgresDSN(t), func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 1})
	r.queue(s, newMail(s, store.KindBulk, "u@y.example"))
	away := error(store.ErrUnavailable)
	j.give.Store(&away)
	if c := r.batch("bulk"); c.Sent != 1 {
		t.Fatalf("%+v", c)
	}
	j.give.Store(nil)
	r.queue(s, newMail(s, store.KindBulk, "u@y.example"))
	if c := r.batch("bulk"); c.Sent != 1 {
		t.Errorf("after the database has returned: %+v", c)
	}
}

// fullPage is the engine's largest claim.
const fullPage = 500

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
