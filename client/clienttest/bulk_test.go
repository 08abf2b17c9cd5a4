package clienttest_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func item(to string, variables map[string]string) *maildispatchv1.BatchItem {
	return &maildispatchv1.BatchItem{Message: &maildispatchv1.MailMessage{To: []string{to}}, Variables: variables}
}

func sendAll(t *testing.T, c *client.Client, o *maildispatchv1.BatchOptions, items ...*maildispatchv1.BatchItem) (*maildispatchv1.SendBatchResponse, error) {
	t.Helper()
	return c.SendAll(t.Context(), o, slices.Values(items))
}

// The shared message, the item's own and the variables become one mail.
func TestSendBatchMerges(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	shared := &maildispatchv1.BatchOptions{
		BatchId: "spring", Options: &maildispatchv1.SendOptions{Labels: map[string]string{"campaign": "spring", "lang": "en"}},
		Message: &maildispatchv1.MailMessage{Subject: "{{ name }}'s offer", Text: "Dear {{name}}", Html: "<b>{{name}}</b>", Headers: map[string]string{"X-A": "1", "X-B": "1"},
			Attachments: []*maildispatchv1.Attachment{{Filename: "a.txt"}}},
	}
	own := item("c@example.com", map[string]string{"name": "C", "unused": "x"})
	own.Message.Text, own.Message.Headers, own.Labels = "Only for you", map[string]string{"X-B": "2"}, map[string]string{"lang": "zh"}
	own.Message.Attachments = []*maildispatchv1.Attachment{{Filename: "b.txt"}}
	res, err := sendAll(t, c, shared, item("a@example.com", map[string]string{"name": "<A&B>"}), item("b@example.com", nil), own)
	if err != nil || res.GetAccepted() != 2 || res.GetRejected() != 1 || res.GetBatchId() != "spring" {
		t.Fatalf("%v, %v", res, err)
	}
	if r := res.GetRejections()[0]; r.GetPosition() != 1 || r.GetReason() != maildispatchv1.ReasonValidationFailed || len(r.GetViolations()) != 1 || r.GetViolations()[0].GetField() != "variables.name" {
		t.Errorf("%v", r)
	}
	var got []string
	for _, m := range srv.Mails() {
		msg := m.Request.GetMessage()
		got = append(got, fmt.Sprintln(m.Mail.GetRecipients()[0].GetAddress(), msg.GetSubject(), msg.GetText(), msg.GetHtml(), msg.GetHeaders(), len(msg.GetAttachments()), m.Mail.GetLabels(), m.Mail.GetKind(), m.Mail.GetStatus()))
	}
	want := []string{
		fmt.Sprintln("a@example.com", "<A&B>'s offer", "Dear <A&B>", "<b>&lt;A&amp;B&gt;</b>", map[string]string{"X-A": "1", "X-B": "1"}, 1,
			map[string]string{"campaign": "spring", "lang": "en"}, "KIND_BULK", "MAIL_STATUS_QUEUED"),
		fmt.Sprintln("c@example.com", "C's offer", "Only for you", "<b>C</b>", map[string]string{"X-A": "1", "X-B": "2"}, 2,
			map[string]string{"campaign": "spring", "lang": "zh"}, "KIND_BULK", "MAIL_STATUS_QUEUED"),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	srv.RunBatch()
	b, err := c.GetBatch(t.Context(), &maildispatchv1.GetBatchRequest{BatchId: "spring"})
	if err != nil || b.GetBatch().GetMails() != 2 || b.GetBatch().GetCounts().GetSent() != 2 || b.GetBatch().GetWaiting() != 0 || b.GetBatch().GetFinishTime() == nil {
		t.Errorf("%v, %v", b, err)
	}
	_, err = c.GetBatch(t.Context(), &maildispatchv1.GetBatchRequest{BatchId: "spring", Team: "other"})
	wantReason(t, err, codes.NotFound, maildispatchv1.ReasonBatchNotFound)
}

func TestSendBatchStrict(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	o := &maildispatchv1.BatchOptions{Strict: true, Message: &maildispatchv1.MailMessage{Subject: "s"}}
	_, err := sendAll(t, c, o, item("a@example.com", nil), item("nobody", nil), item("", nil))
	wantReason(t, err, codes.InvalidArgument, maildispatchv1.ReasonValidationFailed)
	if vs := client.Violations(err); len(vs) != 2 || vs[0].Field != "items[1].message.to[0]" || vs[1].Field != "items[2].message.to[0]" {
		t.Errorf("%v", vs)
	}
	twice := item("a@example.com", nil)
	twice.RequestId = "x"
	other := item("b@example.com", nil)
	other.RequestId = "x"
	_, err = sendAll(t, c, o, twice, other)
	wantReason(t, err, codes.AlreadyExists, maildispatchv1.ReasonRequestIDReused)
	if n := len(srv.Mails()); n != 0 {
		t.Errorf("%d mails were stored", n)
	}
	dry := proto.CloneOf(o)
	dry.ValidateOnly = true
	if res, err := sendAll(t, c, dry, twice); err != nil || res.GetAccepted() != 1 || len(srv.Mails()) != 0 {
		t.Errorf("%v, %v, %d mails", res, err, len(srv.Mails()))
	}
	if res, err := sendAll(t, c, o, twice, twice); err != nil || res.GetAccepted() != 1 || res.GetDuplicates() != 1 || len(srv.Mails()) != 1 {
		t.Errorf("%v, %v", res, err)
	}
}

func TestUploads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		c := srv.Client(t, client.Options{})
		up, err := c.Upload(t.Context(), &maildispatchv1.UploadAttachmentRequest_Header{Team: "billing", Filename: "price.pdf"}, strings.NewReader("%PDF"))
		if err != nil || string(srv.Uploaded(up.GetUploadId())) != "%PDF" || srv.Uploaded("nothing") != nil {
			t.Fatalf("%v, %v", up, err)
		}
		use := func(team string) error {
			_, err := c.Deliver(t.Context(), &maildispatchv1.SendRequest{Options: &maildispatchv1.SendOptions{Team: team}, Message: &maildispatchv1.MailMessage{To: []string{"a@example.com"},
				Attachments: []*maildispatchv1.Attachment{{UploadId: up.GetUploadId()}}}})
			return err
		}
		for range 3 { // every use makes it live longer
			if err := use("billing"); err != nil {
				t.Error(err)
			}
			time.Sleep(6 * 24 * time.Hour) // in the bubble
		}
		wantReason(t, use("other"), codes.NotFound, maildispatchv1.ReasonUploadNotFound)
		time.Sleep(2 * 24 * time.Hour)
		wantReason(t, use("billing"), codes.NotFound, maildispatchv1.ReasonUploadNotFound)
		res, err := sendAll(t, c, &maildispatchv1.BatchOptions{Options: &maildispatchv1.SendOptions{Team: "billing"},
			Message: &maildispatchv1.MailMessage{Attachments: []*maildispatchv1.Attachment{{UploadId: up.GetUploadId()}}}}, item("a@example.com", nil))
		if err != nil || res.GetRejected() != 1 || res.GetRejections()[0].GetReason() != maildispatchv1.ReasonUploadNotFound {
			t.Errorf("%v, %v", res, err)
		}
		_, err = c.Upload(t.Context(), nil, bytes.NewReader(make([]byte, 18<<20+1)))
		wantReason(t, err, codes.ResourceExhausted, maildispatchv1.ReasonMailTooLarge)
		for range 2 {
			if up, err = c.Upload(t.Context(), &maildispatchv1.UploadAttachmentRequest_Header{RequestId: "r"}, strings.NewReader("one")); err != nil || up.GetUploadId() != "upload-2" {
				t.Errorf("%v, %v", up, err)
			}
		}
		_, err = c.Upload(t.Context(), &maildispatchv1.UploadAttachmentRequest_Header{RequestId: "r"}, strings.NewReader("two"))
		wantReason(t, err, codes.AlreadyExists, maildispatchv1.ReasonRequestIDReused)
	})
}

