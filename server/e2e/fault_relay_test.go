package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
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

// memoryFactor is what the race detector costs in memory, 1 without it.
var memoryFactor = 1

// residentKB is the memory of a process, descriptors and threads what else it holds.
func (s *service) residentKB() int  { return s.procStatus("VmRSS:") }
func (s *service) threads() int     { return s.procStatus("Threads:") }
func (s *service) descriptors() int { return len(s.proc("fd")) }

func (s *service) procStatus(key string) int {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), key)
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *service) proc(dir string) []os.DirEntry {
	s.t.Helper()
	es, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", s.cmd.Process.Pid, dir))
	if err != nil {
		s.t.Fatal(err)
	}
	return es
}

// percentile of a set of times.
func percentile(ds []time.Duration, p int) time.Duration {
	s := slices.Sorted(slices.Values(ds))
	return s[min(len(s)-1, len(s)*p/100)]
}

// sendMany sends n php-mode mails with so many callers and returns how long each took. A mail
// that is not sent fails the test.
func (s *service) sendMany(server string, n, callers int) []time.Duration {
	s.t.Helper()
	took := make([]time.Duration, n)
	var wg sync.WaitGroup
	for w := range callers {
		wg.Go(func() {
			for i := w; i < n; i += callers {
				began := time.Now()
				r, err := s.send(timeout(s.t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: server}, Message: message(fmt.Sprintf("u%d@y.example", i))})
				if err != nil || r.mail.GetStatus() != pb.MailStatus_MAIL_STATUS_SENT {
					s.t.Errorf("%v %v", r.mail, err)
					return
				}
				took[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	return took
}

// TestHostileReplies (F6): replies that never end, in time or in length, on 64 connections at
// once, are cut at their deadline or their limit, cost little memory, and leave a healthy mail
// server alone.
func TestHostileReplies(t *testing.T) {
	const callers = 64
	s := start(t, storetest.SQLiteDSN(t))
	healthy := (&smtpxtest.Server{}).Start(t)
	s.addServer("healthy", pb.Mode_MODE_PHP, healthy.Port())
	within := func(seconds int64) func(*pb.MailServer) {
		return func(m *pb.MailServer) {
			m.Limits, m.Smtp.Timeout = &pb.Limits{MaxConnections: callers}, &durationpb.Duration{Seconds: seconds}
		}
	}
	// The measure is a relay that behaves, with as many callers on as many connections: what is
	// left is the hostility.
	s.addServer("busy", pb.Mode_MODE_PHP, (&smtpxtest.Server{}).Start(t).Port(), within(20))
	var busy sync.WaitGroup
	busy.Go(func() { s.sendMany("busy", 4*callers, callers) })
	base := percentile(s.sendMany("healthy", 200, 4), 95)
	busy.Wait()

	const limit = 2 // seconds to let us in
	for name, c := range map[string]struct {
		verb   string
		action smtpxtest.Action
		limit  time.Duration
	}{
		"a byte a minute":         {"CONNECT", smtpxtest.Action{Reply: "2", Hang: true}, limit * time.Second},
		"a byte now and then":     {"CONNECT", smtpxtest.Action{Reply: "220 " + strings.Repeat("x", 1000), Drip: true}, limit * time.Second},
		"endless greeting":        {"CONNECT", smtpxtest.Action{Reply: "220-" + strings.Repeat("x", 494) + "\r\n", Flood: true}, limit * time.Second},
		"endless line":            {"CONNECT", smtpxtest.Action{Reply: strings.Repeat("x", 64<<10), Flood: true}, limit * time.Second},
		"endless reply to EHLO":   {"EHLO", smtpxtest.Action{Reply: "250-" + strings.Repeat("X", 494) + "\r\n", Flood: true}, limit * time.Second},
		"endless reply to RCPT":   {"RCPT", smtpxtest.Action{Reply: "250-" + strings.Repeat("x", 494) + "\r\n", Flood: true}, limit * time.Second},
		"endless line at the dot": {"DOT", smtpxtest.Action{Reply: strings.Repeat("2", 64<<10), Flood: true}, limit * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			relay := (&smtpxtest.Server{On: func(cmd smtpxtest.Command) *smtpxtest.Action {
				if cmd.Verb == c.verb {
					a := c.action
					return &a
				}
				return nil
			}}).Start(t)
			server, before := fmt.Sprintf("hostile-%d", relay.Port()), s.residentKB()
			s.addServer(server, pb.Mode_MODE_PHP, relay.Port(), within(limit))
			var wg sync.WaitGroup
			var longest atomic.Int64
			for range callers {
				wg.Go(func() {
					began := time.Now()
					r, err := s.send(timeout(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: server}, Message: message("a@y.example")})
					took := int64(time.Since(began))
					for was := longest.Load(); took > was && !longest.CompareAndSwap(was, took); was = longest.Load() {
					}
					want := pb.MailStatus_MAIL_STATUS_FAILED
					if c.verb == "DOT" {
						want = pb.MailStatus_MAIL_STATUS_UNKNOWN
					}
					if err != nil || r.mail.Status != want && !strings.Contains(r.mail.LastError, "suspended") {
						t.Errorf("%v %v", r, err)
					}
				})
			}
			p95 := percentile(s.sendMany("healthy", 200, 4), 95)
			wg.Wait()
			grown := s.residentKB() - before
			// The race detector and a busy machine make everything slower; a reply that is not
			// cut takes for ever.
			if l := time.Duration(longest.Load()); l > c.limit+10*time.Second {
				t.Errorf("cut after %v", l)
			}
			if grown > memoryFactor*32<<10 {
				t.Errorf("the service grew by %d KiB", grown)
			}
			if p95 > 3*base+100*time.Millisecond {
				t.Errorf("the healthy mail server's p95 is %v, was %v", p95, base)
			}
			t.Logf("F6 conns=%d longest=%v rss_growth_kib=%d healthy_p95=%v baseline_p95=%v", relay.Conns(), time.Duration(longest.Load()).Round(time.Millisecond), grown,
				p95.Round(time.Microsecond), base.Round(time.Microsecond))
		})
	}
	s.invariants(t)
}
