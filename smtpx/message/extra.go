package message

import (
	"errors"
	"fmt"
	"mime"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxAlternatives is how many further forms of its content a mail may have.
const MaxAlternatives = 5

// Alternative is a further form of the content, which stands behind text and html in
// multipart/alternative (RFC 2046 5.1.4): an invitation in text/calendar, for programs that
// know what to do with it.
type Alternative struct {
	ContentType string // text/*, but plain and html
	Content     string
}

// mediaType is the checked type. What a calendar does stands in it twice, and both have to say
// the same (RFC 6047 2.4): Outlook goes by the parameter, others by the METHOD.
func (a *Alternative) mediaType() (string, error) {
	t, params, err := mime.ParseMediaType(a.ContentType)
	switch {
	case err != nil || len(a.ContentType) > 200 || !plainASCII(a.ContentType):
		return "", errors.New("is not a media type")
	case !strings.HasPrefix(t, "text/") || t == "text/plain" || t == "text/html":
		return "", errors.New("is not a text type other than text/plain and text/html, which have fields of their own")
	case params["charset"] != "" && !strings.EqualFold(params["charset"], "utf-8"):
		return "", errors.New("has a charset other than utf-8")
	}
	delete(params, "charset")
	if t == "text/calendar" {
		method, err := calendarMethod(a.Content)
		if err != nil {
			return "", err
		}
		if given := params["method"]; given != "" && !strings.EqualFold(given, method) {
			return "", fmt.Errorf("says method=%s, and the content says METHOD:%s", given, method)
		}
		if params["method"] = method; method == "" {
			delete(params, "method")
		}
	}
	out := t
	for _, k := range sortedKeys(params) {
		one := mime.FormatMediaType("x/x", map[string]string{k: params[k]})
		if one == "" {
			return "", errors.New("is not a media type")
		}
		out += ";\n" + strings.TrimPrefix(one, "x/x;")
	}
	return out, nil
}

var token = regexp.MustCompile(`^[A-Za-z0-9-]{1,40}$`)

// calendarMethod is what a calendar asks for, in upper case; "" = nothing.
func calendarMethod(s string) (string, error) {
	// long lines are folded with a line end and a blank (RFC 5545 3.1)
	s = strings.NewReplacer("\n ", "", "\n\t", "").Replace(strings.TrimPrefix(lfLines(s), "\ufeff"))
	lines := strings.Split(strings.Trim(s, "\n"), "\n")
	if !strings.EqualFold(lines[0], "BEGIN:VCALENDAR") || !strings.EqualFold(lines[len(lines)-1], "END:VCALENDAR") {
		return "", errors.New("is text/calendar, and the content is not from BEGIN:VCALENDAR to END:VCALENDAR")
	}
	method, depth := "", 0
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ":")
		switch name = strings.ToUpper(name); {
		case name == "BEGIN":
			depth++
		case name == "END":
			depth--
		case name == "METHOD" || strings.HasPrefix(name, "METHOD;"):
			if depth != 1 || method != "" || !token.MatchString(value) {
				return "", errors.New("is text/calendar, and the content has a METHOD that is no method, or more than one")
			}
			method = strings.ToUpper(value)
		}
	}
	return method, nil
}

func (m *Message) validateAlternatives(bad func(field, format string, args ...any)) {
	if len(m.Alternatives) > MaxAlternatives {
		bad("alternatives", "has more than %d entries", MaxAlternatives)
	}
	seen := map[string]bool{}
	for i, a := range m.Alternatives {
		field := fmt.Sprintf("alternatives[%d].", i)
		switch {
		case a.Content == "":
			bad(field+"content", "is required")
			continue
		case !utf8.ValidString(a.Content):
			bad(field+"content", "is not valid UTF-8")
			continue
		case strings.IndexByte(a.Content, 0) >= 0:
			bad(field+"content", "contains a NUL")
			continue
		}
		t, err := a.mediaType()
		if err != nil {
			bad(field+"content_type", "%v", err)
			continue
		}
		if t, _, _ = strings.Cut(t, ";"); seen[t] {
			bad(field+"content_type", "is given twice")
		}
		seen[t] = true
	}
}

// alternatives are the parts behind text and html.
func (c *composer) alternatives() (parts []part) {
	for _, a := range c.m.Alternatives {
		t, err := a.mediaType()
		c.write(err)
		parts = append(parts, c.body(t, a.Content))
	}
	return parts
}

// validateFromName: a name of a mail's own may not show another address than the sender's.
func (m *Message) validateFromName(bad func(field, format string, args ...any)) {
	if m.FromName == "" {
		return
	}
	if r, is := control(m.FromName); is {
		bad("from_name", "contains the control character %U", r)
		return
	}
	switch r, is := invisible(m.FromName); {
	case !utf8.ValidString(m.FromName):
		bad("from_name", "is not valid UTF-8")
	case utf8.RuneCountInString(m.FromName) > MaxDisplayName:
		bad("from_name", "has more than %d characters", MaxDisplayName)
	case is:
		bad("from_name", "has the invisible character %U", r)
	case strings.Trim(m.FromName, " ") == "":
		bad("from_name", "is blank")
	}
}

// showsOther reports whether the mail's own name shows an address that is not the sender's.
func (m *Message) showsOther() bool {
	return slices.ContainsFunc(strings.FieldsFunc(m.FromName, func(r rune) bool { return strings.ContainsRune(" <>()[]\",;:", r) }), func(word string) bool {
		word = strings.NewReplacer("\uff20", "@", "\ufe6b", "@").Replace(word)
		shown, err := mailbox(word)
		return err == nil && (Address{Mailbox: shown}).Key() != m.From.Key()
	})
}

// sender is the From of the mail.
func (m *Message) sender() Address {
	a := m.From
	if m.FromName != "" {
		a.Name = m.FromName
	}
	return a
}

// autoSubmitted tells programs that no person wrote the mail, so that they answer it with
// nothing (RFC 3834 5).
const autoSubmitted = "Auto-Submitted"

// HasVariables reports whether something of the message begins a variable.
func (m *Message) HasVariables() bool {
	for _, s := range []string{m.Subject, m.Text, m.HTML, m.FromName} {
		if strings.Contains(s, "{{") {
			return true
		}
	}
	return m.Unsubscribe.HasVariables() || slices.ContainsFunc(m.Alternatives, func(a Alternative) bool { return strings.Contains(a.Content, "{{") })
}
