package api_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// signedMail is a finished message whose signature is the sum of its signed part.
func signedMail(id, header string) []byte {
	part := "Content-Type: text/plain\r\n\r\nInvoice 4711  \r\n.\r\n"
	sum := sha256.Sum256([]byte(part))
	return []byte(header + "From: Shop <shop@x.example>\r\nTo: a@y.example\r\nSubject: Invoice\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\nMessage-ID: <" + id + ">\r\nMIME-Version: 1.0\r\n" +
		"Content-Type: multipart/signed; protocol=\"application/pkcs7-signature\"; micalg=sha-256; boundary=out\r\n\r\n--out\r\n" + part +
		"\r\n--out\r\nContent-Type: application/pkcs7-signature\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.StdEncoding.EncodeToString(sum[:]) + "\r\n--out--\r\n")
}

// TestRaw: a signed invoice reaches the relay and the journal byte for byte, under its own
// Message-ID, in both modes; what cannot be done with it is refused with its field.
func TestRaw(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_PHP)
		r.server("daemon", pb.Mode_MODE_DAEMON)
		options := &pb.SendOptions{MailServer: "main"}
		given, want := signedMail("4711@billing.example", "Bcc: b@y.example\r\n"), signedMail("4711@billing.example", "")
		req := &pb.SendRequest{RequestId: "4711", Options: options, Message: &pb.MailMessage{Raw: given}}
		evs, err := r.send(ctx(t), req)
		if err != nil {
			t.Fatal(err)
		}
		m := evs[len(evs)-1].GetCompleted().GetMail()
		if m.GetStatus() != pb.MailStatus_MAIL_STATUS_SENT || m.GetMessageId() != "<4711@billing.example>" || m.GetSubject() != "Invoice" || len(m.GetRecipients()) != 2 {
			t.Errorf("%v", m)
		}
		relayed := r.relay.Mails()
		if len(relayed) != 1 || !bytes.Equal(relayed[0].Data, want) || !slices.Equal(relayed[0].To, []string{"a@y.example", "b@y.example"}) {
			t.Errorf("the relay has %v", relayed)
		}
		if raw := r.download(m.Id); !bytes.Equal(raw, want) || int64(len(raw)) != m.SizeBytes {
			t.Errorf("the journal has %q", raw)
		}
		again, err := r.send(ctx(t), req)
		if err != nil || !again[0].GetAccepted().GetDuplicate() || again[0].MailId != m.Id {
			t.Errorf("the same call again: %v, %v", again, err)
		}
		evs, err = r.send(ctx(t), &pb.SendRequest{Options: options, Message: &pb.MailMessage{Raw: signedMail("4712@billing.example", "Bcc: b@y.example\r\n"), Cc: []string{"Zoë <c@y.example>"}}})
		if err != nil || len(evs[len(evs)-1].GetCompleted().GetMail().GetRecipients()) != 1 || !slices.Equal(r.relay.Mails()[1].To, []string{"c@y.example"}) {
			t.Errorf("recipients of the request: %v, %v", evs, err)
		}
		_, err = r.dispatch.ResendMail(ctx(t), &pb.ResendMailRequest{Id: m.Id, Reason: "lost"})
		refusedField(t, "a resend", err, "id")

		send := func(change func(*pb.SendRequest)) error {
			req := &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: &pb.MailMessage{Raw: signedMail("4713@billing.example", "")}}
			change(req)
			_, err := r.send(ctx(t), req)
			return err
		}
		refusedField(t, "its Message-ID again", send(func(q *pb.SendRequest) { q.Message.Raw = given }), "message.raw")
		refusedField(t, "another sender", send(func(q *pb.SendRequest) { q.Message.Raw = bytes.Replace(given, []byte("shop@"), []byte("ceo@"), 1) }), "message.raw")
		refusedField(t, "line ends", send(func(q *pb.SendRequest) { q.Message.Raw = bytes.ReplaceAll(given, []byte("\r\n"), []byte("\n")) }), "message.raw")
		refusedField(t, "unsubscribe", send(func(q *pb.SendRequest) { q.Options.UnsubscribeUrl = "https://x.example/" }), "message.raw")
		refusedField(t, "nobody", send(func(q *pb.SendRequest) {
			q.Message.Raw = bytes.Replace(q.Message.Raw, []byte("To: a@y.example\r\n"), nil, 1)
		}), "message.to")
		for field, change := range map[string]func(*pb.MailMessage){
			"subject": func(m *pb.MailMessage) { m.Subject = "s" }, "text": func(m *pb.MailMessage) { m.Text = "t" }, "html": func(m *pb.MailMessage) { m.Html = "h" },
			"reply_to": func(m *pb.MailMessage) { m.ReplyTo = "a@x.example" }, "from_name": func(m *pb.MailMessage) { m.FromName = "n" },
			"headers":      func(m *pb.MailMessage) { m.Headers = map[string]string{"X-A": "1"} },
			"attachments":  func(m *pb.MailMessage) { m.Attachments = []*pb.Attachment{{Filename: "a"}} },
			"alternatives": func(m *pb.MailMessage) { m.Alternatives = []*pb.Alternative{{ContentType: "text/calendar"}} },
		} {
			refusedField(t, field, send(func(q *pb.SendRequest) { change(q.Message) }), "message."+field)
		}

		item := func(id string) *pb.BatchItem {
			return &pb.BatchItem{RequestId: "item " + id, Message: &pb.MailMessage{Raw: signedMail(id, "")}}
		}
		filled := item("4@b.example")
		filled.Variables = map[string]string{"a": "b"}
		twice := item("1@b.example")
		twice.RequestId = "twice"
		res, err := r.batch(ctx(t), &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "daemon"}}, item("1@b.example"), item("2@b.example"), filled, twice, item("1@b.example"))
		if err != nil || res.Accepted != 2 || res.Duplicates != 1 || len(res.Rejections) != 2 || res.Rejections[0].Violations[0].Field != "variables" || res.Rejections[1].Violations[0].Field != "message.raw" {
			t.Errorf("a bulk of finished messages: %v, %v", res, err)
		}
		shared := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "daemon"}, Message: &pb.MailMessage{Text: "t"}}
		res, err = r.batch(ctx(t), shared, item("5@b.example"))
		if err != nil || len(res.Rejections) != 1 || res.Rejections[0].Violations[0].Field != "message.raw" {
			t.Errorf("beside a shared message: %v, %v", res, err)
		}
		shared.Message = &pb.MailMessage{Raw: given}
		_, err = r.batch(ctx(t), shared)
		refusedField(t, "a shared one", err, "options.message.raw")
	})
}

