package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// reach is a client of the service wherever it listens, also after a restart: the second result
// tells it of one.
func (s *service) reach() (*client.Client, func()) {
	s.t.Helper()
	var at atomic.Pointer[string]
	moved := func() { addr := s.addr; at.Store(&addr) }
	moved()
	c, err := client.New("passthrough:///localhost", client.Options{DialOptions: []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", *at.Load())
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.2, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: time.Second}),
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c, moved
}

func (s *service) restart() {
	s.t.Helper()
	s.kill()
	s.run()
}

func (s *service) getBatch(team, id string) *pb.Batch {
	s.t.Helper()
	r, err := s.dispatch.GetBatch(timeout(s.t), &pb.GetBatchRequest{Team: team, BatchId: id})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Batch
}

func itemTo(to string, variables ...string) *pb.BatchItem {
	x := &pb.BatchItem{Message: &pb.MailMessage{To: []string{to}}, Variables: map[string]string{}}
	for i := 0; i+1 < len(variables); i += 2 {
		x.Variables[variables[i]] = variables[i+1]
	}
	return x
}

// sendAll makes one call of SendBatch as the caller wrote it: nothing is filled in.
func (s *service) sendAll(ctx context.Context, o *pb.BatchOptions, items ...*pb.BatchItem) (*pb.SendBatchResponse, error) {
	stream, err := s.dispatch.SendBatch(ctx)
	if err != nil {
		return nil, err
	}
	_ = stream.Send(&pb.SendBatchRequest{Options: o}) // what is wrong says CloseAndRecv
	for part := range slices.Chunk(items, 50) {
		if stream.Send(&pb.SendBatchRequest{Items: part}) != nil {
			break
		}
	}
	return stream.CloseAndRecv()
}

