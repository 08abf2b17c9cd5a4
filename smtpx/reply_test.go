package smtpx

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func readReply(r io.Reader) (Reply, []string, string, error) {
	br := bufio.NewReaderSize(r, maxLine)
	rep, lines, err := replyReader{br}.read()
	rest, _ := io.ReadAll(io.LimitReader(br, 1<<20))
	return rep, lines, string(rest), err
}

// TestReply: what is read out of a good reply, and that not a byte behind it is touched.
func TestReply(t *testing.T) {
	for in, want := range map[string]Reply{
		"250 ok\r\n": {250, "", "ok"},
		// some relays end lines so; where a line ends is no doubt
		"250 ok\n": {250, "", "ok"},
		// RFC 5321 4.2: a client must not insist on a text
		"250\r\n":                           {250, "", ""},
		"250 \r\n":                          {250, "", ""},
		"250-a\r\n250-b\r\n250 c\r\n":       {250, "", "a b c"},
		"250-a\r\n250\r\n":                  {250, "", "a"},
		"250-\r\n250-b\r\n250 \r\n":         {250, "", "b"},
		"550 5.1.1 no such user\r\n":        {550, "5.1.1", "no such user"},
		"550-5.1.1 no\r\n550 5.1.1 one\r\n": {550, "5.1.1", "no one"},
		"550 5.1.1\r\n":                     {550, "5.1.1", ""},
		"550 5.123.999 x\r\n":               {550, "5.123.999", "x"},
		"550 4.1.1 other class\r\n":         {550, "", "4.1.1 other class"},
		"550 5.1 x\r\n":                     {550, "", "5.1 x"},
		"550 5.1.1234 x\r\n":                {550, "", "5.1.1234 x"},
		"550 5.1.1x\r\n":                    {550, "", "5.1.1x"},
		"550 5.-1.1 x\r\n":                  {550, "", "5.-1.1 x"},
		"354 go\r\n":                        {354, "", "go"},
		"299 odd\r\n":                       {299, "", "odd"},
		"250 a\x1b[31m\x00b\x07\x7fc\r\n":   {250, "", "a [31m b  c"},
		"250 a\u009b31mb\u0085c\r\n":        {250, "", "a 31mb c"},
		"250 a\rb\r\n":                      {250, "", "a b"},
		"250 gr\xfc\xdf\r\n":                {250, "", "gr?"},
		"250 grüß 語\r\n":                    {250, "", "grüß 語"},
		"250 " + strings.Repeat("x", maxLine-6) + "\r\n": {250, "", strings.Repeat("x", maxText)},
		"250 " + strings.Repeat("語", 1000) + "\r\n":      {250, "", strings.Repeat("語", maxText/3) + "?"},
	} {
		const behind = "250 next\r\nx"
		rep, lines, rest, err := readReply(strings.NewReader(in + behind))
		if err != nil || rep != want || rest != behind || len(lines) != strings.Count(in, "\n") {
			t.Errorf("%.60q: %+v, %d lines, %v, rest %.60q", in, rep, len(lines), err, rest)
		}
	}
}

