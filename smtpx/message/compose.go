package message

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"mime/quotedprintable"
	"slices"
	"strings"
	"time"
)

// Compose makes the raw message (RFC 5322, RFC 2045-2047, 2183, 2231, 2387): headers in a fixed
// order, CRLF line ends, no line over 998 octets, only ASCII unless an address needs SMTPUTF8.
// The same Message gives the same bytes. It expects a message without violations.
func Compose(m *Message) ([]Piece, error) {
	c := &composer{m: m, seed: sha256.Sum256([]byte(m.MessageID))}
	c.buf.Grow(len(m.Text) + len(m.Text)/8 + len(m.HTML) + len(m.HTML)/8 + 2048)
	c.structure()(c.topHeader(), c.header)
	if c.err != nil {
		return nil, fmt.Errorf("compose: %w", c.err)
	}
	var ps []Piece
	raw, from := c.buf.Bytes(), 0
	for _, s := range c.stops {
		if s.at > from {
			ps = append(ps, Piece{Data: raw[from:s.at:s.at]})
		}
		ps = append(ps, s.piece)
		from = s.at
	}
	return append(ps, Piece{Data: raw[from:]}), nil
}

// whole is the piece that is all of the content.
func (c *Content) whole() Piece { return Piece{Shared: c, Length: c.Size} }

type composer struct {
	m      *Message
	seed   [sha256.Size]byte // of the boundaries
	vary   bool              // text and html have variables
	buf    bytes.Buffer
	stops  []stop
	bounds int
	err    error
}

// stop is a place in the composer's bytes where something stands that is not among them: a
// range of shared content or, in a template, a variable.
type stop struct {
	at    int
	piece Piece
	hole  *hole
}

// header writes the header of the mail or of a part, with the empty line that ends it.
func (c *composer) header(f fields) {
	f.write(&c.buf)
	c.buf.WriteString("\r\n")
}

func (c *composer) topHeader() fields {
	f := c.m.ownFields()
	u := c.m.Unsubscribe.cut(told)
	u.fields(&f, nil)
	f.add("MIME-Version", "1.0")
	f.ownHeaders(c.m.Headers, c.m.AutoSubmitted)
	return f
}

const dateLayout = "Mon, 02 Jan 2006 15:04:05 -0700"

// ownFields are the header fields that differ from mail to mail. Reissue relies on where Date
// and Message-ID stand.
func (m *Message) ownFields() fields {
	f := make(fields, 0, 12)
	f.add("Date", m.Date.Format(dateLayout))
	f.add("From", m.sender().header("From"))
	if len(m.To) > 0 {
		f.add("To", addressList("To", m.To))
	} else if len(m.Cc) == 0 {
		// some relays mark a mail without any of them as bad
		f.add("To", "undisclosed-recipients:;")
	}
	if len(m.Cc) > 0 {
		f.add("Cc", addressList("Cc", m.Cc))
	}
	if len(m.ReplyTo) > 0 {
		f.add("Reply-To", addressList("Reply-To", m.ReplyTo))
	}
	f.add("Subject", textValue("Subject", m.Subject))
	f.add("Message-ID", "<"+m.MessageID+">")
	return f
}

// structure is the whole body: mixed(related(alternative(text, html), inline...), files...),
// leaving out every level with one part. With further alternatives the html takes its images
// along, so that a program that shows another alternative does not list them as files:
// mixed(alternative(text, related(html, inline...), further...), files...).
func (c *composer) structure() part {
	inline, files := c.m.sorted()
	body := c.text
	if len(inline) > 0 && len(c.m.Alternatives) == 0 {
		body = c.withFiles("related", body, inline)
	}
	if len(files) > 0 {
		body = c.withFiles("mixed", body, files)
	}
	return body
}

// sorted are the attachments that the html shows, and the others.
func (m *Message) sorted() (inline, files []Attachment) {
	for _, a := range m.Attachments {
		if a.ContentID != "" {
			inline = append(inline, a)
		} else {
			files = append(files, a)
		}
	}
	return inline, files
}

