package e2e

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

func (s *service) stats(r *pb.GetQueueStatsRequest) *pb.GetQueueStatsResponse {
	s.t.Helper()
	st, err := s.dispatch.GetQueueStats(timeout(s.t), r)
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// TestGetQueueStats: how much waits, in which lane, since when, and how fast it goes, for all,
// for a team, and for a mail server.
func TestGetQueueStats(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{On: refuseBad}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		s.addServer("other", pb.Mode_MODE_DAEMON, relay.Port())
		s.addServer("theirs", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Team = "sales" })
		st := s.stats(&pb.GetQueueStatsRequest{})
		if !proto.Equal(st.Counts, &pb.MailCounts{}) || st.Waiting+st.Scheduled+st.SentLastMinute != 0 || st.OldestDueTime != nil || st.OldestAge != nil || len(st.Lanes) != 4 || st.Time == nil {
			t.Errorf("of nothing: %v", st)
		}
		for i, p := range []pb.Priority{pb.Priority_PRIORITY_URGENT, pb.Priority_PRIORITY_HIGH, pb.Priority_PRIORITY_NORMAL, pb.Priority_PRIORITY_LOW} {
			if l := st.Lanes[i]; l.Priority != p || l.Waiting != 0 || l.OldestDueTime != nil || l.OldestAge != nil {
				t.Errorf("lane %d: %v", i, l)
			}
		}
		if next := st.NextBatchTime.AsTime(); st.NextBatchTime == nil || next.Before(st.Time.AsTime()) || next.After(st.Time.AsTime().Add(time.Hour+time.Second)) {
			t.Errorf("the next batch is at %v, it is %v", next, st.Time.AsTime())
		}

		put := func(o *pb.SendOptions, to ...string) *pb.Mail {
			t.Helper()
			return s.mustSend(&pb.SendRequest{Options: o, Message: message(to...)}).mail
		}
		put(&pb.SendOptions{MailServer: "bulk"}, "later@y.example")
		put(&pb.SendOptions{MailServer: "bulk"}, "nobody@y.example")
		put(&pb.SendOptions{MailServer: "bulk"}, "a@y.example", "nobody@y.example")
		for i := range 3 {
			put(&pb.SendOptions{MailServer: "bulk"}, fmt.Sprintf("u%d@y.example", i))
		}
		if b := s.batch(); b.Claimed != 6 {
			t.Fatalf("%v", b)
		}
		oldest := put(&pb.SendOptions{MailServer: "bulk", Kind: pb.Kind_KIND_BULK}, "a@y.example")
		put(&pb.SendOptions{MailServer: "bulk", Kind: pb.Kind_KIND_BULK}, "b@y.example")
		invoice := put(&pb.SendOptions{MailServer: "bulk", Kind: pb.Kind_KIND_INVOICE}, "c@y.example")
		put(&pb.SendOptions{MailServer: "other", Kind: pb.Kind_KIND_AGENT_MESSAGE}, "d@y.example")
		put(&pb.SendOptions{MailServer: "other", Hold: true}, "e@y.example")
		put(&pb.SendOptions{MailServer: "other", SendAfter: timestamppb.New(time.Now().Add(time.Hour))}, "f@y.example")
		put(&pb.SendOptions{MailServer: "theirs", Team: "sales"}, "g@y.example")
		put(&pb.SendOptions{MailServer: "other", Team: "sales"}, "h@y.example")

		lanes := func(st *pb.GetQueueStatsResponse) string {
			out := ""
			for _, l := range st.Lanes {
				out += fmt.Sprint(l.Waiting, " ")
			}
			return out
		}
		for name, c := range map[string]struct {
			req                      *pb.GetQueueStatsRequest
			counts                   *pb.MailCounts
			waiting, scheduled, sent int64
			lanes                    string
		}{
			"all":           {&pb.GetQueueStatsRequest{}, &pb.MailCounts{Queued: 7, Deferred: 1, Failed: 1, PartiallySent: 1, Held: 1}, 6, 2, 3, "1 1 2 2 "},
			"the system":    {&pb.GetQueueStatsRequest{Team: new("")}, &pb.MailCounts{Queued: 5, Deferred: 1, Failed: 1, PartiallySent: 1, Held: 1}, 4, 2, 3, "1 1 0 2 "},
			"a team":        {&pb.GetQueueStatsRequest{Team: new("sales")}, &pb.MailCounts{Queued: 2}, 2, 0, 0, "0 0 2 0 "},
			"a mail server": {&pb.GetQueueStatsRequest{MailServer: "other"}, &pb.MailCounts{Queued: 3, Held: 1}, 2, 1, 0, "1 0 1 0 "},
			"both":          {&pb.GetQueueStatsRequest{Team: new("sales"), MailServer: "other"}, &pb.MailCounts{Queued: 1}, 1, 0, 0, "0 0 1 0 "},
			"nobody":        {&pb.GetQueueStatsRequest{Team: new("nobody")}, &pb.MailCounts{}, 0, 0, 0, "0 0 0 0 "},
		} {
			st := s.stats(c.req)
			if !proto.Equal(st.Counts, c.counts) || st.Waiting != c.waiting || st.Scheduled != c.scheduled || st.SentLastMinute != c.sent || lanes(st) != c.lanes {
				t.Errorf("%s: %v, lanes %s", name, st, lanes(st))
			}
			if (st.OldestDueTime == nil) != (c.waiting == 0) {
				t.Errorf("%s: oldest %v", name, st.OldestDueTime)
			}
		}
		st = s.stats(&pb.GetQueueStatsRequest{})
		age := st.Time.AsTime().Sub(oldest.DueTime.AsTime())
		if !proto.Equal(st.OldestDueTime, oldest.DueTime) || st.OldestAge.AsDuration() != age || age <= 0 || !proto.Equal(st.Lanes[3].OldestDueTime, oldest.DueTime) || st.Lanes[3].OldestAge.AsDuration() != age ||
			!proto.Equal(st.Lanes[1].OldestDueTime, invoice.DueTime) {
			t.Errorf("%v, the oldest is due since %v", st, oldest.DueTime.AsTime())
		}
		s.batch()
		if st := s.stats(&pb.GetQueueStatsRequest{}); st.Waiting != 0 || st.SentLastMinute != 9 || st.OldestDueTime != nil || st.Counts.Queued != 1 {
			t.Errorf("%v", st)
		}
	})
}

// TestGetQueueStatsSending: mails that are being sent do not wait; a batch that never rests has
// no next time.
func TestGetQueueStatsSending(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		gate, reached := make(chan struct{}), make(chan struct{}, 10)
		relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "DOT" {
				reached <- struct{}{}
				<-gate
			}
			return nil
		}}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: 1} })
		s.queue("bulk", 1)
		done := make(chan struct{})
		go func() { defer close(done); s.batch() }()
		<-reached
		eventually(t, 20*time.Second, "it is counted as being sent", func() bool { return s.stats(&pb.GetQueueStatsRequest{}).Counts.Sending == 1 })
		if st := s.stats(&pb.GetQueueStatsRequest{}); st.Waiting != 0 || st.Counts.Queued != 0 || st.Scheduled != 0 {
			t.Errorf("%v", st)
		}
		close(gate)
		<-done
		if st := s.stats(&pb.GetQueueStatsRequest{}); st.Counts.Sending != 0 || st.SentLastMinute != 1 {
			t.Errorf("%v", st)
		}
		s.stop()
		s.args = append(s.args, "--batch-interval=0")
		s.run()
		if st := s.stats(&pb.GetQueueStatsRequest{}); st.NextBatchTime != nil {
			t.Errorf("%v", st)
		}
	})
}
