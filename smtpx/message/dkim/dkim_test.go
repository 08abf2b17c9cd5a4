package dkim

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
)

var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := NewKey()
	if err != nil {
		panic(err)
	}
	return key
})

var at = time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)

func sign(t testing.TB, s *Signer, message string) []byte {
	t.Helper()
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	sum, err := SumBody(func(w io.Writer) error { _, err := io.WriteString(w, body); return err })
	if err != nil {
		t.Fatal(err)
	}
	field, err := s.Sign([]byte(header+"\r\n"), sum, at)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(field), "\r\n") {
		if len(line) > maxLine && len(line) > len(s.Domain)+10 {
			t.Errorf("the line %q has %d octets", line, len(line))
		}
	}
	return field
}

// verify has somebody else's program look at a signed message.
func verify(t testing.TB, s *Signer, message []byte) error {
	t.Helper()
	public, err := PublicKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	vs, err := dkim.VerifyWithOptions(bytes.NewReader(message), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		if name != RecordName(s.Domain, s.Selector) {
			return nil, fmt.Errorf("asked for %s", name)
		}
		return []string{Record(public)}, nil
	}})
	if err != nil || len(vs) != 1 {
		return fmt.Errorf("%d signatures: %w", len(vs), err)
	}
	return vs[0].Err
}

const plain = "Date: Mon, 30 Nov 2026 09:00:00 +0000\r\nFrom: Shop <shop@x.example>\r\nTo: a@y.example,\r\n b@y.example\r\nSubject: Hello  there \r\n" +
	"X-Other: x\r\nList-Id: <l.x.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain;\r\n charset=utf-8\r\n\r\nHello \t world \r\n\r\n .dot\r\n\r\n\r\n"

