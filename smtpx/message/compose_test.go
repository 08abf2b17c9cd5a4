package message

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"
	"time"
)

// parsed is a message read back by the standard library, which shares no code with the
// composer.
type parsed struct {
	header mail.Header
	parts  []parsedPart
}

type parsedPart struct {
	path        string // such as "mixed/alternative"
	mediaType   string
	filename    string
	contentID   string
	disposition string
	body        []byte
}

func parseBack(t *testing.T, raw []byte) parsed {
	t.Helper()
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("read back: %v\n%s", err, raw)
	}
	p := parsed{header: msg.Header}
	walk(t, &p, "", map[string][]string(msg.Header), msg.Body)
	return p
}

func walk(t testing.TB, p *parsed, path string, h map[string][]string, r io.Reader) {
	t.Helper()
	get := func(k string) string {
		if v := h[k]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	mt, params, err := mime.ParseMediaType(get("Content-Type"))
	if err != nil {
		t.Fatalf("content type %q: %v", get("Content-Type"), err)
	}
	if strings.HasPrefix(mt, "multipart/") {
		mr := multipart.NewReader(r, params["boundary"])
		for {
			part, err := mr.NextRawPart()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			walk(t, p, path+strings.TrimPrefix(mt, "multipart/")+"/", map[string][]string(part.Header), part)
		}
	}
	switch get("Content-Transfer-Encoding") {
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, r)
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	case "7bit": // as it stands
	default:
		t.Fatalf("transfer encoding %q", get("Content-Transfer-Encoding"))
	}
	body, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	disp, dp, _ := mime.ParseMediaType(get("Content-Disposition"))
	p.parts = append(p.parts, parsedPart{path: path, mediaType: mt, filename: dp["filename"], disposition: disp,
		contentID: strings.Trim(get("Content-Id"), "<>"), body: body})
}

func mustAddress(t testing.TB, s string) Address {
	t.Helper()
	a, err := ParseAddress(s)
	if err != nil {
		t.Fatalf("%q %v", s, err)
	}
	return a
}

func composed(t *testing.T, m *Message) []byte {
	t.Helper()
	if m.MessageID == "" {
		m.MessageID, m.Date = "0190-test@x.example", time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	}
	if m.From.Mailbox == "" {
		m.From = mustAddress(t, "Rechnung <billing@x.example>")
	}
	if vs := m.Validate(); len(vs) > 0 {
		t.Fatalf("violations: %v", vs)
	}
	ps, err := Compose(m)
	if err != nil {
		t.Fatal(err)
	}
	raw := Join(ps)
	checkWire(t, raw)
	again, _ := Compose(m)
	if !bytes.Equal(raw, Join(again)) {
		t.Fatal("composing twice gives other bytes")
	}
	return raw
}

// checkWire: only CRLF, no long line, no NUL, only ASCII.
func checkWire(t *testing.T, raw []byte) {
	t.Helper()
	if rest := bytes.ReplaceAll(raw, []byte("\r\n"), nil); bytes.ContainsAny(rest, "\r\n\x00") {
		t.Fatalf("bare line end or NUL in %q", raw)
	}
	if !bytes.HasSuffix(raw, []byte("\r\n")) {
		t.Fatalf("does not end with CRLF: %q", raw[max(0, len(raw)-40):])
	}
	for _, l := range bytes.Split(raw, []byte("\r\n")) {
		if len(l) > 998 {
			t.Fatalf("line of %d octets: %.100q", len(l), l)
		}
		if !ascii(string(l)) {
			t.Fatalf("not ASCII: %q", l)
		}
	}
}