func (s *service) mustSendAll(o *pb.BatchOptions, items ...*pb.BatchItem) *pb.SendBatchResponse {
	s.t.Helper()
	r, err := s.sendAll(timeout(s.t), o, items...)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func violated(r *pb.BatchRejection) []string {
	var fields []string
	for _, v := range r.Violations {
		fields = append(fields, v.Field)
	}
	slices.Sort(fields)
	return fields
}

// TestSendBatch: the shared message, an item's own and its variables become one mail; an item
// that is wrong is rejected by its place and fields.
func TestSendBatch(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		o := &pb.BatchOptions{BatchId: "spring", Options: &pb.SendOptions{MailServer: "bulk", Reference: "R", Labels: map[string]string{"campaign": "spring", "lang": "de"}},
			Message: &pb.MailMessage{Subject: "你好 {{name}}", Text: "Guten Tag {{ name }}, {{n}} Stück", Html: `<p title="{{name}}">{{	name }} {{n}} }} {n}</p>`, ReplyTo: "r@x.example",
				Headers: map[string]string{"X-Campaign": "spring", "X-Tier": "all"}, Attachments: []*pb.Attachment{{Filename: "价目表.txt", Content: []byte("prices")}}}}
		name := `王伟 <b> & "Söhne" 'x'`
		own := itemTo("own@y.example", "name", "Own", "n", "1")
		own.Message.Subject, own.Message.Text, own.Message.ReplyTo = "Nur für {{name}}", "{{n}}x nur für Sie", "own@x.example"
		own.Message.Cc, own.Message.Bcc = []string{"cc@y.example"}, []string{"bcc@y.example"}
		own.Message.Headers = map[string]string{"X-Tier": "gold", "X-Own": "1"}
		own.Message.Attachments = []*pb.Attachment{{Filename: "own.txt", Content: []byte("own")}}
		own.Labels = map[string]string{"lang": "zh", "tier": "gold"}
		own.RequestId = "own"
		other := proto.CloneOf(own)
		other.Variables["name"] = "Other"
		plain := itemTo("plain@y.example")
		plain.Message.Subject, plain.Message.Text, plain.Message.Html = "s", "no variables", "<p>none</p>"
		r := s.mustSendAll(o,
			itemTo("王伟 <a@y.example>", "name", name, "n", "3", "unused", "x"),
			own,
			itemTo("b@y.example", "name", "B"),
			itemTo("nobody"),
			itemTo("c@y.example", "name", "C\r\nBcc: x@y.example", "n", "1"),
			itemTo("d@y.example", "name", "D", "n", "\x00"),
			&pb.BatchItem{Variables: map[string]string{"name": "E", "n": "1"}},
			other,
			own,
			itemTo("e@y.example", "name", strings.Repeat("x", 901), "n", "1"),
			plain,
			&pb.BatchItem{RequestId: "a\nb", Message: &pb.MailMessage{To: []string{"f@y.example"}}, Variables: map[string]string{"name": "F", "n": "1"}, Labels: map[string]string{"Bad Key": "v"}},
		)
		if r.BatchId != "spring" || r.Received != 12 || r.Accepted != 3 || r.Duplicates != 1 || r.Rejected != 8 || len(r.Rejections) != 8 {
			t.Errorf("%v", r)
		}
		want := map[int64][]string{2: {"variables.n"}, 3: {"message.to[0]", "variables.n", "variables.name"}, 4: {"variables.name"}, 5: {"variables.n"}, 6: {"message"}, 7: nil,
			9: {"variables.name"}, 11: {"labels", "request_id"}}
		for _, x := range r.Rejections {
			fields, known := want[x.Position]
			if got := violated(x); !known || !slices.Equal(got, fields) {
				t.Errorf("item %d: %v, want %v: %v", x.Position, got, fields, x)
			}
			reason := pb.ReasonValidationFailed
			if x.Position == 7 {
				reason = pb.ReasonRequestIDReused
			}
			if x.Reason != reason || x.Message == "" || (x.Position == 7) != (x.RequestId == "own") {
				t.Errorf("%v", x)
			}
			delete(want, x.Position)
		}
		if len(want) > 0 {
			t.Errorf("not rejected: %v", want)
		}
		if len(relay.Mails()) != 0 {
			t.Error("sent before the batch")
		}
		if b := s.batch(); b.Sent != 3 {
			t.Errorf("%v", b)
		}
		got := letters(t, relay)
		if l := got["a@y.example"]; l.subject != "你好 "+name || l.text != "Guten Tag "+name+", 3 Stück" || l.header.Get("X-Tier") != "all" || l.header.Get("Reply-To") == "" ||
			l.html != `<p title="王伟 &lt;b&gt; &amp; &#34;Söhne&#34; &#39;x&#39;">王伟 &lt;b&gt; &amp; &#34;Söhne&#34; &#39;x&#39; 3 }} {n}</p>` ||
			!maps.Equal(l.files, map[string]string{"价目表.txt": "prices"}) {
			t.Errorf("%+v", l)
		}
		l := got["own@y.example"]
		if l.subject != "Nur für Own" || l.text != "1x nur für Sie" || !strings.Contains(l.html, ">Own 1 ") || l.header.Get("X-Tier") != "gold" || l.header.Get("X-Own") != "1" || l.header.Get("X-Campaign") != "spring" ||
			!strings.Contains(l.header.Get("Reply-To"), "own@x.example") || !maps.Equal(l.files, map[string]string{"价目表.txt": "prices", "own.txt": "own"}) {
			t.Errorf("%+v", l)
		}
		if got["plain@y.example"].text != "no variables" {
			t.Errorf("%+v", got["plain@y.example"])
		}
		res, err := s.dispatch.ListArchivedMails(timeout(t), &pb.ListArchivedMailsRequest{Filter: &pb.MailFilter{BatchId: "spring", Labels: map[string]string{"lang": "zh", "campaign": "spring"}}})
		if err != nil || len(res.Mails) != 1 {
			t.Fatalf("%v %v", res, err)
		}
		if m := res.Mails[0]; !maps.Equal(m.Labels, map[string]string{"campaign": "spring", "lang": "zh", "tier": "gold"}) || m.Kind != pb.Kind_KIND_BULK || m.Priority != pb.Priority_PRIORITY_LOW || m.BatchId != "spring" ||
			m.Reference != "R" || len(m.Recipients) != 3 || m.RequestId != "own" || m.Subject != "Nur für Own" {
			t.Errorf("%v", m)
		}
	})
}

