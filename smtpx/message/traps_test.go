package message_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx/message"
)

// TestT6n_OneMessageManyGoroutines: composing reads and never writes what it is given, so one message may be composed by many at once (the race detector looks).
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
