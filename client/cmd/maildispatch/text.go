package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// maxShown is how much of one foreign text a line shows.
const maxShown = 500

// safe is a foreign text, such as a mail server's reply or a subject, that a terminal may show:
// what controls it, changes the direction of text or is not seen is written as its number.
func safe(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > maxShown {
			b.WriteString("…")
			break
		}
		switch {
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

// jsonText is a message as one line of JSON that a terminal may show.
func jsonText(m proto.Message) string {
	return compact(protojson.MarshalOptions{UseProtoNames: true}, m)
}

// compact is a message in one line, without the random blanks of protojson, and with what a
// terminal must not see escaped.
func compact(o protojson.MarshalOptions, m proto.Message) string {
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

// word is an enum's value in the short form that people type: failed, no-such-mailbox.
func word(e protoreflect.Enum) string {
	v := e.Descriptor().Values().ByNumber(e.Number())
	if v == nil {
		return strconv.Itoa(int(e.Number()))
	}
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix(e.Descriptor()))), "_", "-")
}

// prefix is what all values of an enum begin with: its own name.
func prefix(d protoreflect.EnumDescriptor) string {
	var b strings.Builder
	for i, r := range string(d.Name()) {
		if i > 0 && unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToUpper(r))
	}
	return b.String() + "_"
}

// fromWord reads such a word.
func fromWord(what string, e protoreflect.Enum, s string) (protoreflect.EnumNumber, error) {
	d := e.Descriptor()
	name := prefix(d) + strings.ToUpper(strings.ReplaceAll(strings.ReplaceAll(s, "-", "_"), " ", "_"))
	if v := d.Values().ByName(protoreflect.Name(name)); v != nil && v.Number() != 0 {
		return v.Number(), nil
	}
	var all []string
	for i := 1; i < d.Values().Len(); i++ {
		all = append(all, strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(string(d.Values().Get(i).Name()), prefix(d))), "_", "-"))
	}
	return 0, usage("%s is one of %s, not %q", what, strings.Join(all, ", "), s)
}

// moment reads a time: how long ago (90m, 2d, 3w), a day (2026-11-30) or RFC 3339.
func moment(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := span(s); err == nil {
		return timestamppb.New(now.Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, usage("--%s is how long ago (90m, 2d, 3w), a day (2026-11-30) or a time (RFC 3339), not %q", flag, s)
}

// span reads a duration that may be in days or weeks.
func span(s string) (time.Duration, error) {
	for unit, d := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, err := strconv.ParseFloat(strings.TrimSuffix(s, unit), 64); err == nil && strings.HasSuffix(s, unit) {
			return time.Duration(n * float64(d)), nil
		}
	}
	return time.ParseDuration(s)
}

// clock is a time as people read it, in their zone.
func clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// plural is "1 mail", "2 mails".
func plural[N int | int32 | int64](n N, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// table prints rows in columns. Every cell has to be safe.
func (a *app) table(rows [][]string) {
	var width []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		a.printf("%s\n", strings.TrimRight(b.String(), " "))
	}
}

// recipientsOf are a mail's recipients in a few words.
func recipientsOf(m *maildispatchv1.Mail) string {
	switch n := len(m.GetRecipients()); n {
	case 0:
		return "-"
	case 1:
		return safe(m.Recipients[0].Address)
	default:
		return fmt.Sprintf("%s +%d", safe(m.Recipients[0].Address), n-1)
	}
}

// indented is a message as JSON for a person.
func indented(m proto.Message) string {
	var out bytes.Buffer
	if err := json.Indent(&out, []byte(jsonText(m)), "", "  "); err != nil {
		return jsonText(m)
	}
	return out.String()
}

// words completes an enum's values.
func words(e protoreflect.Enum) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(*cobra.Command, []string, string) (out []string, _ cobra.ShellCompDirective) {
		d := e.Descriptor()
		for i := 1; i < d.Values().Len(); i++ {
			out = append(out, strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(string(d.Values().Get(i).Name()), prefix(d))), "_", "-"))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
