package smtpx

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	gomessage "github.com/emersion/go-message"
)

func mustTemplate(t testing.TB, m *Message) *Template {
	t.Helper()
	tp, vs := NewTemplate(m)
	if len(vs) > 0 {
		t.Fatalf("violations: %v", vs)
	}
	return tp
}

func fillOf(t testing.TB, vars map[string]string) *Fill {
	t.Helper()
	return &Fill{From: mustAddress(t, "Rechnung <billing@x.example>"), To: []Address{mustAddress(t, "Zoë <a@y.example>")}, MessageID: "0190-test@x.example",
		Date: time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC), Variables: vars}
}

func filled(t testing.TB, tp *Template, f *Fill) []Piece {
	t.Helper()
	ps, vs, err := tp.Compose(f)
	if len(vs) > 0 || err != nil {
		t.Fatalf("compose: %v %v", vs, err)
	}
	return ps
}

// byHand puts the values into the message as a person would, and gives it what the Fill adds.
func byHand(m *Message, f *Fill) *Message {
	put := func(s string, escape func(string) string) string {
		var b strings.Builder
		for {
			before, rest, found := strings.Cut(s, "{{")
			b.WriteString(lfLines(before))
			if !found {
				return b.String()
			}
			name, after, _ := strings.Cut(rest, "}}")
			b.WriteString(escape(lfLines(f.Variables[strings.Trim(name, " \t")])))
			s = after
		}
	}
	same := func(s string) string { return s }
	out := *m
	out.From, out.To, out.Cc, out.MessageID, out.Date = f.From, f.To, f.Cc, f.MessageID, f.Date
	if f.ReplyTo != nil {
		out.ReplyTo = f.ReplyTo
	}
	out.Headers = map[string]string{}
	maps.Copy(out.Headers, m.Headers)
	maps.Copy(out.Headers, f.Headers)
	subject := m.Subject
	if f.Subject != "" {
		subject = f.Subject
	}
	out.Subject, out.Text, out.HTML = put(subject, same), put(m.Text, same), put(m.HTML, html.EscapeString)
	return &out
}

// leaf is a part as go-message reads it.
type leaf struct{ mediaType, disposition, filename, contentID, body string }

// wholeLines ends the last line of a text, as quoted-printable has to and base64 has not.
func wholeLines(mediaType, s string) string {
	if strings.HasPrefix(mediaType, "text/") && !strings.HasSuffix(s, "\r\n") {
		return s + "\r\n"
	}
	return s
}

func leaves(t testing.TB, raw []byte) (subject string, out []leaf) {
	t.Helper()
	e, err := gomessage.Read(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("go-message: %v\n%s", err, raw)
	}
	if subject, err = e.Header.Text("Subject"); err != nil {
		t.Fatal(err)
	}
	err = e.Walk(func(_ []int, e *gomessage.Entity, err error) error {
		if err != nil {
			return err
		}
		mt, _, err := e.Header.ContentType()
		if err != nil || strings.HasPrefix(mt, "multipart/") {
			return err
		}
		body, err := io.ReadAll(e.Body)
		disp, params, _ := e.Header.ContentDisposition()
		out = append(out, leaf{mt, disp, params["filename"], e.Header.Get("Content-Id"), wholeLines(mt, string(body))})
		return err
	})
	if err != nil {
		t.Fatalf("go-message: %v\n%s", err, raw)
	}
	return subject, out
}