// html is the html with its images.
func (c *composer) html() part {
	html := c.body("text/html", c.m.HTML)
	if inline, _ := c.m.sorted(); len(inline) > 0 {
		return c.withFiles("related", html, inline)
	}
	return html
}

// A part writes itself: begin writes the header it got, completed with the part's own fields.
type part func(f fields, begin func(fields))

// text is the text, the html, or both as alternatives; an empty mail has an empty text.
func (c *composer) text(f fields, begin func(fields)) {
	m := c.m
	switch further := c.alternatives(); {
	case len(further) > 0 && m.HTML == "":
		c.multipart("alternative", slices.Concat([]part{c.body("text/plain", m.Text)}, further)...)(f, begin)
	case len(further) > 0 && m.Text == "":
		c.multipart("alternative", slices.Concat([]part{c.html()}, further)...)(f, begin)
	case len(further) > 0:
		c.multipart("alternative", slices.Concat([]part{c.body("text/plain", m.Text), c.html()}, further)...)(f, begin)
	case m.HTML == "":
		c.body("text/plain", m.Text)(f, begin)
	case m.Text == "":
		c.body("text/html", m.HTML)(f, begin)
	default:
		c.multipart("alternative", c.body("text/plain", m.Text), c.body("text/html", m.HTML))(f, begin)
	}
}

func (c *composer) withFiles(kind string, first part, files []Attachment) part {
	parts := []part{first}
	for _, a := range files {
		parts = append(parts, c.attachment(a))
	}
	return c.multipart(kind, parts...)
}

// multipart writes parts between boundaries. "=_" cannot occur in quoted-printable or base64,
// so the boundary cannot occur in a part.
func (c *composer) multipart(kind string, parts ...part) part {
	return func(f fields, begin func(fields)) {
		boundary := fmt.Sprintf("=_%s-%d", hex.EncodeToString(c.seed[:12]), c.bounds)
		c.bounds++
		f.add("Content-Type", "multipart/"+kind+";\n boundary=\""+boundary+`"`)
		begin(f)
		for i, p := range parts {
			if i > 0 {
				c.buf.WriteString("\r\n")
			}
			c.buf.WriteString("--" + boundary + "\r\n")
			p(nil, c.header)
		}
		c.buf.WriteString("\r\n--" + boundary + "--\r\n")
	}
}

// body is a text part: quoted-printable, or base64 where that is shorter. With variables it is
// always quoted-printable, which can be cut anywhere.
func (c *composer) body(mediaType, s string) part {
	return func(f fields, begin func(fields)) {
		f.add("Content-Type", mediaType+";\n charset=utf-8")
		if common := c.m.Common.encoded(mediaType, s, c.vary); common != nil {
			f.add("Content-Transfer-Encoding", common.encoding)
			begin(f)
			for _, s := range common.stops {
				s.at = c.buf.Len()
				c.stops = append(c.stops, s)
			}
			return
		}
		encode, encoding := c.encoding(mediaType, s)
		f.add("Content-Transfer-Encoding", encoding)
		begin(f)
		encode()
	}
}

// encoding chooses the transfer encoding of a text, and returns what writes it.
func (c *composer) encoding(mediaType, s string) (write func(), name string) {
	if c.vary {
		if runs, _ := cutVariables(s); len(runs) > 1 || len(runs) == 1 && runs[0].name != "" {
			return func() { c.varied(runs, mediaType == "text/html") }, "quoted-printable"
		}
	}
	s = lfLines(s)
	high, plain := look(s)
	switch {
	case plain:
		return func() {
			c.buf.WriteString(strings.ReplaceAll(s, "\n", "\r\n"))
			if !strings.HasSuffix(s, "\n") {
				c.buf.WriteString("\r\n")
			}
		}, "7bit"
	case high > len(s)/4:
		return func() { c.base64(&c.buf, []byte(strings.ReplaceAll(s, "\n", "\r\n"))) }, "base64"
	}
	return func() {
		c.write(writeQuoted(&c.buf, s))
		if !strings.HasSuffix(s, "\n") {
			c.buf.WriteString("\r\n")
		}
	}, "quoted-printable"
}

