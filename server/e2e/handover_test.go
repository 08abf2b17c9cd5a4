package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// TestAcceptedDuringTheBatch: mail that comes while the batch runs leaves once, and a pass that
// is waited for ends although more keeps coming.
func TestAcceptedDuringTheBatch(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		s.queue("bulk", 100)
		stop := make(chan struct{})
		var sent sync.WaitGroup
		var mu sync.Mutex
		total := 100
		for w := range 4 {
			sent.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					_, err := s.send(timeout(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk"}, Message: message(fmt.Sprintf("w%d-%d@y.example", w, i))})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					total++
					mu.Unlock()
				}
			})
		}
		for range 5 {
			began := time.Now()
			if b := s.batch(); b.Failed+b.Deferred+b.Unknown != 0 {
				t.Errorf("%v", b)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("a pass took %v", took)
			}
		}
		if len(relay.Mails()) < 100 {
			t.Errorf("%d mails after five passes", len(relay.Mails()))
		}
		close(stop)
		sent.Wait()
		s.batch()
		mu.Lock()
		defer mu.Unlock()
		seen := map[string]int{}
		for _, m := range relay.Mails() {
			seen[m.To[0]]++
		}
		if len(relay.Mails()) != total || len(seen) != total {
			t.Errorf("%d mails accepted, %d arrived at %d recipients", total, len(relay.Mails()), len(seen))
		}
		if due, err := s.dispatch.ListDueOutMails(timeout(t), &pb.ListDueOutMailsRequest{}); err != nil || len(due.Mails) != 0 {
			t.Errorf("%d left over, %v", len(due.GetMails()), err)
		}
	})
}
