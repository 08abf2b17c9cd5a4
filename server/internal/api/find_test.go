package api_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// refuse is a relay that refuses what begins with "no".
func refuse() *smtpxtest.Server {
	return &smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" && strings.Contains(c.Arg, "<no") {
			return &smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n"}
		}
		return nil
	}}
}

// eachRefusing runs f once for each database, with a relay that refuses.
func eachRefusing(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Run("sqlite", func(t *testing.T) { f(t, newRig(t, storetest.SQLiteDSN(t), refuse())) })
	t.Run("postgres", func(t *testing.T) { f(t, newRig(t, storetest.PostgresDSN(t), refuse())) })
}

// whole is the raw message of a mail.
func (r *rig) whole(id string) string {
	r.t.Helper()
	st, err := r.dispatch.DownloadMail(ctx(r.t), &pb.DownloadMailRequest{Id: id})
	if err != nil {
		r.t.Fatal(err)
	}
	var text strings.Builder
	for {
		part, err := st.Recv()
		if err == io.EOF {
			return text.String()
		}
		if err != nil {
			r.t.Fatal(err)
		}
		text.Write(part.Chunk)
	}
}

// TestFindMailsOverBothJournals: a search finds what was sent and what was not, the newest
// first, page by page, and a token is good for its own search only.
func TestFindMailsOverBothJournals(t *testing.T) {
	t.Parallel()
	eachRefusing(t, func(t *testing.T, r *rig) {
		r.server("now", pb.Mode_MODE_PHP)
		var ids []string
		for i, to := range []string{"a@y.example", "nobody@y.example", "b@z.example"} {
			m := message(to)
			m.Subject = fmt.Sprintf("Rechnung %d über Ä", i)
			evs, err := r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_INVOICE, Reference: fmt.Sprintf("INV-%d", i)}, Message: m})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, evs[0].MailId)
		}
		slices.Reverse(ids) // the newest first
		find := func(req *pb.FindMailsRequest) (got []string) {
			t.Helper()
			for {
				res, err := r.dispatch.FindMails(ctx(t), req)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range res.Mails {
					got = append(got, m.Id)
				}
				if req.PageToken = res.NextPageToken; req.PageToken == "" {
					return got
				}
			}
		}
		for name, tc := range map[string]struct {
			req  *pb.FindMailsRequest
			want []string
		}{
			"everything":    {&pb.FindMailsRequest{PageSize: 2}, ids},
			"by id":         {&pb.FindMailsRequest{Id: ids[1]}, ids[1:2]},
			"text: id":      {&pb.FindMailsRequest{Text: ids[1]}, ids[1:2]},
			"text: INV-0":   {&pb.FindMailsRequest{Text: "INV-0"}, ids[2:]},
			"text: address": {&pb.FindMailsRequest{Text: "NoBody@Y.example"}, ids[1:2]},
			"domain":        {&pb.FindMailsRequest{RecipientDomain: "Y.EXAMPLE"}, ids[1:]},
			"subject":       {&pb.FindMailsRequest{Subject: "ä rechnung 2"}, ids[:1]},
			"failure":       {&pb.FindMailsRequest{Failure: pb.RecipientResult_FAILURE_NO_SUCH_MAILBOX}, ids[1:2]},
			"failed":        {&pb.FindMailsRequest{Filter: &pb.MailFilter{Statuses: []pb.MailStatus{pb.MailStatus_MAIL_STATUS_FAILED}}}, ids[1:2]},
			"duplicates":    {&pb.FindMailsRequest{PossibleDuplicate: true}, nil},
			"nothing":       {&pb.FindMailsRequest{Text: "INV-7"}, nil},
		} {
			if got := find(tc.req); !slices.Equal(got, tc.want) {
				t.Errorf("%s: got %v, want %v", name, got, tc.want)
			}
		}
		first, err := r.dispatch.FindMails(ctx(t), &pb.FindMailsRequest{PageSize: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.dispatch.FindMails(ctx(t), &pb.FindMailsRequest{PageToken: first.NextPageToken, Subject: "x"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a token of another search: got %v", err)
		}
		bad := &pb.FindMailsRequest{Id: "x", RecipientDomain: "a b", Subject: strings.Repeat("a ", 11), Failure: 99, PageSize: -1}
		_, err = r.dispatch.FindMails(ctx(t), bad)
		for _, field := range []string{"id", "recipient_domain", "subject", "failure", "page_size"} {
			refusedField(t, field, err, field)
		}
	})
}