func TestResend(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	srv.Answer("b@example.com", clienttest.Refused)
	c := srv.Client(t, client.Options{})
	first := send(t, c, &maildispatchv1.SendOptions{Reference: "INV-1", Kind: maildispatchv1.Kind_KIND_INVOICE}, "a@example.com", "b@example.com").Mail
	resend := func(req *maildispatchv1.ResendMailRequest) (*maildispatchv1.ResendMailResponse, error) {
		return c.ResendMail(t.Context(), req)
	}
	_, err := resend(&maildispatchv1.ResendMailRequest{Id: first.GetId()})
	wantReason(t, err, codes.InvalidArgument, maildispatchv1.ReasonValidationFailed)
	_, err = resend(&maildispatchv1.ResendMailRequest{Id: "nothing", Reason: "lost"})
	wantReason(t, err, codes.NotFound, maildispatchv1.ReasonMailNotFound)
	_, err = resend(&maildispatchv1.ResendMailRequest{Id: first.GetId(), Reason: "lost", OnlyRecipients: []string{"b@example.com", "c@example.com"}})
	wantReason(t, err, codes.InvalidArgument, maildispatchv1.ReasonValidationFailed)
	req := &maildispatchv1.ResendMailRequest{Id: first.GetId(), Reason: "lost", OnlyRecipients: []string{"B@example.com"}, RequestId: "again"}
	res, err := resend(req)
	m := res.GetMail()
	if err != nil || res.GetDuplicate() || m.GetStatus() != maildispatchv1.MailStatus_MAIL_STATUS_QUEUED || m.GetResentFrom() != first.GetId() || m.GetResendReason() != "lost" ||
		m.GetReference() != "INV-1" || m.GetMessageId() == first.GetMessageId() || len(m.GetRecipients()) != 1 || m.GetRecipients()[0].GetAddress() != "b@example.com" {
		t.Errorf("%v, %v", res, err)
	}
	if again, err := resend(req); err != nil || !again.GetDuplicate() || again.GetMail().GetId() != m.GetId() || len(srv.Mails()) != 2 {
		t.Errorf("%v, %v", again, err)
	}
	other := proto.CloneOf(req)
	other.Reason = "another"
	_, err = resend(other)
	wantReason(t, err, codes.AlreadyExists, maildispatchv1.ReasonRequestIDReused)
	srv.AddMailServer(&maildispatchv1.MailServer{Name: "test", Status: maildispatchv1.MailServer_STATUS_UNAVAILABLE})
	_, err = resend(&maildispatchv1.ResendMailRequest{Id: first.GetId(), Reason: "lost"})
	wantReason(t, err, codes.FailedPrecondition, maildispatchv1.ReasonMailServerUnavailable)
}

