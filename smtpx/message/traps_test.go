package message_test

import (
	"io"
	"mime/quotedprintable"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx/message"
)

// TestT6n_OneMessageManyGoroutines: composing reads and never writes what it is given, so one
// message may be composed by many at once (the race detector looks).
func TestT6n_OneMessageManyGoroutines(t *testing.T) {
	from, err := message.ParseAddress("Zoë <a@x.example>")
	if err != nil {
		t.Fatal(err)
	}
	m := &message.Message{Subject: "s", Text: "dear {{a}}", HTML: "<p>{{a}}</p>", Headers: map[string]string{"X-B": "b", "X-A": "a"},
		Attachments: []message.Attachment{{Filename: "a.pdf", Content: make([]byte, 100<<10)}}}
	tp, vs := message.NewTemplate(m)
	if len(vs) > 0 {
		t.Fatal(vs)
	}
	m.From, m.MessageID = from, "1@x.example"
	f := &message.Fill{From: from, MessageID: "1@x.example", Headers: map[string]string{"X-C": "c"}, Variables: map[string]string{"a": "x\r\ny"}}
	var wg sync.WaitGroup
	composed, filled := make([]string, 8), make([]string, 8)
	for i := range composed {
		wg.Go(func() {
			for range 20 {
				ps, err := message.Compose(m)
				qs, vs, ferr := tp.Compose(f)
				if err != nil || ferr != nil || len(vs) > 0 {
					t.Error(err, ferr, vs)
					return
				}
				composed[i], filled[i] = string(message.Join(ps)), string(message.Join(qs))
			}
		})
	}
	wg.Wait()
	for i := range composed {
		if composed[i] != composed[0] || filled[i] != filled[0] {
			t.Fatal("the same message gives other bytes")
		}
	}
}

// TestT6m_ManyReferences: thousands of cid: references cost no more than their bytes.
func TestT6m_ManyReferences(t *testing.T) {
	from, err := message.ParseAddress("a@x.example")
	if err != nil {
		t.Fatal(err)
	}
	html := strings.Repeat(`<img src="cid:logo">`, 16_000)
	m := &message.Message{From: from, Subject: "s", Text: html, HTML: html, MessageID: "1@x.example", Attachments: []message.Attachment{{ContentID: "logo", Content: []byte("png")}}}
	begin := time.Now()
	if _, err := message.Compose(m); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 2*time.Second { // 6.2 s of CPU in the library
		t.Errorf("took %v", d)
	}
}

// TestFromAtTheBeginningOfALine is encoded, wherever the line begins: programs that keep mail
// in one file put a ">" before it.
func TestFromAtTheBeginningOfALine(t *testing.T) {
	from, err := message.ParseAddress("a@x.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"From me", "a\nFrom me\nFrom you\n", "From ", "From \nx", strings.Repeat("x", 75) + "From me", strings.Repeat("From ", 40),
		"From " + strings.Repeat("x", 71), "From " + strings.Repeat("x", 70), "é From me", "Fromage",
	} {
		check := func(raw []byte) {
			_, body, _ := strings.Cut(string(raw), "\r\n\r\n")
			for line := range strings.SplitSeq(body, "\r\n") {
				if strings.HasPrefix(line, "From ") || len(line) > 76 {
					t.Errorf("%q: line %q", text, line)
				}
			}
			back, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(body)))
			if got := strings.TrimSuffix(strings.ReplaceAll(string(back), "\r\n", "\n"), "\n"); err != nil || got != strings.TrimSuffix(text, "\n") {
				t.Errorf("got %q, want %q (%v)", got, text, err)
			}
		}
		m := &message.Message{From: from, Subject: "s", Text: text, MessageID: "1@x.example"}
		ps, err := message.Compose(m)
		if err != nil {
			t.Fatal(err)
		}
		check(message.Join(ps))
		tp, vs := message.NewTemplate(&message.Message{Subject: "s", Text: "{{a}}"})
		if len(vs) > 0 {
			t.Fatal(vs)
		}
		ps, vs, err = tp.Compose(&message.Fill{From: from, MessageID: "1@x.example", Variables: map[string]string{"a": text}})
		if err != nil || len(vs) > 0 {
			t.Fatal(vs, err)
		}
		check(message.Join(ps))
	}
}

// TestFileNamesShowWhatTheyAre: an override of the direction makes exe look like pdf.
func TestFileNamesShowWhatTheyAre(t *testing.T) {
	for name, right := range map[string]bool{"inv\u202efdp.exe": false, "a\u2066b.pdf": false, "a\u2028.pdf": false, "a\u200e.pdf": true, "发票.pdf": true} {
		vs := (&message.Message{Attachments: []message.Attachment{{Filename: name}}}).Validate()
		if (len(vs) == 0) != right {
			t.Errorf("%q: got %v", name, vs)
		}
	}
}
