package message

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"net/mail"
	"net/url"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	gomessage "github.com/emersion/go-message"
	gomail "github.com/emersion/go-message/mail"
)

// structured are the fields in which a quoted string may stand, which no line may break.
var structured = []string{"From", "To", "Cc", "Reply-To", "Content-Type", "Content-Disposition",
	"Disposition-Notification-To", "Return-Receipt-To", "Errors-To", "List-Id", "List-Unsubscribe", "References"}

var encodedWord = regexp.MustCompile(`=\?utf-8\?b\?[^? ]*\?=`)

// checkFolding looks at every line of every header of a raw message, of its parts too.
func checkFolding(t testing.TB, raw []byte) {
	t.Helper()
	inHeader, name := true, ""
	for line := range strings.SplitSeq(string(raw), "\r\n") {
		switch {
		case strings.HasPrefix(line, "--=_"):
			inHeader = true
			continue
		case line == "":
			inHeader = false
		}
		if !inHeader {
			continue
		}
		rest := line
		if line[0] != ' ' {
			if i := strings.Index(line, ": "); i > 0 {
				name, rest = line[:i], line[i+2:]
			} else {
				t.Fatalf("%q is no header line", line)
			}
		}
		quotes := slices.Contains(structured, name)
		foldable, quoted := false, false
		word := strings.TrimLeft(rest, " ")
		for i := 0; i < len(word); i++ {
			switch c := word[i]; {
			case quoted && c == '\\':
				i++
			case quotes && c == '"':
				quoted = !quoted
			case c == ' ' && !quoted:
				foldable = true
			}
		}
		switch {
		case strings.Trim(line, " \t") == "":
			t.Errorf("a line of blanks in %s", name)
		case len(line) > 998:
			t.Errorf("%s has a line of %d octets", name, len(line))
		case len(line) > 78 && foldable:
			t.Errorf("%s has a line of %d octets that can be folded: %q", name, len(line), line)
		case len(line) > 76 && encodedWord.MatchString(line):
			t.Errorf("%s has a line of %d octets with an encoded word: %q", name, len(line), line)
		case quoted:
			t.Errorf("%s breaks a line inside quotes: %q", name, line)
		}
		for _, w := range encodedWord.FindAllString(line, -1) {
			b, err := base64.StdEncoding.DecodeString(w[len("=?utf-8?b?") : len(w)-2])
			if len(w) > 75 || err != nil || !utf8.Valid(b) {
				t.Errorf("%s has the encoded word %q", name, w)
			}
		}
	}
}

// readings are what the independent readers make of a message.
type reading struct {
	By           string
	Subject      string
	From, To, Cc [][2]string
	ReplyTo      [][2]string
	Notify       [][2]string // Disposition-Notification-To
	Header       map[string]string
	Files        []string // names
	Contents     []string // of the files, base64
	Bodies       []string
}

// notify is a header of addresses that a caller gives.
const notify = "Disposition-Notification-To"

// intended is what every reader should find.
func intended(m *Message) reading {
	list := func(as []Address) [][2]string {
		out := [][2]string{}
		for _, a := range as {
			out = append(out, [2]string{a.Name, a.Mailbox})
		}
		return out
	}
	r := reading{Subject: m.Subject, From: list([]Address{m.sender()}), To: list(m.To), Cc: list(m.Cc), ReplyTo: list(m.ReplyTo), Header: map[string]string{}}
	for k, v := range m.Headers {
		r.Header[k] = v
	}
	as, _ := ParseAddressList(r.Header[notify]) // Validate has read it
	r.Notify = list(as)
	delete(r.Header, notify)
	if m.AutoSubmitted {
		r.Header[autoSubmitted] = "auto-generated"
	}
	if m.Unsubscribe.URL != "" {
		r.Header[listUnsubscribe], r.Header[listUnsubscribePost] = "<"+m.Unsubscribe.URL+">", "List-Unsubscribe=One-Click"
	}
	body := func(s string) { r.Bodies = append(r.Bodies, strings.TrimSuffix(lfLines(s), "\n")) }
	if m.Text != "" || m.HTML == "" {
		body(m.Text)
	}
	if m.HTML != "" {
		body(m.HTML)
	}
	inline, files := m.sorted()
	file := func(a Attachment) {
		r.Files, r.Contents = append(r.Files, a.Filename), append(r.Contents, base64.StdEncoding.EncodeToString(a.Content))
	}
	for _, a := range inline {
		file(a)
	}
	for _, a := range m.Alternatives {
		body(a.Content)
	}
	for _, a := range files {
		file(a)
	}
	return r
}

