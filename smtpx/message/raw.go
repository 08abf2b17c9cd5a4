package message

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
)

// Raw is a finished message of a caller's own, such as a signed invoice. It leaves byte for
// byte as it came, but for two things: Bcc is taken out, and a missing Message-ID is put on
// top. Both stand outside what S/MIME and PGP sign (RFC 1847 2.1).
type Raw struct {
	To, Cc, Bcc []Address
	MessageID   string // without <>; "" = it has none
	Subject     string // decoded, for people
	data        []byte // without Bcc
	from        []Address
	sender      []Address
	errorsTo    map[string]string // and what else only the mail server can tell
}

const (
	maxRawDepth = 20   // of multiparts in each other
	maxRawParts = 1000 // over all
	maxRawID    = 250
)

var (
	rawName = regexp.MustCompile(`^[!-9;-~]{1,76}$`)
	rawID   = regexp.MustCompile(`^<[!-;=?-~]+@[!-;=?-~]+>$`)
	// once is what RFC 5322 3.6 and RFC 2045 3 allow only once.
	once = []string{"From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Date", "Message-Id", "In-Reply-To", "References", "Subject",
		"Mime-Version", "Content-Type", "Content-Transfer-Encoding", "Content-Id", "Content-Disposition"}
	// ofMessage are those of the refused headers that a whole message has.
	ofMessage = []string{"Bcc", "From", "Sender", "To", "Cc", "Reply-To", "Subject", "Date", "Message-Id", "Mime-Version",
		"Content-Type", "Content-Transfer-Encoding", "Content-Id", "Content-Disposition", "Content-Description", "Content-Language"}
)

// ParseRaw reads a message strictly: what two readers could take differently is refused. The
// field of every violation is "raw".
func ParseRaw(b []byte) (*Raw, []Violation) {
	var vs []Violation
	bad := func(format string, args ...any) {
		if len(vs) < 20 {
			vs = append(vs, Violation{"raw", fmt.Sprintf(format, args...)})
		}
	}
	rawLines(b, bad)
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		bad("has no empty line behind its header")
	}
	if len(vs) > 0 {
		return nil, vs
	}
	r, body := &Raw{errorsTo: map[string]string{}}, b[end+4:]
	header := map[string]string{}
	from := 0 // of what is kept
	for at := 0; at < end+2; {
		next := at
		for first := true; first || next < end+2 && (b[next] == ' ' || b[next] == '\t'); first = false {
			next += bytes.Index(b[next:], []byte("\r\n")) + 2
		}
		field := string(b[at : next-2])
		name, value, ok := strings.Cut(field, ":")
		canon := textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !ok || !rawName.MatchString(name):
			bad("has a header line that is not name: value: %.60q", field)
		case denied(canon) && !slices.Contains(ofMessage, canon):
			bad("has the header %s, which may not be set", canon)
		case slices.Contains(once, canon) && has(header, canon):
			bad("has the header %s twice", canon)
		}
		for line := range strings.SplitSeq(field, "\r\n") {
			if strings.Trim(line, " \t") == "" {
				bad("has a line of blanks in the header %s", canon)
			}
		}
		value = strings.Trim(strings.ReplaceAll(value, "\r\n", ""), " \t")
		header[canon] = value
		if canon == errorsTo || provider(canon) {
			r.errorsTo[name] = value
		}
		if canon == "Bcc" {
			r.data = append(r.data, b[from:at]...)
			from = next
		}
		at = next
	}
	r.data = append(r.data, b[from:]...)
	if _, err := mail.ParseDate(header["Date"]); err != nil {
		bad("has no Date, or one that is none")
	}
	if id := header["Message-Id"]; id != "" && rawID.MatchString(id) && len(id) <= maxRawID {
		r.MessageID = id[1 : len(id)-1]
	} else if has(header, "Message-Id") {
		bad("has a Message-ID that is not <id@host> of at most %d octets", maxRawID)
	}
	for _, list := range []struct {
		name string
		to   *[]Address
	}{{"From", &r.from}, {"Sender", &r.sender}, {"To", &r.To}, {"Cc", &r.Cc}, {"Bcc", &r.Bcc}} {
		var err error
		if *list.to, err = rawAddresses(header[list.name]); err != nil {
			bad("has a %s that %v", list.name, err)
		}
	}
	if len(r.from) != 1 {
		bad("has no From of one address")
	}
	r.Subject = rawText(header["Subject"])
	if has(header, "Content-Type") && header["Mime-Version"] != "1.0" {
		bad("has a Content-Type and not MIME-Version: 1.0")
	}
	parts := 0
	if err := rawPart(header["Content-Type"], body, 0, &parts); err != nil {
		bad("has a body that %v", err)
	}
	if len(vs) > 0 {
		return nil, vs
	}
	return r, nil
}

