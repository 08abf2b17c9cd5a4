package message

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/maildispatch/maildispatch/smtpx/internal/idn"
)

// Limits of what may be composed. Octets unless said otherwise.
const (
	MaxLocalPart    = 64       // RFC 5321 4.5.3.1.1
	MaxDomain       = 255      // RFC 5321 4.5.3.1.2
	MaxAddress      = 4 << 10  // an address as it is written, name, quotes and all
	MaxDisplayName  = 200      // characters
	MaxSubject      = 900      // below the 998 of a line (RFC 5322 2.1.1) before encoding
	MaxHeaders      = 50       // custom ones
	MaxHeaderValue  = 900      //
	MaxHeaderName   = 64       //
	MaxAttachments  = 100      //
	MaxFilename     = 255      // characters
	MaxMailBytes    = 10 << 20 // raw message, unless a mail server says otherwise
	MaxMailBytesCap = 25 << 20 // raw message, whatever a mail server says
	MaxPerMail      = 500      // recipients over to, cc, bcc
	shareFrom       = 64 << 10 // encoded attachments from this size on are shareable pieces
)

// Address is a checked mailbox. Mailbox is what goes on the wire: the local part as given
// (NFC) and the domain as A-label in lower case.
type Address struct {
	Name    string // display name, any Unicode; may be empty
	Mailbox string
}

// ParseAddress reads one address: "a@x.example", "Name <a@x.example>" or "\"Na, me\"
// <a@x.example>".
//
// Only dot-atom local parts (RFC 5322 3.2.3, RFC 6531 letters included) and host names are
// taken: quoted local parts, comments, routes, groups and domain literals have no use in mail
// to customers and are the known ways to smuggle a second address or a parameter into RCPT TO.
func ParseAddress(s string) (Address, error) {
	var a Address
	if len(s) > MaxAddress {
		// first, because the work on a domain grows with the square of its length
		return a, fmt.Errorf("is longer than %d octets", MaxAddress)
	}
	if !utf8.ValidString(s) {
		return a, errors.New("is not valid UTF-8")
	}
	if r, bad := control(s); bad {
		return a, fmt.Errorf("contains the control character %U", r)
	}
	s = strings.Trim(s, " ") // and no other space: what is odd is refused, not mended
	if s == "" {
		return a, errors.New("is empty")
	}
	box, title := s, ""
	if i := strings.LastIndexByte(s, '<'); i >= 0 {
		if !strings.HasSuffix(s, ">") {
			return a, errors.New("has text behind the address")
		}
		box = s[i+1 : len(s)-1]
		title = strings.Trim(s[:i], " ")
		name, err := displayName(title)
		if err != nil {
			return a, err
		}
		a.Name = name
	}
	var err error
	if a.Mailbox, err = mailbox(box); err != nil {
		return a, err
	}
	// Without quotes the name may have been meant as the address, or be shown as it.
	if strings.ContainsAny(title, atSigns) && title[0] != '"' {
		if shown, err := mailbox(title); err != nil || (Address{Mailbox: shown}).Key() != a.Key() {
			return a, errors.New("has a name that holds an @ and is not the address: put the name in quotes")
		}
	}
	return a, nil
}

// atSigns are what a reader takes for an @.
const atSigns = "@\uff20\ufe6b"

// displayName reads a bare or quoted name.
func displayName(s string) (string, error) {
	if strings.HasPrefix(s, `"`) {
		if len(s) < 2 || !strings.HasSuffix(s, `"`) {
			return "", errors.New("has a name with an unfinished quote")
		}
		var b strings.Builder
		esc := false
		for _, r := range s[1 : len(s)-1] {
			switch {
			case esc:
				b.WriteRune(r)
				esc = false
			case r == '\\':
				esc = true
			case r == '"':
				return "", errors.New("has a name with a quote in the middle")
			default:
				b.WriteRune(r)
			}
		}
		if esc {
			return "", errors.New("has a name with an unfinished quote")
		}
		s = b.String()
	} else if strings.ContainsAny(s, `<>"`) {
		return "", errors.New("has more than one address, or a name that needs quotes")
	}
	if utf8.RuneCountInString(s) > MaxDisplayName {
		return "", fmt.Errorf("has a name of more than %d characters", MaxDisplayName)
	}
	if r, is := invisible(s); is {
		return "", fmt.Errorf("has a name with the invisible character %U", r)
	}
	return s, nil
}

