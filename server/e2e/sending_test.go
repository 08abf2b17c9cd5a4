package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

func refuseBad(c smtpxtest.Command) *smtpxtest.Action {
	switch {
	case c.Verb == "RCPT" && strings.Contains(c.Arg, "nobody"):
		return &smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n"}
	case c.Verb == "RCPT" && strings.Contains(c.Arg, "later"):
		return &smtpxtest.Action{Reply: "451 4.7.1 greylisted\r\n"}
	case c.Verb == "DOT" && strings.Contains(c.Arg, "SILENT"):
		return &smtpxtest.Action{Close: true}
	}
	return nil
}

// TestPHPMode: the caller waits and hears what happened to each recipient; success goes to the
// archive, failure stays in the due-out journal.
func TestPHPMode(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{On: refuseBad}).Start(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		opts := &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_INVOICE, Reference: "INV-1", Labels: map[string]string{"run": "1"}}

		good := s.mustSend(&pb.SendRequest{Options: opts, Message: message("A <a@y.example>", "a@Y.example"), RequestId: "one"})
		if good.order != "atrc" || good.mail.Status != pb.MailStatus_MAIL_STATUS_SENT || good.recipients[0].RemoteId != "4F2A1" || good.recipients[0].SmtpCode != 250 || good.accepted.Route != pb.Route_ROUTE_NAMED {
			t.Fatalf("%s %v", good.order, good.mail)
		}
		got := relay.Mails()
		if len(got) != 1 || len(got[0].To) != 1 {
			t.Fatalf("the relay got %v", got)
		}
		var raw bytes.Buffer
		stream, err := s.dispatch.DownloadMail(timeout(t), &pb.DownloadMailRequest{Id: good.id})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			raw.Write(m.Chunk)
		}
		if !bytes.Equal(raw.Bytes(), got[0].Data) || !strings.Contains(raw.String(), "Message-ID: "+good.mail.MessageId) {
			t.Fatal("what was downloaded is not what was sent")
		}
		again := s.mustSend(&pb.SendRequest{Options: opts, Message: message("A <a@y.example>", "a@Y.example"), RequestId: "one"})
		if !again.accepted.Duplicate || again.id != good.id || again.order != "atrc" || len(relay.Mails()) != 1 {
			t.Fatalf("the same request_id again: %+v, %d mails", again, len(relay.Mails()))
		}
		if _, err := s.send(timeout(t), &pb.SendRequest{Options: opts, Message: message("b@y.example"), RequestId: "one"}); status.Code(err) != codes.AlreadyExists {
			t.Fatalf("other content: %v", err)
		}

		part := s.mustSend(&pb.SendRequest{Options: opts, Message: &pb.MailMessage{To: []string{"a@y.example", "nobody@y.example"}, Cc: []string{"later@y.example"}, Bcc: []string{"hidden@y.example"}, Subject: "s", Text: "t"}})
		if part.order != "atrrrrc" || part.mail.Status != pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT || part.mail.DueTime != nil {
			t.Fatalf("%s %v", part.order, part.mail)
		}
		want := map[string]pb.RecipientResult_Status{"a@y.example": 2, "nobody@y.example": 4, "later@y.example": 3, "hidden@y.example": 2}
		for _, r := range part.recipients {
			if r.Status != want[r.Address] {
				t.Errorf("%s is %v", r.Address, r.Status)
			}
		}
		if d := relay.Mails()[1].Data; bytes.Contains(d, []byte("hidden")) {
			t.Fatal("bcc is in the mail")
		}

		lost := s.mustSend(&pb.SendRequest{Options: opts, Message: &pb.MailMessage{To: []string{"a@y.example"}, Subject: "s", Text: "SILENT"}})
		if lost.mail.Status != pb.MailStatus_MAIL_STATUS_UNKNOWN || lost.recipients[0].Status != pb.RecipientResult_STATUS_UNKNOWN {
			t.Fatalf("no reply after the dot: %v", lost.mail)
		}

		due, err := s.dispatch.ListDueOutMails(timeout(t), &pb.ListDueOutMailsRequest{Filter: &pb.MailFilter{Reference: "INV-1"}})
		if err != nil || len(due.Mails) != 2 {
			t.Fatalf("due: %v %v", due, err)
		}
		arch, err := s.dispatch.ListArchivedMails(timeout(t), &pb.ListArchivedMailsRequest{Filter: &pb.MailFilter{Recipient: "A@y.example", Labels: map[string]string{"run": "1"}}})
		if err != nil || len(arch.Mails) != 1 || arch.Mails[0].FinishTime == nil {
			t.Fatalf("archive: %v %v", arch, err)
		}
		if b := s.batch(); b.Claimed != 0 {
			t.Fatalf("the batch took php-mode failures: %v", b)
		}
		// A person retries what failed: accepted recipients are not sent to again.
		r, err := s.dispatch.RetryMails(timeout(t), &pb.RetryMailsRequest{Filter: &pb.MailFilter{Reference: "INV-1"}})
		if err != nil || r.Matched != 2 || r.Changed != 1 || len(r.Failures) != 1 || r.Failures[0].Reason != pb.ReasonWrongState {
			t.Fatalf("retry: %v %v", r, err)
		}
		before := len(relay.Mails())
		if b := s.batch(); b.Claimed != 1 {
			t.Fatalf("%v", b)
		}
		if len(relay.Mails()) != before {
			t.Fatalf("an accepted recipient got the mail again: %v", relay.Mails()[before:])
		}
		m := s.mail(part.id)
		if m.AttemptCount != 2 || m.Status != pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT || m.DueTime == nil {
			t.Fatalf("after the retry: %v", m)
		}
		u, err := s.dispatch.RetryMails(timeout(t), &pb.RetryMailsRequest{Ids: []string{lost.id}})
		if err != nil || u.Changed != 1 || !s.mail(lost.id).PossibleDuplicate {
			t.Fatalf("retry of an unknown one by id: %v %v", u, err)
		}
	})
}