func TestQueueStats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.AddMailServer(&maildispatchv1.MailServer{Name: "bulk", Mode: maildispatchv1.Mode_MODE_DAEMON})
		srv.Answer("late@example.com", clienttest.Deferred)
		c := srv.Client(t, client.Options{})
		o := &maildispatchv1.SendOptions{MailServer: "bulk", Kind: maildispatchv1.Kind_KIND_BULK}
		send(t, c, o, "late@example.com")
		send(t, c, o, "a@example.com")
		srv.RunBatch()
		send(t, c, o, "a@example.com")
		send(t, c, &maildispatchv1.SendOptions{MailServer: "bulk", Hold: true, Team: "billing"}, "a@example.com")
		time.Sleep(30 * time.Second) // in the bubble
		st, err := c.GetQueueStats(t.Context(), &maildispatchv1.GetQueueStatsRequest{})
		if n := st.GetCounts(); err != nil || n.GetDeferred() != 1 || n.GetQueued() != 1 || n.GetHeld() != 1 || n.GetSent() != 0 || st.GetWaiting() != 1 || st.GetScheduled() != 1 ||
			st.GetSentLastMinute() != 1 || st.GetOldestAge().AsDuration() != 30*time.Second {
			t.Errorf("%v, %v", st, err)
		}
		if l := st.GetLanes(); len(l) != 4 || l[0].GetPriority() != maildispatchv1.Priority_PRIORITY_URGENT || l[0].GetWaiting() != 0 || l[3].GetWaiting() != 1 {
			t.Errorf("%v", l)
		}
		if st, err := c.GetQueueStats(t.Context(), &maildispatchv1.GetQueueStatsRequest{Team: proto.String("")}); err != nil || st.GetCounts().GetHeld() != 0 || st.GetCounts().GetQueued() != 1 {
			t.Errorf("%v, %v", st, err)
		}
	})
}

