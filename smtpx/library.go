package smtpx

import (
	"bytes"
	"context"
	"net"
	"strings"
	"time"
)

// libraryConn is the net.Conn the mail library talks to: it plays the server, in memory and on
// the caller's goroutine. A Write that completes a command does the work and leaves the answer
// for the next Read.
type libraryConn struct {
	s    *Session
	in   []byte // of an unfinished line
	out  []byte // answers not read yet
	auth authState
	body bool // the library is sending a body
	mech string
	rcpt int // RCPT lines of the current transaction
	ctx  context.Context
}

// Read gives the library its answers. There is always one when it reads; if not, the dialogue
// is out of step.
func (c *libraryConn) Read(p []byte) (int, error) {
	if len(c.out) == 0 {
		return 0, errClosed
	}
	n := copy(p, c.out)
	c.out = c.out[:copy(c.out, c.out[n:])]
	return n, nil
}

func (c *libraryConn) answer(line string) {
	c.out = append(append(c.out, line...), "\r\n"...)
}

// Write takes what the library says.
func (c *libraryConn) Write(p []byte) (int, error) {
	n := len(p)
	if c.body {
		c.takeBody(p)
		return n, nil
	}
	c.in = append(c.in, p...)
	for {
		i := bytes.Index(c.in, crlf)
		if i < 0 {
			return n, nil
		}
		line := string(c.in[:i])
		c.in = c.in[:copy(c.in, c.in[i+2:])]
		c.line(line)
	}
}

// takeBody waits for the end of the library's stand-in. The mail is in hand then; its bytes
// were all the time.
func (c *libraryConn) takeBody(p []byte) {
	c.in = append(c.in, p...)
	if string(c.in) != standInEnd[:min(len(c.in), len(standInEnd))] || len(c.in) > len(standInEnd) {
		c.body = false
		// Submit finds the mail still current, and that the relay waits for a body
		c.answer("554 not the stand-in")
		return
	}
	if len(c.in) == len(standInEnd) {
		c.in = c.in[:0]
		c.body = false
		c.s.cur, c.s.held = nil, c.s.cur
		c.answer("250 in hand") // the relay has not seen it yet; what it says goes to Done
	}
}

func (c *libraryConn) line(line string) {
	switch c.auth {
	case authAnswers:
		c.authLine(line)
		return
	case authOver:
		c.answer("501 over")
		if line == "QUIT" {
			c.auth = authNone
		}
		return
	}
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "EHLO":
		if c.mech != "" {
			c.answer("250-session")
			c.answer("250 AUTH " + c.mech)
		} else {
			c.answer("250 session")
		}
	case "AUTH":
		c.beginAuth(line)
	case "MAIL":
		c.rcpt = 0
		if c.s.cur == nil || rest != "FROM:<"+c.s.cur.t.From+">" {
			c.answer("553 not what was submitted")
			return
		}
		c.answer("250 noted")
	case "RCPT":
		t := c.s.cur
		if t == nil || c.rcpt >= len(t.t.To) || rest != "TO:<"+t.t.To[c.rcpt]+">" {
			c.answer("553 not what was submitted")
			return
		}
		c.rcpt++
		// the true reply goes into the outcome; one refused recipient must not end the mail for
		// the others
		c.answer("250 noted")
	case "DATA":
		if c.s.cur == nil || c.rcpt != len(c.s.cur.t.To) {
			c.answer("503 not what was submitted")
			return
		}
		if c.s.envelope(c.ctx) {
			c.body = true
			c.answer("354 go on")
		} else {
			c.answer("554 decided")
		}
	case "RSET", "NOOP":
		c.answer("250 noted")
	case "QUIT":
		c.answer("221 noted")
	default:
		c.answer("500 unexpected")
	}
}

// Close is the library's; the session owns the real connection.
func (c *libraryConn) Close() error { return nil }

func (c *libraryConn) LocalAddr() net.Addr              { return c.s.conn.LocalAddr() }
func (c *libraryConn) RemoteAddr() net.Addr             { return c.s.conn.RemoteAddr() }
func (c *libraryConn) SetDeadline(time.Time) error      { return nil }
func (c *libraryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *libraryConn) SetWriteDeadline(time.Time) error { return nil }