// look counts the octets beyond ASCII of a text with LF line ends, and says whether it may go
// as it is: ASCII in lines of at most 76 characters, in which nothing stands that relays are
// known to change (a blank at the end of a line, "From " at its beginning) or that could be
// taken for a boundary.
func look(s string) (high int, plain bool) {
	plain = s != "" && !strings.Contains(s, "=_")
	for i := 0; i < len(s); i++ { // the one loop that looks at every octet of every mail
		if b := s[i]; b-' ' >= 0x7f-' ' {
			if b >= 0x80 {
				high++
			}
			plain = plain && (b == '\n' || b == '\t')
		}
	}
	for line := range strings.Lines(s) {
		if !plain {
			break
		}
		line = strings.TrimSuffix(line, "\n")
		plain = len(line) <= base64Line/3*4 && strings.TrimRight(line, " \t") == line && !strings.HasPrefix(line, "From ")
	}
	return high, plain
}

// writeQuoted encodes text whose lines end in LF; the library's writer drops an LF some way
// behind a bare CR. A last line without an end stays so.
func writeQuoted(b *bytes.Buffer, s string) error {
	begin := b.Len()
	q := quotedprintable.NewWriter(b)
	if _, err := io.WriteString(q, s); err != nil {
		return err
	}
	if err := q.Close(); err != nil {
		return err
	}
	if strings.Contains(s, "From ") {
		hideFrom(b, begin)
	}
	return nil
}

// hideFrom encodes the F of every encoded line from begin on that starts with "From ", to which
// mailbox files add a ">" (RFC 4155). A line that grows over 76 (RFC 2045 6.7) is broken.
func hideFrom(b *bytes.Buffer, begin int) {
	encoded := bytes.Clone(b.Bytes()[begin:])
	b.Truncate(begin)
	for line := range bytes.Lines(encoded) {
		for long := true; long; {
			rest, is := bytes.CutPrefix(line, []byte("From "))
			long = is && len(bytes.TrimRight(line, "\r\n"))+len("=46")-len("F") > 76
			if is {
				b.WriteString("=46rom ")
				line = rest
			}
			if long {
				b.WriteString("=\r\n")
			}
		}
		b.Write(line)
	}
}

func (c *composer) attachment(a Attachment) part {
	return func(f fields, begin func(fields)) {
		t, err := mediaType(a)
		c.write(err)
		f.add("Content-Type", t)
		f.add("Content-Transfer-Encoding", "base64")
		disposition := "attachment"
		if a.ContentID != "" {
			disposition = "inline"
		}
		f.add("Content-Disposition", disposition+filenameParam(a.Filename))
		if a.ContentID != "" {
			f.add("Content-ID", "<"+a.ContentID+">")
		}
		begin(f)
		size := EncodedSize(int64(len(a.Content)))
		switch {
		case a.Stored != nil:
			c.share(a.Stored)
		case size >= shareFrom:
			encoded := bytes.NewBuffer(make([]byte, 0, size))
			c.base64(encoded, a.Content)
			file := NewContent(encoded.Bytes())
			file.File = true
			c.share(file)
		default:
			c.buf.Grow(int(size))
			c.base64(&c.buf, a.Content)
		}
	}
}

// share puts an attachment in that is shared content.
func (c *composer) share(s *Content) {
	if s.Size > 0 {
		c.stops = append(c.stops, stop{at: c.buf.Len(), piece: s.whole()})
	}
}

func (c *composer) write(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *composer) base64(w io.Writer, b []byte) {
	e := NewAttachmentEncoder(w)
	_, _ = e.Write(b) // Close says it again
	c.write(e.Close())
}

// lfLines makes every line end LF.
func lfLines(s string) string {
	if !strings.Contains(s, "\r") {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
}

// NewMessageID is the Message-ID (without <>) of a mail with this id, sent from this mailbox.
func NewMessageID(id string, from Address) string { return id + "@" + from.Domain() }

// Stamp is the Date of a mail: seconds, UTC.
func Stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
