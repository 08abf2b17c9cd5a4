package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// TestFakeAnswersAlike: package clienttest, by which users test their programs, answers the
// calls of bulk mail as the service does: the same states, counts, reasons, positions and
// fields. Times, ids, sizes and words are each one's own.
func TestFakeAnswersAlike(t *testing.T) {
	t.Parallel()
	fake := clienttest.New(t)
	fake.Answer("nobody@y.example", clienttest.Outcome{Status: pb.RecipientResult_STATUS_REJECTED, SmtpCode: 550, EnhancedCode: "5.1.1", Detail: "no such user",
		Failure: pb.RecipientResult_FAILURE_NO_SUCH_MAILBOX, Hint: "check the address"})
	fake.Answer("later@y.example", clienttest.Outcome{Status: pb.RecipientResult_STATUS_DEFERRED, SmtpCode: 451, EnhancedCode: "4.7.1", Detail: "greylisted", Failure: pb.RecipientResult_FAILURE_RECIPIENT_POLICY, Hint: "wait"})
	fake.Answer("silent@y.example", clienttest.NoReply)
	told := &transcript{t: t, c: fake.Client(t, client.Options{})}
	if _, err := told.c.DeleteMailServer(t.Context(), &pb.DeleteMailServerRequest{Name: "test"}); err != nil {
		// the service begins without one
		t.Fatal(err)
	}
	told.story(2525)
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "DOT" && strings.Contains(c.Arg, "silent@y.example") {
				return &smtpxtest.Action{Close: true}
			}
			return refuseBad(c)
		}}).Start(t)
		c, _ := s.reach()
		real := &transcript{t: t, c: c}
		real.story(relay.Port())
		for i := range max(len(real.lines), len(told.lines)) {
			var a, b string
			if i < len(real.lines) {
				a = real.lines[i]
			}
			if i < len(told.lines) {
				b = told.lines[i]
			}
			if a != b {
				t.Errorf("the service says\n%s\nthe fake says\n%s", a, b)
			}
		}
	})
}

// transcript is what somebody answered.
type transcript struct {
	t     *testing.T
	c     *client.Client
	lines []string
}

// say writes an answer down.
func (x *transcript) say(what string, m proto.Message, err error) {
	x.t.Helper()
	if err != nil {
		var fields []string
		for _, v := range client.Violations(err) {
			fields = append(fields, v.Field)
		}
		slices.Sort(fields)
		x.lines = append(x.lines, fmt.Sprintf("%s: %v %s %v", what, status.Code(err), client.ReasonOf(err), fields))
		return
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		x.t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		x.t.Fatal(err)
	}
	if b, err = json.Marshal(own("", v)); err != nil {
		x.t.Fatal(err)
	}
	x.lines = append(x.lines, what+": "+string(b))
}

// own puts "set" in the place of what nobody promises to be the same, and sorts what comes in
// any order.
func own(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = own(k, v[k])
		}
	case []any:
		for i := range v {
			v[i] = own(key, v[i])
		}
		if key == "violations" {
			slices.SortFunc(v, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	case string:
		for _, k := range []string{"id", "mail_id", "message_id", "upload_id", "size_bytes", "remote_id", "detail", "message", "description", "last_error", "route_detail", "hint", "time", "oldest_age", "watch_lag"} {
			if key == k || strings.HasSuffix(key, "_time") {
				return "set"
			}
		}
	}
	return v
}

