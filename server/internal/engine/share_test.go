package engine_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestLargeMailsShareRoom (F23): workers that each hold a large mail behind its DATA and need
// room for the next never wait for each other.
func TestLargeMailsShareRoom(t *testing.T) {
	t.Parallel()
	// slow enough for all workers to be hired
	relay := (&smtpxtest.Server{Delay: 40 * time.Millisecond}).Start(t)
	const size = 300 << 10
	// half of it: two at once, and some more
	r := newRig(t, storetest.SQLiteDSN(t), nil, func(c *engine.Config) { c.MaxBytes = 20 * size })
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

// TestLargeMailsLeaveRoom: large mails at mail servers that hang, before the dot or behind it,
// delay no large mail at a healthy one; and behind the dot a mail takes less, so that more of
// them fit.
func TestLargeMailsLeaveRoom(t *testing.T) {
	t.Parallel()
	const size = 300 << 10
	r := newRig(t, storetest.SQLiteDSN(t), nil, func(c *engine.Config) { c.MaxBytes = 16 * size })
	release := make(chan struct{})
	defer close(release)
	large := func(s *store.MailServer, n int) {
		for range n {
			m := newMail(s, store.KindBulk, "u@y.example")
			m.Raw[0].Data = append(m.Raw[0].Data, bytes.Repeat([]byte(strings.Repeat("x", 70)+"\r\n"), size/72-1)...)
			m.SizeBytes = int64(len(m.Raw[0].Data))
			r.queue(s, m)
		}
	}
	for i, hung := range []struct {
		verb string
		most int32 // that have room at once, in the order of this list
	}{
		// half of 16 sizes: each takes 4 while there is room for it, and 1 when its dot has
		// left
		{"DOT", 5},
		{"MAIL", 1}, // 4 of what the first leaves
		{"DOT", 1},
	} {
		var hangs atomic.Int32
		relay := (&smtpxtest.Server{Extensions: []string{"SIZE 104857600"}, On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == hung.verb {
				hangs.Add(1)
				<-release
			}
			return nil
		}}).Start(t)
		s := r.server(fmt.Sprint("hung-", i), store.ModeDaemon, relay, store.Limits{})
		large(s, 12)
		if _, err := r.RunBatch(ctx(t), s.Name, false); err != nil {
			t.Fatal(err)
		}
		until(t, fmt.Sprintf("%d mails hang at %s", hung.most, hung.verb), func() bool { return hangs.Load() >= hung.most })
	}
	relay := (&smtpxtest.Server{}).Start(t)
	s := r.server("well", store.ModeDaemon, relay, store.Limits{})
	large(s, 10)
	if n, err := r.RunBatch(ctx(t), s.Name, true); err != nil || n.Sent != 10 {
		t.Errorf("large mails at a healthy mail server: %+v, %v", n, err)
	}
}

// TestNoConnectionFree: while other replicas hold all connections that a mail server allows, a
// pass gives up after a while with the reason; it does not claim and give back without an end.
// When one is free the mail leaves.
func TestNoConnectionFree(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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

// TestBulkYields: every mail of the batch asks whether a caller's mail needs this machine.
func TestBulkYields(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{}).Start(t)
	var j *faulty
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
	r.bulk(r.server("bulk", store.ModeDaemon, relay, store.Limits{}), 40)
	if c := r.batch("bulk"); c.Sent != 40 || j.yields.Load() < 40 {
		t.Errorf("%+v; bulk asked %d times", c, j.yields.Load())
	}
}

// TestHungRelayCostsOthersNothing: a php-mode mail that waits for one mail server's reply costs
// the bulk of another less than a tenth of its speed. Rounds with and without it alternate, and
// their medians are compared; a busy machine gets more rounds.
func TestHungRelayCostsOthersNothing(t *testing.T) {
	release, hangs := make(chan struct{}), make(chan struct{}, 1)
	hung := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "DOT" {
			hangs <- struct{}{}
			<-release
		}
		return nil
	}}).Start(t)
	relay := (&smtpxtest.Server{}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	now := r.server("now", store.ModePHP, hung, store.Limits{})
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 2})
	round := func() time.Duration {
		r.bulk(s, 500)
		began := time.Now()
		if c := r.batch("bulk"); c.Sent != 500 {
			t.Fatalf("%+v", c)
		}
		return time.Since(began)
	}
	besides := func() time.Duration {
		sent := make(chan error, 1)
		go func() {
			_, err := r.send(ctx(t), now, newMail(now, store.KindOther, "a@y.example"))
			sent <- err
		}()
		<-hangs
		until(t, "the window has closed", func() bool { return r.store.BulkItems() == fullPage })
		took := round()
		release <- struct{}{}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		until(t, "the window has closed", func() bool { return r.store.BulkItems() == fullPage })
		return took
	}
	median := func(of []time.Duration) time.Duration {
		of = slices.Sorted(slices.Values(of))
		return of[len(of)/2]
	}
	round()
	var alone, beside []time.Duration
	for len(alone) < 3 || median(beside) > median(alone)*11/10 {
		if len(alone) == 15 {
			t.Fatalf("500 mails over 2 connections: %v alone, %v while a php-mode mail hangs elsewhere", median(alone), median(beside))
		}
		alone, beside = append(alone, round()), append(beside, besides())
	}
	t.Logf("500 mails over 2 connections: %v alone, %v while a php-mode mail hangs elsewhere, after %d rounds", median(alone), median(beside), len(alone))
}
