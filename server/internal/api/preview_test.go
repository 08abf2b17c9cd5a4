package api_test

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// anew is what each composing makes anew: the boundaries, and two header fields.
var anew = regexp.MustCompile(`=_[0-9a-f]{24}|(?m)^(?:Message-ID|Date): .*$`)

// upload takes a file for a team.
func upload(t *testing.T, r *rig, team, name, content string) string {
	t.Helper()
	s, err := r.dispatch.UploadAttachment(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []*pb.UploadAttachmentRequest{
		{Part: &pb.UploadAttachmentRequest_Header_{Header: &pb.UploadAttachmentRequest_Header{Team: team, Filename: name}}},
		{Part: &pb.UploadAttachmentRequest_Chunk{Chunk: []byte(content)}},
	} {
		if err := s.Send(part); err != nil {
			t.Fatal(err)
		}
	}
	up, err := s.CloseAndRecv()
	if err != nil {
		t.Fatal(err)
	}
	return up.UploadId
}

// TestPreview: a preview is what Send sends, on both databases, and leaves nothing behind. An
// uploaded file is in it with its size.
func TestPreview(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, dsn, &smtpxtest.Server{})
			r.server("now", pb.Mode_MODE_PHP)
			up := upload(t, r, "sales", "prices.txt", strings.Repeat("price ", 1000))
			options := &pb.SendOptions{Team: "sales", MailServer: "now", Kind: pb.Kind_KIND_INVOICE}
			msg := &pb.MailMessage{To: []string{"Ann Müller <ann@y.example>"}, Bcc: []string{"archive@y.example"}, Subject: "Rechnung 发票", Text: "Grüße", Html: "<p>Grüße</p>",
				Attachments: []*pb.Attachment{{Filename: "发票.pdf", ContentType: "application/pdf", Content: []byte("%PDF")}, {UploadId: up}}}
			p, err := r.dispatch.PreviewMail(ctx(t), &pb.PreviewMailRequest{Options: options, Message: msg, IncludeRaw: true})
			if err != nil {
				t.Fatal(err)
			}
			if found, err := r.dispatch.FindMails(ctx(t), &pb.FindMailsRequest{}); err != nil || len(found.Mails) > 0 || len(r.relay.Mails()) > 0 {
				t.Fatalf("a preview left %v, %v, and the relay has %d mails", found, err, len(r.relay.Mails()))
			}
			var parts []string
			for _, x := range p.Parts {
				parts = append(parts, x.ContentType+" "+x.Filename+" "+x.Text)
			}
			if want := []string{"text/plain  Grüße", "text/html  <p>Grüße</p>", "application/pdf 发票.pdf ", "text/plain prices.txt "}; !slices.Equal(parts, want) {
				t.Errorf("got the parts %q, want %q", parts, want)
			}
			if n := p.Parts[len(p.Parts)-1]; n.SizeBytes != 6000 || !n.Attachment {
				t.Errorf("got the uploaded file as %v, want an attachment of 6000 bytes", n)
			}
			if !slices.Equal(p.Recipients, []string{"ann@y.example", "archive@y.example"}) || p.Accepted.GetRouteDetail() != "the request named now" ||
				p.Handling != "sent at once while the caller waits: mail server now is in php mode" || len(p.Warnings) > 0 {
				t.Errorf("got recipients %q, route %q, handling %q, warnings %q", p.Recipients, p.Accepted.GetRouteDetail(), p.Handling, p.Warnings)
			}
			if i := slices.IndexFunc(p.Headers, func(h *pb.PreviewMailResponse_Header) bool { return h.Name == "Subject" }); i < 0 || p.Headers[i].Value != "Rechnung 发票" {
				t.Errorf("got the headers %v, want the subject decoded", p.Headers)
			}
			events, err := r.send(ctx(t), &pb.SendRequest{Options: options, Message: msg})
			if err != nil || events[0].GetAccepted().GetSizeBytes() != p.Accepted.GetSizeBytes() {
				t.Fatalf("sent: %v %v, want the previewed size %d", events, err, p.Accepted.GetSizeBytes())
			}
			if sent := r.relay.Mails()[0]; anew.ReplaceAllString(string(sent.Data), "") != anew.ReplaceAllString(string(p.Raw), "") {
				t.Errorf("the preview is\n%s\nand what was sent\n%s", p.Raw, sent.Data)
			}
		})
	}
}

