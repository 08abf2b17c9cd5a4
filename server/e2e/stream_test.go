package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// stream makes one call of SendStream and gives the answers by position; it wants one for each
// item.
func (s *service) stream(ctx context.Context, o *pb.BatchOptions, items ...*pb.BatchItem) ([]*pb.SendStreamResponse, error) {
	stream, err := s.dispatch.SendStream(ctx)
	if err != nil {
		return nil, err
	}
	go func() { // what is wrong says Recv
		if stream.Send(&pb.SendStreamRequest{Options: o, Items: items[:min(len(items), 3)]}) != nil {
			return
		}
		for part := range slices.Chunk(items[min(len(items), 3):], 40) {
			if stream.Send(&pb.SendStreamRequest{Items: part}) != nil {
				return
			}
		}
		_ = stream.CloseSend()
	}()
	answers := make([]*pb.SendStreamResponse, len(items))
	for n := 0; ; n++ {
		a, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && n == len(items):
			return answers, nil
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%d answers for %d items", n, len(items))
		case err != nil:
			return nil, err
		case a.Position < 0 || a.Position >= int64(len(items)) || answers[a.Position] != nil:
			return nil, fmt.Errorf("an answer too many: %v", a)
		case a.RequestId != items[a.Position].RequestId:
			return nil, fmt.Errorf("%v answers %v", a, items[a.Position])
		}
		answers[a.Position] = a
	}
}

func (s *service) mustStream(o *pb.BatchOptions, items ...*pb.BatchItem) []*pb.SendStreamResponse {
	answers, err := s.stream(timeout(s.t), o, items...)
	if err != nil {
		s.t.Error(err)
		return nil
	}
	return answers
}

// TestSendStream: each item is answered once it is durable, by its position, and what is wrong
// with one holds up no other.
func TestSendStream(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		o := &pb.BatchOptions{BatchId: "b", Options: &pb.SendOptions{MailServer: "bulk"}, Message: &pb.MailMessage{Subject: "Hallo {{name}}", Text: "t"}}
		var items []*pb.BatchItem
		for i := range 300 {
			x := itemTo(fmt.Sprintf("u%d@y.example", i), "name", "王伟")
			switch i % 10 {
			case 3:
				x.Message.To[0] = "nobody"
			case 5:
				x.Variables = nil
			case 7:
				x.RequestId = fmt.Sprintf("r-%d", i)
			case 8: // the item before once more
				x = items[i-1]
			case 9: // the same request_id for another mail
				x.RequestId = fmt.Sprintf("r-%d", i-2)
			}
			items = append(items, x)
		}
		ids := map[string]bool{}
		answers := s.mustStream(o, items...)
		for i, a := range answers {
			field, reason := "", ""
			switch i % 10 {
			case 3:
				field, reason = "message.to[0]", pb.ReasonValidationFailed
			case 5:
				field, reason = "variables.name", pb.ReasonValidationFailed
			case 9:
				reason = pb.ReasonRequestIDReused
			}
			if r := a.Rejection; reason != "" {
				if r == nil || r.Reason != reason || r.Position != int64(i) || a.MailId != "" || a.Status != 0 || field != "" && violated(r)[0] != field {
					t.Errorf("%d: %v", i, a)
				}
				continue
			}
			if a.Rejection != nil || a.MailId == "" || a.Status != pb.MailStatus_MAIL_STATUS_QUEUED || a.BatchId != "b" || a.Mail != nil {
				t.Errorf("%d: %v", i, a)
			}
			if i%10 == 8 && (a.MailId != answers[i-1].MailId || a.Duplicate == answers[i-1].Duplicate) {
				t.Errorf("%d: %v after %v", i, a, answers[i-1])
			}
			ids[a.MailId] = true
		}
		s.exactlyOnce(relay, "b", len(ids))
		if len(ids) != 210-30 {
			t.Errorf("%d mails", len(ids))
		}
		held := s.mustStream(&pb.BatchOptions{Options: &pb.SendOptions{MailServer: "bulk", Hold: true}}, itemTo("h@y.example"))
		if held[0].Status != pb.MailStatus_MAIL_STATUS_HELD || held[0].BatchId == "" || s.mail(held[0].MailId).BatchId != held[0].BatchId {
			t.Errorf("%v", held)
		}
		if _, err := s.stream(timeout(t), &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "nothing"}}, itemTo("h@y.example")); status.Code(err) != codes.NotFound || client.ReasonOf(err) != pb.ReasonMailServerNotFound {
			t.Errorf("%v", err)
		}
	})
}

