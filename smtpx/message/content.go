package message

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
)

// Content is bytes that many mails share: stored once, by its sum.
type Content struct {
	Sum  [sha256.Size]byte // SHA-256 of Data
	Size int
	Data []byte // nil: stored already (an upload), known only by sum and size
	// the mails of a batch have it in common, so that it stays shared however small it is
	Common bool
	File   bool // an attachment
}

// NewContent is content at hand. The bytes must not change from here on.
func NewContent(data []byte) *Content {
	return &Content{Sum: sha256.Sum256(data), Size: len(data), Data: data}
}

// Piece is a run of a raw message: its own bytes, or a range of shared content.
type Piece struct {
	Data           []byte // own bytes; nil with Shared
	Shared         *Content
	Offset, Length int // of the range, with Shared
}

// Len is how many bytes of the raw message the piece is.
func (p Piece) Len() int {
	if p.Shared != nil {
		return p.Length
	}
	return len(p.Data)
}

// Bytes are the piece's bytes; nil where its content is only known by its sum.
func (p Piece) Bytes() []byte {
	switch {
	case p.Shared == nil:
		return p.Data
	case p.Shared.Data == nil:
		return nil
	}
	return p.Shared.Data[p.Offset : p.Offset+p.Length]
}

// Size is how many bytes the raw message has.
func Size(ps []Piece) int {
	n := 0
	for _, p := range ps {
		n += p.Len()
	}
	return n
}

// Join is the whole raw message. All of its content must be at hand.
func Join(ps []Piece) []byte {
	if len(ps) == 1 {
		return ps[0].Bytes()
	}
	b := make([]byte, 0, Size(ps))
	for _, p := range ps {
		b = append(b, p.Bytes()...)
	}
	return b
}

// Split parts a message at the empty line behind its header. The header lies in the first
// piece, whose bytes have to be at hand, and keeps its last line end.
func Split(ps []Piece) (header []byte, body []Piece, err error) {
	if len(ps) == 0 {
		return nil, nil, errNoHeader
	}
	first := ps[0]
	b := first.Bytes()
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return nil, nil, errNoHeader
	}
	if first.Shared != nil {
		first.Offset, first.Length = first.Offset+end+4, first.Length-end-4
	} else {
		first.Data = b[end+4:]
	}
	if first.Len() > 0 {
		body = append(body, first)
	}
	return b[:end+2], append(body, ps[1:]...), nil
}

// Prepend puts a header field in front of a message, into its first piece. A message that is
// shared content from its first octet on stays that (see Raw.Pieces).
func Prepend(field []byte, ps []Piece) []Piece {
	first := ps[0]
	data := make([]byte, 0, len(field)+first.Len())
	data = append(append(data, field...), first.Bytes()...)
	out := append([]Piece{{Data: data}}, ps[1:]...)
	if first.Shared != nil {
		out[0] = NewContent(data).whole()
	}
	return out
}

var errNoHeader = errors.New("the message does not begin with a whole header")

// Own gives a mail of its own the pieces of a template that no other mail uses: what is shared
// becomes its own bytes, but for content that is large enough to be looked for in other mails,
// is stored already, or is common to a batch.
func Own(ps []Piece) []Piece {
	var out []Piece
	for _, p := range ps {
		if p.Shared != nil && (p.Shared.Data == nil || p.Shared.Common || p.Shared.Size >= shareFrom && p.Length == p.Shared.Size) {
			out = append(out, p)
			continue
		}
		if n := len(out); n > 0 && out[n-1].Shared == nil {
			out[n-1].Data = append(out[n-1].Data, p.Bytes()...)
			continue
		}
		out = append(out, Piece{Data: append([]byte(nil), p.Bytes()...)})
	}
	return out
}

const (
	base64Line  = 57 // octets of content in a line of 76
	base64Lines = 32 // that the encoder writes at once
)

// AttachmentEncoder writes a file as a mail holds it: base64 in lines of 76 with CRLF, the same
// whatever the edges of what comes in.
type AttachmentEncoder struct {
	w    io.Writer
	rest [base64Line]byte // of an unfinished line
	n    int
	out  [base64Lines * (base64Line/3*4 + 2)]byte
	err  error
}

// NewAttachmentEncoder writes to w. Close writes the last line; it does not close w.
func NewAttachmentEncoder(w io.Writer) *AttachmentEncoder { return &AttachmentEncoder{w: w} }

// EncodedSize is how many bytes the encoder makes of n.
func EncodedSize(n int64) int64 {
	size := n / base64Line * (base64Line/3*4 + 2)
	if rest := n % base64Line; rest > 0 {
		size += (rest+2)/3*4 + 2
	}
	return size
}

// Write implements io.Writer. It holds back less than a line.
func (e *AttachmentEncoder) Write(p []byte) (int, error) {
	taken := len(p)
	if e.n > 0 {
		k := copy(e.rest[e.n:], p)
		e.n += k
		p = p[k:]
		if e.n < base64Line {
			return taken, e.err
		}
		e.lines(e.rest[:])
		e.n = 0
	}
	for len(p) >= base64Line {
		k := min(len(p)/base64Line, base64Lines) * base64Line
		e.lines(p[:k])
		p = p[k:]
	}
	e.n = copy(e.rest[:], p)
	return taken, e.err
}

// Close writes the last, shorter line.
func (e *AttachmentEncoder) Close() error {
	e.lines(e.rest[:e.n])
	e.n = 0
	return e.err
}

// lines writes what fits into out.
func (e *AttachmentEncoder) lines(p []byte) {
	b := e.out[:0]
	for len(p) > 0 {
		k := min(base64Line, len(p))
		b = base64.StdEncoding.AppendEncode(b, p[:k])
		b = append(b, '\r', '\n')
		p = p[k:]
	}
	if e.err == nil && len(b) > 0 {
		_, e.err = e.w.Write(b)
	}
}