// TestSendBatchRoute: what is wrong with the options ends the call before the first item; a
// batch is queued whatever the mode.
func TestSendBatchRoute(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		try := func(o *pb.SendOptions) error {
			_, err := s.sendAll(timeout(t), &pb.BatchOptions{Options: o}, itemTo("a@y.example"))
			return err
		}
		if err := try(nil); client.ReasonOf(err) != pb.ReasonNoDefaultMailServer || status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%v", err)
		}
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { m.IsDefault = new(true) })
		s.addServer("off", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Status = pb.MailServer_STATUS_UNAVAILABLE })
		s.addServer("theirs", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Team = "sales" })
		for name, reason := range map[string]string{"off": pb.ReasonMailServerUnavailable, "theirs": pb.ReasonMailServerNotFound, "nothing": pb.ReasonMailServerNotFound} {
			if err := try(&pb.SendOptions{MailServer: name}); client.ReasonOf(err) != reason {
				t.Errorf("%s: %v", name, err)
			}
		}
		if r, err := s.sendAll(timeout(t), nil, itemTo("a@y.example"), itemTo("b@y.example")); err != nil || r.Accepted != 2 || r.BatchId == "" || len(relay.Mails()) != 0 {
			t.Errorf("no options at all: %v %v", r, err)
		}
		if r, err := s.sendAll(timeout(t), nil); err != nil || r.Received != 0 {
			t.Errorf("nothing at all: %v %v", r, err)
		}
		held := s.mustSendAll(&pb.BatchOptions{Options: &pb.SendOptions{Hold: true, Team: "sales", MailServer: "theirs", Kind: pb.Kind_KIND_INVOICE}}, itemTo("c@y.example"))
		if b := s.getBatch("sales", held.BatchId); b.Counts.Held != 1 || b.Waiting != 0 || b.Team != "sales" {
			t.Errorf("%v", b)
		}
		if b := s.batch(); b.Sent != 2 || b.Claimed != 2 {
			t.Errorf("%v", b)
		}
		for _, r := range []*pb.GetBatchRequest{{BatchId: held.BatchId}, {Team: "sales", BatchId: "nothing"}} {
			if _, err := s.dispatch.GetBatch(timeout(t), r); client.ReasonOf(err) != pb.ReasonBatchNotFound || status.Code(err) != codes.NotFound {
				t.Errorf("%v: %v", r, err)
			}
		}
	})
}

// TestSendBatchStrict: all or nothing, and every mistake at once. validate_only writes nothing
// at all.
func TestSendBatchStrict(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.IsDefault = new(true) })
		first := s.mustSendAll(&pb.BatchOptions{BatchId: "before"}, &pb.BatchItem{RequestId: "taken", Message: message("a@y.example")})
		if first.Accepted != 1 {
			t.Fatalf("%v", first)
		}
		strict := func(validate bool) *pb.BatchOptions {
			return &pb.BatchOptions{BatchId: "strict", Strict: true, ValidateOnly: validate, Message: &pb.MailMessage{Subject: "Liebe {{name}}", Text: strings.Repeat("shared ", 1000)}}
		}
		var good []*pb.BatchItem
		for i := range 100 {
			x := itemTo(fmt.Sprintf("u%d@y.example", i), "name", "N")
			x.RequestId = fmt.Sprintf("s-%d", i)
			good = append(good, x)
		}
		with := func(at int, bad *pb.BatchItem) []*pb.BatchItem {
			items := slices.Clone(good)
			items[at] = bad
			return items
		}
		nothing := func(what string) {
			t.Helper()
			if n := s.count("select count(*) from mail"); n != 1 {
				t.Errorf("%s: %d mails are stored", what, n)
			}
		}
		for _, validate := range []bool{true, false} {
			broken := with(57, itemTo("nobody"))
			broken[99] = itemTo("z@y.example")
			_, err := s.sendAll(timeout(t), strict(validate), broken...)
			refused(t, err, "items[57].message.to[0]", "items[57].variables.name", "items[99].variables.name")
			nothing("bad")
			r, err := s.sendAll(timeout(t), strict(true), good...)
			if err != nil || r.Accepted != 100 || r.Rejected != 0 {
				t.Errorf("%v %v", r, err)
			}
			loose := strict(true)
			loose.Strict = false
			r, err = s.sendAll(timeout(t), loose, with(5, itemTo("nobody"))...)
			if err != nil || r.Accepted != 99 || r.Rejected != 1 || violated(r.Rejections[0])[0] != "message.to[0]" {
				t.Errorf("%v %v", r, err)
			}
			nothing("validate only")
			if validate { // which knows nothing of what was sent before
				continue
			}
			_, err = s.sendAll(timeout(t), strict(validate), with(3, &pb.BatchItem{RequestId: "taken", Message: message("other@y.example")})...)
			if status.Code(err) != codes.AlreadyExists || client.ReasonOf(err) != pb.ReasonRequestIDReused {
				t.Errorf("reused: %v", err)
			}
			twice := proto.CloneOf(good[0])
			twice.Message.To[0] = "twice@y.example"
			_, err = s.sendAll(timeout(t), strict(validate), with(98, twice)...)
			if status.Code(err) != codes.AlreadyExists || client.ReasonOf(err) != pb.ReasonRequestIDReused {
				t.Errorf("reused within the batch: %v", err)
			}
			nothing("reused")
		}
		if _, err := s.dispatch.GetBatch(timeout(t), &pb.GetBatchRequest{BatchId: "strict"}); client.ReasonOf(err) != pb.ReasonBatchNotFound {
			t.Errorf("%v", err)
		}
		for again := range 2 {
			r, err := s.sendAll(timeout(t), strict(false), good...)
			if err != nil || r.Accepted != int64(100*(1-again)) || r.Duplicates != int64(100*again) {
				t.Errorf("%v %v", r, err)
			}
		}
		if b := s.batch(); b.Sent != 101 || len(letters(t, relay)) != 101 {
			t.Errorf("%v", b)
		}
	})
}