// TestPreviewWarns: what a person should know, and what would become of the mail.
func TestPreviewWarns(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), &smtpxtest.Server{})
	r.server("now", pb.Mode_MODE_PHP)
	r.server("later", pb.Mode_MODE_DAEMON)
	r.server("paused", pb.Mode_MODE_PHP, func(m *pb.MailServer) { m.PauseUntil = timestamppb.New(time.Now().Add(time.Hour)) })
	plain := func() *pb.MailMessage { return &pb.MailMessage{To: []string{"a@y.example"}, Subject: "s", Text: "t"} }
	for _, c := range []struct {
		name, handling, warning string
		options                 *pb.SendOptions
		message                 *pb.MailMessage
	}{
		{"php", "sent at once", "", &pb.SendOptions{MailServer: "now"}, plain()},
		{"php that goes on", "goes on in the batch", "", &pb.SendOptions{MailServer: "now", RetryInBatch: true}, plain()},
		{"daemon", "sent by the batch", "", &pb.SendOptions{MailServer: "later"}, plain()},
		{"paused", "sends nothing until", "", &pb.SendOptions{MailServer: "paused"}, plain()},
		{"held", "held until", "", &pb.SendOptions{MailServer: "now", Hold: true}, plain()},
		{"scheduled", "not before", "", &pb.SendOptions{MailServer: "now", SendAfter: timestamppb.New(time.Now().Add(time.Hour))}, plain()},
		{"no subject", "", "no subject", &pb.SendOptions{MailServer: "now"}, &pb.MailMessage{To: []string{"a@y.example"}, Text: "t"}},
		{"HTML only", "", "HTML and no text", &pb.SendOptions{MailServer: "now"}, &pb.MailMessage{To: []string{"a@y.example"}, Subject: "s", Html: "<p>h</p>"}},
		{"given twice", "", "1 recipients are given twice", &pb.SendOptions{MailServer: "now"}, &pb.MailMessage{To: []string{"a@y.example"}, Cc: []string{"A <a@y.example>"}, Subject: "s", Text: "t"}},
		{"bulk", "", "unsubscribe_url", &pb.SendOptions{MailServer: "now", Kind: pb.Kind_KIND_BULK}, plain()},
		{"a picture that is not there", "", "cid:logo", &pb.SendOptions{MailServer: "now"}, &pb.MailMessage{To: []string{"a@y.example"}, Subject: "s", Text: "t", Html: `<img src="cid:logo">`}},
	} {
		p, err := r.dispatch.PreviewMail(ctx(t), &pb.PreviewMailRequest{Options: c.options, Message: c.message})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if warnings := strings.Join(p.Warnings, "; "); !strings.Contains(p.Handling, c.handling) || (warnings == "") != (c.warning == "") || !strings.Contains(warnings, c.warning) {
			t.Errorf("%s: got handling %q and warnings %q, want %q and %q", c.name, p.Handling, warnings, c.handling, c.warning)
		}
		if len(p.Raw) > 0 {
			t.Errorf("%s: the raw message comes without being asked for", c.name)
		}
	}
	if _, err := r.dispatch.PreviewMail(ctx(t), &pb.PreviewMailRequest{Message: &pb.MailMessage{To: []string{"no address"}}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a wrong address: got %v", err)
	}
}

// TestPreviewIsBounded: an answer stays below the 4 MiB that clients take, whatever the mail
// is.
func TestPreviewIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.server("main", pb.Mode_MODE_DAEMON)
	s, err := r.admin.GetMailServer(ctx(t), &pb.GetMailServerRequest{Name: "main"})
	if err != nil {
		t.Fatal(err)
	}
	begin := "From: " + s.MailServer.From + "\r\nTo: a@y.example\r\nSubject: s\r\nDate: " + time.Now().Format(time.RFC1123Z) + "\r\nMessage-ID: <1@x.example>\r\nMIME-Version: 1.0\r\n"
	for name, c := range map[string]struct{ headers, line string }{
		"the same missing file":   {line: strings.Repeat(`"cid:a"`, 100)},
		"many missing files":      {line: `"cid:NUMBER" ` + strings.Repeat("x", 600)},
		"many headers":            {headers: strings.Repeat("X-Some: "+strings.Repeat("y", 900)+"\r\n", 1000), line: "z"},
		"a name without an end":   {line: `"cid:` + strings.Repeat("n", 900) + `"`},
		"text of a hundred parts": {line: strings.Repeat("t", 700)},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			b.WriteString(begin + c.headers + "Content-Type: multipart/mixed; boundary=b\r\n\r\n")
			for n := range 100 {
				b.WriteString("--b\r\nContent-Type: text/html\r\n\r\n")
				for i := range 92 {
					b.WriteString(strings.ReplaceAll(c.line, "NUMBER", strconv.Itoa(100*n+i)) + "\r\n")
				}
			}
			b.WriteString("--b--\r\n")
			res, err := r.dispatch.PreviewMail(ctx(t), &pb.PreviewMailRequest{Options: &pb.SendOptions{MailServer: "main"}, IncludeRaw: true,
				Message: &pb.MailMessage{To: []string{"a@y.example"}, Raw: []byte(b.String())}}, grpc.MaxCallRecvMsgSize(1<<30))
			if err != nil {
				t.Fatal(err)
			}
			if n := proto.Size(res); n > 3<<20 || len(res.Warnings) > 30 {
				t.Errorf("%d KiB of mail make an answer of %d KiB with %d warnings", b.Len()>>10, n>>10, len(res.Warnings))
			}
		})
	}
}