// wantedHeaders are the fields that a reader is asked for as text.
func wantedHeaders(m *Message) (names []string) { return sortedKeys(intended(m).Header) }

// readStandard reads with the standard library.
func readStandard(t testing.TB, m *Message, raw []byte) reading {
	t.Helper()
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v in %q", err, raw)
	}
	list := func(k string) [][2]string {
		out := [][2]string{}
		if v := msg.Header.Get(k); v == "" || v == "undisclosed-recipients:;" {
			return out
		}
		as, err := msg.Header.AddressList(k)
		if err != nil {
			t.Fatalf("%s: %v in %q", k, err, msg.Header.Get(k))
		}
		for _, a := range as {
			out = append(out, [2]string{a.Name, a.Address})
		}
		return out
	}
	text := func(k string) string {
		s, err := new(mime.WordDecoder).DecodeHeader(msg.Header.Get(k))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	r := reading{By: "net/mail", Subject: text("Subject"), From: list("From"), To: list("To"), Cc: list("Cc"), ReplyTo: list("Reply-To"), Notify: list(notify), Header: map[string]string{}}
	for _, k := range wantedHeaders(m) {
		r.Header[k] = text(k)
	}
	p := parsed{header: msg.Header}
	walk(t, &p, "", map[string][]string(msg.Header), msg.Body)
	for _, q := range p.parts {
		r.part(q.filename, q.disposition, string(q.body))
	}
	return r
}

func (r *reading) part(file, disposition, body string) {
	if disposition != "" {
		r.Files, r.Contents = append(r.Files, file), append(r.Contents, base64.StdEncoding.EncodeToString([]byte(body)))
		return
	}
	r.Bodies = append(r.Bodies, strings.TrimSuffix(lfLines(body), "\n"))
}