// TestSendStreamAnswersEarly: an answer does not wait for the end of the stream, nor for
// another item.
func TestSendStreamAnswersEarly(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		s.addServer("bulk", pb.Mode_MODE_DAEMON, 1)
		stream, err := s.dispatch.SendStream(timeout(t))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			r := &pb.SendStreamRequest{Items: []*pb.BatchItem{itemTo("a@y.example")}}
			if i == 0 {
				r.Options = &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "bulk"}}
			}
			if err := stream.Send(r); err != nil {
				t.Fatal(err)
			}
			a, err := stream.Recv()
			if err != nil || a.Position != int64(i) || s.mail(a.MailId).Status != pb.MailStatus_MAIL_STATUS_QUEUED {
				t.Fatalf("%v %v", a, err)
			}
		}
	})
}

// TestSendStreamPHP: the answer says what the mail server said, recipient by recipient; at most
// 16 mails of a stream are under way.
func TestSendStreamPHP(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{On: refuseBad}).Start(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		o := &pb.BatchOptions{BatchId: "b", Options: &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_INVOICE}, Message: &pb.MailMessage{Subject: "s", Text: "t"}}
		mixed, silent := itemTo("a@y.example"), itemTo("a@y.example")
		mixed.Message.Cc = []string{"nobody@y.example", "later@y.example"}
		silent.Message.Text = "SILENT"
		one := itemTo("one@y.example")
		one.RequestId = "one"
		answers := s.mustStream(o, one, itemTo("nobody@y.example"), itemTo("later@y.example"), mixed, silent, itemTo("bad"))
		if answers == nil {
			t.FailNow()
		}
		for i, want := range []string{"SENT o=ACCEPTED", "FAILED n=REJECTED", "FAILED l=DEFERRED", "PARTIALLY_SENT a=ACCEPTED n=REJECTED l=DEFERRED", "UNKNOWN a=UNKNOWN"} {
			a := answers[i]
			if a.Rejection != nil || a.Mail.GetId() != a.MailId || a.Status != a.Mail.GetStatus() || a.Mail.GetBatchId() != "b" {
				t.Fatalf("%d: %v", i, a)
			}
			wantState(t, a.Mail, want)
			wantState(t, s.mail(a.MailId), want)
		}
		if r := answers[1].Mail.Recipients[0]; r.SmtpCode != 550 || r.EnhancedCode != "5.1.1" || !strings.Contains(r.Detail, "no such user") {
			t.Errorf("%v", r)
		}
		if answers[5].Rejection == nil {
			t.Errorf("%v", answers[5])
		}
		again := s.mustStream(o, one)
		if !again[0].Duplicate || again[0].MailId != answers[0].MailId || again[0].Mail.GetStatus() != pb.MailStatus_MAIL_STATUS_SENT {
			t.Errorf("%v", again)
		}
		later := s.mustStream(&pb.BatchOptions{Options: &pb.SendOptions{MailServer: "now", SendAfter: timestamppb.New(time.Now().Add(time.Hour))}}, itemTo("a@y.example"))
		if later[0].Status != pb.MailStatus_MAIL_STATUS_QUEUED {
			t.Errorf("%v", later)
		}
		if b := s.getBatch("", "b"); b.Mails != 5 || b.Counts.Sent != 1 || b.Counts.Failed != 2 || b.Counts.PartiallySent != 1 || b.Counts.Unknown != 1 || b.Waiting != 0 {
			t.Errorf("%v", b)
		}

		gate := make(chan struct{})
		var under, most atomic.Int32
		reached := make(chan struct{}, 100)
		slow := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "MAIL" {
				n := under.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
			}
			if c.Verb == "DOT" {
				reached <- struct{}{}
				<-gate
				under.Add(-1)
			}
			return nil
		}}).Start(t)
		s.addServer("slow", pb.Mode_MODE_PHP, slow.Port(), func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: 64} })
		var items []*pb.BatchItem
		for i := range 60 {
			items = append(items, itemTo(fmt.Sprintf("u%d@y.example", i)))
		}
		done := make(chan []*pb.SendStreamResponse, 1)
		go func() { done <- s.mustStream(&pb.BatchOptions{Options: &pb.SendOptions{MailServer: "slow"}}, items...) }()
		for range 16 {
			<-reached
		}
		// Were there more, they would come within the second in which the service answers
		// others.
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			s.mail(answers[0].MailId)
		}
		close(gate)
		for i, a := range <-done {
			if a.Status != pb.MailStatus_MAIL_STATUS_SENT {
				t.Errorf("%d: %v", i, a)
			}
		}
		if most.Load() > 16 || len(letters(t, slow)) != 60 {
			t.Errorf("%d mails under way at once", most.Load())
		}
	})
}

