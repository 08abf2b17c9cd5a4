package message

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxLine is the length of a header line without its line end, in octets. RFC 2047 2 allows 76
// for a line with an encoded word, RFC 5322 2.1.1 recommends 78 for every other.
const maxLine = 76

// fields is a header in the order it is written.
//
// A value holds a mark (fold) before each blank at which its line may be broken. Whoever makes
// the value sets the marks, since only its syntax tells where a break changes nothing: between
// the addresses of a list and never inside a quoted name (RFC 5322 2.2.3).
type fields []struct{ k, v string }

// fold marks the blank behind it. No checked value holds an octet like it.
const fold = '\n'

func (f *fields) add(k, v string) { *f = append(*f, struct{ k, v string }{k, v}) }

// write writes the fields, without the empty line behind them.
func (f fields) write(b *bytes.Buffer) {
	for _, kv := range f {
		b.WriteString(kv.k)
		b.WriteString(": ")
		if len(kv.k)+2+len(kv.v) <= maxLine && strings.IndexByte(kv.v, fold) < 0 {
			b.WriteString(kv.v)
		} else {
			foldTo(b, len(kv.k)+2, kv.v)
		}
		b.WriteString("\r\n")
	}
}

// foldTo writes a value whose line has col octets already. What is not a mark before a blank
// breaks no line, so that no text can begin a header field.
func foldTo(b *bytes.Buffer, col int, v string) {
	for v != "" {
		part, rest := v, ""
		if i := strings.IndexByte(v, fold); i >= 0 {
			part, rest = v[:i], v[i+1:]
		}
		b.WriteString(part)
		col += len(part)
		next := rest
		if i := strings.IndexByte(rest, fold); i >= 0 {
			next = rest[:i]
		}
		if strings.HasPrefix(rest, " ") && col+len(next) > maxLine {
			b.WriteString("\r\n")
			col = 0
		}
		v = rest
	}
}

// textValue is the value of an unstructured field (RFC 5322 3.6.5): as it is where every reader
// takes it so, else in encoded words.
func textValue(name, s string) string {
	switch {
	case !plainASCII(s) || strings.Trim(s, " ") != s:
		return encodeWords(len(name)+2, s)
	case len(name)+2+len(s) <= maxLine:
		return s
	}
	// Some readers make one blank of those around a line break, so lines break at single ones.
	var b strings.Builder
	length, blanks := len(name)+2, false // of what cannot be broken; more than one blank in it
	for i := range len(s) {
		length++
		switch {
		case s[i] != ' ':
		case s[i-1] == ' ' || s[i+1] == ' ': // s neither begins nor ends with one
			blanks = true
		default:
			b.WriteByte(fold)
			length, blanks = 1, false
		}
		if blanks && length > maxLine {
			return encodeWords(len(name)+2, s)
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// plainASCII reports whether s is printable ASCII that no reader takes for an encoded word.
func plainASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return !strings.Contains(s, "=?")
}

// encodeWords splits s at runes into encoded words (RFC 2047 2) of at most 75 octets each, the
// first of which fits into a line that has col octets already.
func encodeWords(col int, s string) string {
	const (
		frame = len("=?utf-8?b?") + len("?=")
		most  = (75 - frame) / 4 * 3 // octets that base64 puts into a word
		least = 6                    // so that every rune fits, and a line is not wasted
	)
	var b strings.Builder
	room := min((maxLine-col-frame)/4*3, most)
	if room < least { // of a very long name
		b.WriteString("\n ")
		room = most
	}
	for len(s) > 0 {
		n := 0
		for n < len(s) {
			_, size := utf8.DecodeRuneInString(s[n:])
			if n+size > room {
				break
			}
			n += size
		}
		b.WriteString("=?utf-8?b?" + base64.StdEncoding.EncodeToString([]byte(s[:n])) + "?=")
		if s = s[n:]; s != "" {
			b.WriteString("\n ")
		}
		room = most
	}
	return b.String()
}

// addressList is the value of a field of addresses (RFC 5322 3.4).
func addressList(name string, as []Address) string {
	if len(as) == 1 {
		return as[0].header(name)
	}
	hs := make([]string, len(as))
	for i, a := range as {
		hs[i] = a.header(name)
	}
	return strings.Join(hs, ",\n ")
}

// header is the address as a field of this name holds it. A quoted name is short enough for a
// line of its own, and is never broken; a longer one is encoded.
func (a Address) header(name string) string {
	if a.Name == "" {
		return a.Mailbox
	}
	return phrase(name, a.Name) + "\n <" + a.Mailbox + ">"
}

func phrase(field, s string) string {
	if plainASCII(s) {
		if q := quoteName(s); len(field)+2+len(q) <= maxLine {
			return q
		}
	}
	return encodeWords(len(field)+2, s)
}

// filenameParam is the parameter for a file name: quoted where it is plain ASCII that a line
// can hold, else RFC 2231, in continuations so that no line grows too long.
func filenameParam(name string) string {
	if name == "" {
		return ""
	}
	if plainASCII(name) {
		if p := ` filename="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`; len(p) <= maxLine {
			return ";\n" + p
		}
	}
	var enc strings.Builder
	var chunks []string
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".-_", c) >= 0 {
			enc.WriteByte(c)
		} else {
			fmt.Fprintf(&enc, "%%%02X", c)
		}
		if enc.Len() > 47 { // of 76, after " filename*99*=utf-8''" and before ";"
			chunks = append(chunks, enc.String())
			enc.Reset()
		}
	}
	if enc.Len() > 0 {
		chunks = append(chunks, enc.String())
	}
	if len(chunks) == 1 {
		return ";\n filename*=utf-8''" + chunks[0]
	}
	var b strings.Builder
	for i, ch := range chunks {
		lead := ""
		if i == 0 {
			lead = "utf-8''"
		}
		fmt.Fprintf(&b, ";\n filename*%d*=%s%s", i, lead, ch)
	}
	return b.String()
}