// TestRequestID: fifty callers at once are one mail, and all hear its whole story.
func TestRequestID(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		gate := make(chan struct{})
		relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "DOT" {
				<-gate
			}
			return nil
		}}).Start(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		var wg sync.WaitGroup
		var mu sync.Mutex
		ids, firsts := map[string]int{}, 0
		accepted := make(chan struct{}, 50)
		for range 50 {
			wg.Go(func() {
				stream, err := s.dispatch.Send(timeout(t), &pb.SendRequest{RequestId: "same", Options: &pb.SendOptions{MailServer: "now"}, Message: message("a@y.example")})
				if err != nil {
					t.Error(err)
					return
				}
				order := ""
				for {
					ev, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						break
					}
					if err != nil {
						t.Error(err)
						break
					}
					mu.Lock()
					ids[ev.MailId]++
					switch e := ev.Event.(type) {
					case *pb.SendResponse_Accepted_:
						if !e.Accepted.Duplicate {
							firsts++
						}
						order += "a"
						accepted <- struct{}{}
					case *pb.SendResponse_Attempt:
						order += "t"
					case *pb.SendResponse_Recipient:
						order += "r"
					case *pb.SendResponse_Completed_:
						order += "c"
					}
					mu.Unlock()
				}
				if order != "atrc" {
					t.Errorf("heard %q", order)
				}
			})
		}
		for range 50 {
			<-accepted
		}
		close(gate)
		wg.Wait()
		if len(ids) != 1 || firsts != 1 || len(relay.Mails()) != 1 {
			t.Fatalf("%d ids, %d firsts, %d mails", len(ids), firsts, len(relay.Mails()))
		}
	})
}

