package e2e

import (
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// peakKB is the most memory that the process has had resident since it started.
func (s *service) peakKB() int { return s.procStatus("VmHWM:") }

// TestLargeMailsAtOnce (F23): sixteen mails as large as they may be, at once, in both modes, by
// a process told to keep to 512 MiB: it stays below 600 (scaled: 400), takes what it can, and
// tells the others to come again, which they do.
func TestLargeMailsAtOnce(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "512MiB") // of the service: this process has read its own
	const callers = 16
	inTurn(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{Discard: true, Extensions: []string{"PIPELINING", "SIZE 52428800"}}).Start(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: callers, MaxMailBytes: 25 << 20} })
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: callers, MaxMailBytes: 25 << 20} })
		idle := s.peakKB()
		file := make([]byte, scaled(2<<20, 18<<20))
		again, sent := 0, 0
		var mu sync.Mutex
		for _, server := range []string{"now", "bulk"} {
			var wg sync.WaitGroup
			for i := range callers {
				wg.Go(func() {
					own := append([]byte{byte(i), server[0]}, file...) // nothing is shared
					for {
						m := message("a@y.example")
						m.Attachments = []*pb.Attachment{{Filename: "a.bin", Content: own}}
						r, err := s.send(timeout(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: server}, Message: m})
						mu.Lock()
						switch {
						case err == nil && (r.mail.Status == pb.MailStatus_MAIL_STATUS_SENT) == (server == "now"):
							sent++
							mu.Unlock()
							return
						case status.Code(err) == codes.ResourceExhausted && client.ReasonOf(err) == pb.ReasonOverloaded:
							again++
						default:
							t.Errorf("%v %v", r.mail, err)
							mu.Unlock()
							return
						}
						mu.Unlock()
						<-time.After(200 * time.Millisecond)
					}
				})
			}
			wg.Wait()
		}
		taken := s.peakKB()
		if b := s.batch(); b.Sent != callers {
			t.Errorf("%v", b)
		}
		peak := s.peakKB()
		if sent != 2*callers {
			t.Errorf("%d of %d sent", sent, 2*callers)
		}
		if peak > memoryFactor*scaled(400, 600)<<10 {
			t.Errorf("the service had %d KiB", peak)
		}
		s.invariants(t)
		t.Logf("F23 mails=%d file_mib=%d come_again=%d idle_mib=%d peak_taking_mib=%d peak_mib=%d", 2*callers, len(file)>>20, again, idle>>10, taken>>10, peak>>10)
	})
}
