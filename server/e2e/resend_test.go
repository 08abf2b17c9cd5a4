package e2e

import (
	"bytes"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/maildispatch/maildispatch/client"
	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// TestResendMail: a mail's content leaves once more as a new mail that says of which it is the
// repetition and why; the first stays as it is.
func TestResendMail(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{On: refuseBad}).Start(t)
		s.addServer("now", pb.Mode_MODE_PHP, relay.Port())
		o := &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_INVOICE, Reference: "INV-1", Labels: map[string]string{"run": "1"}, Priority: pb.Priority_PRIORITY_URGENT}
		file := noise(7, 50_000)
		msg := &pb.MailMessage{To: []string{"A <a@y.example>", "nobody@y.example"}, Cc: []string{"c@y.example"}, Bcc: []string{"hidden@y.example"}, Subject: "Rechnung 发票", Text: "Guten Tag", Html: "<p>Guten Tag</p>",
			Attachments: []*pb.Attachment{{Filename: "a.pdf", Content: file}}}
		first := s.mustSend(&pb.SendRequest{RequestId: "first", Options: o, Message: msg}).mail
		wantState(t, first, "PARTIALLY_SENT a=ACCEPTED n=REJECTED c=ACCEPTED h=ACCEPTED")
		resend := func(r *pb.ResendMailRequest) *pb.ResendMailResponse {
			t.Helper()
			out, err := s.dispatch.ResendMail(timeout(t), r)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		again := resend(&pb.ResendMailRequest{Id: first.Id, Reason: "the customer lost it", RequestId: "again"})
		m := again.Mail
		wantState(t, m, "QUEUED a=PENDING n=PENDING c=PENDING h=PENDING due")
		if again.Duplicate || m.Id == first.Id || m.ResentFrom != first.Id || m.ResendReason != "the customer lost it" || m.MessageId == first.MessageId || m.RequestId != "again" || m.MailServer != "now" ||
			m.Kind != first.Kind || m.Reference != "INV-1" || m.Labels["run"] != "1" || m.Priority != pb.Priority_PRIORITY_URGENT || m.Subject != first.Subject || m.From != first.From || m.Route != first.Route || m.BatchId != "" {
			t.Errorf("%v", m)
		}
		if got := s.mail(first.Id); !proto.Equal(got, first) {
			t.Errorf("the first is now\n%v, was\n%v", got, first)
		}
		if n := s.audits("ResendMail", "", "the customer lost it"); n != 1 {
			t.Errorf("%d audit rows", n)
		}
		if dup := resend(&pb.ResendMailRequest{Id: first.Id, Reason: "the customer lost it", RequestId: "again"}); !dup.Duplicate || dup.Mail.Id != m.Id {
			t.Errorf("%v", dup)
		}
		if _, err := s.dispatch.ResendMail(timeout(t), &pb.ResendMailRequest{Id: first.Id, Reason: "r", RequestId: "first"}); status.Code(err) != codes.AlreadyExists || client.ReasonOf(err) != pb.ReasonRequestIDReused {
			t.Errorf("%v", err)
		}
		some := resend(&pb.ResendMailRequest{Id: first.Id, Reason: "only to him", OnlyRecipients: []string{"C@Y.example", "Hidden <hidden@y.example>"}}).Mail
		wantState(t, some, "QUEUED c=PENDING h=PENDING due")
		before := len(relay.Mails())
		if b := s.batch(); b.Claimed != 2 || b.Sent != 1 || b.PartiallySent != 1 {
			t.Errorf("%v", b)
		}
		sent := relay.Mails()[before:]
		if len(sent) != 2 {
			t.Fatalf("%d mails", len(sent))
		}
		for _, x := range sent {
			if slices.Contains(x.To, "a@y.example") == slices.Equal(x.To, []string{"c@y.example", "hidden@y.example"}) {
				t.Errorf("to %v", x.To)
			}
			sameLetter(t, relay.Mails()[0].Data, x.Data)
		}
		// An archived mail as well, and the repetition itself.
		wantState(t, s.mail(some.Id), "SENT c=ACCEPTED h=ACCEPTED")
		third := resend(&pb.ResendMailRequest{Id: some.Id, Reason: "once more"}).Mail
		wantState(t, third, "QUEUED c=PENDING h=PENDING due")
		if third.ResentFrom != some.Id {
			t.Errorf("%v", third)
		}
		if b := s.batch(); b.Sent != 1 {
			t.Errorf("%v", b)
		}
		sameLetter(t, relay.Mails()[0].Data, relay.Mails()[before+2].Data)
		if n := s.count("select count(*) from content"); n > 1 {
			t.Errorf("the file is stored %d times", n)
		}
	})
}

