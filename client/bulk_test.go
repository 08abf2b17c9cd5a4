package client_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func itemTo(n int) *maildispatchv1.BatchItem {
	return &maildispatchv1.BatchItem{Message: &maildispatchv1.MailMessage{To: []string{fmt.Sprintf("u%d@example.com", n)}}, Variables: map[string]string{"n": fmt.Sprint(n)}}
}

func newsletter() *maildispatchv1.BatchOptions {
	return &maildispatchv1.BatchOptions{Message: &maildispatchv1.MailMessage{Subject: "News {{n}}", Text: "Hello"}}
}

// answers collects what a Bulk tells, and wants each item once, with its own position.
type answers struct {
	t    *testing.T
	mu   sync.Mutex
	seen map[int64]*maildispatchv1.SendStreamResponse
}

func (a *answers) hear(item *maildispatchv1.BatchItem, r *maildispatchv1.SendStreamResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen[r.GetPosition()] != nil {
		a.t.Errorf("item %d was answered twice", r.GetPosition())
	}
	if item.GetRequestId() == "" || item.GetRequestId() != r.GetRequestId() || item.GetVariables()["n"] != fmt.Sprint(r.GetPosition()) {
		a.t.Errorf("%v was answered by %v", item, r)
	}
	if a.seen == nil {
		a.seen = map[int64]*maildispatchv1.SendStreamResponse{}
	}
	a.seen[r.GetPosition()] = r
}

// once wants n mails, to n recipients, in one batch.
func once(t *testing.T, srv *clienttest.Server, batch string, n int) {
	t.Helper()
	to, ids := map[string]bool{}, map[string]bool{}
	for _, m := range srv.Mails() {
		to[m.Mail.Recipients[0].Address], ids[m.Mail.RequestId] = true, true
		if m.Mail.BatchId != batch {
			t.Errorf("mail %s is of batch %q, not %q", m.Mail.Id, m.Mail.BatchId, batch)
		}
	}
	if len(srv.Mails()) != n || len(to) != n || len(ids) != n {
		t.Errorf("%d mails to %d recipients with %d request_ids, want %d", len(srv.Mails()), len(to), len(ids), n)
	}
}

func TestBulk(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][]clienttest.Fault{
		"whole":                     nil,
		"broken at once":            {{}, {}, {}},
		"broken in the middle":      {{After: 7}, {After: 300}},
		"broken after every answer": slices.Repeat([]clienttest.Fault{{After: 1}}, 20),
		"closed politely":           {{After: 5, Quiet: true}},
		"every answer lost":         {{Done: true}, {Done: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				srv.Fault("SendStream", faults...)
				c := srv.Client(t, client.Options{})
				heard := &answers{t: t}
				b := c.Bulk(t.Context(), newsletter(), client.BulkOptions{Window: 50, Answer: heard.hear})
				const n = 500
				for i := range n {
					if err := b.Add(itemTo(i)); err != nil {
						t.Fatal(err)
					}
				}
				sum, err := b.Close()
				if err != nil {
					t.Fatal(err)
				}
				if len(heard.seen) != n || sum.Received != n || sum.Accepted != n || sum.Duplicates+sum.Rejected != 0 || sum.BatchId != b.BatchID() || len(b.Unanswered()) != 0 {
					t.Errorf("%d answers, %v", len(heard.seen), sum)
				}
				once(t, srv, b.BatchID(), n)
				if firsts := len(srv.Requests("SendStream")); len(faults) > 0 && firsts <= len(faults) {
					t.Errorf("%d requests for %d broken streams", firsts, len(faults))
				}
			})
		})
	}
}

