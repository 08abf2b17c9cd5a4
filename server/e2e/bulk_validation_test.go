package e2e

import (
	"fmt"
	"slices"
	"strings"
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

// TestBulkValidation: a bad request of bulk mail says everything that is wrong with it at once,
// by field path, and stores nothing.
func TestBulkValidation(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	relay := (&smtpxtest.Server{}).Start(t)
	s.addServer("good", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.IsDefault = new(true) })
	ctx := timeout(t)
	long := strings.Repeat("x", 300)
	pairs := map[string]string{"Bad Key": "v", "ok": "line\nbreak"}
	badOptions := &pb.BatchOptions{BatchId: "a\nb",
		Options: &pb.SendOptions{Team: "A B", MailServer: "X", Kind: 99, Priority: 99, Reference: long, Labels: pairs, SendAfter: &timestamppb.Timestamp{}, ExpireTime: timestamppb.New(time.Now().Add(-time.Minute))},
		Message: &pb.MailMessage{To: []string{"a@y.example"}, Bcc: []string{"b@y.example"}, ReplyTo: "e e@x.example", Subject: "a\nb {{", Text: "\x00", Html: "{{no name}}", Headers: map[string]string{"Bcc": "x@y.example", "X-A": "{{name}}"},
			Attachments: []*pb.Attachment{{}, {Filename: "../a"}, {UploadId: "x"}}}}
	optionFields := []string{"options.batch_id", "options.options.team", "options.options.mail_server", "options.options.kind", "options.options.priority", "options.options.reference", "options.options.labels",
		"options.options.labels[ok]", "options.options.send_after", "options.options.expire_time", "options.message.to", "options.message.reply_to", "options.message.subject", "options.message.subject",
		"options.message.text", "options.message.html", "options.message.headers[Bcc]", "options.message.headers[X-A]", "options.message.attachments[0].filename", "options.message.attachments[1].filename",
		"options.message.attachments[2].upload_id"}
	item := itemTo("a@y.example")
	late := func(send func(first bool) error, answer func() error) error {
		for _, first := range []bool{true, false} {
			if err := send(first); err != nil {
				return err
			}
		}
		return answer()
	}
	batch, err := s.dispatch.SendBatch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := s.dispatch.SendStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		err    error
		fields []string
	}{
		"SendBatch options":  {second(s.sendAll(ctx, badOptions, item)), optionFields},
		"SendStream options": {second(s.stream(ctx, badOptions, item)), optionFields},
		"SendBatch long":     {second(s.sendAll(ctx, &pb.BatchOptions{BatchId: strings.Repeat("x", 65)}, item)), []string{"options.batch_id"}},
		"SendStream strict":  {second(s.stream(ctx, &pb.BatchOptions{Strict: true, ValidateOnly: true}, item)), []string{"options.strict", "options.validate_only"}},
		"SendBatch late options": {late(func(first bool) error {
			return batch.Send(&pb.SendBatchRequest{Options: &pb.BatchOptions{Options: &pb.SendOptions{Hold: first}}})
		}, func() error { return second(batch.CloseAndRecv()) }), []string{"options"}},
		"SendStream late options": {late(func(first bool) error {
			return stream.Send(&pb.SendStreamRequest{Options: &pb.BatchOptions{Options: &pb.SendOptions{Hold: first}}})
		}, func() error { return second(stream.Recv()) }), []string{"options"}},
		"SendBatch strict, too many": {second(s.sendAll(ctx, &pb.BatchOptions{Strict: true}, slices.Repeat([]*pb.BatchItem{item}, 10_001)...)), []string{"items"}},
		"SendBatch strict, many mistakes": {second(s.sendAll(ctx, &pb.BatchOptions{Strict: true}, item, &pb.BatchItem{}, &pb.BatchItem{RequestId: "a\nb", Labels: pairs, Message: &pb.MailMessage{Cc: []string{"a", "b@"}}})),
			[]string{"items[1].message", "items[2].request_id", "items[2].labels", "items[2].labels[ok]", "items[2].message.cc[0]", "items[2].message.cc[1]"}},
		"GetBatch empty": {second(s.dispatch.GetBatch(ctx, &pb.GetBatchRequest{})), []string{"batch_id"}},
		"GetBatch":       {second(s.dispatch.GetBatch(ctx, &pb.GetBatchRequest{Team: "A B", BatchId: long})), []string{"batch_id", "team"}},
		"GetQueueStats":  {second(s.dispatch.GetQueueStats(ctx, &pb.GetQueueStatsRequest{Team: new("A B"), MailServer: "X"})), []string{"mail_server", "team"}},
		"ResendMail":     {second(s.dispatch.ResendMail(ctx, &pb.ResendMailRequest{Id: "x", OnlyRecipients: []string{"b"}, RequestId: "é"})), []string{"id", "only_recipients[0]", "reason", "request_id"}},
		"UploadAttachment": {second(s.upload(ctx, first(&header{Team: "A B", Filename: "a/b", ContentType: "x", RequestId: long}))),
			[]string{"header.content_type", "header.filename", "header.request_id", "header.team"}},
		"ListDueOutMails": {second(s.dispatch.ListDueOutMails(ctx, &pb.ListDueOutMailsRequest{Filter: &pb.MailFilter{BatchId: long}})), []string{"filter.batch_id"}},
		"HoldMails":       {second(s.dispatch.HoldMails(ctx, &pb.HoldMailsRequest{Filter: &pb.MailFilter{BatchId: "a\nb"}})), []string{"filter.batch_id"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, c.err, c.fields...) })
	}
	if n := s.count("select (select count(*) from mail) + (select count(*) from upload) + (select count(*) from content)"); n != 0 {
		t.Errorf("%d rows are stored", n)
	}
}

