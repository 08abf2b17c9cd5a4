package e2e

import (
	"context"
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

// TestHungAndCancelledStreams (F24): after many sends at which the relay hung, and many that
// their callers cancelled at any moment, the process holds no more descriptors and threads than
// before. (Goroutines are counted in the engine's TestHungAndCancelled.)
func TestHungAndCancelledStreams(t *testing.T) {
	s := start(t, storetest.SQLiteDSN(t))
	var hung atomic.Int32
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" && strings.Contains(c.Arg, "hang") {
			hung.Add(1)
			return &smtpxtest.Action{Hang: true}
		}
		return nil
	}}).Start(t)
	const connections = 20
	s.addServer("now", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: connections} })
	s.sendMany("now", 4*connections, connections) // whatever is opened once is open
	fds, threads := s.descriptors(), s.threads()
	n := scaled(200, 1000)
	var cancelled atomic.Int32
	for _, hang := range []bool{true, false} {
		var wg sync.WaitGroup
		for w := range connections {
			wg.Go(func() {
				for i := w; i < n; i += connections {
					ctx, to := context.Background(), "a@y.example"
					var cancel context.CancelFunc
					if hang {
						to = "hang@y.example"
						ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
					} else {
						ctx, cancel = context.WithTimeout(ctx, 110*time.Millisecond+time.Duration(i%50)*time.Millisecond/5)
						time.AfterFunc(time.Duration(i%50)*time.Millisecond/5, cancel)
					}
					if r, err := s.send(ctx, &pb.SendRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: message(to)}); err != nil {
						cancelled.Add(1)
					} else if hang && r.mail.Status == pb.MailStatus_MAIL_STATUS_SENT {
						t.Errorf("%v", r.mail)
					}
					cancel()
				}
			})
		}
		wg.Wait()
	}
	if int(hung.Load()) < n/4 || int(cancelled.Load()) < n/4 {
		t.Errorf("%d sends hung and %d were cancelled: this shows nothing", hung.Load(), cancelled.Load())
	}
	eventually(t, time.Minute, "descriptors are where they were", func() bool { return s.descriptors() <= fds+5 })
	db := openDB(t, s.dsn())
	eventually(t, time.Minute, "no replica has a mail", func() bool { return owned(t, db) == 0 })
	all := s.journals()
	s.invariants(t)
	t.Logf("F24 sends=%d hung=%d cancelled=%d descriptors=%d->%d threads=%d->%d mails=%d", 2*n, hung.Load(), cancelled.Load(), fds, s.descriptors(), threads, s.threads(), len(all))
}

// TestCallerGoesAwayAtEachEvent (F25): a caller of a php-mode mail to 250 recipients, three
// transactions, goes away after the k-th event of the stream, by cancelling or by breaking the
// connection. Before the first dot that ends the mail; after it the mail goes on to everybody.
// The journal says of every recipient what the relay has seen, and the mail is in one journal.
func TestCallerGoesAwayAtEachEvent(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{Delay: 10 * time.Millisecond}).Start(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		const recipients = 250
		var to []string
		for i := range recipients {
			to = append(to, fmt.Sprintf("u%d@y.example", i))
		}
		type call struct {
			after  int // events
			broken bool
			id     string
		}
		var cases []*call
		// accepted, attempt, 250 recipients, completed: 253 events. What comes after the last
		// event of a transaction matters most.
		for _, after := range []int{1, 2, 3, 50, 101, 102, 103, 150, 201, 202, 203, 250, 252, 253} {
			for range scaled(1, 20) {
				cases = append(cases, &call{after: after}, &call{after: after, broken: true})
			}
		}
		for _, c := range cases {
			from := s
			if c.broken {
				from = s.again()
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			stream, err := from.dispatch.Send(ctx, &pb.SendRequest{Options: &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_INVOICE}, Message: message(to...)})
			if err != nil {
				t.Fatal(err)
			}
			for k := 0; k < c.after; k++ {
				ev, err := stream.Recv()
				if err != nil {
					t.Fatalf("event %d: %v", k, err)
				}
				c.id = ev.MailId
			}
			if c.broken {
				_ = from.conn.Close()
			}
			cancel()
		}
		db := openDB(t, s.dsn())
		eventually(t, time.Minute, "every mail is settled", func() bool { return owned(t, db) == 0 })
		all := s.journals()
		took := map[string]int{} // by mail and recipient
		for _, m := range relay.Mails() {
			for _, a := range m.To {
				took[idOf(string(m.Data))+" "+a]++
			}
		}
		accepted, givenUp, unknown, statuses := 0, 0, 0, map[string]int{}
		for _, c := range cases {
			m := all[c.id]
			if m == nil {
				t.Fatalf("%+v is in no journal", c)
			}
			archived := m.FinishTime != nil
			statuses[strings.TrimPrefix(m.Status.String(), "MAIL_STATUS_")]++
			if archived != (m.Status == pb.MailStatus_MAIL_STATUS_SENT) || !archived && m.LastError == "" {
				t.Errorf("after event %d: %v %q", c.after, m.Status, m.LastError)
			}
			full := s.mail(c.id) // with all recipients
			for _, r := range full.Recipients {
				n := took[c.id+" "+r.Address]
				switch r.Status {
				case pb.RecipientResult_STATUS_ACCEPTED:
					accepted++
					if n != 1 {
						t.Errorf("after event %d: %s is accepted and arrived %d times", c.after, r.Address, n)
					}
				case pb.RecipientResult_STATUS_UNKNOWN:
					unknown++
				default:
					givenUp++
					if n != 0 {
						t.Errorf("after event %d: %s is %v and arrived %d times", c.after, r.Address, r.Status, n)
					}
				}
			}
		}
		if statuses["SENT"] == 0 || statuses["FAILED"] == 0 || len(statuses) != 2 {
			t.Errorf("one-sided, or half done: %v", statuses)
		}
		s.invariants(t)
		t.Logf("F25 calls=%d recipients_accepted=%d given_up=%d unknown=%d mails=%v", len(cases), accepted, givenUp, unknown, statuses)
	})
}

// again is the same process through a connection of its own.
func (s *service) again() *service {
	s.t.Helper()
	other := &service{t: s.t, addr: s.addr}
	other.connect()
	return other
}
