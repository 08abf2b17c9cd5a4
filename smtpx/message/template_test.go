package message

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"maps"
	"math/rand/v2"
	"mime"
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
	if len(f.ReplyTo) > 0 {
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

// sameMail checks that both read back the same, by two parsers, and that the wire form is
// legal.
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

// All mails of a batch refer to the same content, whatever their values; a body without
// variables is one piece.
func TestTemplateStoresTheBodyOnce(t *testing.T) {
	pdf := bytes.Repeat([]byte("%PDF"), 100<<10)
	m := &Message{Subject: "for {{name}}", Text: "dear {{name}},\n" + strings.Repeat("text ", 1000), HTML: "<p>{{name}}</p>" + strings.Repeat("html ", 1000),
		Attachments: []Attachment{{Filename: "small.pdf", Content: pdf[:100]}, {Filename: "a.pdf", Content: pdf}}}
	tp := mustTemplate(t, m)
	contents := func(tp *Template, f *Fill) (own int, sums []string) {
		for _, p := range filled(t, tp, f) {
			own += len(p.Data)
			if p.Shared != nil {
				if p.Offset < 0 || p.Length <= 0 || p.Offset+p.Length > p.Shared.Size || p.Shared.Size != len(p.Shared.Data) {
					t.Fatalf("range %d+%d of %d", p.Offset, p.Length, p.Shared.Size)
				}
				sums = append(sums, fmt.Sprintf("%x %d+%d", p.Shared.Sum[:4], p.Offset, p.Length))
			}
		}
		return own, sums
	}
	own, a := contents(tp, fillOf(t, map[string]string{"name": "Ann"}))
	f := fillOf(t, map[string]string{"name": strings.Repeat("<Żółw & co.\n>", 50)[:600]})
	f.Subject, f.To, f.MessageID = "hello", nil, "0191-other@x.example"
	_, b := contents(tp, f)
	if strings.Join(a, " ") != strings.Join(b, " ") || len(a) != 5 {
		t.Fatalf("ranges %v and %v", a, b)
	}
	if own > 1000 {
		t.Fatalf("a mail has %d bytes of its own", own)
	}
	// Another process makes the same content of the same message, so a batch that goes on there
	// stores nothing again.
	if _, c := contents(mustTemplate(t, m), f); strings.Join(a, " ") != strings.Join(c, " ") {
		t.Fatalf("ranges %v and %v", a, c)
	}
	plain := filled(t, mustTemplate(t, &Message{Subject: "{{a}}", Text: "t", HTML: "h", Attachments: []Attachment{{Filename: "a.pdf", Content: pdf[:100]}}}),
		fillOf(t, map[string]string{"a": "x"}))
	if len(plain) != 2 || plain[0].Shared != nil || plain[1].Length != plain[1].Shared.Size {
		t.Fatalf("%d pieces without a variable", len(plain))
	}
}

func TestTemplateRefusesWhatIsNoVariable(t *testing.T) {
	for s, at := range map[string]int{
		"{{": 0, "a {{ b": 2, "{{}}": 0, "{{ }}": 0, "{{a b}}": 0, "{{1a}}": 0, "{{a-b}}": 0, "{{a}": 0, "{{a} }": 0, "{{{a}}}": 0, "{{a}} {{ä}}": 6, "{{&nbsp;a}}": 0,
		"{{a}}{{": 5, "{{" + strings.Repeat("a", 64) + "}}": 0,
	} {
		want := fmt.Sprintf(`has "{{" at octet %d that begins no variable: write {{name}}, with letters, digits and _`, at)
		for field, m := range map[string]*Message{"subject": {Subject: s}, "text": {Text: s}, "html": {HTML: s}} {
			if tp, vs := NewTemplate(m); tp != nil || len(vs) != 1 || vs[0] != (Violation{field, want}) {
				t.Errorf("%s %q: %v", field, s, vs)
			}
		}
	}
	// All at once, with what Validate says.
	_, vs := NewTemplate(&Message{Subject: "{{", Text: "\x00", HTML: "{{a", Headers: map[string]string{"X-A": "{{a}}", "Bcc": "x"}})
	var fields []string
	for _, v := range vs {
		fields = append(fields, v.Field)
	}
	if got := strings.Join(fields, " "); got != "text headers[Bcc] subject html headers[X-A]" {
		t.Errorf("violations for %s", got)
	}
	if _, vs := NewTemplate(&Message{Text: strings.Repeat("{{a}}", MaxVariablePlaces+1)}); len(vs) != 1 || vs[0].Field != "text" {
		t.Errorf("too many places: %v", vs)
	}
	tp := mustTemplate(t, &Message{Subject: "{{ b }}}}", Text: "{{_}}{ {a}}{{A9_}}", HTML: "{{b}}{{" + strings.Repeat("a", 63) + "}}"})
	if got := strings.Join(tp.Variables(), " "); got != "A9_ _ "+strings.Repeat("a", 63)+" b" {
		t.Errorf("variables %s", got)
	}
}

func TestTemplateListsWhatAMailLacks(t *testing.T) {
	tp := mustTemplate(t, &Message{Subject: "for {{who}}: {{what}}", Text: "{{who}} {{text}}", HTML: "{{html}}", Headers: map[string]string{"X-Shared": "1", "X-Campaign": "all"}})
	all := func(change func(map[string]string, *Fill)) *Fill {
		f := fillOf(t, map[string]string{"who": "Ann", "what": "bill", "text": "t", "html": "h"})
		change(f.Variables, f)
		return f
	}
	many := map[string]string{}
	for i := range MaxVariables + 1 {
		many[fmt.Sprint("v", i)] = ""
	}
	headers := map[string]string{}
	for i := range MaxHeaders - 1 {
		headers[fmt.Sprint("X-", i)] = "v"
	}
	for name, tc := range map[string]struct {
		f    *Fill
		want string
	}{
		"nothing wrong": {all(func(v map[string]string, f *Fill) {
			v["x\ny"] = "unused"
			f.Headers = map[string]string{"x-campaign": "own"}
		}), ""},
		"none given":    {all(func(v map[string]string, f *Fill) { f.Variables = nil }), "variables.html variables.text variables.what variables.who"},
		"one missing":   {all(func(v map[string]string, f *Fill) { delete(v, "what") }), "variables.what"},
		"not missing":   {all(func(v map[string]string, f *Fill) { delete(v, "what"); f.Subject = "own {{who}}" }), ""},
		"own subject":   {all(func(v map[string]string, f *Fill) { f.Subject = "{{nobody}}" }), "variables.nobody"},
		"bad subject":   {all(func(v map[string]string, f *Fill) { f.Subject = "{{" }), "subject"},
		"subject CRLF":  {all(func(v map[string]string, f *Fill) { f.Subject = "a\r\nBcc: b" }), "subject"},
		"LF in subject": {all(func(v map[string]string, f *Fill) { v["who"] = "Ann\nBcc: v@x.example" }), "variables.who"},
		"CR in subject": {all(func(v map[string]string, f *Fill) { v["what"] = "a\rb" }), "variables.what"},
		"LF in text":    {all(func(v map[string]string, f *Fill) { v["text"] = "a\nb" }), ""},
		"long subject":  {all(func(v map[string]string, f *Fill) { v["what"] = strings.Repeat("a", MaxSubject-8) }), "variables.what"},
		"just fits":     {all(func(v map[string]string, f *Fill) { v["what"] = strings.Repeat("a", MaxSubject-9) }), ""},
		"NUL":           {all(func(v map[string]string, f *Fill) { v["text"], v["unused"] = "a\x00", "\x00" }), "variables.text variables.unused"},
		"not UTF-8":     {all(func(v map[string]string, f *Fill) { v["html"] = "\xff" }), "variables.html"},
		"long value":    {all(func(v map[string]string, f *Fill) { v["text"] = strings.Repeat("a", MaxVariableBytes+1) }), "variables.text"},
		"longest value": {all(func(v map[string]string, f *Fill) { v["text"] = strings.Repeat("a", MaxVariableBytes) }), ""},
		"too many":      {all(func(v map[string]string, f *Fill) { maps.Copy(v, many) }), "variables"},
		"own headers": {all(func(v map[string]string, f *Fill) {
			f.Headers = map[string]string{"To": "x", "X-A": "a\nb", "X-B": "{{who}}", "X-C": "c"}
		}),
			"headers[To] headers[X-A] headers[X-B]"},
		"too many headers": {all(func(v map[string]string, f *Fill) { f.Headers = headers }), "headers"},
	} {
		t.Run(name, func(t *testing.T) {
			ps, vs, err := tp.Compose(tc.f)
			var fields []string
			for _, v := range vs {
				fields = append(fields, v.Field)
			}
			if got := strings.Join(fields, " "); got != tc.want || err != nil || (ps == nil) != (tc.want != "") {
				t.Fatalf("violations %v (%v), want %s", vs, err, tc.want)
			}
		})
	}
	p := parseBack(t, Join(filled(t, tp, all(func(v map[string]string, f *Fill) {
		f.Headers = map[string]string{"x-campaign": "own", "List-Unsubscribe": "<https://x.example/u>"}
	}))))
	if p.header.Get("X-Shared") != "1" || len(p.header["X-Campaign"]) != 1 || p.header.Get("X-Campaign") != "own" || p.header.Get("List-Unsubscribe") != "<https://x.example/u>" {
		t.Errorf("headers %v", p.header)
	}
}

func TestTemplateBoundsWhatValuesMake(t *testing.T) {
	tp := mustTemplate(t, &Message{Text: strings.Repeat("{{a}}", MaxVariablePlaces)})
	if _, vs, err := tp.Compose(fillOf(t, map[string]string{"a": strings.Repeat("a", MaxVariableBytes)})); err != ErrTooLarge || vs != nil {
		t.Errorf("31 MiB of values: %v %v", vs, err)
	}
	if _, vs, err := tp.Compose(fillOf(t, map[string]string{"a": strings.Repeat("ä", MaxVariableBytes/4)})); err != ErrTooLarge || vs != nil {
		t.Errorf("values that are too large when encoded: %v %v", vs, err)
	}
	filled(t, tp, fillOf(t, map[string]string{"a": strings.Repeat("a", MaxVariableBytes/2)}))
}

// hostile values: each goes everywhere, and the mail is still the one that the same values by
// hand make.
var hostile = []string{"\r\n.\r\n", ".\r\n", "\r\n\r\n", "\r\nBcc: v@x.example\r\n", "{{other}}", "{{name}}", "}}", "=", "=\r\n", "=0D=0A", "=3D", "<script>alert('x')</script>", `" onload="x`, "&amp;",
	" ", "\t", " \n", "\n ", "", "\r", "\n\r", "\u2028", "\ufeff", "=_", "\r\n--"}

func TestTemplateValuesStayValues(t *testing.T) {
	m := &Message{Subject: "s", Text: "dear {{name}}\n{{name}}\nend", HTML: `<p title="{{name}}">{{name}}</p>`, Attachments: []Attachment{{Filename: "a.txt", Content: []byte("file")}}}
	tp := mustTemplate(t, m)
	plain := parseBack(t, Join(filled(t, tp, fillOf(t, map[string]string{"name": "x"}))))
	_, params, err := mime.ParseMediaType(plain.header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	b := params["boundary"] // known to a caller who has seen one mail of the batch
	for _, v := range append(hostile, "\r\n--"+b+"\r\n", "\r\n--"+b+"--\r\n", "--"+b, "\n--"+b+"\nContent-Type: text/html\n\nx") {
		for _, v := range []string{v, "a" + v + "b", v + v} {
			raw := checkEqual(t, m, fillOf(t, map[string]string{"name": v}))
			p := parseBack(t, raw)
			if len(p.parts) != 3 || len(p.header) != len(plain.header) {
				t.Fatalf("%q makes %d parts and %d header fields", v, len(p.parts), len(p.header))
			}
			if strings.Contains(string(p.parts[1].body), "<script") || strings.Contains(string(p.parts[1].body), `" onload`) {
				t.Fatalf("%q stands in html as it is", v)
			}
			if bytes.Contains(raw, []byte("\r\n.\r\n")) && !strings.Contains(lfLines(v), "\n.\n") && !strings.HasPrefix(v, ".") {
				t.Fatalf("%q makes a lone dot", v) // one in the text is stuffed by the session
			}
			subject := &Message{Subject: "s {{name}} e", Text: "t"}
			_, vs, err := mustTemplate(t, subject).Compose(fillOf(t, map[string]string{"name": v}))
			_, bad := control(v)
			if err != nil || bad != (len(vs) == 1 && vs[0].Field == "variables.name") {
				t.Fatalf("%q in a subject: %v %v", v, vs, err)
			}
			if !bad {
				checkEqual(t, subject, fillOf(t, map[string]string{"name": v}))
			}
		}
	}
}

func FuzzTemplate(f *testing.F) {
	for i, v := range hostile {
		f.Add("s {{ a }}", "dear {{a}},\n{{b}}", "<p>{{a}}</p>{{b}}", v, hostile[(i+7)%len(hostile)])
	}
	f.Add("", "{{a}}{{b}}{{a}}", "", strings.Repeat("x", 75), strings.Repeat("é", 30))
	f.Add("{{b}}", "发票{{a}}", "{{a}} \t", "李雷 ", "a b")
	f.Add("{{", "{{{a}}}", "{{ a}", "", "")
	f.Fuzz(func(t *testing.T, subject, text, html, a, b string) {
		m := &Message{Subject: subject, Text: text, HTML: html}
		tp, vs := NewTemplate(m)
		if len(vs) > 0 {
			return
		}
		for _, n := range tp.Variables() {
			if n != "a" && n != "b" {
				return
			}
		}
		fill := fillOf(t, map[string]string{"a": a, "b": b})
		_, vs, err := tp.Compose(fill)
		if err != nil {
			t.Fatal(err)
		}
		hand := byHand(m, fill)
		if len(vs) > 0 {
			for _, s := range []string{hand.Subject, hand.Text, hand.HTML, a, b} {
				if _, bad := control(s); bad || len(s) > MaxSubject || len((&Message{Text: s}).Validate()) > 0 {
					return
				}
			}
			t.Fatalf("refused for no reason: %v", vs)
		}
		if vs := hand.Validate(); len(vs) > 0 {
			t.Fatalf("taken, though by hand %v", vs)
		}
		if m.Text != "" && hand.Text == "" || m.HTML != "" && hand.HTML == "" {
			return // by hand the part would be gone; a template keeps it
		}
		checkEqual(t, m, fill)
	})
}
