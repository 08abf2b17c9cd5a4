package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
)

// maxShown is how much of one foreign text a line shows.
const maxShown = 500

// safe is a foreign text that a terminal may show.
func safe(s string) string { return plain.Text(s, maxShown) }

// jsonText is a message as one line of JSON that a terminal may show.
func jsonText(m proto.Message) string { return plain.JSON(m) }

// word is an enum's value in the short form that people type: failed, no-such-mailbox.
func word(e protoreflect.Enum) string { return plain.Word(e) }

// fromWord reads such a word.
func fromWord(what string, e protoreflect.Enum, s string) (protoreflect.EnumNumber, error) {
	if n, ok := plain.FromWord(e, s); ok {
		return n, nil
	}
	return 0, usage("%s is one of %s, not %q", what, strings.Join(plain.Words(e), ", "), s)
}

// moment reads a time: how long ago (90m, 2d, 3w), a day (2026-11-30) or RFC 3339.
func moment(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	t, err := plain.Moment(s, now)
	if err != nil {
		return nil, usage("--%s %v", flag, err)
	}
	return t, nil
}

// ofTeam reads --team of a listing: "" = no matter whose, "-" = the system's own.
func ofTeam(s string) *string {
	if s == "" {
		return nil
	}
	team := strings.TrimPrefix(s, "-")
	return &team
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
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return plain.Words(e), cobra.ShellCompDirectiveNoFileComp
	}
}