// TestDoubtfulReplies: what is not a reply without doubt is an error, never a code.
func TestDoubtfulReplies(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for in, want := range map[string]error{
		"":             io.EOF,
		"2":            io.EOF,
		"250":          io.EOF,
		"250 ok":       io.EOF, // cut in the middle: the relay may have meant more
		"250 ok\r":     io.EOF,
		"250-a\r\n":    io.EOF,
		"250-a\r\n250": io.EOF,
		"\r\n":         errProtocol, "\n": errProtocol, " \r\n": errProtocol,
		"25\r\n": errProtocol, "25 ok\r\n": errProtocol, "2500 ok\r\n": errProtocol, "250ok\r\n": errProtocol, "250\tok\r\n": errProtocol, "250\x00\r\n": errProtocol, "250_ok\r\n": errProtocol, "250=ok\r\n": errProtocol, "250\r\r\n": errProtocol,
		" 250 ok\r\n": errProtocol, "\x00250 ok\r\n": errProtocol, "\ufeff250 ok\r\n": errProtocol, "ok\r\n": errProtocol, "+OK ready\r\n": errProtocol, "HTTP/1.1 200 OK\r\n": errProtocol, "SSH-2.0-x\r\n": errProtocol, "\x16\x03\x01\x02\x00\n": errProtocol,
		"2x0 ok\r\n": errProtocol, "25o ok\r\n": errProtocol, "-50 ok\r\n": errProtocol, "+50 ok\r\n": errProtocol, "2.5 ok\r\n": errProtocol, "２５０ ok\r\n": errProtocol,
		"000 ok\r\n": errProtocol, "099 ok\r\n": errProtocol, "150 ok\r\n": errProtocol, "199 ok\r\n": errProtocol, "600 ok\r\n": errProtocol, "999 ok\r\n": errProtocol,
		// Continuation lines that disagree.
		"250-a\r\n550 b\r\n": errProtocol, "250-a\r\n251 b\r\n": errProtocol, "550-a\r\n250 b\r\n": errProtocol, "250-a\r\n250-b\r\n450 c\r\n": errProtocol, "250-a\r\nb\r\n": errProtocol, "250-a\r\n\r\n": errProtocol, "250-a\r\n 250 b\r\n": errProtocol, "250-a\r\n250_b\r\n": errProtocol,
		"250 " + long + "\r\n":          errReplyTooLong,
		long:                            errReplyTooLong,
		"250-a\r\n250 " + long + "\r\n": errReplyTooLong,
		strings.Repeat("250-x\r\n", maxReply/7+1):                   errReplyTooLong,
		strings.Repeat("250-"+long[:4000]+"\r\n", 17) + "250 x\r\n": errReplyTooLong,
	} {
		rep, lines, _, err := readReply(strings.NewReader(in))
		if !errors.Is(err, want) || lines != nil {
			t.Errorf("%.40q: %+v, %v, want %v", in, rep, err, want)
		}
	}
}

// endless repeats its text for ever and counts what was read.
type endless struct {
	text string
	at   int
	read int64
}

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = e.text[e.at%len(e.text)]
		e.at++
	}
	e.read += int64(len(b))
	return len(b), nil
}

// TestEndlessReply: a reply that never ends costs 64 KiB, not the memory of the machine.
func TestEndlessReply(t *testing.T) {
	for _, text := range []string{"x", "2", "250-", "250-x\r\n", "250-" + strings.Repeat("y", 4000) + "\r\n", "\x00", "語"} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		e := &endless{text: text}
		_, _, err := replyReader{bufio.NewReaderSize(e, maxLine)}.read()
		runtime.ReadMemStats(&after)
		if err == nil || e.read > maxReply+2*maxLine {
			t.Errorf("%.20q: %v after %d octets", text, err, e.read)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 2<<20 {
			t.Errorf("%.20q: %d octets of memory", text, got)
		}
	}
}

// grammar is RFC 5321 4.2 as a whole, with bare LF and no text allowed: a second reading of the
// same bytes.
var grammar = regexp.MustCompile(`^((?:([2-5][0-9]{2})-[^\n]*\n)*)([2-5][0-9]{2})(?:\r?\n| [^\n]*\n)`)