// TestSign: what is signed verifies, survives what relays do, and nothing that matters can be
// changed, added or put in front.
func TestSign(t *testing.T) {
	s := &Signer{Domain: "x.example", Selector: "s1", Key: testKey()}
	signed := string(sign(t, s, plain)) + plain
	for name, x := range map[string]struct {
		old, new string
		ok       bool
	}{
		"as it is":                    {"", "", true},
		"a header folded anew":        {"\r\n b@y.example", " b@y.example", true},
		"blanks at a line's end":      {"world \r\n", "world\r\n", true},
		"blanks within a line":        {"Hello \t world", "Hello world", true},
		"no empty lines at the end":   {"dot\r\n\r\n\r\n", "dot\r\n", true},
		"a trace header":              {"Date: Mon", "Received: from x\r\nDate: Mon", true},
		"a header that is not signed": {"X-Other: x", "X-Other: y", true},
		"another subject":             {"Hello  there", "Hello there!", false},
		"another body":                {".dot", "dot", false},
		"a blank less":                {"Hello \t world", "Helloworld", false},
		"another recipient":           {"a@y.example", "c@y.example", false},
		"another list":                {"<l.x", "<m.x", false},
		"a second From":               {"Date: Mon", "From: evil@z.example\r\nDate: Mon", false},
		"a From below":                {"X-Other:", "From: evil@z.example\r\nX-Other:", false},
		"another content type":        {"text/plain", "text/html", false},
	} {
		changed := signed
		if x.old != "" {
			changed = strings.Replace(signed, x.old, x.new, 1)
			if changed == signed {
				t.Errorf("%s: %q is not there", name, x.old)
			}
		}
		if err := verify(t, s, []byte(changed)); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if again := string(sign(t, s, plain)) + plain; again != signed {
		t.Error("the same message has another signature")
	}
	rest, is := Strip([]byte(signed))
	if !is || string(rest) != plain {
		t.Errorf("Strip leaves %q", rest)
	}
	if rest, is := Strip([]byte(plain)); is || string(rest) != plain {
		t.Errorf("Strip takes from what is not signed: %q", rest)
	}
}

// TestSignRefuses: a message without exactly one From is not signed.
func TestSignRefuses(t *testing.T) {
	s := &Signer{Domain: "x.example", Selector: "s1", Key: testKey()}
	for _, header := range []string{"To: a@x.example\r\n", "From: a@x.example\r\nfrom: b@x.example\r\n", "From: a@x.example\r\nno field\r\n", ""} {
		if field, err := s.Sign([]byte(header), BodySum{}, at); err == nil {
			t.Errorf("%q is signed: %s", header, field)
		}
	}
}

// TestLongNames: neither a long domain nor many fields break the field.
func TestLongNames(t *testing.T) {
	label := strings.Repeat("a", 60)
	s := &Signer{Domain: label + "." + label + "." + label + ".example", Selector: "s1", Key: testKey()}
	var b strings.Builder
	for i := range 60 {
		fmt.Fprintf(&b, "List-Header-Number-%d: x\r\n", i)
	}
	message := b.String() + plain
	if err := verify(t, s, append(sign(t, s, message), message...)); err != nil {
		t.Error(err)
	}
}

var blanks = regexp.MustCompile(`[ \t]+`)

// relaxedBody is RFC 6376 3.4.4 as it stands there.
func relaxedBody(b string) string {
	lines := strings.Split(b, "\r\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(blanks.ReplaceAllString(l, " "), " ")
	}
	if out := strings.TrimRight(strings.Join(lines, "\r\n"), "\r\n"); out != "" {
		return out + "\r\n"
	}
	return ""
}

// TestBodyInRuns: however a body is cut, its hash is that of the whole.
func TestBodyInRuns(t *testing.T) {
	luck := rand.New(rand.NewPCG(1, 2))
	words := []string{" ", "\t", "\r\n", "\r\n\r\n", "a", "word", ".", strings.Repeat("QUJD", 19) + "\r\n", strings.Repeat("x", 5000), strings.Repeat(strings.Repeat("QUJD", 19)+"\r\n", 220)}
	for range 80 {
		var b strings.Builder
		for range luck.IntN(12) {
			b.WriteString(words[luck.IntN(len(words))])
		}
		body := b.String()
		got, _ := SumBody(func(w io.Writer) error {
			for rest := body; rest != ""; {
				n := 1 + luck.IntN(min(len(rest), 1+luck.IntN(20000)))
				_, _ = io.WriteString(w, rest[:n])
				rest = rest[n:]
			}
			return nil
		})
		if want := BodySum(sha256.Sum256([]byte(relaxedBody(body)))); got != want {
			t.Fatalf("the sum of %.200q is another when it is cut", body)
		}
	}
}

// TestKeys: a key as openssl writes it is read, and nothing else.
func TestKeys(t *testing.T) {
	der, err := MarshalDER(testKey())
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if key, err := ParseKey(text); err != nil || !key.Equal(testKey()) {
		t.Errorf("%v", err)
	}
	for name, bad := range map[string]string{"nothing": "", "text": "secret", "two keys": text + text, "a certificate": strings.ReplaceAll(text, "PRIVATE KEY", "CERTIFICATE"),
		"a damaged key": text[:100] + "\n-----END PRIVATE KEY-----\n", "1 MB": text + strings.Repeat("\n", 1<<20)} {
		if _, err := ParseKey(bad); err != ErrKey {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCompare: what a receiver would make of the records.
func TestCompare(t *testing.T) {
	for _, x := range []struct {
		records []string
		wrong   string
		missing bool
	}{
		{[]string{Record("QUJD")}, "", false},
		{[]string{"v=spf1 -all", " v=DKIM1 ; p=QU JD\t; k=rsa; h=sha1 : sha256; s=email; n=a note; t=s"}, "", false},
		{[]string{"p=QUJD"}, "", false},
		{nil, "there is no DKIM record", true},
		{[]string{"v=spf1 -all", "v=DMARC1; p=QUJD", "hello"}, "there is no DKIM record", true},
		{[]string{Record("QUJE")}, "another key", false},
		{[]string{Record("")}, "revokes", false},
		{[]string{Record("QUJD"), Record("QUJD")}, "2 DKIM records", false},
		{[]string{"v=DKIM1; k=ed25519; p=QUJD"}, "kind of key", false},
		{[]string{"v=DKIM1; h=sha1; p=QUJD"}, "SHA-256", false},
		{[]string{"v=DKIM1; s=tlsrpt; p=QUJD"}, "not for mail", false},
		{[]string{"v=DKIM1; t=y:s; p=QUJD"}, "tests", false},
	} {
		wrong, missing := Compare(x.records, "QUJD")
		if missing != x.missing || !strings.Contains(wrong, x.wrong) || (wrong == "") != (x.wrong == "") {
			t.Errorf("%q: got %q %v, want %q %v", x.records, wrong, missing, x.wrong, x.missing)
		}
	}
}
