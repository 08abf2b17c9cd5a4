package smtpx

import (
	"bytes"
	"io"
)

// The library hears of a stand-in for the message and never of its bytes: it would copy them twice and then write them octet by octet, which took half of all
// CPU for a mail with a large file, and a sixth for a small one. What goes to the relay is the submitted bytes, dot-stuffed here (RFC 5321 4.5.2).
const standIn = "stand-in\r\n"

// standInEnd is how the library ends it.
const standInEnd = standIn + ".\r\n"

// bodyBlock is how much of a body is written at once. A usual mail leaves whole, in one write with its dot and the commands of the next.
const bodyBlock = 64 << 10

var (
	crlf     = []byte("\r\n")
	lineDot  = []byte("\n.")
	finalDot = []byte(".\r\n")
)

// writeBody writes raw dot-stuffed, the final dot, and next. buf is used for it and returned for the next body.
func writeBody(w io.Writer, raw, next, buf []byte) ([]byte, error) {
	buf = buf[:0]
	put := func(p []byte) error {
		for len(p) > 0 {
			n := min(len(p), bodyBlock-len(buf))
			buf = append(buf, p[:n]...)
			if p = p[n:]; len(buf) < bodyBlock {
				break
			}
			if _, err := w.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
		return nil
	}
	for rest, begins := raw, true; len(rest) > 0; begins = false {
		if begins && rest[0] == '.' {
			if err := put(finalDot[:1]); err != nil {
				return buf, err
			}
		}
		i := bytes.Index(rest, lineDot)
		if i < 0 {
			if err := put(rest); err != nil {
				return buf, err
			}
			break
		}
		if err := put(rest[:i+2]); err != nil { // the line end and the dot that was there, and one more
			return buf, err
		}
		if err := put(finalDot[:1]); err != nil {
			return buf, err
		}
		rest = rest[i+2:]
	}
	if !bytes.HasSuffix(raw, crlf) {
		if err := put(crlf); err != nil {
			return buf, err
		}
	}
	// The dot and what comes behind it leave in one write, whatever the edges of the blocks.
	_, err := w.Write(append(append(buf, finalDot...), next...))
	return buf[:0], err
}