// refusedField wants a call refused for this field.
func refusedField(t *testing.T, what string, err error, field string) {
	t.Helper()
	refused(t, what, err, codes.InvalidArgument, "VALIDATION_FAILED")
	var fields []string
	for _, d := range status.Convert(err).Details() {
		if bad, is := d.(*errdetails.BadRequest); is {
			for _, v := range bad.FieldViolations {
				fields = append(fields, v.Field)
			}
		}
	}
	if !slices.Contains(fields, field) {
		t.Errorf("%s: %v, want %s refused", what, err, field)
	}
}

// TestAllowedHeaders: a header by which a provider adds recipients needs the mail server's
// leave.
func TestAllowedHeaders(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.server("main", pb.Mode_MODE_DAEMON)
		msg := message("a@y.example")
		msg.Headers = map[string]string{"X-SMTPAPI": `{"to": ["v@y.example"]}`}
		req := &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main"}, Message: msg}
		_, err := r.send(ctx(t), req)
		refusedField(t, "not allowed", err, "message.headers[X-SMTPAPI]")
		update := func(headers ...string) (*pb.MailServer, error) {
			res, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main", AllowedHeaders: headers}})
			return res.GetMailServer(), err
		}
		_, err = update("X-Tag")
		refusedField(t, "a header that needs no leave", err, "mail_server.allowed_headers[0]")
		m, err := update("x-smtpapi", "X-SMTPAPI", "X-MC-Tags")
		if err != nil || strings.Join(m.AllowedHeaders, " ") != "X-Smtpapi X-Mc-Tags" {
			t.Fatal(m, err)
		}
		evs, err := r.send(ctx(t), req)
		if err != nil {
			t.Fatal(err)
		}
		if h, _ := r.downloaded(evs[0].MailId); h.Get("X-SMTPAPI") == "" {
			t.Errorf("the header is not there: %v", h)
		}
		if m, err := r.admin.UpdateMailServer(ctx(t), &pb.UpdateMailServerRequest{MailServer: &pb.MailServer{Name: "main", DisplayName: "x"}}); err != nil || len(m.MailServer.AllowedHeaders) != 2 {
			t.Errorf("another change: %v, %v", m, err)
		}
	})
}
