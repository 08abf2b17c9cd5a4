package e2e

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// fill queues n mails at once, of which the fault tests need no ids.
func (s *service) fill(o *pb.SendOptions, n int) {
	s.t.Helper()
	o.Kind = pb.Kind_KIND_BULK
	items := make([]*pb.BatchItem, n)
	for i := range items {
		to := fmt.Sprintf("u%d@y.example", i)
		if o.Team != "" {
			to = o.Team + "@y.example"
		}
		items[i] = &pb.BatchItem{Message: message(to)}
	}
	if r := s.mustSendAll(&pb.BatchOptions{Options: o}, items...); int(r.Accepted) != n {
		s.t.Fatalf("%v", r)
	}
}

// TestDeadBesideHealthy (F21): a mail server that takes connections and says nothing, with a
// large backlog, is asked rarely by all replicas together, costs no mail an attempt, and slows
// nobody.
func TestDeadBesideHealthy(t *testing.T) {
	t.Parallel()
	dsn := storetest.PostgresDSN(t)
	rs := []*service{start(t, dsn, "--batch-interval=1s"), start(t, dsn, "--batch-interval=1s")}
	dead := (&smtpxtest.Server{On: func(smtpxtest.Command) *smtpxtest.Action { return &smtpxtest.Action{Hang: true} }}).Start(t)
	healthy := (&smtpxtest.Server{Delay: 5 * time.Millisecond}).Start(t)
	rs[0].addServer("healthy", pb.Mode_MODE_PHP, healthy.Port())
	rs[0].addServer("dead", pb.Mode_MODE_DAEMON, dead.Port(), func(m *pb.MailServer) { m.Smtp.Timeout = durationpb.New(2 * time.Second) })
	backlog := scaled(500, 5000)
	backlogged := &pb.MailFilter{MailServer: "dead"}
	rs[0].fill(&pb.SendOptions{MailServer: "dead", Hold: true}, backlog)
	// By turns, with the backlog held and let go, so that a machine that grows slower meanwhile
	// does not decide.
	rounds, mails := scaled(4, 10), scaled(25, 50)
	var base, beside []time.Duration
	var began time.Time
	for range rounds {
		base = append(base, rs[0].sendMany("healthy", mails, 4)...)
		if _, err := rs[0].dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Filter: backlogged}); err != nil {
			t.Fatal(err)
		}
		if began.IsZero() {
			began = time.Now()
		}
		beside = append(beside, rs[0].sendMany("healthy", mails, 4)...)
		if _, err := rs[0].dispatch.HoldMails(timeout(t), &pb.HoldMailsRequest{Filter: backlogged}); err != nil {
			// but for those that are being tried
			t.Fatal(err)
		}
	}
	if _, err := rs[0].dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Filter: backlogged}); err != nil {
		t.Fatal(err)
	}
	window := time.Duration(scaled(15, 300)) * time.Second
	eventually(t, window+time.Minute, "the window is over", func() bool { return time.Since(began) >= window })
	conns := dead.Conns()
	attempts, waiting := 0, 0
	eventually(t, time.Minute, "no mail is being sent", func() bool {
		attempts, waiting = 0, 0
		for _, m := range rs[1].journals() {
			if m.MailServer == "dead" {
				attempts += int(m.AttemptCount)
				if m.DueTime != nil {
					waiting++
				}
			}
		}
		return waiting == backlog
	})
	// Asked at 0 s by either replica at most, then after 1, 5, 30 s and 1, 2 and 4 minutes by
	// one of them; each try lasts 2 s.
	most := scaled(5, 10)
	if conns > most || conns == 0 {
		t.Errorf("%d connections in %v, at most %d expected", conns, window, most)
	}
	if attempts > 0 || waiting != backlog {
		t.Errorf("%d attempts burned, %d of %d wait", attempts, waiting, backlog)
	}
	p0, p1 := percentile(base, 95), percentile(beside, 95)
	if p1 > p0*3/2+time.Duration(scaled(50, 20))*time.Millisecond {
		// the constant is the noise of a machine that is shared
		t.Errorf("the healthy mail server's p95 is %v, was %v", p1, p0)
	}
	rs[1].invariants(t)
	t.Logf("F21 backlog=%d window=%v dead_conns=%d attempts_burned=%d healthy_p95=%v baseline_p95=%v", backlog, window, conns, attempts,
		p1.Round(time.Microsecond), p0.Round(time.Microsecond))
}

