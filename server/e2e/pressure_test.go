package e2e

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

func (s *service) health(name string) *pb.Health {
	s.t.Helper()
	r, err := s.admin.GetMailServer(timeout(s.t), &pb.GetMailServerRequest{Name: name})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.MailServer.Health
}

// eventually polls until ok, for at most d, and at least as long as patience.
func eventually(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	d = max(d, patience)
	for end := time.Now().Add(d); !ok(); <-time.After(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

// within is eventually where the time is what is tested: however long a slow machine is given,
// the test fails if it took longer than bar.
func within(t *testing.T, bar time.Duration, what string, ok func() bool) {
	t.Helper()
	began := time.Now()
	eventually(t, bar, what, ok)
	if took := time.Since(began); took > bar {
		t.Errorf("%s: it took %v, want %v at most", what, took.Round(time.Millisecond), bar)
	}
}

func (s *service) queue(server string, n int, change ...func(*pb.SendRequest)) []string {
	s.t.Helper()
	ids := make([]string, n)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				r := &pb.SendRequest{Options: &pb.SendOptions{MailServer: server, Kind: pb.Kind_KIND_BULK}, Message: message(fmt.Sprintf("u%d@y.example", i))}
				for _, c := range change {
					c(r)
				}
				out, err := s.send(timeout(s.t), r)
				if err != nil {
					s.t.Error(err)
					return
				}
				ids[i] = out.id
			}
		})
	}
	wg.Wait()
	return ids
}

// TestSuspension: a mail server that is down is asked once, costs no mail an attempt, is there
// to be seen, tells php-mode callers at once, heals by one probe, and starts afresh with a
// changed configuration.
func TestSuspension(t *testing.T) {
	each(t, func(t *testing.T, s *service) {
		var down atomic.Bool
		down.Store(true)
		relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "CONNECT" && down.Load() {
				return &smtpxtest.Action{Reply: "554 5.3.2 closed for repair\r\n", Close: true}
			}
			return nil
		}}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		if h := s.health("bulk"); h != nil {
			t.Errorf("health before anything was sent: %v", h)
		}
		ids := s.queue("bulk", 30)
		if b := s.batch(); b.Claimed != b.Released || b.Sent+b.Deferred+b.Failed != 0 {
			t.Errorf("%v", b)
		}
		if n := relay.Conns(); n != 1 {
			t.Errorf("%d connections to a mail server that is down", n)
		}
		h := s.health("bulk")
		if h.GetState() != pb.Health_STATE_SUSPENDED || !strings.Contains(h.SuspendedReason, "closed for repair") || h.RetryTime == nil || h.LastFailureTime == nil {
			t.Errorf("health %v", h)
		}
		for _, id := range ids {
			if m := s.mail(id); m.AttemptCount != 0 || m.DueTime == nil || m.Status != pb.MailStatus_MAIL_STATUS_QUEUED {
				t.Fatalf("%v", m)
			}
		}

		first := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: message("a@y.example")})
		if first.mail.Status != pb.MailStatus_MAIL_STATUS_FAILED || !strings.Contains(first.mail.LastError, "closed for repair") {
			t.Errorf("%v", first.mail)
		}
		conns, began := relay.Conns(), time.Now()
		second := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: message("a@y.example")})
		if second.mail.Status != pb.MailStatus_MAIL_STATUS_FAILED || !strings.Contains(second.mail.LastError, "suspended until") || !strings.Contains(second.mail.LastError, "closed for repair") {
			t.Errorf("%v", second.mail)
		}
		if relay.Conns() != conns || time.Since(began) > 900*time.Millisecond {
			t.Errorf("a suspended mail server was tried: %d connections, %v", relay.Conns()-conns, time.Since(began))
		}

		down.Store(false)
		within(t, 20*time.Second, "everything is sent after the recovery", func() bool { s.batch(); return len(relay.Mails()) == 30 })
		if h := s.health("bulk"); h.GetState() != pb.Health_STATE_OK || h.SuspendedReason != "" || h.LastSuccessTime == nil || h.LastFailure == "" {
			t.Errorf("healed: %v", h)
		}

		down.Store(true)
		_, err := s.admin.UpdateMailServer(timeout(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "bulk", DisplayName: "a new connection is needed"}})
		if err != nil {
			t.Fatal(err)
		}
		s.queue("bulk", 1)
		s.batch()
		if h := s.health("bulk"); h.GetState() != pb.Health_STATE_SUSPENDED {
			t.Fatalf("%v", h)
		}
		down.Store(false)
		if _, err := s.admin.UpdateMailServer(timeout(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "bulk", DisplayName: "mended"}}); err != nil {
			t.Fatal(err)
		}
		if h := s.health("bulk"); h.GetState() == pb.Health_STATE_SUSPENDED {
			t.Errorf("a changed configuration is still suspended: %v", h)
		}
		if b := s.batch(); b.Sent != 1 {
			t.Errorf("%v", b)
		}
	})
}