// TestSendStreamBroken: a stream that its caller breaks after some answers is told again, and
// no item is there twice.
func TestSendStreamBroken(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		o := &pb.BatchOptions{BatchId: "b", Options: &pb.SendOptions{MailServer: "bulk"}, Message: &pb.MailMessage{Subject: "s", Text: "t"}}
		const n = 600
		var items []*pb.BatchItem
		for i := range n {
			x := itemTo(fmt.Sprintf("u%d@y.example", i))
			x.RequestId = fmt.Sprintf("r-%d", i)
			items = append(items, x)
		}
		known := map[string]string{} // mail by request
		for _, after := range []int{0, 1, 250} {
			ctx, cancel := context.WithCancel(timeout(t))
			stream, err := s.dispatch.SendStream(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&pb.SendStreamRequest{Options: o, Items: items}); err != nil {
				t.Fatal(err)
			}
			for range after {
				a, err := stream.Recv()
				if err != nil || a.MailId == "" {
					t.Fatalf("%v %v", a, err)
				}
				if id := known[a.RequestId]; id != "" && id != a.MailId {
					t.Errorf("%s is %s and %s", a.RequestId, id, a.MailId)
				}
				known[a.RequestId] = a.MailId
			}
			cancel()
		}
		for _, a := range s.mustStream(o, items...) {
			if id := known[a.RequestId]; a.Rejection != nil || id != "" && (id != a.MailId || !a.Duplicate) {
				t.Errorf("%v, was %s", a, id)
			}
		}
		s.exactlyOnce(relay, "b", n)
	})
}

// TestSendStreamBrokenPHP: the same in php mode, where a mail that has begun to leave is not
// stopped, and the same request_id attaches to it.
func TestSendStreamBrokenPHP(t *testing.T) {
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
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		o := &pb.BatchOptions{BatchId: "b", Options: &pb.SendOptions{MailServer: "now"}, Message: &pb.MailMessage{Subject: "s", Text: "t"}}
		var items []*pb.BatchItem
		for i := range 4 {
			x := itemTo(fmt.Sprintf("u%d@y.example", i))
			x.RequestId = fmt.Sprintf("r-%d", i)
			items = append(items, x)
		}
		ctx, cancel := context.WithCancel(timeout(t))
		stream, err := s.dispatch.SendStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&pb.SendStreamRequest{Options: o, Items: items}); err != nil {
			t.Fatal(err)
		}
		for range items {
			<-reached
		}
		cancel()
		done := make(chan []*pb.SendStreamResponse, 1)
		go func() { done <- s.mustStream(o, items...) }()
		close(gate)
		for i, a := range <-done {
			if !a.Duplicate || a.Status != pb.MailStatus_MAIL_STATUS_SENT || a.Mail.GetPossibleDuplicate() {
				t.Errorf("%d: %v", i, a)
			}
		}
		if b := s.getBatch("", "b"); b.Mails != 4 || b.Counts.Sent != 4 || len(letters(t, relay)) != 4 {
			t.Errorf("%v, %d mails", b, len(relay.Mails()))
		}
	})
}