// TestSendBatchRequestIDs: fifty callers with the same items at once, and each item is one
// mail.
func TestSendBatchRequestIDs(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		const callers, n = 50, 40
		var items []*pb.BatchItem
		for i := range n {
			x := itemTo(fmt.Sprintf("u%d@y.example", i))
			x.RequestId = fmt.Sprintf("id-%d", i)
			items = append(items, x)
		}
		o := &pb.BatchOptions{BatchId: "b", Options: &pb.SendOptions{MailServer: "bulk"}, Message: &pb.MailMessage{Subject: "s", Text: "t"}}
		var wg sync.WaitGroup
		var accepted, duplicates atomic.Int64
		for i := range callers {
			wg.Go(func() {
				if i%2 == 0 {
					r, err := s.sendAll(timeout(t), o, items...)
					if err != nil || r.Received != n || r.Rejected != 0 {
						t.Errorf("%v %v", r, err)
						return
					}
					accepted.Add(r.Accepted)
					duplicates.Add(r.Duplicates)
					return
				}
				for _, a := range s.mustStream(o, items...) {
					if a.Rejection != nil || a.MailId == "" {
						t.Errorf("%v", a)
					} else if a.Duplicate {
						duplicates.Add(1)
					} else {
						accepted.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if accepted.Load() != n || duplicates.Load() != n*(callers-1) {
			t.Errorf("%d accepted, %d duplicates", accepted.Load(), duplicates.Load())
		}
		if b := s.getBatch("", "b"); b.Mails != n || b.Counts.Queued != n {
			t.Errorf("%v", b)
		}
		if b := s.batch(); b.Sent != n || len(letters(t, relay)) != n {
			t.Errorf("%v", b)
		}
	})
}

// exactlyOnce wants n mails in the batch, runs it, and wants each at the relay once.
func (s *service) exactlyOnce(relay *smtpxtest.Server, batch string, n int) {
	s.t.Helper()
	if b := s.getBatch("", batch); b.Mails != int64(n) {
		s.t.Errorf("%d were accepted, the batch has %v", n, b)
	}
	eventually(s.t, 50*time.Second, "the batch is over", func() bool { s.batch(); return s.getBatch("", batch).Waiting == 0 })
	b := s.getBatch("", batch)
	if b.Counts.Sent != int64(n) || b.PossibleDuplicates != 0 || len(letters(s.t, relay)) != n {
		s.t.Errorf("%d mails at the relay, %v", len(relay.Mails()), b)
	}
}

// TestBulkSurvivesKills: the service is killed while the client's Bulk and SendAll are under
// way; what they did is there once.
func TestBulkSurvivesKills(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		c, moved := s.reach()
		o := func(batch string) *pb.BatchOptions {
			// Held, because a service that begins sends what is due, and what it had begun to
			// send when it was killed is sent again, flagged: that is another test's.
			return &pb.BatchOptions{BatchId: batch, Options: &pb.SendOptions{MailServer: "bulk", Hold: true}, Message: &pb.MailMessage{Subject: "s", Text: "Hello {{n}}"}}
		}
		n := scaled(1000, 2500)
		heard, kills := 0, 0
		b := c.Bulk(timeout(t), o("stream"), client.BulkOptions{Window: n * 7 / 25, Answer: func(item *pb.BatchItem, a *pb.SendStreamResponse) {
			if a.MailId == "" || a.Duplicate {
				t.Errorf("%v", a)
			}
			if heard++; heard == n*3/25 || heard == n*11/25 || heard == n*19/25 {
				s.restart()
				moved()
				kills++
			}
		}}, grpc.WaitForReady(true))
		for i := range n {
			if err := b.Add(itemTo(fmt.Sprintf("u%d@y.example", i), "n", fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
		sum, err := b.Close()
		if err != nil || sum.Accepted != int64(n) || heard != n || kills != 3 {
			t.Fatalf("%v, %v, %d answers, %d kills", sum, err, heard, kills)
		}

		ranged := 0
		sum, err = c.SendAll(timeout(t), o("batch"), func(yield func(*pb.BatchItem) bool) {
			ranged++
			for i := range n {
				if ranged <= 2 && i == n*2/5*ranged {
					s.restart()
					moved()
				}
				if !yield(itemTo(fmt.Sprintf("v%d@y.example", i), "n", fmt.Sprint(i))) {
					return
				}
			}
		}, grpc.WaitForReady(true))
		if err != nil || sum.Accepted != int64(n) || ranged != 3 {
			t.Fatalf("%v, %v, ranged over %d times", sum, err, ranged)
		}
		if b := s.getBatch("", "batch"); b.Mails != int64(n) {
			t.Errorf("%v", b)
		}
		for _, id := range []string{"stream", "batch"} {
			r, err := s.dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Filter: &pb.MailFilter{BatchId: id}})
			if err != nil || int(r.Changed) != n {
				t.Errorf("%v %v", r, err)
			}
		}
		eventually(t, 50*time.Second, "both are over", func() bool { s.batch(); return s.getBatch("", "batch").Waiting+s.getBatch("", "stream").Waiting == 0 })
		if got := letters(t, relay); len(got) != 2*n || s.getBatch("", "stream").Counts.Sent != int64(n) || s.getBatch("", "batch").Counts.Sent != int64(n) {
			t.Errorf("%d mails, %v, %v", len(got), s.getBatch("", "stream"), s.getBatch("", "batch"))
		}
	})
}

// TestBatchCounts: GetBatch counts every outcome exactly.
func TestBatchCounts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{On: refuseBad}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		o := &pb.BatchOptions{BatchId: "b", Options: &pb.SendOptions{MailServer: "bulk", Kind: pb.Kind_KIND_INVOICE}, Message: &pb.MailMessage{Subject: "s", Text: "t"}}
		silent := itemTo("silent@y.example")
		silent.Message.Text = "SILENT"
		mixed := itemTo("d@y.example")
		mixed.Message.Cc = []string{"nobody@y.example"}
		held, gone := itemTo("held@y.example"), itemTo("gone@y.example")
		held.RequestId, gone.RequestId = "held", "gone"
		before := time.Now().Add(-time.Second)
		r := s.mustSendAll(o, itemTo("a@y.example"), itemTo("b@y.example"), itemTo("c@y.example"), itemTo("nobody@y.example"), itemTo("nobody2@y.example"), itemTo("later@y.example"),
			mixed, silent, held, gone, itemTo("rejected"))
		if r.Accepted != 10 || r.Rejected != 1 {
			t.Fatalf("%v", r)
		}
		if b := s.getBatch("", "b"); !proto.Equal(b.Counts, &pb.MailCounts{Queued: 10}) || b.Waiting != 10 || b.FinishTime != nil || b.CreateTime.AsTime().Before(before) {
			t.Errorf("%v", b)
		}
		s.mustSendAll(&pb.BatchOptions{BatchId: "other", Options: o.Options}, itemTo("x@y.example"))
		if r, err := s.dispatch.HoldMails(timeout(t), &pb.HoldMailsRequest{Filter: &pb.MailFilter{RequestId: "held"}}); err != nil || r.Changed != 1 {
			t.Fatalf("%v %v", r, err)
		}
		if r, err := s.dispatch.CancelMails(timeout(t), &pb.CancelMailsRequest{Filter: &pb.MailFilter{RequestId: "gone"}}); err != nil || r.Changed != 1 {
			t.Fatalf("%v %v", r, err)
		}
		want := &pb.MailCounts{Sent: 3, Failed: 2, Deferred: 1, PartiallySent: 1, Unknown: 1, Held: 1, Cancelled: 1}
		eventually(t, 30*time.Second, "every outcome", func() bool { s.batch(); return proto.Equal(s.getBatch("", "b").Counts, want) })
		b := s.getBatch("", "b")
		if b.Mails != 10 || b.Waiting != 1 || b.PossibleDuplicates != 0 || b.FinishTime == nil || b.BatchId != "b" {
			t.Errorf("%v", b)
		}
		var last time.Time
		res, err := s.dispatch.ListArchivedMails(timeout(t), &pb.ListArchivedMailsRequest{Filter: &pb.MailFilter{BatchId: "b"}})
		if err != nil || len(res.Mails) != 4 {
			t.Fatalf("%v %v", res, err)
		}
		for _, m := range res.Mails {
			if f := m.FinishTime.AsTime(); f.After(last) {
				last = f
			}
		}
		if !b.FinishTime.AsTime().Equal(last) {
			t.Errorf("finished at %v, the last mail at %v", b.FinishTime.AsTime(), last)
		}
		if b := s.getBatch("", "other"); b.Mails != 1 || b.Counts.Sent != 1 {
			t.Errorf("%v", b)
		}
	})
}