// TestSendMail: one answer has what Send tells in a stream, and the same request_id in the
// other call finds the same mail. TestSendMailTakesLargeMail: SendMail takes what Send takes,
// though other unary requests have a megabyte at most.
func TestSendMailTakesLargeMail(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("now", pb.Mode_MODE_PHP)
	for _, size := range []int{700 << 10, 3 << 20} {
		m := message("a@y.example")
		m.Attachments = []*pb.Attachment{{Filename: "a.pdf", Content: make([]byte, size)}}
		got, err := r.dispatch.SendMail(ctx(t), &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: m})
		if err != nil || got.Mail.GetStatus() != pb.MailStatus_MAIL_STATUS_SENT || got.Mail.SizeBytes < int64(size) {
			t.Errorf("%d bytes: %v %v", size, got, err)
		}
	}
	if _, err := r.dispatch.GetMail(ctx(t), &pb.GetMailRequest{Id: strings.Repeat("x", 1<<20)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another unary request of a megabyte: %v", err)
	}
	short, cancel := context.WithTimeout(ctx(t), 60*time.Millisecond)
	defer cancel()
	m := message("a@y.example")
	m.Attachments = []*pb.Attachment{{Filename: "a.pdf", Content: make([]byte, 2<<20)}}
	if _, err := r.dispatch.SendMail(short, &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: m}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call without time: %v", err)
	}
}

func TestSendMail(t *testing.T) {
	t.Parallel()
	eachRefusing(t, func(t *testing.T, r *rig) {
		r.server("now", pb.Mode_MODE_PHP)
		req := &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: message("a@y.example", "nobody@y.example"), RequestId: "q1"}
		got, err := r.dispatch.SendMail(ctx(t), req)
		if err != nil {
			t.Fatal(err)
		}
		m := got.Mail
		if got.MailId != m.GetId() || m.GetStatus() != pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT || got.Accepted.GetMailServer() != "now" || got.Accepted.GetDuplicate() ||
			len(m.Recipients) != 2 || m.Recipients[1].Failure != pb.RecipientResult_FAILURE_NO_SUCH_MAILBOX || m.Attempts[0].MailServer != "now" {
			t.Errorf("got %v", got)
		}
		evs, err := r.send(ctx(t), &pb.SendRequest{Options: req.Options, Message: req.Message, RequestId: "q1"})
		if err != nil || evs[0].MailId != got.MailId || !evs[0].GetAccepted().GetDuplicate() {
			t.Errorf("the same in a stream: got %v, %v", evs, err)
		}
		if again, err := r.dispatch.SendMail(ctx(t), req); err != nil || !again.Accepted.Duplicate || again.MailId != got.MailId || again.Mail.GetStatus() != m.Status {
			t.Errorf("again: got %v, %v", again, err)
		}
		req.Message.Subject = "another"
		if _, err := r.dispatch.SendMail(ctx(t), req); status.Code(err) != codes.AlreadyExists {
			t.Errorf("other content: got %v", err)
		}
		req.ValidateOnly, req.RequestId = true, ""
		if dry, err := r.dispatch.SendMail(ctx(t), req); err != nil || dry.MailId != "" || dry.Mail != nil || dry.Accepted.GetMailServer() != "now" {
			t.Errorf("validate_only: got %v, %v", dry, err)
		}
	})
}

// TestResendToAnotherAddress: the right address takes the place of the wrong one, on the wire
// and where the reader sees it; the others of the mail get nothing.
func TestResendToAnotherAddress(t *testing.T) {
	t.Parallel()
	eachRefusing(t, func(t *testing.T, r *rig) {
		r.server("now", pb.Mode_MODE_PHP)
		msg := message()
		msg.To = []string{`"nobody@y.example, Ann" <nobody@y.example>`, "xnobody@y.example", "b@y.example"}
		got, err := r.dispatch.SendMail(ctx(t), &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "now"}, Message: msg})
		if err != nil {
			t.Fatal(err)
		}
		resend := func(req *pb.ResendMailRequest) (*pb.Mail, error) {
			req.Id, req.Reason = got.MailId, "the address was wrong"
			res, err := r.dispatch.ResendMail(ctx(t), req)
			return res.GetMail(), err
		}
		_, err = resend(&pb.ResendMailRequest{ToInstead: "ann@y.example"})
		refusedField(t, "in place of three", err, "to_instead")
		_, err = resend(&pb.ResendMailRequest{ToInstead: "ann", AdditionalRecipients: []string{"x"}})
		refusedField(t, "no address", err, "to_instead")
		refusedField(t, "no address", err, "additional_recipients[0]")
		m, err := resend(&pb.ResendMailRequest{OnlyRecipients: []string{"Nobody@y.example"}, ToInstead: "ann@y.example", AdditionalRecipients: []string{"boss@z.example"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Recipients) != 2 || m.Recipients[0].Address != "ann@y.example" || m.Recipients[1].Address != "boss@z.example" || m.Recipients[1].Kind != pb.RecipientResult_KIND_BCC {
			t.Errorf("got %v", m.Recipients)
		}
		raw := r.whole(m.Id)
		head, _, _ := strings.Cut(raw, "\r\n\r\n")
		if !strings.Contains(head, "<ann@y.example>") || strings.Contains(head, "<nobody@y.example>") || !strings.Contains(head, "xnobody@y.example") || strings.Contains(head, "boss@") || int64(len(raw)) != m.SizeBytes {
			t.Errorf("%d bytes, said %d:\n%s", len(raw), m.SizeBytes, head)
		}
		if before := r.whole(got.MailId); !strings.Contains(before, "<nobody@y.example>") {
			t.Errorf("the first was changed:\n%s", before)
		}
	})
}