// TestDaemonMode: answered when durable, sent by the batch over kept connections, retried where
// that helps.
func TestDaemonMode(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{On: refuseBad}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: 4} })
		const n = 300
		for i := range n {
			r := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk", Kind: pb.Kind_KIND_BULK}, Message: message(fmt.Sprintf("u%d@y.example", i))})
			if r.order != "ac" || r.mail.Status != pb.MailStatus_MAIL_STATUS_QUEUED || r.accepted.Mode != pb.Mode_MODE_DAEMON {
				t.Fatalf("%s %v", r.order, r.mail)
			}
		}
		if len(relay.Mails()) != 0 {
			t.Fatal("sent before the batch")
		}
		// Overlapping passes never double a mail.
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { s.batch() })
		}
		wg.Wait()
		seen := map[string]int{}
		for _, m := range relay.Mails() {
			seen[m.To[0]]++
		}
		if len(seen) != n || len(relay.Mails()) != n {
			t.Fatalf("%d mails to %d recipients", len(relay.Mails()), len(seen))
		}
		if relay.Conns() > 4 {
			t.Fatalf("%d connections", relay.Conns())
		}
		mixed := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk"}, Message: message("a@y.example", "later@y.example", "nobody@y.example")})
		gone := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk"}, Message: message("nobody@y.example")})
		if b := s.batch(); b.Claimed != 2 || b.PartiallySent != 1 || b.Failed != 1 {
			t.Fatalf("%v", b)
		}
		m := s.mail(mixed.id)
		if m.Status != pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT || m.DueTime == nil || m.AttemptCount != 1 || len(m.Attempts) != 1 {
			t.Fatalf("%v", m)
		}
		if wait := time.Until(m.DueTime.AsTime()); wait < 10*time.Second || wait > 61*time.Second {
			t.Fatalf("retried in %v", wait)
		}
		if m := s.mail(gone.id); m.Status != pb.MailStatus_MAIL_STATUS_FAILED || m.DueTime != nil || !strings.Contains(m.LastError, "550") {
			t.Fatalf("%v", m)
		}
		if b := s.batch(); b.Claimed != 0 {
			t.Fatalf("claimed before its time: %v", b)
		}
		c, err := s.dispatch.CancelMails(timeout(t), &pb.CancelMailsRequest{Ids: []string{mixed.id, gone.id}, Reason: "test"})
		if err != nil || c.Changed != 2 || s.mail(gone.id).Status != pb.MailStatus_MAIL_STATUS_CANCELLED {
			t.Fatalf("%v %v", c, err)
		}
	})
}

// TestScheduling: send_after queues whatever the mode; expire_time never sends stale mail.
func TestScheduling(t *testing.T) {
	s := start(t, storetest.SQLiteDSN(t))
	relay := (&smtpxtest.Server{}).Start(t)
	s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
	later := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "now", SendAfter: timestamppb.New(time.Now().Add(700 * time.Millisecond))}, Message: message("a@y.example")})
	if later.order != "ac" || later.mail.Status != pb.MailStatus_MAIL_STATUS_QUEUED {
		t.Fatalf("%s %v", later.order, later.mail)
	}
	stale := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "now", SendAfter: timestamppb.New(time.Now().Add(200 * time.Millisecond)), ExpireTime: timestamppb.New(time.Now().Add(400 * time.Millisecond))}, Message: message("b@y.example")})
	if b := s.batch(); b.Claimed != 0 {
		t.Fatalf("%v", b)
	}
	// no batch ran while it could have been sent
	<-time.After(time.Until(stale.mail.ExpireTime.AsTime()))
	deadline := time.Now().Add(patience)
	for s.mail(later.id).Status != pb.MailStatus_MAIL_STATUS_SENT {
		if time.Now().After(deadline) {
			t.Fatal("not sent")
		}
		s.batch()
	}
	if m := s.mail(stale.id); m.Status != pb.MailStatus_MAIL_STATUS_FAILED || !strings.Contains(m.LastError, "expire") {
		t.Fatalf("%v", m)
	}
	if len(relay.Mails()) != 1 {
		t.Fatalf("%d mails", len(relay.Mails()))
	}
}

