package message

import (
	"errors"
	"fmt"
	"net/textproto"
	"regexp"
	"strings"

	"github.com/maildispatch/maildispatch/smtpx/internal/idn"
)

// MaxAddressList is how many addresses a list in one string may have.
const MaxAddressList = 50

// structuredHeaders are the headers of a caller's own that programs read. What they hold is
// checked and written by its syntax; as text a part of it could become an encoded word, in
// which nobody looks for an address (RFC 2047 5).
var structuredHeaders = map[string]func(name, s string) (string, error){
	"Disposition-Notification-To": addressesValue, // RFC 8098 2.1
	"Errors-To":                   addressesValue,
	"Mail-Followup-To":            addressesValue,
	"Mail-Reply-To":               addressesValue,
	"Return-Receipt-To":           addressesValue,
	"X-Confirm-Reading-To":        addressesValue,
	"In-Reply-To":                 idsValue, // RFC 5322 3.6.4
	"References":                  idsValue,
	"Supersedes":                  idsValue,
	"List-Id":                     listIDValue, // RFC 2919
	"List-Archive":                urlsValue,   // RFC 2369
	"List-Help":                   urlsValue,
	"List-Owner":                  urlsValue,
	"List-Post":                   urlsValue,
	"List-Subscribe":              urlsValue,
	"List-Unsubscribe":            urlsValue,
	"List-Unsubscribe-Post":       oneClickValue, // RFC 8058
}

// customValue is the value of a header of the caller's own, with its marks, and what is wrong
// with it.
func customValue(name, s string) (string, error) {
	if f := structuredHeaders[textproto.CanonicalMIMEHeaderKey(name)]; f != nil {
		return f(name, strings.Trim(s, " "))
	}
	return textValue(name, s), nil
}

// ownHeaders writes the caller's headers, which are checked by now, and with auto that no
// person wrote the mail, unless they say something else about it.
func (f *fields) ownHeaders(headers map[string]string, auto bool) {
	for k := range headers {
		auto = auto && textproto.CanonicalMIMEHeaderKey(k) != autoSubmitted
	}
	if auto {
		f.add(autoSubmitted, "auto-generated")
	}
	for _, k := range sortedKeys(headers) {
		v, err := customValue(k, headers[k])
		if err != nil {
			v = textValue(k, headers[k])
		}
		f.add(k, v)
	}
}

// MergeHeaders are the headers that mails share and one's own, which stand in the place of
// those with the same name.
func MergeHeaders(shared, own map[string]string) map[string]string {
	hs := map[string]string{}
	names := map[string]bool{}
	for k, v := range own {
		names[textproto.CanonicalMIMEHeaderKey(k)] = true
		hs[k] = v
	}
	for k, v := range shared {
		if !names[textproto.CanonicalMIMEHeaderKey(k)] {
			hs[k] = v
		}
	}
	return hs
}

// ParseAddressList reads addresses with commas between them. A comma that no address precedes
// belongs to a name, so "Lee, Ann <a@x.example>" is one.
func ParseAddressList(s string) ([]Address, error) {
	var as []Address
	seen := map[string]bool{}
	for rest := s; ; {
		one := rest[:addressEnd(rest)]
		a, err := ParseAddress(one)
		if err != nil {
			if len(one) < len(s) {
				err = fmt.Errorf("address %d of the list %w", len(as)+1, err)
			}
			return nil, err
		}
		if !seen[a.Key()] {
			seen[a.Key()] = true
			as = append(as, a)
		}
		switch {
		case len(one) == len(rest):
			return as, nil
		case len(as) == MaxAddressList:
			return nil, fmt.Errorf("has more than %d addresses", MaxAddressList)
		}
		rest = rest[len(one)+1:]
	}
}

// addressEnd is where the first address of a list ends: at a comma behind an "@", outside
// quotes.
func addressEnd(s string) int {
	quoted, at := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '@':
			at = true
		case c == ',' && at:
			return i
		}
	}
	return len(s)
}

