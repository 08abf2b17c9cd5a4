package smtpx

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

// Piece is a run of a raw message. A shareable piece depends on nothing but the content of one attachment, so equal attachments give equal pieces in
// every mail and can be stored once.
type Piece struct {
	Data      []byte
	Shareable bool
}

// Join is the whole raw message.
func Join(ps []Piece) []byte {
	if len(ps) == 1 {
		return ps[0].Data
	}
	n := 0
	for _, p := range ps {
		n += len(p.Data)
	}
	b := make([]byte, 0, n)
	for _, p := range ps {
		b = append(b, p.Data...)
	}
	return b
}

// Compose makes the raw message (RFC 5322, RFC 2045-2047, 2183, 2231, 2387): headers in a fixed order, CRLF line ends, no line over 998 octets, only
// ASCII unless an address needs SMTPUTF8. The same Message gives the same bytes. It expects a message without violations.
func Compose(m *Message) ([]Piece, error) {
	c := &composer{m: m}
	c.buf.Grow(len(m.Text) + len(m.Text)/8 + len(m.HTML) + len(m.HTML)/8 + 2048)
	h := c.topHeader()
	c.structure(&h)
	if c.err != nil {
		return nil, fmt.Errorf("compose: %w", c.err)
	}
	c.cut(false)
	return c.pieces, nil
}

type composer struct {
	m      *Message
	buf    bytes.Buffer
	pieces []Piece
	bounds int
	err    error
}

// cut ends the current piece.
func (c *composer) cut(shareable bool) {
	if c.buf.Len() > 0 {
		c.pieces = append(c.pieces, Piece{Data: bytes.Clone(c.buf.Bytes()), Shareable: shareable})
		c.buf.Reset()
	}
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
	m := c.m
	var f fields
	f.add("Date", m.Date.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
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
	f.add("MIME-Version", "1.0")
	for _, k := range sortedKeys(m.Headers) {
		f.add(k, encodeText(m.Headers[k]))
	}
	return f
}

func addressList(as []Address) string {
	hs := make([]string, len(as))
	for i, a := range as {
		hs[i] = a.header()
	}
	return strings.Join(hs, ", ")
}

// structure writes header and body: mixed(related(alternative(text, html), inline...), files...), leaving out every level with one part.
func (c *composer) structure(top *fields) {
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
	body(*top, func(f fields) { c.write(textproto.WriteHeader(&c.buf, f.header())) })
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
		sum := sha256.Sum256([]byte(c.m.MessageID))
		boundary := fmt.Sprintf("=_%s-%d", hex.EncodeToString(sum[:12]), c.bounds)
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

// body is a text part: quoted-printable, or base64 where that is shorter.
func (c *composer) body(mediaType, s string) part {
	return func(f fields, begin func(fields)) {
		f.add("Content-Type", mediaType+"; charset=utf-8")
		high := 0
		for i := range len(s) {
			if s[i] >= 0x80 {
				high++
			}
		}
		if high > len(s)/4 {
			f.add("Content-Transfer-Encoding", "base64")
			begin(f)
			c.base64([]byte(crlfLines(s)))
			return
		}
		f.add("Content-Transfer-Encoding", "quoted-printable")
		begin(f)
		w := quotedprintable.NewWriter(&c.buf)
		_, err := io.WriteString(w, s)
		c.write(err)
		c.write(w.Close())
		if !strings.HasSuffix(s, "\n") && !strings.HasSuffix(s, "\r") {
			c.buf.WriteString("\r\n")
		}
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
		if base64.StdEncoding.EncodedLen(len(a.Content)) >= shareFrom {
			c.cut(false)
			c.base64(a.Content)
			c.cut(true)
			return
		}
		c.base64(a.Content)
	}
}

func (c *composer) write(err error) {
	if c.err == nil {
		c.err = err
	}
}

const base64Line = 57 // octets of content in a line of 76

func (c *composer) base64(b []byte) {
	c.buf.Grow(len(b)/base64Line*78 + 80)
	var line [80]byte
	for len(b) > 0 {
		n := min(base64Line, len(b))
		l := base64.StdEncoding.EncodedLen(n)
		base64.StdEncoding.Encode(line[:], b[:n])
		line[l], line[l+1] = '\r', '\n'
		c.buf.Write(line[:l+2])
		b = b[n:]
	}
}

// crlfLines makes every line end CRLF.
func crlfLines(s string) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	s = strings.ReplaceAll(s, "\r", "\n")
	return strings.ReplaceAll(s, "\n", "\r\n")
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
