package plain

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Word is an enum's value in the short form that people type: failed, no-such-mailbox.
func Word(e protoreflect.Enum) string {
	v := e.Descriptor().Values().ByNumber(e.Number())
	if v == nil {
		return strconv.Itoa(int(e.Number()))
	}
	return short(v)
}

func short(v protoreflect.EnumValueDescriptor) string {
	d := v.Parent().(protoreflect.EnumDescriptor)
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix(d))), "_", "-")
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

// Words are all words of an enum but that of zero.
func Words(e protoreflect.Enum) (out []string) {
	values := e.Descriptor().Values()
	for i := 1; i < values.Len(); i++ {
		out = append(out, short(values.Get(i)))
	}
	return out
}

// FromWord reads such a word; false for one that there is not.
func FromWord(e protoreflect.Enum, s string) (protoreflect.EnumNumber, bool) {
	d := e.Descriptor()
	name := prefix(d) + strings.ToUpper(strings.ReplaceAll(strings.ReplaceAll(s, "-", "_"), " ", "_"))
	if v := d.Values().ByName(protoreflect.Name(name)); v != nil && v.Number() != 0 {
		return v.Number(), true
	}
	return 0, false
}

// Moment reads a time: how long ago (90m, 2d, 3w), a day (2026-11-30) or RFC 3339. A time
// without a zone is one of this machine.
func Moment(s string, now time.Time) (*timestamppb.Timestamp, error) {
	if d, err := Span(s); err == nil {
		return timestamppb.New(now.Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, fmt.Errorf("is how long ago (90m, 2d, 3w), a day (2026-11-30) or a time (RFC 3339), not %q", s)
}

// Span reads a duration that may be in days or weeks.
func Span(s string) (time.Duration, error) {
	for unit, d := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, err := strconv.ParseFloat(strings.TrimSuffix(s, unit), 64); err == nil && strings.HasSuffix(s, unit) {
			return time.Duration(n * float64(d)), nil
		}
	}
	return time.ParseDuration(s)
}