func has(m map[string]string, k string) bool { _, is := m[k]; return is }

// rawLines: lines that every relay leaves alone. What is beyond ASCII would be encoded anew by
// a relay without 8BITMIME, and a signature be broken.
func rawLines(b []byte, bad func(format string, args ...any)) {
	if !bytes.HasSuffix(b, []byte("\r\n")) {
		bad("does not end with CRLF")
	}
	number, start := 1, 0
	for i, c := range b {
		switch {
		case c == '\n' && (i == 0 || b[i-1] != '\r'), c == '\r' && (i+1 == len(b) || b[i+1] != '\n'):
			bad("has a line end in line %d that is not CRLF", number)
			return
		case c == 0:
			bad("has a NUL in line %d", number)
			return
		case c >= 0x80:
			bad("has an octet beyond ASCII in line %d: use encoded words, quoted-printable or base64", number)
			return
		case c == '\n':
			if i-1-start > 998 {
				bad("has more than 998 octets in line %d", number)
				return
			}
			number, start = number+1, i+1
		}
	}
}

// rawAddresses reads a list of addresses, of which each may be sent to.
func rawAddresses(s string) (as []Address, err error) {
	if s == "" || strings.HasPrefix(strings.ToLower(strings.ReplaceAll(s, " ", "")), "undisclosed-recipients:;") {
		return nil, nil
	}
	list, err := mail.ParseAddressList(s)
	if err != nil {
		return nil, fmt.Errorf("is not a list of addresses")
	}
	for _, x := range list {
		box, err := mailbox(x.Address)
		if err != nil {
			return nil, fmt.Errorf("has an address that %w", err)
		}
		as = append(as, Address{Mailbox: box})
	}
	return as, nil
}

// rawText is a header's text for people, cut to what a subject may have.
func rawText(s string) string {
	if t, err := new(mime.WordDecoder).DecodeHeader(s); err == nil {
		s = t
	}
	s = strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if _, is := control(string(r)); is {
			return ' '
		}
		return r
	}, s), "?")
	return strings.ToValidUTF8(s[:min(len(s), MaxSubject)], "")
}

// rawPart walks the parts of a body: every multipart has a boundary and its end.
func rawPart(contentType string, body []byte, depth int, parts *int) error {
	if *parts++; *parts > maxRawParts || depth > maxRawDepth {
		return fmt.Errorf("has more than %d parts, or %d in each other", maxRawParts, maxRawDepth)
	}
	if contentType == "" {
		return nil
	}
	t, params, err := mime.ParseMediaType(contentType)
	if err != nil || !strings.Contains(t, "/") {
		return fmt.Errorf("has the content type %.60q, which is none", contentType)
	}
	if !strings.HasPrefix(t, "multipart/") {
		return nil
	}
	end := "\r\n--" + params["boundary"] + "--"
	if params["boundary"] == "" || !strings.Contains("\r\n"+string(body), end) {
		return fmt.Errorf("has a %s without its boundary or its end", t)
	}
	mr := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		p, err := mr.NextRawPart()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("has a %s whose parts cannot be told apart", t)
		}
		content, err := io.ReadAll(p)
		if err != nil {
			return fmt.Errorf("has a %s whose parts do not end", t)
		}
		if err := rawPart(p.Header.Get("Content-Type"), content, depth+1, parts); err != nil {
			return err
		}
	}
}

// ValidateSender lists what is wrong with the message for a mail server whose from is this and
// which allows these headers of its provider.
func (r *Raw) ValidateSender(from Address, allowed []string) (vs []Violation) {
	for _, x := range []struct {
		name string
		as   []Address
	}{{"From", r.from}, {"Sender", r.sender}} {
		for _, a := range x.as {
			if a.Key() != from.Key() {
				vs = append(vs, Violation{"raw", fmt.Sprintf("has the %s %s, and the mail server sends as %s", x.name, a.Mailbox, from.Mailbox)})
			}
		}
	}
	for _, v := range (&Message{From: from, Headers: r.errorsTo, Allowed: allowed}).ValidateSender() {
		vs = append(vs, Violation{"raw", "has " + v.Field + ", which " + v.Description})
	}
	return vs
}

// Pieces are the message, under the id if it has none of its own. It is shared content from its
// first octet on, by which it is known again: a message that was composed here begins with
// octets of its own.
func (r *Raw) Pieces(messageID string) []Piece {
	data := r.data
	if r.MessageID == "" {
		data = append([]byte("Message-ID: <"+messageID+">\r\n"), data...)
	}
	return []Piece{NewContent(data).whole()}
}

// Len is how many octets the message has, but for a Message-ID that is put in.
func (r *Raw) Len() int64 { return int64(len(r.data)) }