// story is everything one does with bulk mail.
func (x *transcript) story(port int) {
	t, c, ctx := x.t, x.c, timeout(x.t)
	for name, mode := range map[string]pb.Mode{"bulk": pb.Mode_MODE_DAEMON, "now": pb.Mode_MODE_PHP} {
		if _, err := c.CreateMailServer(ctx, &pb.CreateMailServerRequest{MailServer: &pb.MailServer{Name: name, Type: pb.MailServer_TYPE_SMTP, Mode: mode, From: "Shop <shop@x.example>",
			Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(port), Encryption: pb.Smtp_ENCRYPTION_NONE}}}); err != nil {
			t.Fatal(err)
		}
	}
	batch := func(what string, o *pb.BatchOptions, items ...*pb.BatchItem) {
		r, err := c.SendAll(ctx, o, slices.Values(items))
		for _, j := range r.GetRejections() {
			j.RequestId = items[j.Position].RequestId // without the client's
		}
		x.say(what, r, err)
	}
	counts := func(what, team, id string) {
		r, err := c.GetBatch(ctx, &pb.GetBatchRequest{Team: team, BatchId: id})
		x.say(what, r, err)
	}
	stats := func(what string) {
		r, err := c.GetQueueStats(ctx, &pb.GetQueueStatsRequest{})
		if r != nil {
			r.NextBatchTime = nil // the fake has none
		}
		x.say(what, r, err)
	}
	pass := func() {
		r, err := c.RunBatch(ctx, &pb.RunBatchRequest{Wait: true})
		x.say("a pass", r, err)
	}
	id := func(name string, item *pb.BatchItem) *pb.BatchItem { item.RequestId = name; return item }
	o := func(batch, server string) *pb.BatchOptions {
		return &pb.BatchOptions{BatchId: batch, Options: &pb.SendOptions{MailServer: server, Labels: map[string]string{"a": "1", "b": "1"}},
			Message: &pb.MailMessage{Subject: "Hello {{name}}", Text: "Dear {{ name }}", Html: "<b>{{name}}</b>"}}
	}

	stats("stats of nothing")
	counts("no batch", "", "one")
	batch("nowhere to send", &pb.BatchOptions{}, itemTo("a@y.example"))
	batch("no such mail server", o("one", "nothing"), itemTo("a@y.example"))
	labelled := id("labelled", itemTo("b@y.example", "name", "<B&B>"))
	labelled.Labels = map[string]string{"b": "2", "c": "2"}
	bare := itemTo("c@y.example")
	bare.Message.Subject, bare.Message.Text, bare.Message.Html = "s", "t", "h"
	batch("a batch", o("one", "bulk"), id("a", itemTo("a@y.example", "name", "王伟")), labelled, bare, itemTo("d@y.example"), itemTo("nobody", "name", "x"), &pb.BatchItem{Variables: map[string]string{"name": "x"}},
		id("a", itemTo("a@y.example", "name", "王伟")), id("a", itemTo("a@y.example", "name", "other")), itemTo("nobody@y.example", "name", "x"), itemTo("later@y.example", "name", "x"))
	counts("queued", "", "one")
	counts("of another team", "sales", "one")
	stats("stats of a queue")
	for _, validate := range []bool{true, false} {
		strict := o("strict", "bulk")
		strict.Strict, strict.ValidateOnly = true, validate
		batch("strict, bad", strict, itemTo("a@y.example", "name", "x"), itemTo("b@y.example"), itemTo("nobody"))
		batch("strict, reused", strict, itemTo("a@y.example", "name", "x"), id("a", itemTo("b@y.example", "name", "x")))
		batch("strict, good", strict, itemTo("x@y.example", "name", "x"), id("s", itemTo("y@y.example", "name", "x")))
	}
	counts("strict", "", "strict")
	pass()
	counts("sent", "", "one")
	stats("stats after a pass")

	stream := func(what string, o *pb.BatchOptions, items ...*pb.BatchItem) (first string) {
		answers := make([]*pb.SendStreamResponse, len(items))
		b := c.Bulk(ctx, o, client.BulkOptions{Answer: func(_ *pb.BatchItem, a *pb.SendStreamResponse) { answers[a.Position] = a }})
		for _, item := range items {
			if err := b.Add(item); err != nil {
				t.Fatal(err)
			}
		}
		sum, err := b.Close()
		for _, j := range sum.Rejections {
			j.RequestId = items[j.Position].RequestId
		}
		x.say(what, sum, err)
		for i, a := range answers {
			if a.GetRejection() == nil && items[i].RequestId == "" {
				a.RequestId = "" // the client's
				if a.Mail != nil {
					a.Mail.RequestId = ""
				}
			}
			x.say(fmt.Sprint(what, ", answer ", i), a, nil)
		}
		return answers[0].GetMailId()
	}
	stream("a stream", o("two", "bulk"), id("two", itemTo("a@y.example", "name", "x")), id("bad", itemTo("bad", "name", "x")), id("missing", itemTo("b@y.example")), id("two", itemTo("z@y.example", "name", "x")))
	mixed := itemTo("a@y.example", "name", "x")
	mixed.Message.Cc = []string{"nobody@y.example", "later@y.example"}
	sent := stream("a stream in php mode", o("three", "now"), id("three", itemTo("a@y.example", "name", "x")), itemTo("nobody@y.example", "name", "x"), mixed, itemTo("silent@y.example", "name", "x"))
	counts("php mode", "", "three")
	for _, retry := range []bool{false, true} {
		for _, to := range []string{"a", "nobody", "later", "silent"} {
			// bulk, whose unknown ones the batch would repeat
			what := fmt.Sprintf("php mode to %s, retry %v", to, retry)
			all := []string{to + "@y.example", "b@y.example"}
			if to == "silent" {
				// a mail server is silent about a whole mail, the fake about each address
				all = all[:1]
			}
			r, err := c.SendMail(ctx, &pb.SendMailRequest{RequestId: what, Options: &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_BULK, Reference: what, RetryInBatch: retry},
				Message: &pb.MailMessage{To: all, Subject: "s", Text: "t"}})
			x.say(what, r, err)
			if r.GetGoesOnInBatch() != (retry && to == "later") {
				t.Errorf("%s: goes on: %v", what, r.GetGoesOnInBatch())
			}
		}
	}
	now, err := c.RetryMails(ctx, &pb.RetryMailsRequest{Filter: &pb.MailFilter{Reference: "php mode to later, retry true"}})
	x.say("due now", now, err)
	pass()

	for _, validate := range []bool{true, false} {
		f := &pb.MailFilter{BatchId: "two"}
		h, err := c.HoldMails(ctx, &pb.HoldMailsRequest{Filter: f, ValidateOnly: validate})
		x.say("hold", h, err)
		counts("hold", "", "two")
		r, err := c.ReleaseMails(ctx, &pb.ReleaseMailsRequest{Filter: f, ValidateOnly: validate})
		x.say("release", r, err)
		a, err := c.RetryMails(ctx, &pb.RetryMailsRequest{Filter: &pb.MailFilter{BatchId: "three", Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_FAILED}}, ValidateOnly: validate})
		x.say("retry", a, err)
		n, err := c.CancelMails(ctx, &pb.CancelMailsRequest{Filter: f, ValidateOnly: validate})
		x.say("cancel", n, err)
		counts("cancel", "", "two")
	}
	pass()
	counts("retried", "", "three")

	file := func(what, team, request, content string) string {
		r, err := c.Upload(ctx, &header{Team: team, Filename: "a.txt", RequestId: request}, strings.NewReader(content))
		x.say(what, r, err)
		return r.GetUploadId()
	}
	up := file("upload", "sales", "u", "content")
	if again := file("the same upload", "sales", "u", "content"); again != up {
		t.Error("another upload")
	}
	file("another file", "sales", "u", "other")
	file("an empty file", "", "", "")
	for _, team := range []string{"sales", ""} {
		carried := o("up"+team, "bulk")
		carried.Options.Team = team
		carried.Message = &pb.MailMessage{Subject: "s"}
		batch("with an upload, team "+team, carried, id("up", &pb.BatchItem{Message: &pb.MailMessage{To: []string{"a@y.example"}, Attachments: []*pb.Attachment{{UploadId: up}}}}), itemTo("b@y.example"))
	}

	again := func(what string, r *pb.ResendMailRequest) {
		m, err := c.ResendMail(ctx, r)
		if m.GetMail().GetResentFrom() == r.Id {
			m.Mail.ResentFrom = "the mail"
		}
		x.say(what, m, err)
	}
	again("resend", &pb.ResendMailRequest{Id: sent, Reason: "lost", RequestId: "again"})
	again("resend twice", &pb.ResendMailRequest{Id: sent, Reason: "lost", RequestId: "again"})
	again("resend for another reason", &pb.ResendMailRequest{Id: sent, Reason: "other", RequestId: "again"})
	again("resend to one", &pb.ResendMailRequest{Id: sent, Reason: "lost", OnlyRecipients: []string{"A@Y.example"}, RequestId: "to one"})
	again("resend to a stranger", &pb.ResendMailRequest{Id: sent, Reason: "lost", OnlyRecipients: []string{"x@y.example"}})
	again("resend without a reason", &pb.ResendMailRequest{Id: sent})
	again("resend nothing", &pb.ResendMailRequest{Id: uuidOfNobody, Reason: "lost"})
	pass()
	stats("stats at the end")
}