func TestComposeParsesBack(t *testing.T) {
	long := strings.Repeat("发票", 40)
	pdf := bytes.Repeat([]byte{0, 1, 2, 250, '\r', '\n', '.'}, 3000)
	png := []byte("\x89PNG\r\n\x1a\n")
	for name, tc := range map[string]struct {
		m     Message
		paths []string
	}{
		"text":               {Message{Text: "hello\nworld\n"}, []string{":text/plain"}},
		"empty":              {Message{}, []string{":text/plain"}},
		"html":               {Message{HTML: "<p>ä</p>"}, []string{":text/html"}},
		"both":               {Message{Text: "t", HTML: "<p>h</p>"}, []string{"alternative/:text/plain", "alternative/:text/html"}},
		"chinese":            {Message{Text: strings.Repeat("你好，世界。", 200), HTML: "<p>" + long + "</p>"}, []string{"alternative/:text/plain", "alternative/:text/html"}},
		"attachment":         {Message{Text: "t", Attachments: []Attachment{{Filename: "a.pdf", Content: pdf}}}, []string{"mixed/:text/plain", "mixed/:application/pdf"}},
		"empty attachment":   {Message{Text: "t", Attachments: []Attachment{{Filename: "a.bin"}}}, []string{"mixed/:text/plain", "mixed/:application/octet-stream"}},
		"chinese file name":  {Message{Text: "t", Attachments: []Attachment{{Filename: "二零二六年十一月发票" + long[:120] + ".pdf", Content: pdf}}}, []string{"mixed/:text/plain", "mixed/:application/pdf"}},
		"quotes in filename": {Message{Text: "t", Attachments: []Attachment{{Filename: `a "b"; c.pdf`, Content: pdf}}}, []string{"mixed/:text/plain", "mixed/:application/pdf"}},
		"inline":             {Message{HTML: `<img src="cid:logo">`, Attachments: []Attachment{{Filename: "l.png", ContentID: "logo", Content: png}}}, []string{"related/:text/html", "related/:image/png"}},
		"everything": {Message{Text: "t", HTML: `<img src="cid:logo">`, Attachments: []Attachment{{Filename: "l.png", ContentID: "logo", Content: png}, {Filename: "a.pdf", Content: pdf}}},
			[]string{"mixed/related/alternative/:text/plain", "mixed/related/alternative/:text/html", "mixed/related/:image/png", "mixed/:application/pdf"}},
		"smuggling":          {Message{Text: "a\r\n.\r\nMAIL FROM:<x@y>\n.\n\r.\rb"}, []string{":text/plain"}},
		"bare CR":            {Message{Text: "a\r=\n\nb\rä\nc"}, []string{":text/plain"}},
		"boundary-like body": {Message{Text: "--=_0-0\r\n\r\n--=_0-0--", HTML: "x"}, []string{"alternative/:text/plain", "alternative/:text/html"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := tc.m
			m.Subject = "Rechnung " + name + " 发票 🧾 " + long
			m.To = []Address{mustAddress(t, `"`+long+`" <a@bücher.example>`), mustAddress(t, `"Doe, \"J\"" <b@x.example>`)}
			m.Cc = []Address{mustAddress(t, "c@x.example")}
			rt := mustAddress(t, "Ä <r@x.example>")
			m.ReplyTo = []Address{rt}
			m.Headers = map[string]string{"X-Campaign": "=?utf-8?q?not_encoded?=", "List-Unsubscribe": "<https://x.example/u?" + strings.Repeat("a", 800) + ">", "X-Zh": long}
			p := parseBack(t, composed(t, &m))
			var paths []string
			for _, q := range p.parts {
				paths = append(paths, q.path+":"+q.mediaType)
			}
			if strings.Join(paths, " ") != strings.Join(tc.paths, " ") {
				t.Fatalf("structure %v, want %v", paths, tc.paths)
			}
			dec := mime.WordDecoder{}
			for k, want := range map[string]string{"Subject": m.Subject, "X-Campaign": m.Headers["X-Campaign"], "List-Unsubscribe": m.Headers["List-Unsubscribe"], "X-Zh": long, "Message-Id": "<" + m.MessageID + ">"} {
				got, err := dec.DecodeHeader(p.header.Get(k))
				if err != nil || got != want {
					t.Errorf("%s = %q (%v), want %q", k, got, err, want)
				}
			}
			to, err := p.header.AddressList("To")
			if err != nil || len(to) != 2 || to[0].Name != long || to[0].Address != "a@xn--bcher-kva.example" || to[1].Name != `Doe, "J"` {
				t.Errorf("to = %v (%v)", to, err)
			}
			if p.header.Get("Bcc") != "" {
				t.Error("bcc in the header")
			}
			norm := lfLines
			for _, q := range p.parts {
				body := norm(string(q.body))
				switch {
				case q.mediaType == "text/plain" && q.filename == "":
					if strings.TrimSuffix(body, "\n") != strings.TrimSuffix(norm(m.Text), "\n") {
						t.Errorf("text %q, want %q", body, m.Text)
					}
				case q.mediaType == "text/html":
					if strings.TrimSuffix(body, "\n") != m.HTML {
						t.Errorf("html %q", body)
					}
				default:
					found := false
					for _, a := range m.Attachments {
						if a.Filename == q.filename && bytes.Equal(a.Content, q.body) && a.ContentID == q.contentID && (q.disposition == "inline") == (a.ContentID != "") {
							found = true
						}
					}
					if !found {
						t.Errorf("attachment %q (%s) does not match", q.filename, q.disposition)
					}
				}
			}
		})
	}
}