// sameLetter wants two raw messages to differ in nothing but Message-ID and Date, and in those.
func sameLetter(t *testing.T, a, b []byte) {
	t.Helper()
	head := func(raw []byte) (own, rest string) {
		h, body, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
		for l := range bytes.Lines(append(h, "\r\n"...)) {
			if bytes.HasPrefix(l, []byte("Message-ID:")) {
				own += string(l)
			} else if !bytes.HasPrefix(l, []byte("Date:")) {
				rest += string(l)
			}
		}
		return own, rest + "\r\n" + string(body)
	}
	ownA, restA := head(slices.Clone(a))
	ownB, restB := head(slices.Clone(b))
	if ownA == ownB || ownB == "" || restA != restB {
		t.Errorf("%s%s are not two letters of the same content:\n%s\n%s", ownA, ownB, restA[:min(len(restA), 2000)], restB[:min(len(restB), 2000)])
	}
	m, err := mail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := m.Header.Date(); err != nil || time.Since(d) > time.Hour || time.Since(d) < -time.Minute {
		t.Errorf("dated %v, %v", d, err)
	}
}

// TestResendRefused: what cannot be sent once more, and why.
func TestResendRefused(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		relay := (&smtpxtest.Server{}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
		id := s.mustSend(&pb.SendRequest{Options: &pb.SendOptions{MailServer: "bulk", SendAfter: timestamppb.New(time.Now().Add(time.Hour))}, Message: message("a@y.example")}).id
		try := func(r *pb.ResendMailRequest) error {
			_, err := s.dispatch.ResendMail(timeout(t), r)
			return err
		}
		refused(t, try(&pb.ResendMailRequest{}), "id", "reason")
		refused(t, try(&pb.ResendMailRequest{Id: "x", OnlyRecipients: []string{"a@y.example", "b"}, Reason: strings.Repeat("x", 501), RequestId: "a\nb"}), "id", "only_recipients[1]", "reason", "request_id")
		refused(t, try(&pb.ResendMailRequest{Id: id, OnlyRecipients: make([]string, 501), Reason: "a\r\nb"}), "only_recipients", "reason")
		refused(t, try(&pb.ResendMailRequest{Id: id, OnlyRecipients: []string{"a@y.example", "stranger@y.example"}, Reason: "r"}), "only_recipients[1]")
		if err := try(&pb.ResendMailRequest{Id: uuidOfNobody, Reason: "r"}); status.Code(err) != codes.NotFound || client.ReasonOf(err) != pb.ReasonMailNotFound {
			t.Errorf("%v", err)
		}
		update := func(st pb.MailServer_Status) {
			t.Helper()
			if _, err := s.admin.UpdateMailServer(timeout(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "bulk", Status: st}}); err != nil {
				t.Fatal(err)
			}
		}
		update(pb.MailServer_STATUS_UNAVAILABLE)
		if err := try(&pb.ResendMailRequest{Id: id, Reason: "r"}); status.Code(err) != codes.FailedPrecondition || client.ReasonOf(err) != pb.ReasonMailServerUnavailable {
			t.Errorf("%v", err)
		}
		update(pb.MailServer_STATUS_AVAILABLE)
		if n := s.count("select count(*) from mail"); n != 1 || s.audits("ResendMail", "", "r") != 0 {
			t.Errorf("%d mails", n)
		}
		// A mail that waits can be sent once more as well, at once.
		r, err := s.dispatch.ResendMail(timeout(t), &pb.ResendMailRequest{Id: id, Reason: "now"})
		if err != nil || r.Mail.DueTime == nil || r.Mail.DueTime.AsTime().After(time.Now()) {
			t.Errorf("%v %v", r, err)
		}
		if b := s.batch(); b.Sent != 1 || s.mail(id).Status != pb.MailStatus_MAIL_STATUS_QUEUED {
			t.Errorf("%v, %v", b, s.mail(id))
		}
		if _, err := s.admin.DeleteMailServer(timeout(t), &pb.DeleteMailServerRequest{Name: "bulk", Force: true}); err != nil {
			t.Fatal(err)
		}
		if err := try(&pb.ResendMailRequest{Id: id, Reason: "r"}); status.Code(err) != codes.FailedPrecondition || client.ReasonOf(err) != pb.ReasonMailServerDeleted {
			t.Errorf("%v", err)
		}
	})
}
