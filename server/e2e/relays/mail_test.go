//go:build relays

package relays

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// The parser is the standard library's, which has no part in composing: what it reads is what a
// mail program of somebody else reads.

// leaf is a part of a stored mail that holds content, decoded.
type leaf struct {
	path        string // the multiparts around it, outermost first
	mediaType   string
	charset     string
	disposition string
	filename    string
	contentID   string
	content     []byte
}

// received is a stored mail.
type received struct {
	header mail.Header
	leaves []leaf
}

func parse(t *testing.T, raw []byte) *received {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	r := &received{header: m.Header}
	if v := m.Header.Get("MIME-Version"); v != "1.0" {
		t.Errorf("MIME-Version %q", v)
	}
	r.walk(t, "", m.Header.Get, m.Body)
	for l := range bytes.Lines(raw) {
		if len(l) > 998 {
			t.Errorf("a line of %d octets", len(l))
		}
	}
	return r
}

func (r *received) walk(t *testing.T, path string, field func(string) string, body io.Reader) {
	t.Helper()
	mediaType, params, err := mime.ParseMediaType(field("Content-Type"))
	if err != nil {
		t.Fatalf("%q: %v", field("Content-Type"), err)
	}
	if kind, ok := strings.CutPrefix(mediaType, "multipart/"); ok {
		mr := multipart.NewReader(body, params["boundary"])
		for {
			p, err := mr.NextRawPart()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			r.walk(t, path+kind+"/", p.Header.Get, p)
		}
	}
	l := leaf{path: path, mediaType: mediaType, charset: params["charset"], contentID: field("Content-ID")}
	if d := field("Content-Disposition"); d != "" {
		var params map[string]string
		if l.disposition, params, err = mime.ParseMediaType(d); err != nil {
			t.Fatalf("%q: %v", d, err)
		}
		l.filename = params["filename"]
	}
	switch enc := field("Content-Transfer-Encoding"); enc {
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "7bit": // as it stands
	default:
		t.Fatalf("transfer encoding %q", enc)
	}
	if l.content, err = io.ReadAll(body); err != nil {
		t.Fatal(err)
	}
	r.leaves = append(r.leaves, l)
}

// text is a header field that must stand there exactly once, decoded (RFC 2047).
func (r *received) text(t *testing.T, name string) string {
	t.Helper()
	vs := r.header[textproto.CanonicalMIMEHeaderKey(name)]
	if len(vs) != 1 {
		t.Errorf("%s stands there %d times: %q", name, len(vs), vs)
		return ""
	}
	s, err := new(mime.WordDecoder).DecodeHeader(vs[0])
	if err != nil {
		t.Errorf("%s: %q: %v", name, vs[0], err)
	}
	return s
}

// addresses are "name <mailbox>" of an address field, decoded.
func (r *received) addresses(t *testing.T, name string) []string {
	t.Helper()
	as, err := r.header.AddressList(name)
	if err != nil {
		t.Errorf("%s: %q: %v", name, r.header.Get(name), err)
	}
	var out []string
	for _, a := range as {
		out = append(out, fmt.Sprintf("%s <%s>", a.Name, a.Address))
	}
	return out
}

// rich is a mail with everything a caller can ask for, and with what breaks on the way where
// something is wrong: lone dots, lines of "From ", spaces at line ends, long lines, every byte
// value.
func rich(to, cc, bcc []string) *pb.MailMessage {
	pdf := []byte("%PDF-1.4\r\n.\r\n\n.\n")
	for i := range 30_000 {
		pdf = append(pdf, byte(i*i>>5))
	}
	png := append([]byte("\x89PNG\r\n\x1a\n"), bytes.Repeat([]byte{0, 255, '.', '\n'}, 500)...)
	return &pb.MailMessage{
		To: to, Cc: cc, Bcc: bcc, ReplyTo: `"Müller, Jörg (Büro)" <answers@shop.example>`,
		Subject: "发票 4711：北京分公司的年度账单与付款说明，请在三十天之内付款。Größe ☂",
		Text:    "您好，\n.\n..\n.dot\nFrom the start\nspaces at the end   \n\ttab\nGrüße = 100 %\n" + strings.Repeat("langer Satz ohne Ende ", 80) + "\n.",
		Html:    `<p>您好 <img src="cid:logo@shop.example"> <b>&amp;</b>` + strings.Repeat("<i>x</i>", 300) + "</p>\n.\n<p>ende</p>",
		Headers: map[string]string{"X-Order": "4711 / 北京", "X-Campaign": "spring=?2026?= 50% off", "List-Unsubscribe": "<https://shop.example/u?id=4711>"},
		Attachments: []*pb.Attachment{
			{Filename: "标志.png", ContentType: "image/png", ContentId: "logo@shop.example", Content: png},
			{Filename: "发票 2026年 第4711号 - 北京分公司 - 副本 (最终版本).pdf", ContentType: "application/pdf", Content: pdf},
			{Filename: `plain "quoted"; name.bin`, Content: []byte{0}},
		},
	}
}

