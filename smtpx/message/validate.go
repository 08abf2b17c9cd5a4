package message

import (
	"fmt"
	"mime"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Violation is one thing that is wrong, with its path in the message.
type Violation struct{ Field, Description string }

// Attachment is a file, or with a ContentID an inline image.
type Attachment struct {
	Filename    string
	ContentType string // "" = by the ending of the file name, from a table of the service's own
	ContentID   string
	Content     []byte
	// in place of Content: what the AttachmentEncoder made of it, from an upload
	Stored *Content
}

// Message is what Compose makes a raw message of. MessageID (without <>) and Date are given, so
// that composing twice gives the same bytes.
type Message struct {
	From         Address
	FromName     string    // not "": in place of From's name
	To, Cc       []Address // bcc never comes here
	ReplyTo      []Address
	Subject      string
	Text, HTML   string
	Alternatives []Alternative
	Headers      map[string]string
	Allowed      []string // headers of the provider that the mail server allows
	Attachments  []Attachment
	Unsubscribe  Unsubscribe
	// no person wrote it: Auto-Submitted says so, unless Headers has one
	AutoSubmitted bool
	MessageID     string
	Date          time.Time
	// bodies that other mails have too, encoded already; nil = none
	Common *Common
}

var (
	headerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	contentID  = regexp.MustCompile(`^[A-Za-z0-9._@+-]{1,128}$`)
)

// Headers the service makes, and those that would lie about a mail's way, its envelope or its
// signature.
var (
	deniedHeaders = []string{
		"Bcc", "From", "Sender", "To", "Cc", "Reply-To", "Subject", "Date", "Message-Id",
		"Received", "Received-Spf", "X-Received", "Return-Path", "Delivered-To", "X-Delivered-To", "Authentication-Results",
		"Envelope-To", "X-Envelope-To", "X-Envelope-From", "Apparently-To", "Original-Recipient", "X-Original-To",
		"Domainkey-Signature",
	}
	deniedPrefixes = []string{"Dkim-", "Arc-", "Mime-", "Content-", "Resent-", "X-Ms-Exchange-Organization-"}
)

// Headers by which a provider adds recipients that no journal knows, or drops a mail that it
// has accepted. A mail server may allow them.
var (
	// SendGrid, SparkPost, Mailgun, Mailjet
	providerHeaders = []string{"X-Smtpapi", "X-Msys-Api", "X-Mailgun-Recipient-Variables", "X-Mailgun-Drop-Message", "X-Mj-Templateerrorreporting"}
	// Mandrill
	providerPrefixes = []string{"X-Mc-"}
)

// provider reports whether a provider reads orders from this header.
func provider(canon string) bool {
	return slices.Contains(providerHeaders, canon) || slices.ContainsFunc(providerPrefixes, func(p string) bool { return strings.HasPrefix(canon, p) })
}

// ProviderHeader is the canonical form of a header that a mail server may allow; is: it is one.
func ProviderHeader(name string) (canon string, is bool) {
	canon = textproto.CanonicalMIMEHeaderKey(name)
	return canon, headerName.MatchString(name) && provider(canon)
}

// ValidateSender lists what is wrong with the content of a mail from its sender; nothing where
// From is not known yet. Validate includes it.
//
// Relays send bounces to an Errors-To, so it can only name the sender, who gets them anyway.
func (m *Message) ValidateSender() []Violation {
	if m.From.Mailbox == "" {
		return nil
	}
	if m.showsOther() {
		return []Violation{{"from_name", "shows an address other than the mail's sender"}}
	}
	var vs []Violation
	for _, name := range sortedKeys(m.Headers) {
		v, canon := m.Headers[name], textproto.CanonicalMIMEHeaderKey(name)
		if provider(canon) && !slices.Contains(m.Allowed, canon) {
			vs = append(vs, Violation{"headers[" + name + "]", "can make the provider add recipients or drop the mail: the mail server's allowed_headers has to name it"})
		}
		if canon != errorsTo {
			continue
		}
		as, _ := ParseAddressList(v) // what it cannot read is listed by Validate
		for _, a := range as {
			if a.Key() != m.From.Key() {
				vs = append(vs, Violation{"headers[" + name + "]", "names an address other than the mail's sender"})
				break
			}
		}
	}
	return vs
}

const errorsTo = "Errors-To"

// Validate lists everything that is wrong with the content, at once. Field paths are those of
// the API's MailMessage.
func (m *Message) Validate() []Violation {
	var vs []Violation
	bad := func(field, format string, args ...any) {
		vs = append(vs, Violation{field, fmt.Sprintf(format, args...)})
	}
	line := func(field, s string, most int) {
		switch {
		case !utf8.ValidString(s):
			bad(field, "is not valid UTF-8")
		case len(s) > most:
			bad(field, "has more than %d octets", most)
		default:
			if r, is := control(s); is {
				bad(field, "contains the control character %U", r)
			}
		}
	}
	text := func(field, s string) {
		switch {
		case !utf8.ValidString(s):
			bad(field, "is not valid UTF-8")
		case strings.IndexByte(s, 0) >= 0:
			bad(field, "contains a NUL")
		}
	}
	line("subject", m.Subject, MaxSubject)
	text("text", m.Text)
	text("html", m.HTML)
	m.validateAlternatives(bad)
	m.validateFromName(bad)
	if len(m.Headers) > MaxHeaders {
		bad("headers", "has more than %d entries", MaxHeaders)
	}
	seen := map[string]string{}
	for _, name := range sortedKeys(m.Headers) {
		field := "headers[" + fieldKey(name) + "]"
		canon := textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !headerName.MatchString(name):
			bad(field, "is not a header name: letters, digits and -, at most %d", MaxHeaderName)
			continue
		case denied(canon):
			bad(field, "is made by the service, or may not be set")
			continue
		case seen[canon] != "":
			bad(field, "is given twice, also as %s", seen[canon])
			continue
		}
		seen[canon] = name
		if !m.Unsubscribe.Empty() && (canon == listUnsubscribe || canon == listUnsubscribePost) {
			bad(field, "is made of unsubscribe_url and unsubscribe_mailto")
			continue
		}
		before := len(vs)
		line(field, m.Headers[name], MaxHeaderValue)
		if len(vs) > before {
			continue
		}
		if _, err := customValue(name, m.Headers[name]); err != nil {
			bad(field, "%v", err)
		}
	}
	vs = append(vs, m.ValidateSender()...)
	if len(m.Attachments) > MaxAttachments {
		bad("attachments", "has more than %d entries", MaxAttachments)
	}
	cids := map[string]bool{}
	for i, a := range m.Attachments {
		at := func(s string) string { return fmt.Sprintf("attachments[%d].%s", i, s) }
		switch {
		case a.Filename == "" && a.ContentID == "":
			bad(at("filename"), "is required unless content_id is set")
		case utf8.RuneCountInString(a.Filename) > MaxFilename:
			bad(at("filename"), "has more than %d characters", MaxFilename)
		case strings.ContainsAny(a.Filename, `/\`):
			bad(at("filename"), "contains a path")
		default:
			line(at("filename"), a.Filename, 4*MaxFilename)
			if r, is := invisible(a.Filename); is && utf8.ValidString(a.Filename) {
				bad(at("filename"), "contains the invisible character %U", r)
			}
		}
		if _, err := mediaType(a); err != nil { // also where the type is filled in here
			bad(at("content_type"), "%v", err)
		}
		if a.ContentID != "" {
			switch {
			case !contentID.MatchString(a.ContentID):
				bad(at("content_id"), "has characters other than letters, digits and ._@+-, or more than 128")
			case cids[a.ContentID]:
				bad(at("content_id"), "is used twice")
			case m.HTML == "":
				bad(at("content_id"), "needs an html body that shows it")
			}
			cids[a.ContentID] = true
		}
	}
	return vs
}

// fieldKey is a name of the caller's that a field path can hold.
func fieldKey(name string) string {
	return strings.ToValidUTF8(strings.Map(dropControl, name[:min(len(name), 80)]), "?")
}

func dropControl(r rune) rune {
	if r < ' ' || r == 0x7f {
		return '?'
	}
	return r
}

func denied(canon string) bool {
	if slices.Contains(deniedHeaders, canon) {
		return true
	}
	for _, p := range deniedPrefixes {
		if strings.HasPrefix(canon, p) {
			return true
		}
	}
	return false
}

// mediaType is the attachment's checked type, formatted anew so that nothing of the caller's
// spelling reaches a header.
func mediaType(a Attachment) (string, error) {
	ct := a.ContentType
	if ct == "" {
		ct = guessType(&a)
	}
	if _, is := control(ct); is || len(ct) > 200 || !ascii(ct) {
		return "", fmt.Errorf("is not a media type")
	}
	t, params, err := mime.ParseMediaType(ct)
	if err != nil || !strings.Contains(t, "/") {
		return "", fmt.Errorf("is not a media type")
	}
	// The bytes are sent as base64, which RFC 2046 5.1 and 5.2 forbid for these.
	if strings.HasPrefix(t, "multipart/") || strings.HasPrefix(t, "message/") {
		return "", fmt.Errorf("multipart and message types are not taken as attachments; use application/octet-stream")
	}
	delete(params, "name")
	delete(params, "boundary")
	out := mime.FormatMediaType(t, nil)
	for _, k := range sortedKeys(params) {
		one := mime.FormatMediaType("x/x", map[string]string{k: params[k]})
		if one == "" {
			return "", fmt.Errorf("is not a media type")
		}
		out += ";\n" + strings.TrimPrefix(one, "x/x;")
	}
	if out == "" {
		return "", fmt.Errorf("is not a media type")
	}
	return out, nil
}

func sortedKeys(m map[string]string) []string {
	ks := make([]string, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}
