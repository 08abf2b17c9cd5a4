package api_test

import (
	"bytes"
	"net/mail"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// downloaded is a mail's header and body as the journal keeps it.
func (r *rig) downloaded(id string) (mail.Header, string) {
	r.t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(r.download(id)))
	if err != nil {
		r.t.Fatal(err)
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(m.Body); err != nil {
		r.t.Fatal(err)
	}
	return m.Header, body.String()
}

// TestWhatAMailSaysOfItself: a sender's name of its own, an invitation, ways to unsubscribe,
// and that no person wrote it; alone and in a bulk.
func TestWhatAMailSaysOfItself(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("main", pb.Mode_MODE_DAEMON)
	want := func(name, id string, headers map[string]string, body string) {
		t.Helper()
		h, b := r.downloaded(id)
		for k, v := range headers {
			if h.Get(k) != v {
				t.Errorf("%s: %s is %q, want %q", name, k, h.Get(k), v)
			}
		}
		if !strings.Contains(b, body) {
			t.Errorf("%s: no %q in %s", name, body, b)
		}
	}
	calendar := "BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nEND:VCALENDAR\r\n"
	msg := message("a@y.example")
	msg.FromName, msg.Alternatives = "Sales", []*pb.Alternative{{ContentType: "text/calendar", Content: calendar}}
	evs, err := r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main", UnsubscribeUrl: "https://x.example/u"}, Message: msg})
	if err != nil {
		t.Fatal(err)
	}
	want("alone", evs[0].MailId, map[string]string{"From": "Sales <shop@x.example>", "List-Unsubscribe": "<https://x.example/u>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
		"Auto-Submitted": "auto-generated"}, "text/calendar; method=REQUEST; charset=utf-8")

	evs, err = r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main", Kind: pb.Kind_KIND_AGENT_MESSAGE}, Message: message("a@y.example")})
	if err != nil {
		t.Fatal(err)
	}
	want("to an agent", evs[0].MailId, map[string]string{"From": "Shop <shop@x.example>", "List-Unsubscribe": "", "Auto-Submitted": ""}, "hello")

	options := &pb.BatchOptions{Options: &pb.SendOptions{MailServer: "main", UnsubscribeUrl: "https://x.example/u?t={{token}}", UnsubscribeMailto: "leave@x.example"},
		Message: &pb.MailMessage{Subject: "News", Text: "Dear {{name}}", FromName: "News"}}
	item := func(id string, change func(*pb.MailMessage)) *pb.BatchItem {
		m := &pb.MailMessage{To: []string{"b@y.example"}}
		change(m)
		return &pb.BatchItem{RequestId: id, Message: m, Variables: map[string]string{"name": "Zoë", "token": "a/b"}}
	}
	res, err := r.batch(ctx(t), options,
		item("plain", func(*pb.MailMessage) {}),
		item("name", func(m *pb.MailMessage) { m.FromName = "Ann" }),
		item("text", func(m *pb.MailMessage) { m.Text = "own" }),
		item("calendar", func(m *pb.MailMessage) {
			m.Alternatives = []*pb.Alternative{{ContentType: "text/calendar", Content: calendar}}
		}),
		item("person", func(m *pb.MailMessage) { m.Headers = map[string]string{"Auto-Submitted": "no"} }),
		item("twice", func(m *pb.MailMessage) { m.Headers = map[string]string{"List-Unsubscribe": "<https://y.example/>"} }),
		item("other", func(m *pb.MailMessage) { m.FromName = "ceo@bank.example" }),
	)
	if err != nil || res.Accepted != 5 || len(res.Rejections) != 2 {
		t.Fatal(res, err)
	}
	for i, field := range []string{"message.headers[List-Unsubscribe]", "message.from_name"} {
		if vs := res.Rejections[i].Violations; len(vs) != 1 || vs[0].Field != field {
			t.Errorf("%v, want %s refused", vs, field)
		}
	}
	list, err := r.dispatch.ListDueOutMails(ctx(t), &pb.ListDueOutMailsRequest{Filter: &pb.MailFilter{BatchId: res.BatchId}})
	if err != nil || len(list.Mails) != 5 {
		t.Fatal(list, err)
	}
	for _, m := range list.Mails {
		h := map[string]string{"From": "News <shop@x.example>", "List-Unsubscribe": "<https://x.example/u?t=a%2Fb>, <mailto:leave@x.example>",
			"List-Unsubscribe-Post": "List-Unsubscribe=One-Click", "Auto-Submitted": "auto-generated"}
		body := ""
		switch m.RequestId {
		case "name":
			h["From"] = "Ann <shop@x.example>"
		case "text":
			body = "own"
		case "calendar":
			body = "text/calendar; method=REQUEST"
		case "person":
			h["Auto-Submitted"] = "no"
		}
		want(m.RequestId, m.Id, h, body)
	}

	_, err = r.send(ctx(t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: "main", UnsubscribeUrl: "https://x.example/{{u}}"}, Message: message("a@y.example")})
	refused(t, "a variable in a mail of its own", err, codes.InvalidArgument, "VALIDATION_FAILED")
	options.Options.UnsubscribeUrl = "http://x.example"
	_, err = r.batch(ctx(t), options)
	refused(t, "http", err, codes.InvalidArgument, "VALIDATION_FAILED")
}