// wantFrom is the sender's mailbox of every mail server here.
const wantFrom = "Großhandel 上海 <shop@shop.example>"

// compare holds a stored mail against what was asked for, field by field.
func compare(t *testing.T, raw []byte, m *pb.MailMessage, sent *pb.Mail) {
	t.Helper()
	r := parse(t, raw)
	for _, f := range []struct {
		name string
		want []string
	}{{"From", []string{wantFrom}}, {"To", slices.Clone(m.To)}, {"Cc", slices.Clone(m.Cc)}, {"Reply-To", []string{m.ReplyTo}}} {
		for i := range f.want {
			// quoted for the request, not part of the name
			f.want[i] = strings.ReplaceAll(f.want[i], `"`, "")
		}
		if got := r.addresses(t, f.name); !slices.Equal(got, f.want) || len(r.header[f.name]) != 1 {
			t.Errorf("%s: got %q, want %q", f.name, got, f.want)
		}
	}
	for name, want := range map[string]string{"Subject": m.Subject, "Message-ID": sent.MessageId} {
		if got := r.text(t, name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	for name, want := range m.Headers {
		if got := r.text(t, name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if d, err := r.header.Date(); err != nil || d.Before(sent.CreateTime.AsTime().Add(-2*time.Second)) || d.After(sent.CreateTime.AsTime().Add(2*time.Second)) {
		t.Errorf("Date: %v %v, taken at %v", d, err, sent.CreateTime.AsTime())
	}
	if len(r.header["Date"]) != 1 {
		t.Errorf("Date: %q", r.header["Date"])
	}

	want := []leaf{
		{path: "mixed/related/alternative/", mediaType: "text/plain", charset: "utf-8", content: []byte(m.Text)},
		{path: "mixed/related/alternative/", mediaType: "text/html", charset: "utf-8", content: []byte(m.Html)},
	}
	for _, inline := range []bool{true, false} {
		for _, a := range m.Attachments {
			if (a.ContentId != "") != inline {
				continue
			}
			l := leaf{path: "mixed/", mediaType: a.ContentType, disposition: "attachment", filename: a.Filename, content: a.Content}
			if l.mediaType == "" {
				l.mediaType = mediaTypeOf(a.Filename)
			}
			if inline {
				l.path, l.disposition, l.contentID = "mixed/related/", "inline", "<"+a.ContentId+">"
			}
			want = append(want, l)
		}
	}
	if len(r.leaves) != len(want) {
		t.Fatalf("%d parts, want %d\n%s", len(r.leaves), len(want), raw)
	}
	for i, w := range want {
		g := r.leaves[i]
		if strings.HasPrefix(w.mediaType, "text/") && w.disposition == "" {
			// Line ends are the transport's, and a text part's last line gets one; everything
			// else is the caller's.
			w.content, g.content = lines(w.content), lines(g.content)
		}
		if !bytes.Equal(g.content, w.content) {
			t.Errorf("part %d: %d bytes came, not the %d that were given\ngot  %.300q\nwant %.300q", i, len(g.content), len(w.content), g.content, w.content)
		}
		g.content, w.content = nil, nil
		if fmt.Sprintf("%+q", g) != fmt.Sprintf("%+q", w) {
			t.Errorf("part %d: got %+q, want %+q", i, g, w)
		}
	}
}

func lines(b []byte) []byte {
	return bytes.TrimSuffix(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")), []byte("\n"))
}

// mediaTypeOf is the documented default.
func mediaTypeOf(filename string) string {
	if t := mime.TypeByExtension(filepath.Ext(filename)); t != "" {
		return t
	}
	return "application/octet-stream"
}

// hides wants none of the words in a stored mail, but for the line the relay itself writes for
// whom it is.
func hides(t *testing.T, raw []byte, envelope string, words ...string) {
	t.Helper()
	for l := range bytes.Lines(raw) {
		for _, w := range words {
			if bytes.Contains(l, []byte(w)) && !bytes.HasPrefix(l, []byte(envelope)) {
				t.Errorf("%q stands in the mail: %q", w, l)
			}
		}
	}
	if parse(t, raw).header["Bcc"] != nil {
		t.Error("the mail has a Bcc field")
	}
}