// More items than a stream takes go over several, which is no failure. Not parallel: the others
// are to have the ordinary length.
func TestBulkOverManyStreams(t *testing.T) {
	defer client.SetStreamItems(20)()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	heard := &answers{t: t}
	b := c.Bulk(t.Context(), newsletter(), client.BulkOptions{Window: 7, Answer: heard.hear})
	const n = 200
	for i := range n {
		if err := b.Add(itemTo(i)); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := b.Close()
	if err != nil || sum.Accepted != n || len(heard.seen) != n {
		t.Fatalf("%v, %v, %d answers", sum, err, len(heard.seen))
	}
	once(t, srv, b.BatchID(), n)
	streams, longest, now := 0, 0, 0
	for _, r := range srv.Requests("SendStream") {
		req := r.Message.(*maildispatchv1.SendStreamRequest)
		if req.GetOptions() != nil {
			streams, now = streams+1, 0
		}
		now += len(req.GetItems())
		longest = max(longest, now)
	}
	if streams < 7 || longest < 20 || longest > 27 { // a request is sent whole
		t.Errorf("%d streams, the longest of %d items", streams, longest)
	}
}

// What is wrong with an item is said with its place in the Bulk, also after a break.
func TestBulkRejections(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.Fault("SendStream", clienttest.Fault{After: 3})
	srv.Answer("u5@example.com", clienttest.Refused)
	c := srv.Client(t, client.Options{})
	heard := &answers{t: t}
	b := c.Bulk(t.Context(), newsletter(), client.BulkOptions{Answer: heard.hear})
	bad := map[int]bool{1: true, 4: true, 7: true}
	for i := range 10 {
		item := itemTo(i)
		if bad[i] {
			item.Message.To[0] = "nobody"
		}
		if err := b.Add(item); err != nil {
			t.Fatal(err)
		}
	}
	again := itemTo(10)
	again.RequestId, again.Message.To = "mine", []string{"mine@example.com"}
	same := proto.CloneOf(again)
	same.Variables["n"] = "10" // the same content, so the same mail
	if err := b.Add(again); err != nil {
		t.Fatal(err)
	}
	sum, err := b.Close()
	if err != nil || sum.Accepted != 8 || sum.Rejected != 3 || sum.Duplicates != 0 || len(sum.Rejections) != 3 {
		t.Fatalf("%v, %v", sum, err)
	}
	for _, r := range sum.Rejections {
		if !bad[int(r.Position)] || r.Reason != maildispatchv1.ReasonValidationFailed || len(r.Violations) != 1 || r.Violations[0].Field != "message.to[0]" {
			t.Errorf("%v", r)
		}
	}
	if a := heard.seen[5]; a.GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_FAILED || a.GetMail().GetRecipients()[0].GetSmtpCode() != 550 {
		t.Errorf("in php mode the answer has the results: %v", a)
	}
	second := c.Bulk(t.Context(), newsletter(), client.BulkOptions{})
	if err := second.Add(same); err != nil {
		t.Fatal(err)
	}
	if sum, err := second.Close(); err != nil || sum.Duplicates != 1 || sum.Accepted != 0 {
		t.Errorf("the caller's own request_id again: %v, %v", sum, err)
	}
}

// Add waits while the window is full, by count and by size, and goes on with the answers.
func TestBulkWindow(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]client.BulkOptions{"items": {Window: 10}, "bytes": {WindowBytes: 10 * 1100}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				c := srv.Client(t, client.Options{})
				gate := make(chan struct{})
				answered, added := 0, 0
				o.Answer = func(*maildispatchv1.BatchItem, *maildispatchv1.SendStreamResponse) { <-gate; answered++ }
				b := c.Bulk(t.Context(), newsletter(), o)
				go func() {
					for i := range 100 {
						item := itemTo(i)
						item.Message.Text = strings.Repeat("x", 1000)
						if err := b.Add(item); err != nil {
							t.Error(err)
						}
						added++
					}
				}()
				synctest.Wait()
				if added < 8 || added-answered > 11 { // one is with Answer
					t.Errorf("%d items were added with no answer heard", added)
				}
				for range 30 {
					gate <- struct{}{}
					synctest.Wait()
					if open := added - answered; open < 8 || open > 11 {
						t.Errorf("%d items are open", open)
					}
				}
				close(gate)
				synctest.Wait()
				if sum, err := b.Close(); err != nil || sum.Accepted != 100 {
					t.Errorf("%v, %v", sum, err)
				}
			})
		})
	}
}

// A Bulk that ends with an error says which items are left, and the rest can be sent later
// without doubling any.
func TestBulkGivesUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		faults []clienttest.Fault
		code   codes.Code
	}{
		"unavailable":          {slices.Repeat([]clienttest.Fault{{}}, 4), codes.Unavailable},
		"answers lost":         {slices.Repeat([]clienttest.Fault{{Done: true}}, 4), codes.Unavailable},
		"no default":           {[]clienttest.Fault{{Err: clienttest.Error(codes.FailedPrecondition, maildispatchv1.ReasonNoDefaultMailServer, "none")}}, codes.FailedPrecondition},
		"silent":               {[]clienttest.Fault{{Hang: true}}, codes.DeadlineExceeded},
		"silent in the middle": {[]clienttest.Fault{{After: 20, Hang: true}}, codes.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				srv.Fault("SendStream", c.faults...)
				cl := srv.Client(t, client.Options{})
				b := cl.Bulk(t.Context(), newsletter(), client.BulkOptions{Window: 40})
				var err error
				i := 0
				for ; err == nil && i < 1000; i++ {
					err = b.Add(itemTo(i))
				}
				if status.Code(err) != c.code {
					t.Fatalf("Add: %v", err)
				}
				sum, err := b.Close()
				if status.Code(err) != c.code {
					t.Fatalf("Close: %v", err)
				}
				left := b.Unanswered()
				if int(sum.Accepted)+len(left) != i-1 || int(sum.Received) != i-1 {
					t.Errorf("%d were added, %v, %d are left", i-1, sum, len(left))
				}
				o := newsletter()
				o.BatchId = b.BatchID()
				rest := cl.Bulk(t.Context(), o, client.BulkOptions{})
				for _, item := range left {
					if err := rest.Add(item); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := rest.Close(); err != nil {
					t.Fatal(err)
				}
				once(t, srv, b.BatchID(), i-1)
			})
		})
	}
}