// TestSlowReaders: callers who never read their answers are held up, cost a bounded amount of
// memory, and hold up nobody else.
func TestSlowReaders(t *testing.T) {
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		// A caller has 2000 items open, 16 MiB of them read ahead, up to 16 MiB on the way, and
		// some hundred answers: far less than it wants to send.
		const readers, most = 2, 8000
		body := strings.Repeat("just as long as the mails that one meets ", 200) // 8 KB
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		var moved atomic.Int64
		var streams []pb.Dispatch_SendStreamClient
		var sent [readers]atomic.Int64
		var wg sync.WaitGroup
		for i := range readers {
			stream, err := s.dispatch.SendStream(ctx)
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, stream)
			wg.Go(func() {
				r := &pb.SendStreamRequest{Options: &pb.BatchOptions{BatchId: fmt.Sprint(i), Options: &pb.SendOptions{MailServer: "bulk"}}}
				for range most / 10 {
					r.Items = nil
					for range 10 {
						x := itemTo(fmt.Sprintf("u%d-%d@y.example", i, sent[i].Add(1)))
						x.Message.Text = body
						r.Items = append(r.Items, x)
					}
					if stream.Send(r) != nil {
						return
					}
					moved.Add(1)
					r = &pb.SendStreamRequest{}
				}
				_ = stream.CloseSend()
			})
		}
		last, since := int64(-1), time.Now()
		eventually(t, 50*time.Second, "nothing moves for two seconds", func() bool {
			if now := moved.Load(); now != last {
				last, since = now, time.Now()
			}
			return time.Since(since) > 2*time.Second
		})
		for i := range sent {
			if n := sent[i].Load(); n < 2000 || n >= most {
				t.Errorf("a caller who reads nothing has sent %d of %d", n, most)
			}
		}
		// Twice what the callers hold, because that is what the collector lets a heap grow to,
		// and what the service has without them.
		if rss := s.residentKB() >> 10; rss > memoryFactor*(readers*2*48+128) {
			t.Errorf("%d MiB", rss)
		} else {
			t.Logf("%d items sent by %d callers who read nothing; the service has %d MiB", moved.Load()*10, readers, rss)
		}
		// All others are served.
		if r := s.mustSendAll(&pb.BatchOptions{Options: &pb.SendOptions{MailServer: "bulk"}}, slices.Repeat([]*pb.BatchItem{itemTo("x@y.example")}, 500)...); r.Accepted != 500 {
			t.Errorf("%v", r)
		}
		for _, a := range s.mustStream(&pb.BatchOptions{Options: &pb.SendOptions{MailServer: "bulk"}}, itemTo("y@y.example")) {
			if a.MailId == "" {
				t.Errorf("%v", a)
			}
		}
		s.queue("bulk", 100)
		// And they themselves, as soon as they read.
		for i, stream := range streams {
			for n := 0; ; n++ {
				a, err := stream.Recv()
				if errors.Is(err, io.EOF) && n == most {
					break
				}
				if err != nil || a.MailId == "" {
					t.Fatalf("caller %d, answer %d: %v %v", i, n, a, err)
				}
			}
			if b := s.getBatch("", fmt.Sprint(i)); b.Mails != most {
				t.Errorf("%v", b)
			}
		}
		wg.Wait()
	})
}

// TestBulkOverReplicas: two replicas take one batch from two callers, each item twice, and it
// is there once.
func TestBulkOverReplicas(t *testing.T) {
	dsn := storetest.PostgresDSN(t)
	a := start(t, dsn)
	b := start(t, dsn, a.keyFile())
	relay := (&smtpxtest.Server{}).Start(t)
	a.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
	o := &pb.BatchOptions{BatchId: "b", Options: &pb.SendOptions{MailServer: "bulk"}, Message: &pb.MailMessage{Subject: "s", Text: "t"}}
	const n = 1500
	var items []*pb.BatchItem
	for i := range n {
		x := itemTo(fmt.Sprintf("u%d@y.example", i))
		x.RequestId = fmt.Sprintf("r-%d", i)
		items = append(items, x)
	}
	var wg sync.WaitGroup
	var accepted atomic.Int64
	for i, s := range []*service{a, b, a, b} {
		wg.Go(func() {
			if i < 2 {
				r, err := s.sendAll(timeout(t), o, items...)
				if err != nil || r.Rejected != 0 {
					t.Errorf("%v %v", r, err)
				}
				accepted.Add(r.GetAccepted())
				return
			}
			for _, x := range s.mustStream(o, items...) {
				if x.Rejection != nil {
					t.Errorf("%v", x)
				} else if !x.Duplicate {
					accepted.Add(1)
				}
			}
		})
	}
	wg.Go(func() { a.batch() })
	wg.Go(func() { b.batch() })
	wg.Wait()
	if accepted.Load() != n {
		t.Errorf("%d accepted", accepted.Load())
	}
	a.exactlyOnce(relay, "b", n)
}
