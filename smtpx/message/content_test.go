package message

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// An upload is encoded in pieces of any size, and Compose refers to it as if it had encoded the
// file itself.
func TestAttachmentEncoderIsWhatComposeWrites(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 2))
	for _, size := range []int{0, 1, 2, 3, 56, 57, 58, 113, 114, 115, 57 * 32, 57*32 + 1, 57 * 33, 5000, 70_000} {
		file := make([]byte, size)
		for i := range file {
			file[i] = byte(rnd.Uint32())
		}
		compose := func(a Attachment) []Piece {
			a.Filename = "a.pdf"
			ps, err := Compose(&Message{From: mustAddress(t, "a@x.example"), Subject: "s", Text: "t", MessageID: "1@x.example", Attachments: []Attachment{a}})
			if err != nil {
				t.Fatal(err)
			}
			return ps
		}
		want := compose(Attachment{Content: file})
		for _, chunk := range []int{1, 2, 56, 57, 58, 1000, size + 1} {
			var b bytes.Buffer
			e := NewAttachmentEncoder(&b)
			for rest := file; len(rest) > 0; {
				k := min(chunk, len(rest))
				if n, err := e.Write(rest[:k]); n != k || err != nil {
					t.Fatal(n, err)
				}
				rest = rest[k:]
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			if int64(b.Len()) != EncodedSize(int64(size)) {
				t.Fatalf("%d octets in chunks of %d: %d encoded, EncodedSize says %d", size, chunk, b.Len(), EncodedSize(int64(size)))
			}
			stored := NewContent(bytes.Clone(b.Bytes()))
			got := compose(Attachment{Stored: stored})
			if !bytes.Equal(Join(got), Join(want)) {
				t.Fatalf("%d octets in chunks of %d: another message", size, chunk)
			}
			known := &Content{Sum: stored.Sum, Size: stored.Size}
			refers := false
			for _, p := range compose(Attachment{Stored: known}) {
				refers = refers || p.Shared == known && p.Length == known.Size && p.Bytes() == nil
			}
			if refers != (size > 0) {
				t.Fatalf("%d octets: the message does not refer to what is stored", size)
			}
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestAttachmentEncoderTellsOfErrors(t *testing.T) {
	e := NewAttachmentEncoder(fullDisk{})
	if _, err := e.Write(make([]byte, 57)); err == nil {
		t.Error("the write's error is lost")
	}
	if e.Close() == nil {
		t.Error("Close forgets the error")
	}
}

// What one mail has to itself is stored with it; large files and uploads stay to be shared.
func TestOwnKeepsLargeFilesShared(t *testing.T) {
	upload := &Content{Sum: [32]byte{1}, Size: 10}
	large := bytes.Repeat([]byte("%PDF"), 30<<10)
	tp := mustTemplate(t, &Message{Text: "dear {{a}}", HTML: "<p>{{a}}</p>", Attachments: []Attachment{{Filename: "a.pdf", Content: large}, {Filename: "b.pdf", Stored: upload}}})
	ps := filled(t, tp, fillOf(t, map[string]string{"a": "x"}))
	before := Size(ps)
	own := Own(ps)
	if Size(own) != before || len(own) != 5 || own[0].Shared != nil || own[1].Shared == nil || own[2].Shared != nil || own[3].Shared != upload || own[4].Shared != nil {
		t.Fatalf("%d bytes of %d in %d pieces", Size(own), before, len(own))
	}
	again := filled(t, tp, fillOf(t, map[string]string{"a": "x"}))
	for i := range again {
		if !bytes.Equal(again[i].Bytes(), ps[i].Bytes()) {
			t.Fatal("Own changed the template or its mail")
		}
	}
}

func TestReissue(t *testing.T) {
	at := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	rt := mustAddress(t, "r@x.example")
	for name, m := range map[string]*Message{
		"short":      {Text: "t"},
		"long":       {Subject: strings.Repeat("发票 ", 200), Text: "Message-ID: <no>\r\nDate: no\r\n", ReplyTo: []Address{rt}, Headers: map[string]string{"X-Id": "Message-ID: <x@y>"}},
		"multipart":  {Text: "t", HTML: "h", Attachments: []Attachment{{Filename: "a.pdf", Content: make([]byte, 80<<10)}}},
		"odd header": {Text: "t", Headers: map[string]string{"X-A": strings.Repeat("a", 70) + " Message-ID: <x@y>", "A": strings.Repeat("b ", 400)}},
	} {
		t.Run(name, func(t *testing.T) {
			m.From, m.MessageID, m.Date = mustAddress(t, "Rechnung <billing@x.example>"), "0190-old@x.example", time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
			m.To = []Address{mustAddress(t, `"Message-ID: <x>" <a@y.example>`)}
			ps, err := Compose(m)
			if err != nil {
				t.Fatal(err)
			}
			raw := Join(ps)
			want := strings.Replace(strings.Replace(string(raw), "Mon, 23 Nov 2026 10:00:00 +0000", "Sat, 02 Jan 2027 03:04:05 +0000", 1),
				"\r\nMessage-ID: <0190-old@x.example>\r\n", "\r\nMessage-ID: <0190-new@x.example>\r\n", 1)
			head := bytes.Index(raw, []byte("\r\n\r\n")) + 4
			for _, n := range []int{head, head + 1, len(raw)} {
				got, err := Reissue(raw[:n], "0190-new@x.example", at)
				if err != nil || string(got)+string(raw[n:]) != want {
					t.Fatalf("%q (%v), want %q", got, err, want)
				}
			}
			back, err := Reissue([]byte(want), m.MessageID, m.Date)
			if err != nil || !bytes.Equal(back, raw) {
				t.Fatalf("there and back: %q (%v)", back, err)
			}
			if _, err := Reissue(raw[:head-3], "0190-new@x.example", at); err == nil {
				t.Error("a header without its end is taken")
			}
		})
	}
	good := "Date: x\r\nFrom: a@x.example\r\nMessage-ID: <1@x.example>\r\nMIME-Version: 1.0\r\n\r\n"
	for name, tc := range map[string]struct{ head, id string }{
		"date elsewhere": {"From: a@x.example\r\nDate: x\r\nMessage-ID: <1@x.example>\r\n\r\n", "2@x"},
		"no message id":  {"Date: x\r\nFrom: a@x.example\r\n\r\nMessage-ID: <1@x.example>\r\n", "2@x"},
		"two":            {"Date: x\r\nFrom: a@x.example\r\nMessage-ID: <1@x>\r\nMessage-ID: <2@x>\r\n\r\n", "2@x"},
		"unfinished":     {"Date: x\r\nFrom: a@x.example\r\nMessage-ID: <1@x\r\n\r\n", "2@x"},
		"empty id":       {good, ""},
		"id with CRLF":   {good, "2@x>\r\nBcc: <v@x"},
		"empty":          {"", "2@x"},
	} {
		if got, err := Reissue([]byte(tc.head), tc.id, at); err == nil {
			t.Errorf("%s: taken: %q", name, got)
		}
	}
	if _, err := Reissue([]byte(good), "2@x", at); err != nil {
		t.Fatal(err)
	}
}

// TestReaddress: the right address takes the place of the wrong one wherever To and Cc show it,
// and nowhere else.
func TestReaddress(t *testing.T) {
	t.Parallel()
	const rest = "\r\nwrong@x.example\r\n"
	for name, tc := range map[string]struct{ head, want string }{
		"bare":             {"To: wrong@x.example\r\n", "To: right@y.example\r\n"},
		"named":            {"To: Ann <Wrong@X.example>\r\n", "To: Ann <right@y.example>\r\n"},
		"in a name":        {"To: \"wrong@x.example \\\" \" <wrong@x.example>\r\n", "To: \"wrong@x.example \\\" \" <right@y.example>\r\n"},
		"folded":           {"Cc: a@x.example,\r\n wrong@x.example,\r\n b@x.example\r\n", "Cc: a@x.example,\r\n right@y.example,\r\n b@x.example\r\n"},
		"part of another":  {"To: xwrong@x.example, wrong@x.example.org\r\n", "To: xwrong@x.example, wrong@x.example.org\r\n"},
		"another header":   {"Subject: wrong@x.example\r\n wrong@x.example\r\nTo: a@x.example\r\n", "Subject: wrong@x.example\r\n wrong@x.example\r\nTo: a@x.example\r\n"},
		"header of a part": {"To: a@x.example\r\n\r\nTo: wrong@x.example\r\n", "To: a@x.example\r\n\r\nTo: wrong@x.example\r\n"},
	} {
		if got := string(Readdress([]byte(tc.head+rest), "wrong@x.example", "right@y.example")); got != tc.want+rest {
			t.Errorf("%s: got %q, want %q", name, got, tc.want+rest)
		}
	}
}