// A stream over which nothing goes is no burden: it may end and nobody notices.
func TestBulkIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.Fault("SendStream", slices.Repeat([]clienttest.Fault{{After: 1}}, 6)...)
		c := srv.Client(t, client.Options{SendTimeout: time.Minute})
		b := c.Bulk(t.Context(), newsletter(), client.BulkOptions{})
		for i := range 12 {
			if err := b.Add(itemTo(i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Minute) // in the bubble
		}
		if sum, err := b.Close(); err != nil || sum.Accepted != 12 {
			t.Errorf("%v, %v", sum, err)
		}
		once(t, srv, b.BatchID(), 12)

		none := c.Bulk(t.Context(), nil, client.BulkOptions{})
		if sum, err := none.Close(); err != nil || sum.Received != 0 || sum.BatchId == "" {
			t.Errorf("%v, %v", sum, err)
		}
		if err := none.Add(itemTo(0)); err == nil {
			t.Error("Add after Close")
		}
	})
}

func TestBulkEndsWithItsContext(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.Fault("SendStream", clienttest.Fault{Hang: true})
	c := srv.Client(t, client.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	b := c.Bulk(ctx, newsletter(), client.BulkOptions{Window: 1})
	if err := b.Add(itemTo(0)); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() { waits <- b.Add(itemTo(1)) }()
	cancel()
	if err := <-waits; status.Code(err) != codes.Canceled {
		t.Errorf("Add: %v", err)
	}
	if _, err := b.Close(); status.Code(err) != codes.Canceled {
		t.Errorf("Close: %v", err)
	}
	if left := b.Unanswered(); len(left) != 1 {
		t.Errorf("left %v", left)
	}
}

// Many goroutines may add at once; an item that no request could carry does not end the others.
func TestBulkConcurrent(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.Fault("SendStream", clienttest.Fault{After: 100})
	c := srv.Client(t, client.Options{})
	b := c.Bulk(t.Context(), newsletter(), client.BulkOptions{Window: 30})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				if err := b.Add(itemTo(g*50 + i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	huge := itemTo(0)
	huge.Message.Text = strings.Repeat("x", 16<<20)
	if err := b.Add(huge); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("%v", err)
	}
	wg.Wait()
	if sum, err := b.Close(); err != nil || sum.Accepted != 400 {
		t.Errorf("%v, %v", sum, err)
	}
	once(t, srv, b.BatchID(), 400)
}

// One that waits for a service that is away does so for SendTimeout.
func TestBulkWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.SetServing(false)
		c := srv.Client(t, client.Options{SendTimeout: time.Minute})
		add := func() *client.Bulk {
			b := c.Bulk(t.Context(), newsletter(), client.BulkOptions{}, grpc.WaitForReady(true))
			if err := b.Add(itemTo(0)); err != nil {
				t.Fatal(err)
			}
			return b
		}
		began := time.Now()
		if _, err := add().Close(); status.Code(err) != codes.DeadlineExceeded || time.Since(began) != time.Minute {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		b := add()
		time.AfterFunc(30*time.Second, func() { srv.SetServing(true) })
		if sum, err := b.Close(); err != nil || sum.Accepted != 1 {
			t.Errorf("%v, %v", sum, err)
		}
	})
}

// liar answers an item that nobody sent.
type liar struct {
	grpc.ClientStream
}

func (l liar) RecvMsg(m any) error {
	m.(*maildispatchv1.SendStreamResponse).Position = 99
	return nil
}

func TestBulkBelievesNoStrangers(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{DialOptions: []grpc.DialOption{grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, desc, cc, method, opts...)
			return liar{s}, err
		})}})
	b := c.Bulk(t.Context(), newsletter(), client.BulkOptions{})
	if err := b.Add(itemTo(0)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Close(); status.Code(err) != codes.Internal {
		t.Errorf("%v", err)
	}
}