// A batch is held, released and cancelled by its id.
func TestBatchFilter(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	for _, id := range []string{"one", "two"} {
		if _, err := sendAll(t, c, &maildispatchv1.BatchOptions{BatchId: id, Message: &maildispatchv1.MailMessage{Subject: "s"}}, item("a@example.com", nil), item("b@example.com", nil)); err != nil {
			t.Fatal(err)
		}
	}
	f := &maildispatchv1.MailFilter{BatchId: "two"}
	if r, err := c.HoldMails(t.Context(), &maildispatchv1.HoldMailsRequest{Filter: f}); err != nil || r.GetChanged() != 2 || srv.RunBatch().GetSent() != 2 {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := c.CancelMails(t.Context(), &maildispatchv1.CancelMailsRequest{Filter: f, ValidateOnly: true}); err != nil || r.GetChanged() != 2 {
		t.Errorf("%v, %v", r, err)
	}
	if b, err := c.GetBatch(t.Context(), &maildispatchv1.GetBatchRequest{BatchId: "two"}); err != nil || b.GetBatch().GetCounts().GetHeld() != 2 || b.GetBatch().GetWaiting() != 0 {
		t.Errorf("%v, %v", b, err)
	}
}

// What a mail says of itself is merged and filled in as well, and what is wrong is refused.
func TestSendBatchUnsubscribes(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	shared := &maildispatchv1.BatchOptions{
		Options: &maildispatchv1.SendOptions{UnsubscribeUrl: "https://x.example/u?t={{token}}", UnsubscribeMailto: "leave@x.example"},
		Message: &maildispatchv1.MailMessage{Subject: "News", Text: "t", FromName: "News"},
	}
	invited := item("b@example.com", map[string]string{"token": "2"})
	invited.Message.FromName, invited.Message.Alternatives = "Ann", []*maildispatchv1.Alternative{{ContentType: "text/calendar", Content: "BEGIN:VCALENDAR"}}
	html := item("c@example.com", map[string]string{"token": "3"})
	html.Message.Alternatives = []*maildispatchv1.Alternative{{ContentType: "text/html", Content: "x"}}
	res, err := sendAll(t, c, shared, item("a@example.com", map[string]string{"token": "a/b"}), invited, html, item("d@example.com", nil))
	if err != nil || res.GetAccepted() != 2 || len(res.GetRejections()) != 2 {
		t.Fatalf("%v, %v", res, err)
	}
	for i, field := range []string{"message.alternatives[0].content_type", "variables.token"} {
		if vs := res.GetRejections()[i].GetViolations(); len(vs) != 1 || vs[0].GetField() != field {
			t.Errorf("%v, want %s", vs, field)
		}
	}
	for i, want := range [][]string{
		{"From: \"News\" <", "List-Unsubscribe: <https://x.example/u?t=a%2Fb>, <mailto:leave@x.example>\r\n", "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n", "Auto-Submitted: auto-generated\r\n"},
		{"From: \"Ann\" <", "t=2>", "BEGIN:VCALENDAR"},
	} {
		var raw bytes.Buffer
		if _, err := c.Download(t.Context(), srv.Mails()[i].Mail.GetId(), &raw); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(raw.String(), w) {
				t.Errorf("mail %d: no %q in %s", i, w, raw.String())
			}
		}
	}
}

// A finished message is taken as it is, without its Bcc; what cannot be done with it is
// refused.
func TestRaw(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	given := "From: shop@example.com\r\nTo: a@example.com\r\nBcc: b@example.com,\r\n c@example.com\r\nSubject: =?utf-8?q?R=C3=A4?=\r\nMessage-ID: <1@x.example>\r\n\r\nbody\r\n"
	want := strings.Replace(given, "Bcc: b@example.com,\r\n c@example.com\r\n", "", 1)
	raw := func(s string) *maildispatchv1.BatchItem {
		return &maildispatchv1.BatchItem{Message: &maildispatchv1.MailMessage{Raw: []byte(s)}}
	}
	beside := raw(given)
	beside.Message.Text = "t"
	res, err := sendAll(t, c, &maildispatchv1.BatchOptions{}, raw(given), beside, raw(strings.ReplaceAll(given, "\r\n", "\n")), raw("From: shop@example.com\r\n\r\n"))
	if err != nil || res.GetAccepted() != 1 || len(res.GetRejections()) != 3 {
		t.Fatalf("%v, %v", res, err)
	}
	m := srv.Mails()[0].Mail
	var got bytes.Buffer
	if _, err := c.Download(t.Context(), m.GetId(), &got); err != nil || got.String() != want {
		t.Errorf("%v, %q, want %q", err, got.String(), want)
	}
	if len(m.GetRecipients()) != 3 || m.GetSubject() != "Rä" || m.GetMessageId() != "<1@x.example>" {
		t.Errorf("%v", m)
	}
	if _, err := c.ResendMail(t.Context(), &maildispatchv1.ResendMailRequest{Id: m.GetId(), Reason: "lost"}); client.ReasonOf(err) != maildispatchv1.ReasonValidationFailed {
		t.Errorf("sent once more: %v", err)
	}
	if _, err := sendAll(t, c, &maildispatchv1.BatchOptions{Message: &maildispatchv1.MailMessage{Text: "t"}}, raw(given)); err != nil {
		t.Error(err)
	}
	if len(srv.Mails()) != 1 {
		t.Errorf("%d mails", len(srv.Mails()))
	}
}
