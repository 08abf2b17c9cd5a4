package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// journals reads every mail of both journals by id. One that moves meanwhile is seen where it
// went.
func (s *service) journals() map[string]*pb.Mail {
	s.t.Helper()
	all := map[string]*pb.Mail{}
	add := func(ms []*pb.Mail) {
		for _, m := range ms {
			all[m.Id] = m
		}
	}
	for token, more := "", true; more; more = token != "" {
		r, err := s.dispatch.ListDueOutMails(timeout(s.t), &pb.ListDueOutMailsRequest{PageSize: 500, PageToken: token})
		if err != nil {
			s.t.Fatal(err)
		}
		add(r.Mails)
		token = r.NextPageToken
	}
	for token, more := "", true; more; more = token != "" {
		r, err := s.dispatch.ListArchivedMails(timeout(s.t), &pb.ListArchivedMailsRequest{PageSize: 500, PageToken: token})
		if err != nil {
			s.t.Fatal(err)
		}
		add(r.Mails)
		token = r.NextPageToken
	}
	return all
}

// arrivals counts by mail id what a relay took.
func arrivals(relay *smtpxtest.Server) map[string]int {
	n := map[string]int{}
	for _, m := range relay.Mails() {
		n[idOf(string(m.Data))]++
	}
	return n
}

// idOf reads a mail's id out of its Message-ID.
func idOf(raw string) string {
	_, id, _ := strings.Cut(raw, "Message-ID: <")
	id, _, _ = strings.Cut(id, "@")
	return id
}

// TestFrozenReplica (F16): a replica that is frozen in the middle of its work, taken for dead
// and thawed writes nothing over what the other has done meanwhile; what both sent is flagged,
// and only mails whose dot had left before are sent twice.
func TestFrozenReplica(t *testing.T) {
	t.Parallel()
	dsn := storetest.PostgresDSN(t)
	frozen, other := start(t, dsn, "--helo-name=frozen.example"), start(t, dsn, "--helo-name=other.example")
	var mu sync.Mutex
	whose := map[int]string{}
	thawed := false
	lateDots := 0
	var stopAt struct { // the command of the one to be frozen at which it is
		verb string
		nth  int
		c    chan struct{}
	}
	relay := (&smtpxtest.Server{Delay: 10 * time.Millisecond, On: func(c smtpxtest.Command) *smtpxtest.Action {
		mu.Lock()
		defer mu.Unlock()
		if c.Verb == "EHLO" {
			whose[c.Conn] = c.Arg
		}
		if whose[c.Conn] != "frozen.example" {
			return nil
		}
		if c.Verb == "DOT" && thawed {
			lateDots++
		}
		if c.Verb == stopAt.verb {
			if stopAt.nth--; stopAt.nth == 0 {
				// if it did not come, no other takes over
				_ = frozen.cmd.Process.Signal(syscall.SIGSTOP)
				close(stopAt.c)
			}
		}
		return nil
	}}).Start(t)
	frozen.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
	rounds, mails := scaled(1, 30), scaled(400, 600)
	// at full size three leases; else until the other has taken over
	stop := time.Duration(scaled(0, 95)) * time.Second
	stale, unflagged, flagged, late, lost, doubled := 0, 0, 0, 0, 0, 0
	for round := range rounds {
		ids := other.queue("bulk", mails)
		// At a random point in the middle of the work, which is often a dot that has no answer
		// yet.
		stopped := make(chan struct{})
		mu.Lock()
		stopAt.verb, stopAt.nth, stopAt.c = []string{"MAIL", "RCPT", "DATA", "DOT", "DOT", "DOT"}[rand.IntN(6)], 1+rand.IntN(30), stopped
		mu.Unlock()
		// it may be frozen before it answers
		go func() { _, _ = frozen.admin.RunBatch(timeout(t), &pb.RunBatchRequest{}) }()
		select {
		case <-stopped:
		case <-timeout(t).Done():
			t.Fatal("the replica that was to be frozen has no work")
		}
		if _, err := other.admin.RunBatch(timeout(t), &pb.RunBatchRequest{}); err != nil {
			t.Fatal(err)
		}
		began, db := time.Now(), openDB(t, other.dsn())
		// also when the test ends early, else it could not be stopped
		thaw := sync.OnceFunc(func() { _ = frozen.cmd.Process.Signal(syscall.SIGCONT) })
		t.Cleanup(thaw)
		// The frozen one's lease runs out and the other takes over: nothing belongs to anybody
		// any more.
		eventually(t, stop+75*time.Second, "the other has taken over", func() bool {
			if time.Since(began) < stop {
				return false
			}
			return owned(t, db) == 0
		})
		other.batch()
		before := other.journals()
		losses := strings.Count(frozen.log.String(), "lease lost")
		mu.Lock()
		thawed, lateDots = true, 0
		mu.Unlock()
		thaw()
		eventually(t, 30*time.Second, "the thawed replica has seen that it was taken for dead", func() bool { return strings.Count(frozen.log.String(), "lease lost") > losses })
		frozen.batch() // the drain of before has ended with it
		mu.Lock()
		thawed = false
		late += lateDots
		mu.Unlock()
		after := other.journals()
		var again []string
		for _, id := range ids {
			a, b := before[id], after[id]
			if a.Status != b.Status || a.AttemptCount != b.AttemptCount || a.PossibleDuplicate != b.PossibleDuplicate || a.LastError != b.LastError {
				stale++
				t.Errorf("round %d: %s was %v, is %v", round, id, a, b)
			}
			if b.Status != pb.MailStatus_MAIL_STATUS_SENT {
				again = append(again, id)
				if !b.PossibleDuplicate {
					t.Errorf("round %d: left over without a flag: %v", round, b)
				}
			}
		}
		if len(again) > 0 {
			if _, err := other.dispatch.RetryMails(timeout(t), &pb.RetryMailsRequest{Ids: again}); err != nil {
				t.Fatal(err)
			}
			other.batch()
		}
		end, came := other.journals(), arrivals(relay)
		for _, id := range ids {
			if end[id].GetStatus() != pb.MailStatus_MAIL_STATUS_SENT || came[id] == 0 {
				lost++
				t.Errorf("round %d: %v arrived %d times", round, end[id], came[id])
			}
			if end[id].PossibleDuplicate {
				flagged++
			}
			if came[id] > 1 {
				doubled++
				if !end[id].PossibleDuplicate {
					unflagged++
					t.Errorf("round %d: %s arrived %d times without a flag", round, id, came[id])
				}
			}
		}
	}
	const connections = 10 // of the frozen replica: each has one dot under way at most
	if flagged > rounds*connections {
		t.Errorf("%d mails are flagged after %d freezes with %d connections", flagged, rounds, connections)
	}
	other.invariants(t)
	t.Logf("F16 freezes=%d stale_writes=%d unflagged=%d flagged=%d doubled=%d dots_after_thaw=%d lost=%d", rounds, stale, unflagged, flagged, doubled, late, lost)
}