// TestSuspensionIsShared: two replicas do not both ask a mail server that is down.
func TestSuspensionIsShared(t *testing.T) {
	t.Parallel()
	dsn := storetest.PostgresDSN(t)
	a, b := start(t, dsn), start(t, dsn)
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "CONNECT" {
			return &smtpxtest.Action{Reply: "421 4.3.0 down\r\n", Close: true}
		}
		return nil
	}}).Start(t)
	a.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
	a.queue("bulk", 20)
	began := time.Now()
	for time.Since(began) < 8*time.Second {
		a.batch()
		b.batch()
		<-time.After(20 * time.Millisecond)
	}
	// Both may ask once at the start; then 1 s and 5 s later one of them does.
	if n := relay.Conns(); n > 4 {
		t.Errorf("%d connections in 8 s", n)
	} else {
		t.Logf("%d connections in 8 s by two replicas that look 50 times a second", n)
	}
	if h := b.health("bulk"); h.GetState() != pb.Health_STATE_SUSPENDED {
		t.Errorf("%v", h)
	}
}

// TestConnectionLimit: a mail server's own limit holds over replicas, and over php and daemon
// mode.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	dsn := storetest.PostgresDSN(t)
	a, b := start(t, dsn), start(t, dsn)
	var open, most atomic.Int32
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		switch c.Verb {
		case "CONNECT":
			n := open.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
		case "QUIT":
			open.Add(-1)
		}
		return nil
	}, Delay: 3 * time.Millisecond}).Start(t)
	a.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: 3} })
	a.queue("bulk", 400)
	var wg sync.WaitGroup
	wg.Go(func() { a.batch() })
	wg.Wait()
	wg.Go(func() { b.queue("bulk", 400) })
	wg.Wait()
	for range 3 {
		wg.Go(func() { a.batch() })
		wg.Go(func() { b.batch() })
	}
	wg.Wait()
	eventually(t, 30*time.Second, "all are sent", func() bool { a.batch(); return len(relay.Mails()) == 800 })
	if most.Load() > 3 {
		t.Errorf("%d connections at once", most.Load())
	}
}

// TestRateLimits: per minute daemon-mode mail waits and flows evenly; per day it stays queued;
// php-mode mail hears of it.
func TestRateLimits(t *testing.T) {
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("minute", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MailsPerMinute: 600} })
		s.addServer("day", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MailsPerDay: 5} })
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MailsPerDay: 1} })
		s.queue("minute", 90)
		began := time.Now()
		s.batch()
		if took := time.Since(began); took < 2800*time.Millisecond || took > 10*time.Second || len(relay.Mails()) != 90 {
			t.Errorf("90 mails at 600 a minute, 60 of them at once, took %v; %d arrived", took, len(relay.Mails()))
		}
		s.queue("day", 8)
		if b := s.batch(); b.Sent != 5 {
			t.Errorf("%v", b)
		}
		if b := s.batch(); b.Claimed != 0 {
			t.Errorf("%v", b)
		}
		one := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: message("a@y.example")})
		two := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: message("a@y.example")})
		if one.mail.Status != pb.MailStatus_MAIL_STATUS_SENT || two.mail.Status != pb.MailStatus_MAIL_STATUS_FAILED || !strings.Contains(two.mail.LastError, "limit") {
			t.Errorf("%v\n%v", one.mail, two.mail)
		}
	})
}

// TestThrottling: a relay that says we are too fast gets fewer connections and then a rest; no
// mail loses an attempt; nothing is lost.
func TestThrottling(t *testing.T) {
	s := start(t, storetest.SQLiteDSN(t))
	var busy atomic.Bool // until what it leads to was seen, however long that takes here
	busy.Store(true)
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "MAIL" && busy.Load() {
			return &smtpxtest.Action{Reply: "451 4.7.0 slow down\r\n", Refuse: true}
		}
		return nil
	}}).Start(t)
	s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
	ids := s.queue("bulk", 40)
	b := s.batch()
	if b.Deferred+b.Failed != 0 || b.Released == 0 {
		t.Errorf("%v", b)
	}
	if h := s.health("bulk"); h.GetState() != pb.Health_STATE_SUSPENDED || !strings.Contains(h.SuspendedReason, "slow down") {
		t.Errorf("%v", h)
	}
	for _, id := range ids {
		if m := s.mail(id); m.AttemptCount != 0 || m.Status == pb.MailStatus_MAIL_STATUS_FAILED {
			t.Fatalf("%v", m)
		}
	}
	busy.Store(false)
	within(t, 50*time.Second, "all are sent in the end", func() bool { s.batch(); return len(relay.Mails()) == 40 })
}