func addressesValue(name, s string) (string, error) {
	as, err := ParseAddressList(s)
	if err != nil {
		return "", err
	}
	for _, a := range as {
		if a.NeedsUTF8() { // which would make the whole mail need SMTPUTF8
			return "", errors.New("has an address with characters beyond ASCII before the @")
		}
	}
	return addressList(name, as), nil
}

var messageID = regexp.MustCompile(`^ *(<[!-;=?-~]+>)`)

func idsValue(_, s string) (string, error) {
	var ids []string
	for s != "" {
		m := messageID.FindStringSubmatch(s)
		if m == nil {
			break
		}
		ids = append(ids, m[1])
		s = s[len(m[0]):]
	}
	if s != "" || len(ids) == 0 {
		return "", errors.New("is not one or more message ids such as <id@host.example>, with blanks between them")
	}
	return strings.Join(ids, "\n "), nil
}

var listID = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

func listIDValue(name, s string) (string, error) {
	i := strings.LastIndexByte(s, '<')
	if i < 0 || !strings.HasSuffix(s, ">") || len(s)-i > MaxDomain || !listID.MatchString(s[i+1:len(s)-1]) {
		return "", errors.New("is not a list id such as Name <news.shop.example>")
	}
	id := s[i:]
	title, err := displayName(strings.Trim(s[:i], " "))
	if err != nil || title == "" {
		return id, err
	}
	return phrase(name, title) + "\n " + id, nil
}

func oneClickValue(_, s string) (string, error) {
	if s != "List-Unsubscribe=One-Click" {
		return "", errors.New("can only be List-Unsubscribe=One-Click")
	}
	return s, nil
}

// urlsValue is a list of URLs in angle brackets; List-Post may say NO.
func urlsValue(name, s string) (string, error) {
	if s == "NO" && textproto.CanonicalMIMEHeaderKey(name) == "List-Post" {
		return s, nil
	}
	var urls []string
	for rest, more := s, true; more; {
		var one string
		rest = strings.Trim(rest, " ")
		end := strings.IndexByte(rest, '>')
		if !strings.HasPrefix(rest, "<") || end < 0 {
			return "", errors.New("is not one or more URLs such as <https://x.example/u>, in angle brackets and with commas between them")
		}
		one, rest = rest[1:end], strings.Trim(rest[end+1:], " ")
		u, err := headerURL(one)
		if err != nil {
			return "", err
		}
		urls = append(urls, "<"+u+">")
		if more = rest != ""; more && rest[0] != ',' {
			return "", errors.New("has text behind a URL")
		}
		rest = strings.TrimPrefix(rest, ",")
	}
	return strings.Join(urls, ",\n "), nil
}

var urlScheme = regexp.MustCompile(`^(?i)(https?://[^/?#]|mailto:.)`)

// headerURL is a URL as a header holds it: a host as its A-labels, and every other octet beyond
// ASCII in percent-encoding (RFC 3987 3.1).
func headerURL(s string) (string, error) {
	if !urlScheme.MatchString(s) {
		return "", errors.New("has a URL whose scheme is none of https, http and mailto")
	}
	if strings.ContainsAny(s, " <>\"\\^`{|}") {
		return "", errors.New("has a URL with a character that must be percent-encoded in it")
	}
	if i := strings.Index(s, "://"); i >= 0 && s[0]|0x20 == 'h' {
		from := i + len("://")
		authority := s[from:]
		if j := strings.IndexAny(authority, "/?#"); j >= 0 {
			authority = authority[:j]
		}
		from += strings.LastIndexByte(authority, '@') + 1
		name, _, _ := strings.Cut(s[from:i+len("://")+len(authority)], ":")
		if !ascii(name) {
			host, err := idn.ASCII(name)
			if err != nil {
				return "", fmt.Errorf("has a URL with a host that %w", err)
			}
			s = s[:from] + host + s[from+len(name):]
		}
	}
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x80 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String(), nil
}