// sameMail checks that both read back the same, by two parsers, and that the wire form is legal.
func sameMail(t *testing.T, got, want []byte) {
	t.Helper()
	checkWire(t, got)
	for _, l := range strings.Split(string(got[bytes.Index(got, []byte("\r\n\r\n")):]), "\r\n") {
		if len(l) > 76 && !strings.Contains(l, "ontent-") && !strings.HasPrefix(l, " ") {
			t.Fatalf("body line of %d: %q", len(l), l)
		}
	}
	gs, gl := leaves(t, got)
	ws, wl := leaves(t, want)
	if gs != ws {
		t.Fatalf("subject %q, want %q", gs, ws)
	}
	if len(gl) != len(wl) {
		t.Fatalf("%d parts, want %d\n%s", len(gl), len(wl), got)
	}
	for i := range gl {
		if gl[i] != wl[i] {
			t.Fatalf("part %d:\n%+q\nwant\n%+q\nin\n%s", i, gl[i], wl[i], got)
		}
	}
	g, w := parseBack(t, got), parseBack(t, want)
	for k := range w.header {
		if k != "Content-Type" && k != "Content-Transfer-Encoding" && g.header.Get(k) != w.header.Get(k) || len(g.header[k]) != 1 {
			t.Fatalf("%s: %q, want %q", k, g.header[k], w.header[k])
		}
	}
	if len(g.header) != len(w.header) || len(g.parts) != len(w.parts) {
		t.Fatalf("%d header fields and %d parts, want %d and %d", len(g.header), len(g.parts), len(w.header), len(w.parts))
	}
	for i := range g.parts {
		for _, p := range []*parsedPart{&g.parts[i], &w.parts[i]} {
			p.body = []byte(wholeLines(p.mediaType, string(p.body)))
		}
		if fmt.Sprintf("%+q", g.parts[i]) != fmt.Sprintf("%+q", w.parts[i]) {
			t.Fatalf("part %d: %+q, want %+q", i, g.parts[i], w.parts[i])
		}
	}
}

// checkEqual composes by template and by hand, and compares.
func checkEqual(t *testing.T, m *Message, f *Fill) []byte {
	t.Helper()
	tp := mustTemplate(t, m)
	ps := filled(t, tp, f)
	hand := byHand(m, f)
	if tp.Subject(f) != hand.Subject {
		t.Fatalf("subject %q, want %q", tp.Subject(f), hand.Subject)
	}
	want, err := Compose(hand)
	if err != nil {
		t.Fatal(err)
	}
	raw := Join(ps)
	if len(raw) != Size(ps) {
		t.Fatalf("size %d of %d", Size(ps), len(raw))
	}
	sameMail(t, raw, Join(want))
	if own := Own(ps); !bytes.Equal(Join(own), raw) {
		t.Fatal("Own changes the mail")
	}
	return raw
}

func TestTemplateIsWhatComposeMakes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 6))
	bits := []string{"", "a", " ", "  ", "\t", "\n", "\r\n", "\r", "=", ".", "\n.\n", "-- ", "ä", "发票", "🧾", "<b>", "&amp;", "'\"", "--=_0-0", "}}", "{;", "x }", strings.Repeat("w", 75),
		strings.Repeat("l ", 38), strings.Repeat("é", 26), "Dear ", ",\n", "From x", strings.Repeat("z", 76), "=20", "=\n"}
	text := func(n int) string {
		var b strings.Builder
		for range rnd.IntN(n) {
			b.WriteString(bits[rnd.IntN(len(bits))])
		}
		return strings.Trim(b.String(), "\r\n")
	}
	line := func(n int) string {
		return strings.Map(func(r rune) rune {
			if r < ' ' {
				return '_'
			}
			return r
		}, text(n))
	}
	with := func(text func(int) string, n int) string {
		var b strings.Builder
		b.WriteString(text(n))
		for range rnd.IntN(5) {
			b.WriteString([]string{"{{a}}", "{{ b }}", "{{_c9}}"}[rnd.IntN(3)] + text(n))
		}
		return b.String()
	}
	for i := range 3000 {
		m := &Message{Subject: with(line, 4), Text: with(text, 20), HTML: with(text, 20), Headers: map[string]string{"X-A": line(20)}}
		if i%5 == 0 {
			m.Text = ""
		}
		if i%7 == 0 {
			m.HTML = ""
		}
		if i%3 == 0 {
			m.Attachments = append(m.Attachments, Attachment{Filename: "a.pdf", Content: bytes.Repeat([]byte("%PDF"), rnd.IntN(100))})
		}
		if i%4 == 0 && m.HTML != "" {
			m.Attachments = append(m.Attachments, Attachment{Filename: "l.png", ContentID: "logo", Content: []byte("\x89PNG")})
		}
		f := fillOf(t, map[string]string{"a": line(10), "b": line(3), "_c9": line(2), "unused": text(9)})
		if !strings.Contains(m.Subject, "{{a}}") {
			f.Variables["a"] = text(30)
		}
		hand := byHand(m, f)
		if m.Text != "" && hand.Text == "" || m.HTML != "" && hand.HTML == "" {
			continue // by hand the part would be gone; a template keeps it
		}
		checkEqual(t, m, f)
	}
}