// TestRampAfterOutage (F22): a mail server that comes back is met with one connection, then
// two, four and so on, however much waits for it.
func TestRampAfterOutage(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.PostgresDSN(t), "--batch-interval=1s")
	const limit = 8
	var down atomic.Bool
	down.Store(true)
	var mu sync.Mutex
	var healed time.Time
	open, most, early := map[int]bool{}, 0, 0
	peaks := map[int]int{} // by step of the ramp
	relay := (&smtpxtest.Server{Delay: 25 * time.Millisecond, On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "CONNECT" && down.Load() {
			return &smtpxtest.Action{Reply: "421 4.3.2 down\r\n", Close: true}
		}
		mu.Lock()
		defer mu.Unlock()
		switch c.Verb {
		case "EHLO":
			if healed.IsZero() {
				healed = time.Now()
			}
			open[c.Conn] = true
			step := int(time.Since(healed) / (3 * time.Second))
			most, peaks[step] = max(most, len(open)), max(peaks[step], len(open))
			// A connection counts once it has said EHLO, a little after it was allowed.
			if len(open) > min(limit, 1<<step) && len(open) > min(limit, 1<<max(0, int((time.Since(healed)+500*time.Millisecond)/(3*time.Second)))) {
				early++
			}
		case "QUIT":
			delete(open, c.Conn)
		}
		return nil
	}}).Start(t)
	s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: limit} })
	mails := scaled(1000, 10000)
	s.fill(&pb.SendOptions{MailServer: "bulk"}, mails)
	eventually(t, 20*time.Second, "it is suspended", func() bool { return s.health("bulk").GetState() == pb.Health_STATE_SUSPENDED })
	down.Store(false)
	eventually(t, 10*time.Minute, "all are sent", func() bool { return len(relay.Mails()) >= mails })
	mu.Lock()
	defer mu.Unlock()
	for id, n := range arrivals(relay) {
		if n != 1 {
			t.Errorf("%s arrived %d times", id, n)
		}
	}
	if early > 0 || most > limit || most < 4 {
		t.Errorf("%d connections too early, %d at most, by step %v", early, most, peaks)
	}
	s.invariants(t)
	t.Logf("F22 mails=%d took=%v most_conns=%d too_early=%d peaks_by_3s=%v", mails, time.Since(healed).Round(time.Millisecond), most, early, peaks)
}

// TestLanes: while a throttled mail server works through a backlog of bulk, an urgent
// daemon-mode mail leaves with the next pass, php mode waits for nothing, and teams share what
// there is.
func TestLanes(t *testing.T) {
	inTurn(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{Delay: 20 * time.Millisecond}).Start(t)
		s.addServer("shared", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: 2} })
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: 2} })
		bulk := scaled(1000, 10000)
		baseline := percentile(s.sendMany("now", 20, 1), 95)
		// One team is first and has most; the php-mode server has a backlog of its own that the
		// batch sends.
		s.fill(&pb.SendOptions{MailServer: "shared", Team: "early"}, bulk*8/10)
		s.fill(&pb.SendOptions{MailServer: "shared", Team: "middle"}, bulk/10)
		s.fill(&pb.SendOptions{MailServer: "shared", Team: "last"}, bulk/10)
		s.fill(&pb.SendOptions{MailServer: "now", Hold: true}, 200)
		if _, err := s.dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Filter: &pb.MailFilter{MailServer: "now"}}); err != nil {
			t.Fatal(err)
		}
		pass := func() {
			if _, err := s.admin.RunBatch(timeout(t), &pb.RunBatchRequest{}); err != nil {
				t.Error(err)
			}
		}
		began := len(relay.Mails())
		pass()
		eventually(t, 30*time.Second, "the backlog flows", func() bool { return len(relay.Mails()) >= began+50 })
		queued := time.Now()
		s.mustSend(one("shared", pb.Kind_KIND_AGENT_MESSAGE, "agent", "agent@y.example"))
		s.mustSend(one("shared", pb.Kind_KIND_INVOICE, "invoice", "invoice@y.example"))
		pass()
		var urgent time.Duration
		eventually(t, 20*time.Second, "the urgent mails have left", func() bool {
			n := 0
			for _, m := range relay.Mails() {
				if m.To[0] == "agent@y.example" || m.To[0] == "invoice@y.example" {
					n++
				}
			}
			urgent = time.Since(queued)
			return n == 2
		})
		php := percentile(s.sendMany("now", 20, 1), 95)
		by := map[string]int{}
		for _, m := range relay.Mails()[began:] {
			by[strings.TrimSuffix(m.To[0], "@y.example")]++
		}
		left := bulk - by["early"] - by["middle"] - by["last"]
		if left < bulk/10 {
			t.Fatalf("only %d bulk mails were left: this shows nothing", left)
		}
		if urgent > 5*time.Second {
			t.Errorf("urgent mails took %v", urgent)
		}
		// Its own backlog may hold the connection for the exchange that is under way; what else
		// waits is not in front of it.
		if php > 3*baseline+200*time.Millisecond {
			t.Errorf("php mode's p95 is %v, was %v", php, baseline)
		}
		least, share := min(by["early"], by["middle"], by["last"]), (by["early"]+by["middle"]+by["last"])/3
		if least < share/2 {
			t.Errorf("teams got %v", by)
		}
		s.invariants(t)
		t.Logf("lanes bulk=%d left=%d urgent_after=%v php_p95=%v baseline_p95=%v early=%d middle=%d last=%d", bulk, left, urgent.Round(time.Millisecond),
			php.Round(time.Millisecond), baseline.Round(time.Millisecond), by["early"], by["middle"], by["last"])
	})
}
