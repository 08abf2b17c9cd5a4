package dkim

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Signer signs for a domain with one key. Many goroutines may use it at once.
type Signer struct {
	Domain   string // A-labels
	Selector string
	Key      *rsa.PrivateKey
}

// FieldName begins the header field of a signature.
const FieldName = "DKIM-Signature"

// signed are the header fields that are signed where they are there, beside Content-* and
// List-*: those by which a reader knows who wrote what to whom (RFC 6376 5.4.1). Received,
// Return-Path and their like are written by relays.
var signed = []string{"from", "sender", "to", "cc", "subject", "date", "message-id", "reply-to", "in-reply-to", "references", "mime-version"}

func isSigned(name string) bool {
	return slices.Contains(signed, name) || strings.HasPrefix(name, "content-") || strings.HasPrefix(name, "list-")
}

// BodySum is the hash of a body in its relaxed form.
type BodySum [sha256.Size]byte

// SumBody hashes what write writes: the body behind the empty line.
func SumBody(write func(io.Writer) error) (BodySum, error) {
	h := newBodyHash()
	err := write(h)
	return h.Sum(), err
}

// Sign makes the header field that signs a message, with its line end. It is put in front of
// the message. header is the message's own up to its empty line, with or without that.
func (s *Signer) Sign(header []byte, body BodySum, at time.Time) ([]byte, error) {
	fields, err := split(header)
	if err != nil {
		return nil, err
	}
	digest := sha256.New()
	var names []string
	from := 0
	// where a field is there more than once, the lowest is meant by its first naming (5.4.2)
	for _, f := range slices.Backward(fields) {
		name := strings.ToLower(f.name)
		if !isSigned(name) {
			continue
		}
		if name == "from" {
			from++
		}
		names = append(names, f.name)
		digest.Write(relaxed(f.name, f.value))
	}
	if from != 1 {
		return nil, fmt.Errorf("sign: the header has %d From fields", from)
	}
	names = append(names, "From") // that there is no other

	var b bytes.Buffer
	line := newFolder(&b, FieldName+":")
	line.word(" v=1;")
	line.word(" a=rsa-sha256;")
	line.word(" c=relaxed/relaxed;")
	line.word(" d=" + s.Domain + ";")
	line.word(" s=" + s.Selector + ";")
	line.word(" t=" + strconv.FormatInt(at.Unix(), 10) + ";")
	for i, n := range names {
		lead, end := " ", ":"
		if i == 0 {
			lead = " h="
		}
		if i == len(names)-1 {
			end = ";"
		}
		line.joined(lead, n+end)
	}
	line.word(" bh=" + base64.StdEncoding.EncodeToString(body[:]) + ";")
	line.word(" b=")
	// the field itself is hashed last, without its signature and without a line end (3.7)
	own := relaxed(FieldName, b.Bytes()[len(FieldName)+1:])
	digest.Write(own[:len(own)-2])
	signature, err := rsa.SignPKCS1v15(nil, s.Key, crypto.SHA256, digest.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	text := base64.StdEncoding.EncodeToString(signature)
	for len(text) > 0 {
		n := min(len(text), signatureLine)
		line.joined(" ", text[:n])
		text = text[n:]
	}
	b.WriteString("\r\n")
	return b.Bytes(), nil
}

const (
	maxLine       = 76 // octets, as everywhere in a header of ours
	signatureLine = 72
)

// folder writes a header field and breaks its lines where a blank may stand.
type folder struct {
	b   *bytes.Buffer
	col int
}

func newFolder(b *bytes.Buffer, begin string) *folder {
	b.WriteString(begin)
	return &folder{b, len(begin)}
}

// word writes text that begins with a blank, which may become a line break.
func (f *folder) word(s string) {
	if f.col+len(s) > maxLine {
		f.b.WriteString("\r\n")
		f.col = 0
	}
	f.b.WriteString(s)
	f.col += len(s)
}

// joined writes s right behind what is there, and lead before it only where a line begins or
// lead says more than a blank.
func (f *folder) joined(lead, s string) {
	if lead != " " || f.col+len(s) > maxLine {
		f.word(lead + s)
		return
	}
	f.b.WriteString(s)
	f.col += len(s)
}

// field is a header field; value is what stands behind the colon, with its line breaks.
type field struct {
	name  string
	value []byte
}

var errHeader = errors.New("sign: the header has a line that is no field")

// split reads a header whose lines end in CRLF.
func split(header []byte) ([]field, error) {
	var fields []field
	for len(header) > 0 {
		line, rest, _ := bytes.Cut(header, []byte("\r\n"))
		if len(line) == 0 {
			break // the empty line
		}
		end := len(line)
		for len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\t') {
			more, after, _ := bytes.Cut(rest, []byte("\r\n"))
			end, rest = end+2+len(more), after
		}
		name, value, is := bytes.Cut(header[:end], []byte(":"))
		if name = bytes.TrimRight(name, " \t"); !is || len(name) == 0 {
			return nil, errHeader
		}
		fields, header = append(fields, field{string(name), value}), rest
	}
	return fields, nil
}

// relaxed is a field in its relaxed form (RFC 6376 3.4.2), with its line end.
func relaxed(name string, value []byte) []byte {
	out := make([]byte, 0, len(name)+len(value)+3)
	out = append(append(out, strings.ToLower(name)...), ':')
	begin, blank := len(out), false
	for _, c := range value {
		switch c {
		case ' ', '\t':
			blank = true
		case '\r', '\n':
		default:
			if blank && len(out) > begin {
				out = append(out, ' ')
			}
			blank, out = false, append(out, c)
		}
	}
	return append(out, '\r', '\n')
}

// Strip takes the signature off that Sign has put in front of a message; signed: there was one.
func Strip(message []byte) (rest []byte, signed bool) {
	if !bytes.HasPrefix(message, []byte(FieldName+":")) {
		return message, false
	}
	for at := 0; ; {
		i := bytes.Index(message[at:], []byte("\r\n"))
		if i < 0 {
			return message, false
		}
		if at += i + 2; at == len(message) || message[at] != ' ' {
			return message[at:], true
		}
	}
}