func TestTemplateBodies(t *testing.T) {
	for name, tc := range map[string]struct {
		m    Message
		vars map[string]string
	}{
		"no variable":          {Message{Subject: "s", Text: "t", HTML: "<p>h</p>"}, nil},
		"only a variable":      {Message{Text: "{{a}}"}, map[string]string{"a": "x"}},
		"two in a row":         {Message{Text: "{{a}}{{b}}"}, map[string]string{"a": "x \n", "b": "\ny"}},
		"empty in the middle":  {Message{Text: "dear {{a}} , hello"}, map[string]string{"a": ""}},
		"empty at the end":     {Message{Text: "dear {{a}}"}, map[string]string{"a": ""}},
		"empty behind newline": {Message{Text: "dear\n{{a}}{{b}}"}, map[string]string{"a": "", "b": ""}},
		"newline at the end":   {Message{Text: "dear {{a}}"}, map[string]string{"a": "x\r\n"}},
		"blank before a value": {Message{Text: "dear \t{{a}}\t \n"}, map[string]string{"a": "\t"}},
		"long lines":           {Message{Text: strings.Repeat("x", 75) + "{{a}}" + strings.Repeat("y", 76) + "{{a}}="}, map[string]string{"a": strings.Repeat("=", 300)}},
		"chinese":              {Message{Text: strings.Repeat("你好", 100) + "{{a}}，", HTML: strings.Repeat("你好", 100), Subject: "发票 {{a}}"}, map[string]string{"a": "李雷"}},
		"inline image and file": {Message{Text: "{{a}}", HTML: `<img src="cid:l">{{a}}`, Attachments: []Attachment{{Filename: "l.png", ContentID: "l", Content: []byte("png")}, {Filename: "a.pdf", Content: []byte("pdf")}}},
			map[string]string{"a": "x"}},
		"large files": {Message{Text: "{{a}}", Attachments: []Attachment{{Filename: "a.pdf", Content: make([]byte, 80<<10)}, {Filename: "b.pdf", Content: make([]byte, 90<<10)}}}, map[string]string{"a": "x"}},
	} {
		t.Run(name, func(t *testing.T) { checkEqual(t, &tc.m, fillOf(t, tc.vars)) })
	}
	// The same bytes as Compose where no part has a variable, but for the boundary.
	m := &Message{Subject: "s {{a}}", Text: "plain text\n", Headers: map[string]string{"X-B": "1", "X-A": "2"}}
	f := fillOf(t, map[string]string{"a": "x"})
	want, _ := Compose(byHand(m, f))
	if got := Join(filled(t, mustTemplate(t, m), f)); !bytes.Equal(got, Join(want)) {
		t.Fatalf("%q, want %q", got, Join(want))
	}
}

func BenchmarkTemplate5KB(b *testing.B) {
	line := "Please find your invoice for November 2026 attached; it is due in 14 days.\r\n"
	m := &Message{Subject: "Your invoice {{number}}", Text: "Dear {{name}},\n" + strings.Repeat(line, 28) + "Yours, {{agent}}\n",
		HTML: "<html><body><p>Dear {{name}}, {{number}}</p>" + strings.Repeat("<p>"+line+"</p>", 28) + "<p>Yours, {{agent}}</p></body></html>"}
	tp := mustTemplate(b, m)
	f := fillOf(b, map[string]string{"name": "Zoë <Ltd>", "number": "2026-4711", "agent": "Ann & Bob"})
	b.ReportAllocs()
	for b.Loop() {
		if _, vs, err := tp.Compose(f); len(vs) > 0 || err != nil {
			b.Fatal(vs, err)
		}
	}
}