// TestBatchControl: a batch is held, released, retried and cancelled by its id, and
// validate_only says how many that would be.
func TestBatchControl(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{On: refuseBad}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		const n = 120
		for _, batch := range []string{"mine", "other"} {
			var items []*pb.BatchItem
			for i := range n {
				to := fmt.Sprintf("%s%d@y.example", batch, i)
				if i%10 == 0 {
					to = "nobody-" + to
				}
				items = append(items, itemTo(to))
			}
			s.mustSendAll(&pb.BatchOptions{BatchId: batch, Options: &pb.SendOptions{MailServer: "bulk"}, Message: &pb.MailMessage{Subject: "s", Text: "t"}}, items...)
		}
		mine := &pb.MailFilter{BatchId: "mine"}
		type counted interface {
			GetMatched() int32
			GetChanged() int32
		}
		steps := []struct {
			name    string
			do      func(validate bool) (counted, error)
			changed int32
			after   *pb.MailCounts
		}{
			{"hold", func(v bool) (counted, error) {
				return s.dispatch.HoldMails(timeout(t), &pb.HoldMailsRequest{Filter: mine, ValidateOnly: v, Reason: "wait"})
			}, n, &pb.MailCounts{Held: n}},
			{"release", func(v bool) (counted, error) {
				return s.dispatch.ReleaseMails(timeout(t), &pb.ReleaseMailsRequest{Filter: mine, ValidateOnly: v})
			}, n, &pb.MailCounts{Sent: n - n/10, Failed: n / 10}},
			{"retry", func(v bool) (counted, error) {
				return s.dispatch.RetryMails(timeout(t), &pb.RetryMailsRequest{Filter: mine, ValidateOnly: v})
			}, n / 10, &pb.MailCounts{Sent: n - n/10, Failed: n / 10}},
			{"cancel", func(v bool) (counted, error) {
				return s.dispatch.CancelMails(timeout(t), &pb.CancelMailsRequest{Filter: mine, ValidateOnly: v})
			}, n / 10, &pb.MailCounts{Sent: n - n/10, Cancelled: n / 10}},
		}
		for _, step := range steps {
			before := s.getBatch("", "mine")
			for _, validate := range []bool{true, true, false} {
				r, err := step.do(validate)
				if err != nil || r.GetMatched() != step.changed || r.GetChanged() != step.changed {
					t.Errorf("%s, validate_only %v: %v %v", step.name, validate, r, err)
				}
				if now := s.getBatch("", "mine"); validate && !proto.Equal(before, now) {
					t.Errorf("%s with validate_only: %v", step.name, now)
				}
			}
			s.batch()
			if b := s.getBatch("", "mine"); !proto.Equal(b.Counts, step.after) {
				t.Errorf("after %s: %v", step.name, b)
			}
		}
		if b := s.getBatch("", "other"); b.Counts.Sent != n-n/10 || b.Counts.Failed != n/10 {
			t.Errorf("%v", b)
		}
	})
}
