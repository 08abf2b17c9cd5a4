package message

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"mime/quotedprintable"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/emersion/go-message/textproto"
)

// Compose makes the raw message (RFC 5322, RFC 2045-2047, 2183, 2231, 2387): headers in a fixed order, CRLF line ends, no line over 998 octets, only
// ASCII unless an address needs SMTPUTF8. The same Message gives the same bytes. It expects a message without violations.
func Compose(m *Message) ([]Piece, error) {
	c := &composer{m: m, seed: sha256.Sum256([]byte(m.MessageID))}
	c.buf.Grow(len(m.Text) + len(m.Text)/8 + len(m.HTML) + len(m.HTML)/8 + 2048)
	c.structure()(c.topHeader(), func(f fields) { c.write(textproto.WriteHeader(&c.buf, f.header())) })
	if c.err != nil {
		return nil, fmt.Errorf("compose: %w", c.err)
	}
	var ps []Piece
	raw, from := c.buf.Bytes(), 0
	for _, s := range c.stops {
		if s.at > from {
			ps = append(ps, Piece{Data: raw[from:s.at:s.at]})
		}
		ps = append(ps, s.shared.whole())
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

// stop is a place in the composer's bytes where something stands that is not among them: shared content or, in a template, a variable.
type stop struct {
	at     int
	shared *Content
	hole   *hole
}

// fields is a header in the order it is written.
type fields []struct{ k, v string }

func (f *fields) add(k, v string) { *f = append(*f, struct{ k, v string }{k, v}) }

// header builds the library's header; its Add puts in front. Add would spell Message-Id and Mime-Version, which is right and looks odd.
func (f fields) header() textproto.Header {
	var h textproto.Header
	for _, kv := range slices.Backward(f) {
		switch kv.k {
		case "Message-ID", "MIME-Version", "Content-ID":
			h.AddRaw([]byte(kv.k + ": " + kv.v + "\r\n"))
		default:
			h.Add(kv.k, kv.v)
		}
	}
	return h
}

func (c *composer) topHeader() fields {
	f := c.m.ownFields()
	f.add("MIME-Version", "1.0")
	for _, k := range sortedKeys(c.m.Headers) {
		f.add(k, encodeText(c.m.Headers[k]))
	}
	return f
}

const dateLayout = "Mon, 02 Jan 2006 15:04:05 -0700"

// ownFields are the header fields that differ from mail to mail. Reissue relies on where Date and Message-ID stand.
func (m *Message) ownFields() fields {
	f := make(fields, 0, 12)
	f.add("Date", m.Date.Format(dateLayout))
	f.add("From", m.From.header())
	if len(m.To) > 0 {
		f.add("To", addressList(m.To))
	} else if len(m.Cc) == 0 {
		f.add("To", "undisclosed-recipients:;") // some relays mark a mail without any of them as bad
	}
	if len(m.Cc) > 0 {
		f.add("Cc", addressList(m.Cc))
	}
	if m.ReplyTo != nil {
		f.add("Reply-To", m.ReplyTo.header())
	}
	f.add("Subject", encodeText(m.Subject))
	f.add("Message-ID", "<"+m.MessageID+">")
	return f
}

func addressList(as []Address) string {
	hs := make([]string, len(as))
	for i, a := range as {
		hs[i] = a.header()
	}
	return strings.Join(hs, ", ")
}

// structure is the whole body: mixed(related(alternative(text, html), inline...), files...), leaving out every level with one part.
func (c *composer) structure() part {
	var inline, files []Attachment
	for _, a := range c.m.Attachments {
		if a.ContentID != "" {
			inline = append(inline, a)
		} else {
			files = append(files, a)
		}
	}
	body := c.text
	if len(inline) > 0 {
		body = c.withFiles("related", body, inline)
	}
	if len(files) > 0 {
		body = c.withFiles("mixed", body, files)
	}
	return body
}

// A part writes itself: begin writes the header it got, completed with the part's own fields.
type part func(f fields, begin func(fields))

// text is the text, the html, or both as alternatives; an empty mail has an empty text.
func (c *composer) text(f fields, begin func(fields)) {
	m := c.m
	switch {
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

// multipart writes parts between boundaries. "=_" cannot occur in quoted-printable or base64, so the boundary cannot occur in a part.
func (c *composer) multipart(kind string, parts ...part) part {
	return func(f fields, begin func(fields)) {
		boundary := fmt.Sprintf("=_%s-%d", hex.EncodeToString(c.seed[:12]), c.bounds)
		c.bounds++
		f.add("Content-Type", `multipart/`+kind+`; boundary="`+boundary+`"`)
		begin(f)
		mw := textproto.NewMultipartWriter(&c.buf)
		c.write(mw.SetBoundary(boundary))
		for _, p := range parts {
			p(nil, func(f fields) {
				_, err := mw.CreatePart(f.header())
				c.write(err)
			})
		}
		c.write(mw.Close())
	}
}

// body is a text part: quoted-printable, or base64 where that is shorter. With variables it is always quoted-printable, which can be cut anywhere.
func (c *composer) body(mediaType, s string) part {
	return func(f fields, begin func(fields)) {
		f.add("Content-Type", mediaType+"; charset=utf-8")
		if c.vary {
			if runs, _ := cutVariables(s); len(runs) > 1 || len(runs) == 1 && runs[0].name != "" {
				f.add("Content-Transfer-Encoding", "quoted-printable")
				begin(f)
				c.varied(runs, mediaType == "text/html")
				return
			}
		}
		s = lfLines(s)
		high, plain := look(s)
		if plain {
			f.add("Content-Transfer-Encoding", "7bit")
			begin(f)
			c.buf.WriteString(strings.ReplaceAll(s, "\n", "\r\n"))
			if !strings.HasSuffix(s, "\n") {
				c.buf.WriteString("\r\n")
			}
			return
		}
		if high > len(s)/4 {
			f.add("Content-Transfer-Encoding", "base64")
			begin(f)
			c.base64(&c.buf, []byte(strings.ReplaceAll(s, "\n", "\r\n")))
			return
		}
		f.add("Content-Transfer-Encoding", "quoted-printable")
		begin(f)
		c.write(writeQuoted(&c.buf, s))
		if !strings.HasSuffix(s, "\n") {
			c.buf.WriteString("\r\n")
		}
	}
}

// look counts the octets beyond ASCII of a text with LF line ends, and says whether it may go as it is: ASCII in lines of at most 76 characters, in which nothing stands that relays
// are known to change (a blank at the end of a line, "From " at its beginning) or that could be taken for a boundary.
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

// writeQuoted encodes text whose lines end in LF; the library's writer drops an LF some way behind a bare CR. A last line without an end stays so.
func writeQuoted(w io.Writer, s string) error {
	q := quotedprintable.NewWriter(w)
	if _, err := io.WriteString(q, s); err != nil {
		return err
	}
	return q.Close()
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
			c.share(NewContent(encoded.Bytes()))
		default:
			c.buf.Grow(int(size))
			c.base64(&c.buf, a.Content)
		}
	}
}

// share puts shared content in.
func (c *composer) share(s *Content) {
	if s.Size > 0 {
		c.stops = append(c.stops, stop{at: c.buf.Len(), shared: s})
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

// encodeText is a header value: as it is where every reader takes it so, else in encoded words (RFC 2047).
func encodeText(s string) string {
	if ascii(s) && !strings.Contains(s, "=?") {
		return s
	}
	return encodeWords(s)
}

// encodeWords splits s at runes into base64 words of at most 75 characters.
func encodeWords(s string) string {
	const most = 45 // octets that base64 turns into 60, with "=?utf-8?b?" and "?=" 72
	var b strings.Builder
	for len(s) > 0 {
		n := 0
		for n < len(s) {
			_, size := utf8.DecodeRuneInString(s[n:])
			if n+size > most {
				break
			}
			n += size
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("=?utf-8?b?" + base64.StdEncoding.EncodeToString([]byte(s[:n])) + "?=")
		s = s[n:]
	}
	return b.String()
}

// filenameParam is the parameter for a file name: quoted where it is plain ASCII, else RFC 2231, in continuations so that no line grows too long.
func filenameParam(name string) string {
	if name == "" {
		return ""
	}
	if ascii(name) && len(name) <= 60 {
		return `; filename="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`
	}
	var enc strings.Builder
	var chunks []string
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".-_", c) >= 0 {
			enc.WriteByte(c)
		} else {
			fmt.Fprintf(&enc, "%%%02X", c)
		}
		if enc.Len() > 50 {
			chunks = append(chunks, enc.String())
			enc.Reset()
		}
	}
	if enc.Len() > 0 {
		chunks = append(chunks, enc.String())
	}
	if len(chunks) == 1 {
		return "; filename*=utf-8''" + chunks[0]
	}
	var b strings.Builder
	for i, ch := range chunks {
		lead := ""
		if i == 0 {
			lead = "utf-8''"
		}
		fmt.Fprintf(&b, "; filename*%d*=%s%s", i, lead, ch)
	}
	return b.String()
}

// NewMessageID is the Message-ID (without <>) of a mail with this id, sent from this mailbox.
func NewMessageID(id string, from Address) string { return id + "@" + from.Domain() }

// Stamp is the Date of a mail: seconds, UTC.
func Stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
