package message

import (
	"mime"
	"net/mail"
	"strings"
	"testing"
	"time"
)

func attachmentHeader(t *testing.T, a Attachment) string {
	t.Helper()
	from, to := Address{Mailbox: "a@x.example"}, Address{Mailbox: "b@x.example"}
	m := &Message{From: from, To: []Address{to}, Text: "x", Attachments: []Attachment{a}, MessageID: "id@x.example", Date: time.Unix(1700000000, 0).UTC()}
	if vs := m.Validate(); len(vs) > 0 {
		t.Fatalf("%s: %v", a.Filename, vs)
	}
	ps, err := Compose(m)
	if err != nil {
		t.Fatalf("%s: %v", a.Filename, err)
	}
	msg, err := mail.ReadMessage(strings.NewReader(string(Join(ps))))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(Join(ps)), "--"+params["boundary"]+"\r\n")
	_, ct, _ := strings.Cut(parts[len(parts)-1], "Content-Type: ")
	ct, _, _ = strings.Cut(ct, "\r\n")
	return ct
}

// TestTypesByName: the type of a file that came without one is the table's, and says a
// character set only where its bytes are of it.
func TestTypesByName(t *testing.T) {
	const latin, utf8text, utf16 = "M\xfcller", "Müller", "\xff\xfeM\x00\xfc\x00"
	for _, c := range []struct{ name, content, want string }{
		{"forward.eml", "Subject: x\r\n\r\nx", "application/octet-stream"},
		{"page.mht", "x", "application/octet-stream"},
		{"page.mhtml", "x", "application/octet-stream"},
		{"x.mime", "x", "application/octet-stream"},
		{"x.mbox", "x", "application/octet-stream"},
		{"x.unheard-of", "x", "application/octet-stream"},
		{"noending", "x", "application/octet-stream"},
		{"x.", "x", "application/octet-stream"},
		{"A.PDF", "x", "application/pdf"},
		{"a.xml", utf8text, "application/xml"},
		{"a.xml", latin, "application/xml"},
		{"a.html", utf8text, "text/html"},
		{"a.html", latin, "text/html"},
		{"a.json", utf8text, "application/json"},
		{"a.csv", latin, "text/csv"},
		{"a.csv", utf8text, "text/csv; charset=utf-8"},
		{"a.csv", utf16, "text/csv"},
		{"a.csv", "a\x00b\x00", "text/csv"},
		{"a.txt", "\x1b$B$\"", "text/plain"},
		{"a.txt", latin, "text/plain"},
		{"a.txt", utf8text, "text/plain; charset=utf-8"},
		{"a.log", latin, "text/plain"},
		{"a.md", latin, "text/markdown"},
		{"a.js", latin, "text/javascript"},
		{"a.ics", latin, "text/calendar"},
		{"a.ics", utf8text, "text/calendar; charset=utf-8"},
	} {
		if got := attachmentHeader(t, Attachment{Filename: c.name, Content: []byte(c.content)}); got != c.want {
			t.Errorf("%s %q: got %s, want %s", c.name, c.content, got, c.want)
		}
	}
	// Of an upload only the sum is known here.
	stored := *NewContent([]byte("TQ==\r\n"))
	stored.Data = []byte("TQ==\r\n")
	if got := attachmentHeader(t, Attachment{Filename: "a.csv", Stored: &stored}); got != "text/csv" {
		t.Errorf("upload: got %s", got)
	}
	// What the caller says stands.
	if got := attachmentHeader(t, Attachment{Filename: "a.csv", ContentType: "text/csv; charset=iso-8859-1", Content: []byte(latin)}); got != "text/csv; charset=iso-8859-1" {
		t.Errorf("given: got %s", got)
	}
}

// TestTypesOfTheTable: every type that is filled in passes the check that a given one has to
// pass, so nothing that was taken fails to compose.
func TestTypesOfTheTable(t *testing.T) {
	for ending, want := range typeOf {
		got, err := mediaType(Attachment{Filename: "a." + ending, Content: []byte{0}})
		if base, _, _ := mime.ParseMediaType(got); err != nil || base != strings.ToLower(want) || ending != strings.ToLower(ending) {
			t.Errorf("%s: got %s, %v, want %s", ending, got, err, want)
		}
	}
}