// TestCallersTime: the deadline ends an attempt before the dot as FAILED; after the dot the
// mail is UNKNOWN until the reply completes it.
func TestCallersTime(t *testing.T) {
	s := start(t, storetest.SQLiteDSN(t))
	before := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" {
			return &smtpxtest.Action{Hang: true}
		}
		return nil
	}}).Start(t)
	s.addServer("slow", pb.Mode_MODE_PHP, before.Port())
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r, err := s.send(ctx, &pb.SendRequest{RequestId: "d1", Options: &pb.SendOptions{MailServer: "slow"}, Message: message("a@y.example")})
	if err != nil || r.mail.Status != pb.MailStatus_MAIL_STATUS_FAILED || !strings.Contains(r.mail.LastError, "deadline") {
		t.Fatalf("%+v %v", r, err)
	}
	release := make(chan struct{})
	after := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "DOT" {
			<-release
		}
		return nil
	}}).Start(t)
	s.addServer("slower", pb.Mode_MODE_PHP, after.Port())
	ctx2, cancel2 := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel2()
	r, err = s.send(ctx2, &pb.SendRequest{RequestId: "d2", Options: &pb.SendOptions{MailServer: "slower"}, Message: message("a@y.example")})
	if err != nil || r.mail.Status != pb.MailStatus_MAIL_STATUS_UNKNOWN || r.recipients[0].Status != pb.RecipientResult_STATUS_UNKNOWN {
		t.Fatalf("%+v %v", r, err)
	}
	close(release)
	again := s.mustSend(&pb.SendRequest{RequestId: "d2", Options: &pb.SendOptions{MailServer: "slower"}, Message: message("a@y.example")})
	if again.id != r.id || again.mail.Status != pb.MailStatus_MAIL_STATUS_SENT || len(after.Mails()) != 1 {
		t.Fatalf("completed by the reply: %+v", again.mail)
	}
}

// TestCrashAndRestart: what was accepted survives kill -9; a mail whose dot may have left is
// unknown (invoice) or sent again flagged (bulk).
func TestCrashAndRestart(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		reached := make(chan struct{}, 10)
		relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "DOT" && c.Conn <= 2 {
				reached <- struct{}{}
				return &smtpxtest.Action{Hang: true}
			}
			return nil
		}}).Start(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		bulk := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk", Kind: pb.Kind_KIND_BULK}, Message: message("b@y.example")})
		queued := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk", SendAfter: timestamppb.New(time.Now().Add(time.Hour))}, Message: message("c@y.example")})
		go func() { _, _ = s.admin.RunBatch(context.Background(), &pb.RunBatchRequest{Wait: true}) }()
		<-reached
		ids := make(chan string, 1)
		go func() {
			stream, err := s.dispatch.Send(context.Background(), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_INVOICE}, Message: message("a@y.example")})
			if err != nil {
				t.Error(err)
				return
			}
			ev, err := stream.Recv()
			if err != nil {
				t.Error(err)
				return
			}
			ids <- ev.MailId
		}()
		invoice := <-ids
		<-reached
		s.kill()
		s.run()
		// a dead replica's lease on PostgreSQL runs out after 30 s
		deadline := time.Now().Add(patience)
		for {
			i, b := s.mail(invoice), s.mail(bulk.id)
			if i.Status == pb.MailStatus_MAIL_STATUS_UNKNOWN && b.PossibleDuplicate {
				if i.DueTime != nil || b.DueTime == nil {
					t.Fatalf("invoice %v\nbulk %v", i, b)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("invoice %v\nbulk %v", i, b)
			}
			<-time.After(100 * time.Millisecond)
		}
		if m := s.mail(queued.id); m.Status != pb.MailStatus_MAIL_STATUS_QUEUED {
			t.Fatalf("%v", m)
		}
	})
}