// readEmersion reads with go-message.
func readEmersion(t testing.TB, m *Message, raw []byte) reading {
	t.Helper()
	e, err := gomessage.Read(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v in %q", err, raw)
	}
	h := gomail.Header{Header: e.Header}
	list := func(k string) [][2]string {
		out := [][2]string{}
		if h.Get(k) == "undisclosed-recipients:;" {
			return out
		}
		as, err := h.AddressList(k)
		if err != nil {
			t.Fatalf("%s: %v in %q", k, err, h.Get(k))
		}
		for _, a := range as {
			out = append(out, [2]string{a.Name, a.Address})
		}
		return out
	}
	text := func(k string) string {
		s, err := h.Text(k)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	r := reading{By: "go-message", Subject: text("Subject"), From: list("From"), To: list("To"), Cc: list("Cc"), ReplyTo: list("Reply-To"), Notify: list(notify), Header: map[string]string{}}
	for _, k := range wantedHeaders(m) {
		r.Header[k] = text(k)
	}
	err = e.Walk(func(_ []int, p *gomessage.Entity, err error) error {
		if err != nil {
			return err
		}
		if mt, _, _ := p.Header.ContentType(); strings.HasPrefix(mt, "multipart/") {
			return nil
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(p.Body); err != nil {
			return err
		}
		disposition, params, _ := p.Header.ContentDisposition()
		r.part(params["filename"], disposition, b.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// python is Python's email, a process that reads one message a line.
type python struct {
	mu  sync.Mutex
	in  io.Writer
	out *bufio.Scanner
}

const pythonReader = `
import sys, json, base64, email, email.policy
for line in sys.stdin:
    names, raw = json.loads(line)
    m = email.message_from_bytes(base64.b64decode(raw), policy=email.policy.default)
    def lst(k):
        h = m[k]
        return [[a.display_name, a.addr_spec] for a in h.addresses] if h is not None else []
    files, contents, bodies = [], [], []
    for p in m.walk():
        if p.is_multipart(): continue
        b = p.get_payload(decode=True)
        if p.get_content_disposition():
            files.append(p.get_filename() or "")
            contents.append(base64.b64encode(b).decode())
        else: bodies.append(b.decode("utf-8"))
    json.dump({"By": "Python", "Subject": str(m["Subject"]), "From": lst("From"), "To": lst("To"), "Cc": lst("Cc"), "ReplyTo": lst("Reply-To"),
        "Header": {k: str(m[k]) for k in names}, "Files": files, "Contents": contents, "Bodies": bodies}, sys.stdout)
    print(flush=True)
`

// startPython starts the reader once a process; nil where there is no Python.
var startPython = sync.OnceValue(func() *python {
	path, err := exec.LookPath("python3")
	if err != nil {
		return nil
	}
	cmd := exec.Command(path, "-u", "-c", pythonReader)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil
	}
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return nil
	}
	p := &python{in: in, out: bufio.NewScanner(out)} // it ends with its input, that is with us
	p.out.Buffer(nil, 64<<20)
	return p
})

// readPython reads with Python's email; is says whether it is there.
func readPython(t testing.TB, m *Message, raw []byte) (r reading, is bool) {
	t.Helper()
	p := startPython()
	if p == nil {
		return r, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	line, err := json.Marshal([]any{wantedHeaders(m), raw})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil || !p.out.Scan() {
		t.Fatalf("Python: %v, %v for %q", err, p.out.Err(), raw)
	}
	if err := json.Unmarshal(p.out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	for j, b := range r.Bodies {
		r.Bodies[j] = strings.TrimSuffix(lfLines(b), "\n")
	}
	return r, true
}

// lenient takes out where Python's email is wrong: it puts a blank between the encoded words of
// a name (RFC 2047 6.2 takes it out), drops blanks and quotes at the edges of a file name, and
// keeps the blank of a line break that a value begins with.
func (r *reading) lenient() {
	r.Notify = nil // it has no reader for one
	for _, list := range [][][2]string{r.From, r.To, r.Cc, r.ReplyTo} {
		for i := range list {
			list[i][0] = strings.ReplaceAll(list[i][0], " ", "")
		}
	}
	for k, v := range r.Header {
		r.Header[k] = strings.TrimLeft(v, " ")
	}
	if len(r.Files) == 0 {
		r.Files, r.Contents = nil, nil
	}
	for i := range r.Files {
		r.Files[i] = strings.Trim(r.Files[i], ` "<>`)
	}
}

func sameReading(t testing.TB, got, want reading, raw []byte) {
	t.Helper()
	by := got.By
	got.By, want.By = "", ""
	g, _ := json.Marshal(got)
	w, _ := json.Marshal(want)
	if !bytes.Equal(g, w) {
		t.Errorf("%s reads\n%s, want\n%s in\n%s", by, g, w, raw)
	}
}

func compose(t testing.TB, m *Message) []byte {
	t.Helper()
	m.MessageID, m.Date = "0190-test@x.example", time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	if m.From.Mailbox == "" {
		m.From = Address{Mailbox: "shop@x.example"}
	}
	if vs := m.Validate(); len(vs) > 0 {
		t.Fatalf("%v", vs)
	}
	ps, err := Compose(m)
	if err != nil {
		t.Fatal(err)
	}
	return Join(ps)
}

// checkReaders composes and has every reader find what was meant.
func checkReaders(t testing.TB, m *Message) []byte {
	t.Helper()
	raw := compose(t, m)
	checkFolding(t, raw)
	want := intended(m)
	sameReading(t, readStandard(t, m, raw), want, raw)
	sameReading(t, readEmersion(t, m, raw), want, raw)
	if r, is := readPython(t, m, raw); is {
		for _, x := range []*reading{&r, &want} {
			x.lenient()
		}
		sameReading(t, r, want, raw)
	}
	return raw
}

// TestHeadersFoldBySyntax: a line breaks only where that changes nothing for any reader.
func TestHeadersFoldBySyntax(t *testing.T) {
	miller := mustAddress(t, `"Miller and Sons, Wholesale and Retail, London SE1" <p@x.example>`)
	zoe := mustAddress(t, strings.Repeat("Zoë ", 40)+"<z@x.example>")
	words := strings.TrimSpace(strings.Repeat("word ", 150))
	for name, m := range map[string]*Message{
		"a file name with a blank":        {Attachments: []Attachment{{Filename: "Invoice for November 2026, no 1.pdf"}}},
		"a file name of quotes":           {Attachments: []Attachment{{Filename: strings.Repeat(`"`, 60)}}},
		"a long file name":                {Attachments: []Attachment{{Filename: strings.Repeat("ü ", 120) + ".pdf"}, {Filename: strings.Repeat("ab ", 80) + ".pdf"}}},
		"a quoted name in a list":         {To: []Address{mustAddress(t, "first.recipient@department.example"), miller}},
		"quoted names everywhere":         {From: miller, ReplyTo: []Address{miller, zoe}, To: []Address{miller, miller}, Cc: []Address{miller, zoe, miller}},
		"a name of 200 quotes":            {To: []Address{{Name: strings.Repeat(`"`, 200), Mailbox: "a@x.example"}}},
		"67 letters and a blank":          {Subject: strings.Repeat("a", 67) + " "},
		"blanks only":                     {Subject: "   "},
		"300 blanks":                      {Subject: "a" + strings.Repeat(" ", 300) + "b"},
		"blanks at the edge of a line":    {Subject: strings.Repeat("a", 66) + "   " + strings.Repeat("b", 66) + "  c"},
		"23 é":                            {Subject: strings.Repeat("é", 23)},
		"a long subject of é":             {Subject: strings.Repeat("é", 450)},
		"a long subject of words":         {Subject: words},
		"a word of 900 letters":           {Subject: strings.Repeat("x", 900)},
		"words and a word of 840 letters": {Subject: strings.Repeat("ab ", 20) + strings.Repeat("x", 840)},
		"what looks like an encoded word": {Subject: "=?utf-8?q?a?=", To: []Address{{Name: "=?utf-8?q?a?=", Mailbox: "a@x.example"}}},
		"text headers": {Headers: map[string]string{"X-Words": words, "X-Zh": strings.Repeat("发票", 150), "X-Blanks": "a" + strings.Repeat(" ", 61) + "b",
			"X-" + strings.Repeat("N", 62): "é " + words, "X-" + strings.Repeat("O", 62): words, "X-" + strings.Repeat("P", 40): "é " + words}},
		"500 recipients": {To: slices.Repeat([]Address{zoe, miller, mustAddress(t, "Bob <b@x.example>"), mustAddress(t, "c@x.example")}, 125)},
	} {
		t.Run(name, func(t *testing.T) { checkReaders(t, m) })
	}
}

// TestFileNameLikeAnEncodedWord: it stays what it is (RFC 2047 5: none stands in a parameter).
func TestFileNameLikeAnEncodedWord(t *testing.T) {
	m := &Message{Attachments: []Attachment{{Filename: `=?utf-8?q?a?=.pdf`}}}
	raw := compose(t, m)
	sameReading(t, readStandard(t, m, raw), intended(m), raw)
}

// hostileText are pieces that break composers; the fuzz target's seeds too.
var hostileText = []string{"", "a", " ", "é", "发票 🧾", strings.Repeat("é", 23), strings.Repeat("a", 67) + " ", strings.Repeat("ab ", 60), `"`, `a, b <c@d.example>`,
	"=?utf-8?q?x?=", strings.Repeat(" ", 70), `\`, "(comment)", "From here", ".", ";x=y", strings.Repeat("x", 200), "a\u0308o", "🏴\U000E0067\U000E007F"}

// TestReadersAgree composes what is hostile in every place, and has three readers read it.
func TestReadersAgree(t *testing.T) {
	if startPython() == nil {
		t.Log("python3 is not there: two readers only")
	}
	taken := 0
	for _, in := range hostilePlaces() {
		if m := messageOf(in); m != nil {
			taken++
			checkReaders(t, m)
		}
	}
	if taken < len(hostileText)/2 {
		t.Fatalf("only %d of %d are valid", taken, len(hostileText))
	}
}

// places are the texts of a message.
type places struct{ subject, name, file, header, body, html, fromName, content, query string }

// hostilePlaces puts each hostile text into every place once.
func hostilePlaces() (all []places) {
	at := func(i int) string { return hostileText[i%len(hostileText)] }
	for i, a := range hostileText {
		all = append(all, places{a, at(i + 3), at(i + 7), at(i + 11), a, at(i + 1), at(i + 5), at(i + 2), at(i + 9)})
	}
	return all
}

// messageOf puts texts into every place of a message; nil where they are refused.
func messageOf(in places) *Message {
	to, err := ParseAddress(Address{Name: in.name, Mailbox: "to@y.example"}.String())
	if err != nil || to.Name != in.name {
		return nil
	}
	m := &Message{From: to, FromName: in.fromName, To: []Address{{Mailbox: "first.recipient@department.example"}, to, to}, Cc: []Address{to}, ReplyTo: []Address{to, {Mailbox: "r@y.example"}},
		Subject: in.subject, Headers: map[string]string{"X-Text": in.header}, Text: in.body, HTML: in.html, AutoSubmitted: len(in.body)%2 == 0}
	if len((&Message{From: to, FromName: in.fromName}).Validate()) > 0 {
		m.FromName = ""
	}
	if to.Name != "" && ascii(to.String()) {
		m.Headers[notify] = to.String()
	}
	if in.query != "" {
		m.Unsubscribe.URL = "https://x.example/u?q=" + url.QueryEscape(in.query)
		if len(m.Unsubscribe.Validate()) > 0 {
			m.Unsubscribe.URL = ""
		}
	}
	if strings.Contains(in.file, "=?") {
		return nil // go-message decodes it twice
	}
	if in.file != "" {
		m.Attachments = []Attachment{{Filename: in.file, Content: []byte(in.content)}}
	}
	if m.HTML != "" && in.content != "" {
		m.Attachments = append(m.Attachments, Attachment{ContentID: "logo", ContentType: "image/png", Content: []byte(in.content)})
	}
	calendar := Alternative{"text/calendar", "BEGIN:VCALENDAR\nMETHOD:REQUEST\nDESCRIPTION:" + in.content + "\nEND:VCALENDAR"}
	if m.Alternatives = []Alternative{calendar}; len(in.content)%3 == 0 || len((&Message{Alternatives: m.Alternatives}).Validate()) > 0 {
		m.Alternatives = nil
	}
	if len(m.Validate()) > 0 {
		return nil
	}
	return m
}

// FuzzMessage: whatever is taken is read back by three readers as it was meant, and folded
// right.
func FuzzMessage(f *testing.F) {
	for _, in := range hostilePlaces() {
		f.Add(in.subject, in.name, in.file, in.header, in.body, in.html, in.fromName, in.content, in.query)
	}
	// one reading now: an input has 10 s, which may be short for starting Python beside others
	checkReaders(f, messageOf(hostilePlaces()[1]))
	f.Fuzz(func(t *testing.T, subject, name, file, header, body, html, fromName, content, query string) {
		if m := messageOf(places{subject, name, file, header, body, html, fromName, content, query}); m != nil {
			checkReaders(t, m)
		}
	})
}
