package message

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"github.com/maildispatch/maildispatch/smtpx/message/dkim"
)

var signingKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := dkim.NewKey()
	if err != nil {
		panic(err)
	}
	return key
})

// signed is the message with its signature in front.
func signed(t testing.TB, ps []Piece, at time.Time) []byte {
	t.Helper()
	header, body, err := Split(ps)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := dkim.SumBody(func(w io.Writer) error {
		for _, p := range body {
			_, _ = w.Write(p.Bytes())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	field, err := (&dkim.Signer{Domain: "x.example", Selector: "s1", Key: signingKey()}).Sign(header, sum, at)
	if err != nil {
		t.Fatal(err)
	}
	return append(field, Join(ps)...)
}

// shapes are mails as the service makes them: of every hostile text in every place, with
// and without html, files, calendars and addresses beyond ASCII, through templates with
// variables, and finished ones.
func shapes(t testing.TB, n int) (names []string, mails [][]Piece) {
	t.Helper()
	luck := rand.New(rand.NewPCG(10, 5))
	any := func() string { return hostileText[luck.IntN(len(hostileText))] }
	date := time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)
	add := func(name string, ps []Piece) { names, mails = append(names, name), append(mails, ps) }
	for len(mails) < n {
		in := places{any(), any(), any(), any(), any(), any(), any(), any(), any()}
		m := messageOf(in)
		if m == nil {
			continue
		}
		m.From.Mailbox, m.MessageID, m.Date = "shop@x.example", fmt.Sprintf("%d@x.example", len(mails)), date
		if luck.IntN(5) == 0 {
			m.From.Mailbox, m.To[0].Mailbox = "bücher@x.example", "josé@ü.example"
		}
		if luck.IntN(16) == 0 {
			m.Attachments = append(m.Attachments, Attachment{Filename: "large.bin", Content: bytes.Repeat([]byte("PDF "), 20<<10)})
		}
		if luck.IntN(8) == 0 {
			m.Text, m.HTML, m.Attachments, m.Alternatives = "", "", nil, nil
		}
		ps, err := Compose(m)
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		add(fmt.Sprintf("composed %+v", in), ps)
		if len(mails)%4 == 0 { // what came out is as good a finished message, if it is ASCII
			if raw, vs := ParseRaw(Join(ps)); len(vs) == 0 {
				add(fmt.Sprintf("raw %+v", in), raw.Pieces("raw@x.example"))
			}
		}
		template := &Message{Subject: "Dear {{name}}", Text: "Dear {{name}}\n\n {{text}} \n" + strings.Repeat("all the same\n", luck.IntN(400)), HTML: "<p>{{name}}</p>{{text}}",
			Headers: m.Headers, Attachments: m.Attachments, Alternatives: m.Alternatives, Unsubscribe: m.Unsubscribe}
		template.Common = NewCommon(template)
		tp, vs := NewTemplate(template)
		if len(vs) > 0 {
			t.Fatal(vs)
		}
		for _, text := range []string{"", any()} {
			f := &Fill{From: m.From, To: m.To, MessageID: fmt.Sprintf("%d@x.example", len(mails)), Date: date, Variables: map[string]string{"name": in.name, "text": text}}
			ps, vs, err := tp.Compose(f)
			if err != nil || len(vs) > 0 {
				t.Fatal(vs, err)
			}
			add(fmt.Sprintf("template %+v %q", in, text), ps)
		}
	}
	return names, mails
}

// dkimpy verifies with dkimpy, which is not Go and not ours: one message a line.
const dkimpy = `
import base64, json, sys, dkim
for line in sys.stdin.buffer:
    name, record, raw = json.loads(line)
    def txt(asked, timeout=5):
        return record.encode() if asked.decode().rstrip(".") == name else None
    try: print(json.dumps(bool(dkim.verify(base64.b64decode(raw), dnsfunc=txt))), flush=True)
    except Exception as e: print(json.dumps(repr(e)), flush=True)
`

// startDkimpy starts the verifier of Debian's python3-dkim; nil where it is not installed.
func startDkimpy(t *testing.T) func(line []byte) string {
	const debian = "/usr/bin/python3" // whatever other Python the path begins with
	if exec.Command(debian, "-c", "import dkim").Run() != nil {
		return nil
	}
	cmd := exec.Command(debian, "-u", "-c", dkimpy)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // its end
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	return func(line []byte) string {
		if _, err := in.Write(append(line, '\n')); err != nil || !lines.Scan() {
			t.Fatalf("dkimpy ended: %v, %v", err, lines.Err())
		}
		return lines.Text()
	}
}

// TestSignatures: mails of all shapes are verified by two programs that are not ours, and not
// once anything in them is changed.
func TestSignatures(t *testing.T) {
	python := startDkimpy(t)
	if python == nil {
		if os.Getenv("CI") != "" {
			t.Fatal("python3-dkim is missing; .ci/need installs it")
		}
		t.Log("python3-dkim is not there: one verifier only")
	}
	public, err := dkim.PublicKey(signingKey())
	if err != nil {
		t.Fatal(err)
	}
	name, record := dkim.RecordName("x.example", "s1"), dkim.Record(public)
	valid := func(mail []byte) string {
		vs, err := msgauth.VerifyWithOptions(bytes.NewReader(mail), &msgauth.VerifyOptions{LookupTXT: func(asked string) ([]string, error) {
			if asked != name {
				return nil, fmt.Errorf("asked for %s", asked)
			}
			return []string{record}, nil
		}})
		said := ""
		if err != nil || len(vs) != 1 || vs[0].Err != nil {
			said = fmt.Sprintf("go-msgauth: %v, %+v", err, vs)
		}
		if python == nil {
			return said
		}
		line, err := json.Marshal([]any{name, record, mail})
		if err != nil {
			t.Fatal(err)
		}
		if got := python(line); (got == "true") != (said == "") {
			said += " dkimpy: " + got
		} else if got != "true" {
			said = "both: " + said
		}
		return said
	}
	names, mails := shapes(t, 200)
	kinds := map[string]int{}
	for i, ps := range mails {
		kind, _, _ := strings.Cut(names[i], " ")
		kinds[kind]++
		mail := signed(t, ps, time.Unix(1790000000, 0))
		if said := valid(mail); said != "" {
			t.Errorf("%s: %s in\n%.3000s", names[i], said, mail)
		}
		if i%20 == 0 {
			changed := bytes.Replace(mail, []byte("\r\nSubject: "), []byte("\r\nSubject: x"), 1)
			if said := valid(changed); !strings.HasPrefix(said, "both: ") {
				t.Errorf("%s: with another subject: %q, want both to refuse it", names[i], said)
			}
		}
	}
	t.Logf("verified: %v", kinds)
	if kinds["composed"] < 50 || kinds["raw"] < 5 || kinds["template"] < 100 {
		t.Errorf("the shapes are %v", kinds)
	}
}

// BenchmarkSign is what a signature adds to composing: 5 KB of text and html.
func BenchmarkSign(b *testing.B) {
	key := signingKey()
	text := strings.Repeat("A line of text, as people write them.\n", 65)
	m := &Message{From: Address{Mailbox: "shop@x.example"}, To: []Address{{Mailbox: "a@y.example"}}, Subject: "Hello", Text: text, HTML: "<p>" + text + "</p>",
		MessageID: "1@x.example", Date: time.Unix(1790000000, 0).UTC()}
	s := &dkim.Signer{Domain: "x.example", Selector: "s1", Key: key}
	run := func(sign bool) func(*testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ps, err := Compose(m)
				if err != nil {
					b.Fatal(err)
				}
				if !sign {
					continue
				}
				header, body, err := Split(ps)
				if err != nil {
					b.Fatal(err)
				}
				sum, _ := dkim.SumBody(func(w io.Writer) error {
					for _, p := range body {
						_, _ = w.Write(p.Bytes())
					}
					return nil
				})
				if _, err := s.Sign(header, sum, m.Date); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("compose", run(false))
	b.Run("compose+sign", run(true))
	digest := make([]byte, 32)
	b.Run("rsa", func(b *testing.B) {
		for b.Loop() {
			if _, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest); err != nil {
				b.Fatal(err)
			}
		}
	})
}