func FuzzReply(f *testing.F) {
	for _, s := range []string{
		"250 ok\r\n", "250-a\r\n250 b\r\n", "250-a\r\n550 b\r\n", "250 ok\n", "250\r\n", "250\r\r\n", "2x0 ok\r\n", "250 ok", "250-", "550 5.1.1 no\r\n250 ok\r\n", "550-5.1.1 a\r\n550 5.1.2 b\r\n", "250 \x00\x1b[31m\xff\r\n",
		"354 go\r\n250 x\r\n", "000 \r\n", "250_a\r\n", strings.Repeat("250-x\r\n", 40) + "250 y\r\n", "250 " + strings.Repeat("z", 5000) + "\r\n", "250-\n250\n", "250 5.0.0\r\n", "250-5.0.0\r\n250 5.0.0x\r\n", "250 queued as \r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		rep, lines, rest, err := readReply(bytes.NewReader(in))
		m := grammar.FindSubmatch(in)
		if err != nil {
			if lines != nil {
				t.Fatalf("%q: lines with %v", in, err)
			}
			return // too careful is never wrong; TestReply says what has to be read
		}
		if m == nil {
			t.Fatalf("%q is no reply and was read as %+v", in, rep)
		}
		whole, code := string(m[0]), string(m[3])
		if string(in) != whole+rest && len(in) < 1<<20 {
			t.Fatalf("%q: the reply is %q, and left was %q", in, whole, rest)
		}
		for l := range strings.Lines(whole) {
			if l[:3] != code {
				t.Fatalf("%q: lines disagree, and it was read as %+v", in, rep)
			}
		}
		if fmt.Sprint(rep.Code) != code || len(lines) != strings.Count(whole, "\n") || len(whole) > maxReply {
			t.Fatalf("%q was read as %+v with %d lines", in, rep, len(lines))
		}
		if rep.Enhanced != "" && (!regexp.MustCompile(`^[245]\.[0-9]{1,3}\.[0-9]{1,3}$`).MatchString(rep.Enhanced) && rep.Code/100 != 3 || rep.Enhanced[0] != code[0]) {
			t.Fatalf("%q: enhanced code %q", in, rep.Enhanced)
		}
		for _, s := range append(lines, rep.Text, rep.String(), remoteID(rep.Text)) {
			if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
				t.Fatalf("%q: text %q", in, s)
			}
		}
		if len(rep.Text) > maxText+1 || len(remoteID(rep.Text)) > 128 {
			t.Fatalf("%d octets of text are kept", len(rep.Text))
		}
	})
}

// TestRemoteID: the relay's own id for a mail, as relays tell it.
func TestRemoteID(t *testing.T) {
	for text, want := range map[string]string{
		"2.0.0 Ok: queued as 4F2A1":                     "4F2A1",
		"Mail OK queued as smtp8,DMCoAB.1S2 1589212273": "smtp8,DMCoAB.1S2",
		"ok valid=yes":                       "",
		"ok valid=yes id=1abc-0003Xy-2z":     "1abc-0003Xy-2z",
		"OK id=1abc-0003Xy-2z":               "1abc-0003Xy-2z",
		"2.0.0 Ok (queued as <4F2A1>)":       "4F2A1",
		"Ok: queued as 4F2A1, thanks":        "4F2A1",
		"Ok: queued as 4F2A1.":               "4F2A1",
		"x7AB Message accepted for delivery": "x7AB",
		"unqueued as 4F2A1":                  "",
		"queued as ":                         "",
		"2.6.0 <a@b> [InternalId=123, Hostname=h] Queued mail for delivery": "",
	} {
		if got := remoteID(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// TestHostShowsWhereItIs: a name that IDNA maps to another one is refused with that.
func TestHostShowsWhereItIs(t *testing.T) {
	for _, in := range []string{"\u24d4vil.test", "\uff45vil.test", "evil\u3002test"} {
		if h, err := Host(in); err == nil || !strings.Contains(err.Error(), "would become evil.test") {
			t.Errorf("%q: got %q, %v", in, h, err)
		}
	}
	for in, want := range map[string]string{"b\u00fccher.test": "xn--bcher-kva.test", "bu\u0308cher.test": "xn--bcher-kva.test", "Mail.Test": "Mail.Test"} {
		if h, err := Host(in); err != nil || h != want {
			t.Errorf("%q: got %q, %v, want %q", in, h, err, want)
		}
	}
}