// TestItemValidation: what is wrong with an item rejects it alone, in both calls, with every
// field; nothing of it is stored.
func TestItemValidation(t *testing.T) {
	t.Parallel()
	s := start(t, storetest.SQLiteDSN(t))
	s.addServer("good", pb.Mode_MODE_DAEMON, 1, func(m *pb.MailServer) { m.Limits = &pb.Limits{MaxMailBytes: 200_000} })
	many := map[string]string{}
	for i := range 101 {
		many[fmt.Sprintf("v%d", i)] = "x"
	}
	labels := map[string]string{}
	for i := range 20 {
		labels[fmt.Sprintf("k%d", i)] = "v"
	}
	otherLabels := map[string]string{}
	for i := range 13 {
		otherLabels[fmt.Sprintf("other%d", i)] = "v"
	}
	names := func(value string) map[string]string { return map[string]string{"name": value} }
	to := func(change func(*pb.MailMessage)) *pb.MailMessage {
		m := &pb.MailMessage{To: []string{"a@y.example"}}
		change(m)
		return m
	}
	o := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "good", Labels: labels}, Message: &pb.MailMessage{Subject: "To {{name}}", Text: "Dear {{name}}", Html: "<p>{{ name }}</p>"}}
	for name, c := range map[string]struct {
		item   *pb.BatchItem
		reason string
		fields []string
	}{
		"no message":          {&pb.BatchItem{}, pb.ReasonValidationFailed, []string{"message"}},
		"nobody":              {&pb.BatchItem{Message: &pb.MailMessage{}, Variables: names("x")}, pb.ReasonValidationFailed, []string{"message.to"}},
		"addresses":           {&pb.BatchItem{Message: &pb.MailMessage{To: []string{"a"}, Cc: []string{"b@"}, Bcc: []string{"@c"}, ReplyTo: "d d@x.example"}, Variables: names("x")}, pb.ReasonValidationFailed, []string{"message.bcc[0]", "message.cc[0]", "message.reply_to", "message.to[0]"}},
		"a header line":       {&pb.BatchItem{Message: to(func(m *pb.MailMessage) { m.Headers = map[string]string{"X-A": "b\r\nBcc: c@y.example"} }), Variables: names("x")}, pb.ReasonValidationFailed, []string{"message.headers[X-A]"}},
		"a forbidden header":  {&pb.BatchItem{Message: to(func(m *pb.MailMessage) { m.Headers = map[string]string{"Bcc": "c@y.example"} }), Variables: names("x")}, pb.ReasonValidationFailed, []string{"message.headers[Bcc]"}},
		"no variable":         {itemTo("a@y.example"), pb.ReasonValidationFailed, []string{"variables.name"}},
		"name of other case":  {itemTo("a@y.example", "Name", "x"), pb.ReasonValidationFailed, []string{"variables.name"}},
		"variable with lines": {itemTo("a@y.example", "name", "a\r\nBcc: b@y.example"), pb.ReasonValidationFailed, []string{"variables.name"}},
		"variable with NUL":   {itemTo("a@y.example", "name", "a\x00"), pb.ReasonValidationFailed, []string{"variables.name", "variables.name"}},
		"long for a subject":  {itemTo("a@y.example", "name", strings.Repeat("x", 901)), pb.ReasonValidationFailed, []string{"variables.name"}},
		"too many variables":  {&pb.BatchItem{Message: to(func(*pb.MailMessage) {}), Variables: many}, pb.ReasonValidationFailed, []string{"variables", "variables.name"}},
		"too many labels":     {&pb.BatchItem{Message: to(func(*pb.MailMessage) {}), Variables: names("x"), Labels: otherLabels}, pb.ReasonValidationFailed, []string{"labels"}},
		"own subject":         {&pb.BatchItem{Message: to(func(m *pb.MailMessage) { m.Subject = "to {{other}}" }), Variables: names("x")}, pb.ReasonValidationFailed, []string{"variables.other"}},
		"own text":            {&pb.BatchItem{Message: to(func(m *pb.MailMessage) { m.Text = "{{ other }} {{" }), Variables: names("x")}, pb.ReasonValidationFailed, []string{"message.text"}},
		"attachment":          {&pb.BatchItem{Message: to(func(m *pb.MailMessage) { m.Attachments = []*pb.Attachment{{Content: []byte("x")}} }), Variables: names("x")}, pb.ReasonValidationFailed, []string{"message.attachments[0].filename"}},
		"request_id":          {&pb.BatchItem{RequestId: strings.Repeat("x", 65), Message: to(func(*pb.MailMessage) {}), Variables: names("x")}, pb.ReasonValidationFailed, []string{"request_id"}},
		"no upload":           {&pb.BatchItem{Message: with(uuidOfNobody, "a@y.example"), Variables: names("x")}, pb.ReasonUploadNotFound, nil},
		"too large":           {&pb.BatchItem{Message: to(func(m *pb.MailMessage) { m.Text = strings.Repeat("x", 200_000) }), Variables: names("x")}, pb.ReasonMailTooLarge, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := s.mustSendAll(o, c.item, itemTo("good@y.example", "name", "x"))
			a := s.mustStream(o, itemTo("good@y.example", "name", "x"), c.item)
			if r.Accepted != 1 || r.Rejected != 1 || len(r.Rejections) != 1 || len(a) != 2 || a[0].MailId == "" || a[1].Rejection == nil {
				t.Fatalf("%v, %v", r, a)
			}
			for at, j := range []*pb.BatchRejection{r.Rejections[0], a[1].Rejection} {
				if j.Reason != c.reason || !slices.Equal(violated(j), c.fields) || j.Position != int64(at) || j.Message == "" {
					t.Errorf("%v, want %s of %v", j, c.reason, c.fields)
				}
			}
			dry := &pb.BatchOptions{Options: o.Options, Message: o.Message, ValidateOnly: true}
			strict := &pb.BatchOptions{Options: o.Options, Message: o.Message, Strict: true}
			if r, err := s.sendAll(timeout(t), dry, c.item); err != nil || r.Rejected != 1 || r.Rejections[0].Reason != c.reason {
				t.Errorf("validate_only: %v %v", r, err)
			}
			before := s.count("select count(*) from mail")
			if _, err := s.sendAll(timeout(t), strict, itemTo("good@y.example", "name", "x"), c.item); client.ReasonOf(err) != c.reason || status.Code(err) == codes.OK {
				t.Errorf("strict: %v", err)
			}
			if n := s.count("select count(*) from mail"); n != before {
				t.Errorf("strict stored %d mails", n-before)
			}
		})
	}
}
