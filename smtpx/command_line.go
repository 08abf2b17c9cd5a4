package smtpx

import (
	"bytes"
	"errors"
	"unicode"
	"unicode/utf8"
)

// errUnsafe: nothing was written.
var errUnsafe = errors.New("the command is not one printable line, and was not sent")

// maxCommand bounds a command line with its end. RFC 4954 4 wants 12288 octets for AUTH; every
// other command is far shorter.
const maxCommand = 12288

// oneLine looks at a command right before it is written, whoever made it: the session, or the
// mail library through it. It must be one printable line that ends in CRLF. A configured name,
// a password or an address can then never begin a command of its own.
//
// Only MAIL and RCPT may hold more than ASCII, and only where the server offers SMTPUTF8
// (RFC 6531 3.4).
func (s *Session) oneLine(command []byte) bool {
	line, ended := bytes.CutSuffix(command, crlf)
	if !ended || len(command) > maxCommand {
		return false
	}
	for i, c := range line {
		switch {
		case c >= ' ' && c < 0x7f:
		case c >= utf8.RuneSelf && s.smtputf8 && (bytes.HasPrefix(line, mailFrom) || bytes.HasPrefix(line, rcptTo)):
			return printableText(line[i:])
		default:
			return false
		}
	}
	return true
}

var mailFrom, rcptTo = []byte("MAIL FROM:<"), []byte("RCPT TO:<")

// printableText reports whether text is UTF-8 of letters, marks, digits, signs and the plain
// blank. Other spaces, controls and formatting characters are none of these.
func printableText(b []byte) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return false
		}
		b = b[n:]
	}
	return true
}