// TestReplicasShare (F17): two and four replicas share one backlog: none is doubled, each does
// its part, they do not stand in each other's way.
func TestReplicasShare(t *testing.T) {
	mails := scaled(2000, 20000)
	single := 0.0
	for _, n := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dsn := storetest.PostgresDSN(t)
			sink := &smtpxtest.Sink{KeepIDs: true}
			if err := sink.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(sink.Close)
			var rs []*service
			for range n {
				rs = append(rs, start(t, dsn))
			}
			rs[0].addServer("bulk", pb.Mode_MODE_DAEMON, sink.Port())
			rs[0].fill(&pb.SendOptions{MailServer: "bulk"}, mails)
			began := time.Now()
			var wg sync.WaitGroup
			sent := make([]int, n)
			for i, r := range rs {
				wg.Go(func() { sent[i] = int(r.batch().Sent) })
			}
			wg.Wait()
			eventually(t, time.Minute, "all are sent", func() bool { return sink.Mails() >= mails })
			rate := float64(mails) / time.Since(began).Seconds()
			doubled, least := 0, mails
			for _, k := range sink.IDs() {
				if k > 1 {
					doubled++
				}
			}
			for _, k := range sent {
				least = min(least, k)
			}
			deadlocks := 0
			for _, r := range rs {
				deadlocks += strings.Count(r.log.String(), "deadlock")
			}
			if doubled > 0 || len(sink.IDs()) != mails || deadlocks > 0 {
				t.Errorf("%d doubled, %d arrived, %d deadlocks", doubled, len(sink.IDs()), deadlocks)
			}
			// Scaled down there are about as many pages to claim as replicas.
			if least < scaled(1, mails/10) {
				t.Errorf("shares %v of %d", sent, mails)
			}
			// The scaled run is over within a second, in which a busy machine may do anything.
			tolerance := float64(scaled(40, 90)) / 100
			if n == 1 {
				single = rate
			} else if rate < tolerance*single {
				t.Errorf("%.0f/s, one replica alone %.0f/s", rate, single)
			}
			rs[0].invariants(t)
			t.Logf("F17 replicas=%d mails=%d doubled=%d deadlocks=%d shares=%v rate=%.0f/s single=%.0f/s", n, mails, doubled, deadlocks, sent, rate, single)
		})
	}
}