func TestComposeSharesAttachments(t *testing.T) {
	pdf := bytes.Repeat([]byte("%PDF"), 100<<10)
	piece := func(to string) []Piece {
		m := &Message{From: mustAddress(t, "a@x.example"), To: []Address{mustAddress(t, to)}, Subject: to, Text: "t", MessageID: to, Date: time.Now(),
			Attachments: []Attachment{{Filename: "a.pdf", Content: pdf}}}
		ps, err := Compose(m)
		if err != nil {
			t.Fatal(err)
		}
		return ps
	}
	a, b := piece("a@x.example"), piece("b@x.example")
	if len(a) != 3 || a[1].Shared == nil || a[0].Shared != nil || a[2].Shared != nil {
		t.Fatalf("pieces: %d", len(a))
	}
	if a[1].Shared.Sum != b[1].Shared.Sum || a[1].Shared.Sum != sha256.Sum256(a[1].Bytes()) || a[1].Length != a[1].Shared.Size || bytes.Equal(a[0].Data, b[0].Data) {
		t.Fatal("the attachment's piece must be the same in both mails, the header's must not")
	}
}

func TestT6_InjectionIsRefused(t *testing.T) {
	base := func() Message { return Message{Subject: "s", Text: "t", HTML: "h"} }
	for name, tc := range map[string]struct {
		change func(*Message)
		field  string
	}{
		"T6a header name with CRLF": {func(m *Message) { m.Headers = map[string]string{"X-A: 1\r\nBcc": "v"} }, "headers[X-A: 1??Bcc]"},
		"T6a bcc":                   {func(m *Message) { m.Headers = map[string]string{"bCC": "v@x.example"} }, "headers[bCC]"},
		"T6a content type":          {func(m *Message) { m.Headers = map[string]string{"Content-Type": "text/html"} }, "headers[Content-Type]"},
		"T6a dkim":                  {func(m *Message) { m.Headers = map[string]string{"DKIM-Signature": "x"} }, "headers[DKIM-Signature]"},
		"T6a resent":                {func(m *Message) { m.Headers = map[string]string{"Resent-Bcc": "x"} }, "headers[Resent-Bcc]"},
		"T6b media type with CRLF": {func(m *Message) {
			m.Attachments = []Attachment{{Filename: "a", ContentType: "application/pdf\r\nX: 1\r\n\r\n"}}
		}, "attachments[0].content_type"},
		"T6b multipart attachment": {func(m *Message) {
			m.Attachments = []Attachment{{Filename: "a", ContentType: "multipart/mixed; boundary=x"}}
		}, "attachments[0].content_type"},
		"T6c subject with CRLF":       {func(m *Message) { m.Subject = "hi\r\nBcc: x" }, "subject"},
		"T6c subject with tab":        {func(m *Message) { m.Subject = "a\tb" }, "subject"},
		"T6c value with LF":           {func(m *Message) { m.Headers = map[string]string{"X-A": "a\nb"} }, "headers[X-A]"},
		"T6c file name with CR":       {func(m *Message) { m.Attachments = []Attachment{{Filename: "a\rb"}} }, "attachments[0].filename"},
		"T6c file name with path":     {func(m *Message) { m.Attachments = []Attachment{{Filename: "../../etc/passwd"}} }, "attachments[0].filename"},
		"T6f header given twice":      {func(m *Message) { m.Headers = map[string]string{"X-A": "1", "x-a": "2"} }, "headers[x-a]"},
		"T6l header of 901 octets":    {func(m *Message) { m.Headers = map[string]string{"X-A": strings.Repeat("a", 901)} }, "headers[X-A]"},
		"T6g content id with bracket": {func(m *Message) { m.Attachments = []Attachment{{Filename: "a", ContentID: "x>\r\n"}} }, "attachments[0].content_id"},
		"subject of 901 octets":       {func(m *Message) { m.Subject = strings.Repeat("a", 901) }, "subject"},
		"NUL in text":                 {func(m *Message) { m.Text = "a\x00b" }, "text"},
		"broken UTF-8 in html":        {func(m *Message) { m.HTML = "\xff" }, "html"},
	} {
		t.Run(name, func(t *testing.T) {
			m := base()
			tc.change(&m)
			vs := m.Validate()
			if len(vs) != 1 || vs[0].Field != tc.field {
				t.Fatalf("violations %v, want one for %s", vs, tc.field)
			}
		})
	}
	m := base()
	if vs := m.Validate(); len(vs) != 0 {
		t.Fatalf("a good message has violations: %v", vs)
	}
}

