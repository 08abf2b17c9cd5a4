package plain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// maxMarks is how many marks a letter may have: more than any language puts on one, and few
// enough not to cover the lines around it.
const maxMarks = 4

// Text is a foreign text, such as a mail server's reply or a subject, that a terminal or a page
// may show: what controls it, changes the direction of text or is not seen is written as its
// number; so are marks without end on one letter. Of longer texts the first most runes are
// shown.
func Text(s string, most int) string {
	var b strings.Builder
	n, marks := 0, 0
	for _, r := range s {
		if n++; n > most {
			b.WriteString("…")
			break
		}
		if marks++; !unicode.Is(unicode.M, r) {
			marks = 0
		}
		switch {
		case marks > maxMarks:
			fmt.Fprintf(&b, `\u{%x}`, r)
		case r == '\n' || r == '\t':
			b.WriteByte(' ')
		case r == utf8.RuneError, unicode.IsControl(r), !unicode.IsPrint(r) && r != ' ':
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// JSON is a message as one line of JSON that a terminal may show.
func JSON(m proto.Message) string {
	return Compact(protojson.MarshalOptions{UseProtoNames: true}, m)
}

// Compact is a message in one line, without the random blanks of protojson, and with what a
// terminal must not see escaped.
func Compact(o protojson.MarshalOptions, m proto.Message) string {
	b, err := o.Marshal(m)
	var out bytes.Buffer
	if err == nil {
		err = json.Compact(&out, b)
	}
	if err != nil {
		return fmt.Sprintf(`{"error": %q}`, err.Error())
	}
	var s strings.Builder
	for _, r := range out.String() {
		switch {
		case r < utf8.RuneSelf || unicode.IsPrint(r):
			s.WriteRune(r)
		case r > 0xffff:
			hi, lo := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			fmt.Fprintf(&s, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&s, `\u%04x`, r)
		}
	}
	return s.String()
}
