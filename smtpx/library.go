package smtpx

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	mail "github.com/xhit/go-simple-mail/v2"
)

// libraryConn is the net.Conn the mail library talks to: it plays the server, in memory and on the caller's goroutine. A Write that completes a
// command does the work and leaves the answer for the next Read.
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

// authState is where a login stands. While one runs, lines are answers to challenges and never commands, whatever they look like: the base64 of a
// password may well spell EHLO.
type authState int

const (
	authNone    authState = iota
	authAnswers           // the library's next line is an answer for the relay
	authOver              // refused: "*" and QUIT follow, the relay hears none of it
)

// login opens the library's client and logs in, if the configuration says so.
func (s *Session) login(tr *trace) *Error {
	r := &s.relay
	srv := mail.NewSMTPClient()
	srv.Host, srv.Port = r.Host, r.Port
	srv.Helo = "localhost" // never leaves this process: the session has greeted the relay itself
	srv.Encryption = mail.EncryptionNone
	srv.Authentication = mail.AuthNone
	srv.KeepAlive = true
	srv.ConnectTimeout, srv.SendTimeout = 0, 0 // with them set the library leaks goroutines and never returns; deadlines are the connection's
	srv.CustomConn = &s.lib
	s.lib.out = append(s.lib.out, "220 session\r\n"...)
	if r.Username == "" || r.Auth == AuthNone {
		tr.skip(StepAuth, "no login configured")
	} else {
		done := tr.begin(StepAuth)
		mech, fault := s.chooseMechanism()
		if fault != nil {
			s.sayQuit()
			return done.fail(fault, *r)
		}
		s.lib.mech = mech
		srv.Username, srv.Password = r.Username, r.Password
		srv.Authentication = map[string]mail.AuthType{"PLAIN": mail.AuthPlain, "LOGIN": mail.AuthLogin, "CRAM-MD5": mail.AuthCRAMMD5}[mech]
		client, err := srv.Connect()
		s.lib.auth = authNone
		if s.authErr != nil {
			return done.fail(s.authErr, *r)
		}
		if err != nil {
			return done.fail(&Error{Phase: PhaseAuth, Temporary: true, Err: errors.New("the login dialogue failed")}, *r)
		}
		s.client = client
		out, detail := StepOK, "logged in with "+mech
		if !s.tls {
			out, detail = StepWarning, detail+" without TLS: the password can be read on the way"
		}
		done(out, detail, 235, map[string]string{"mechanism": mech})
		return nil
	}
	client, err := srv.Connect()
	if err != nil {
		return &Error{Phase: PhaseEHLO, Temporary: true, Err: fmt.Errorf("the mail library cannot begin: %w", err)}
	}
	s.client = client
	return nil
}

// chooseMechanism picks the login mechanism from the relay's own list. No login leaves in clear unless the configuration permits it.
func (s *Session) chooseMechanism() (string, *Error) {
	r := &s.relay
	offered := strings.Fields(strings.ToUpper(s.ext["AUTH"]))
	if len(offered) == 0 {
		return "", &Error{Phase: PhaseAuth, Err: errNoAuth}
	}
	if !s.tls && !r.AllowPlaintextAuth {
		return "", &Error{Phase: PhaseAuth, Err: errPlaintextAuth}
	}
	order := []string{"PLAIN", "LOGIN", "CRAM-MD5"}
	if !s.tls {
		order = []string{"CRAM-MD5", "PLAIN", "LOGIN"}
	}
	switch r.Auth {
	case AuthPlain:
		order = []string{"PLAIN"}
	case AuthLogin:
		order = []string{"LOGIN"}
	case AuthCRAMMD5:
		order = []string{"CRAM-MD5"}
	}
	for _, m := range order {
		if slices.Contains(offered, m) {
			return m, nil
		}
	}
	return "", &Error{Phase: PhaseAuth, Err: fmt.Errorf("%w: offered are %s, wanted is %s", errNoMechanism, strings.Join(offered, ", "), strings.Join(order, " or "))}
}

var (
	errNoAuth        = errors.New("the server offers no login here")
	errPlaintextAuth = errors.New("a login without TLS is not permitted for this mail server")
	errNoMechanism   = errors.New("no login mechanism in common")
)

// Read gives the library its answers. There is always one when it reads; if not, the dialogue is out of step.
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

// takeBody waits for the end of the library's stand-in. The mail is in hand then; its bytes were all the time.
func (c *libraryConn) takeBody(p []byte) {
	c.in = append(c.in, p...)
	if string(c.in) != standInEnd[:min(len(c.in), len(standInEnd))] || len(c.in) > len(standInEnd) {
		c.body = false
		c.answer("554 not the stand-in") // Submit finds the mail still current, and that the relay waits for a body
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
		c.answer("250 noted") // the true reply goes into the outcome; one refused recipient must not end the mail for the others
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

// beginAuth starts the login at the relay. LOGIN goes without the initial response the library sends: strict servers refuse it.
func (c *libraryConn) beginAuth(line string) {
	d := c.s.relay.Timeouts.Command
	if name, ok := strings.CutPrefix(line, "AUTH LOGIN "); ok {
		rep, _, err := c.s.command(d, "AUTH LOGIN")
		if err == nil && rep.Code == 334 {
			rep, _, err = c.s.command(d, name)
		}
		if err == nil && rep.Code == 334 {
			// Whatever the prompt said, it is the password's turn; the library knows only this spelling.
			c.auth = authAnswers
			c.answer("334 " + base64.StdEncoding.EncodeToString([]byte("Password:")))
			return
		}
		c.authDone(rep, err)
		return
	}
	c.authLine(line)
}

// authLine passes one line of the login to the relay and its answer back.
func (c *libraryConn) authLine(line string) {
	rep, lines, err := c.s.command(c.s.relay.Timeouts.Command, line)
	if err == nil && rep.Code == 334 {
		c.auth = authAnswers
		c.answer("334 " + lines[len(lines)-1])
		return
	}
	c.authDone(rep, err)
}

func (c *libraryConn) authDone(rep Reply, err error) {
	if err == nil && rep.Code == 235 {
		c.auth = authNone
		c.answer("235 welcome")
		return
	}
	c.s.authErr = c.s.fault(PhaseAuth, rep, err)
	c.auth = authOver
	c.answer("535 refused")
}

// Close is the library's; the session owns the real connection.
func (c *libraryConn) Close() error { return nil }

func (c *libraryConn) LocalAddr() net.Addr              { return c.s.conn.LocalAddr() }
func (c *libraryConn) RemoteAddr() net.Addr             { return c.s.conn.RemoteAddr() }
func (c *libraryConn) SetDeadline(time.Time) error      { return nil }
func (c *libraryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *libraryConn) SetWriteDeadline(time.Time) error { return nil }
