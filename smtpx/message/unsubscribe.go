package message

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Unsubscribe says how a recipient leaves a list with one click in the mail program, without
// opening a page: List-Unsubscribe (RFC 2369) and List-Unsubscribe-Post (RFC 8058).
//
// Both may have variables, whose values are percent-encoded, so that they stay values. A URL
// that is one variable and nothing else is the value as it is.
type Unsubscribe struct {
	URL    string // https, which is what RFC 8058 asks for
	Mailto string // an address, also with ?subject= behind it
}

const (
	listUnsubscribe     = "List-Unsubscribe"
	listUnsubscribePost = "List-Unsubscribe-Post"
	// MaxUnsubscribe is how many octets the URL may have, and the address: a line that nothing
	// breaks (RFC 5322 2.1.1).
	MaxUnsubscribe = 900
)

// Empty reports whether there is no way.
func (u Unsubscribe) Empty() bool { return u.URL == "" && u.Mailto == "" }

// unsubscribe is an Unsubscribe cut at its variables.
type unsubscribe struct{ url, mailto []run }

// Validate lists what is wrong with it but for values. Field paths are those of the API's
// SendOptions.
func (u Unsubscribe) Validate() (vs []Violation) {
	u.cut(func(field, format string, args ...any) {
		vs = append(vs, Violation{field, fmt.Sprintf(format, args...)})
	})
	return vs
}

// told is for what Validate has checked.
func told(string, string, ...any) {}

// HasVariables reports whether something of it begins a variable.
func (u Unsubscribe) HasVariables() bool { return strings.Contains(u.URL+" "+u.Mailto, "{{") }

// cut checks all that does not depend on values. Field paths are those of the API's
// SendOptions.
func (u Unsubscribe) cut(bad func(field, format string, args ...any)) (out unsubscribe) {
	read := func(field, s string) []run {
		runs, at := cutVariables(s)
		if at >= 0 {
			bad(field, `has "{{" at octet %d that begins no variable`, at)
			return nil
		}
		if len(s) > MaxUnsubscribe {
			bad(field, "has more than %d octets", MaxUnsubscribe)
			return nil
		}
		return runs
	}
	// what a value could stand for, so that the rest is checked
	sample := func(runs []run) string {
		var b strings.Builder
		for _, r := range runs {
			b.WriteString(r.literal)
			if r.name != "" {
				b.WriteString("x")
			}
		}
		return b.String()
	}
	if runs := read("unsubscribe_url", u.URL); len(runs) > 0 {
		if out.url = runs; !isOneValue(runs) {
			if !urlStart.MatchString(runs[0].literal) && len(runs) > 1 {
				bad("unsubscribe_url", "has a variable before the path: write https://host/ first, or one variable that is the whole URL")
			} else if _, err := unsubscribeURL(sample(runs)); err != nil {
				bad("unsubscribe_url", "%v", err)
			}
		}
	}
	if runs := read("unsubscribe_mailto", u.Mailto); len(runs) > 0 {
		out.mailto = runs
		if _, err := unsubscribeMailto(sample(runs)); err != nil {
			bad("unsubscribe_mailto", "%v", err)
		} else if i := slices.IndexFunc(runs, func(r run) bool { return r.name != "" }); i == 0 {
			bad("unsubscribe_mailto", "begins with a variable: the address is the same for all")
		}
	}
	return out
}

var urlStart = regexp.MustCompile(`^(?i)https://[^/?#]+[/?#]`)

func isOneValue(runs []run) bool { return len(runs) == 1 && runs[0].name != "" }

func unsubscribeURL(s string) (string, error) {
	if len(s) < len("https://") || !strings.EqualFold(s[:len("https://")], "https://") {
		return "", fmt.Errorf("is not an https URL, which one click needs")
	}
	u, err := headerURL(s)
	if err != nil {
		return "", err
	}
	if _, err := url.Parse(u); err != nil || !plainASCII(u) || strings.Contains(u, ",") {
		return "", fmt.Errorf("is not a URL, or has a comma that must be percent-encoded in it")
	}
	if len(u) > MaxUnsubscribe {
		return "", fmt.Errorf("becomes longer than %d octets", MaxUnsubscribe)
	}
	return u, nil
}

func unsubscribeMailto(s string) (string, error) {
	s = strings.TrimPrefix(s, "mailto:")
	address, query, more := strings.Cut(s, "?")
	a, err := ParseAddress(address)
	if err != nil {
		return "", err
	}
	if a.Name != "" || a.NeedsUTF8() {
		return "", fmt.Errorf("is not a plain address such as leave@x.example")
	}
	// of what RFC 6068 2 allows in front of the query, a % would begin an encoded octet
	out := "mailto:" + strings.NewReplacer("%", "%25", "/", "%2F", "?", "%3F", "#", "%23", "&", "%26", "^", "%5E", "`", "%60", "{", "%7B", "|", "%7C", "}", "%7D").Replace(a.Mailbox)
	if more {
		q, err := headerURL("mailto:x?" + query)
		if err != nil || strings.Contains(q, ",") {
			return "", fmt.Errorf("has something behind the ? that is not percent-encoded")
		}
		out += strings.TrimPrefix(q, "mailto:x")
	}
	if len(out) > MaxUnsubscribe {
		return "", fmt.Errorf("becomes longer than %d octets", MaxUnsubscribe)
	}
	return out, nil
}

// escaped puts values into a URL.
func escaped(runs []run, values map[string]string) string {
	if isOneValue(runs) {
		return values[runs[0].name]
	}
	var b strings.Builder
	for _, r := range runs {
		b.WriteString(r.literal)
		if r.name != "" {
			b.WriteString(strings.ReplaceAll(url.QueryEscape(values[r.name]), "+", "%20"))
		}
	}
	return b.String()
}

// names are the variables in it.
func (u *unsubscribe) names() (out []string) {
	for _, r := range slices.Concat(u.url, u.mailto) {
		if r.name != "" && !slices.Contains(out, r.name) {
			out = append(out, r.name)
		}
	}
	return out
}

// wrong lists what the values of a mail make wrong; those that are missing are not its
// business.
func (u *unsubscribe) wrong(values map[string]string) (vs []Violation) {
	for _, n := range u.names() {
		if _, ok := values[n]; !ok {
			return nil
		}
	}
	for _, x := range []struct {
		runs  []run
		check func(string) (string, error)
	}{{u.url, unsubscribeURL}, {u.mailto, unsubscribeMailto}} {
		var last string
		for _, r := range x.runs {
			if r.name != "" {
				last = r.name
			}
		}
		if last == "" {
			continue
		}
		if _, err := x.check(escaped(x.runs, values)); err != nil {
			vs = append(vs, Violation{"variables." + last, "stands in a way to unsubscribe, which " + err.Error()})
		}
	}
	return vs
}

// fields are the header fields; what it holds was checked.
func (u *unsubscribe) fields(f *fields, values map[string]string) {
	var ways []string
	if len(u.url) > 0 {
		if s, err := unsubscribeURL(escaped(u.url, values)); err == nil {
			ways = append(ways, "<"+s+">")
		}
	}
	if len(u.mailto) > 0 {
		if s, err := unsubscribeMailto(escaped(u.mailto, values)); err == nil {
			ways = append(ways, "<"+s+">")
		}
	}
	if len(ways) == 0 {
		return
	}
	f.add(listUnsubscribe, strings.Join(ways, ",\n "))
	if len(u.url) > 0 {
		f.add(listUnsubscribePost, "List-Unsubscribe=One-Click")
	}
}