// invisible finds a character by which a name shows as something else than it is: an override
// of the direction of text, a line separator, hidden formatting.
//
// Taken are the joiners and marks that keyboards and word processors leave in names (U+200B to
// U+200F, U+FEFF, U+00AD), and the tags of a flag such as that of Scotland (UTS 51 ED-14a).
func invisible(s string) (rune, bool) {
	const flag, tags, end = '\U0001F3F4', 8, '\U000E007F' // tags: of one flag, at most
	left := 0
	for _, r := range s {
		switch {
		case r == flag:
			left = tags
			continue
		case left > 0 && r >= '\U000E0020' && r <= end:
			left--
			continue
		case r >= '\u200b' && r <= '\u200f', r == '\ufeff', r == '\u00ad':
		case unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp), r == utf8.RuneError:
			return r, true
		}
		left = 0
	}
	return 0, false
}

func mailbox(s string) (string, error) {
	local, domain, ok := strings.Cut(s, "@")
	if !ascii(local) {
		local = norm.NFC.String(local) // RFC 6532 3.1: so that one address is one recipient
	}
	switch {
	case !ok:
		return "", errors.New("has no @")
	case strings.Contains(domain, "@"):
		return "", errors.New("has more than one @")
	case local == "":
		return "", errors.New("has nothing before the @")
	case len(local) > MaxLocalPart:
		return "", fmt.Errorf("has more than %d octets before the @", MaxLocalPart)
	case strings.HasPrefix(local, ".") || strings.HasSuffix(local, ".") || strings.Contains(local, ".."):
		return "", errors.New("has a misplaced dot before the @")
	}
	for _, r := range local {
		if r < 0x80 {
			if !isAtext(byte(r)) && r != '.' {
				return "", fmt.Errorf("has %q before the @, which is not supported", r)
			}
		} else if !unicode.IsLetter(r) && !unicode.IsMark(r) && !unicode.IsDigit(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return "", fmt.Errorf("has the character %U before the @", r)
		}
	}
	if strings.HasPrefix(domain, "[") {
		return "", errors.New("has an address literal as domain, which is not supported")
	}
	if len(domain) > 4*MaxDomain { // in UTF-8, before it is mapped
		return "", errors.New("has a domain that is not a host name")
	}
	d, err := idn.ASCII(domain)
	var other idn.Mapped
	switch {
	case errors.As(err, &other):
		return "", fmt.Errorf("has a domain that %w", other)
	case err != nil || len(d) > MaxDomain:
		return "", errors.New("has a domain that is not a host name")
	case strings.Trim(d[strings.LastIndexByte(d, '.')+1:], "0123456789") == "": // RFC 3696 2
		return "", errors.New("has an IP address as domain, which would need an address literal, and that is not supported")
	}
	return local + "@" + d, nil
}

// isAtext: RFC 5322 3.2.3.
func isAtext(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

// control finds a character that must never reach a header or a command.
func control(s string) (rune, bool) {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return r, true
		}
	}
	return 0, false
}

// Local is the part before the @.
func (a Address) Local() string { l, _, _ := strings.Cut(a.Mailbox, "@"); return l }

// Domain is the part behind the @, as A-label.
func (a Address) Domain() string { _, d, _ := strings.Cut(a.Mailbox, "@"); return d }

// NeedsUTF8 reports whether the mailbox can travel only by SMTPUTF8 (RFC 6531).
func (a Address) NeedsUTF8() bool { return !ascii(a.Mailbox) }

// Key is the mailbox for comparing and searching: without case.
func (a Address) Key() string { return strings.ToLower(a.Mailbox) }

// String is the address for people and for parsing again: the name quoted where it needs to be,
// nothing encoded.
func (a Address) String() string {
	if a.Name == "" {
		return a.Mailbox
	}
	return quoteName(a.Name) + " <" + a.Mailbox + ">"
}

// quoteName quotes a name where it has to be: for its characters, or for spaces that the reader
// of a phrase would drop.
func quoteName(s string) string {
	if strings.Trim(s, " ") != s || strings.Contains(s, "  ") || strings.ContainsAny(s, atSigns) {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	for i := range len(s) {
		if c := s[i]; c < 0x80 && !isAtext(c) && c != ' ' {
			return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
		}
	}
	return s
}