func BenchmarkCompose5KB(b *testing.B) {
	line := "Dear customer, please find your invoice for November 2026 attached; it is due in 14 days.\r\n"
	m := &Message{From: Address{"Rechnung", "billing@x.example"}, To: []Address{{"", "a@x.example"}}, Subject: "Your invoice", MessageID: "0190@x.example",
		Date: time.Now(), Text: strings.Repeat(line, 25), HTML: "<html><body>" + strings.Repeat("<p>"+line+"</p>", 25) + "</body></html>"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compose(m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompose1MiBAttachment(b *testing.B) {
	m := &Message{From: Address{"", "billing@x.example"}, To: []Address{{"", "a@x.example"}}, Subject: "s", MessageID: "0190@x.example", Date: time.Now(),
		Text: "t", Attachments: []Attachment{{Filename: "a.pdf", Content: make([]byte, 1<<20)}}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compose(m); err != nil {
			b.Fatal(err)
		}
	}
}

// TestPlainText: a text goes as it is only where nothing on the way can change it.
func TestPlainText(t *testing.T) {
	plain := strings.Repeat("x", 76)
	for _, c := range []struct {
		text string
		as   string
	}{
		{"Dear customer,\n\n.\nyours\n", "7bit"}, {"one\r\ntwo", "7bit"}, {"tab\there", "7bit"}, {plain, "7bit"}, {plain + "\n" + plain + "\n", "7bit"}, {"Fromage", "7bit"},
		{"", "quoted-printable"}, {plain + "x", "quoted-printable"}, {"blank \nat the end", "quoted-printable"}, {"blank at the end ", "quoted-printable"}, {"tab\t\n", "quoted-printable"},
		{"From me", "quoted-printable"}, {"a\nFrom me", "quoted-printable"}, {"--=_0123", "quoted-printable"}, {"bell\a", "quoted-printable"}, {"caf\u00e9 and more than that", "quoted-printable"},
		{"bare\rcr", "7bit"}, // which is a line end like any other by then
	} {
		raw := composed(t, &Message{To: []Address{mustAddress(t, "b@y.example")}, Subject: "s", Text: c.text})
		if !bytes.Contains(raw, []byte("\r\nContent-Transfer-Encoding: "+c.as+"\r\n")) {
			t.Errorf("%q does not go as %s:\n%s", c.text, c.as, raw)
		}
		for line := range bytes.Lines(raw) {
			if len(line) > 80 && !bytes.HasPrefix(line, []byte("Message-ID")) || !bytes.HasSuffix(line, []byte("\r\n")) {
				t.Errorf("%q: line %q", c.text, line)
			}
		}
	}
}
