package smtpx

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	mail "github.com/xhit/go-simple-mail/v2"
)

// authState is where a login stands. While one runs, lines are answers to challenges and never
// commands, whatever they look like: the base64 of a password may well spell EHLO.
type authState int

const (
	authNone    authState = iota
	authAnswers           // the library's next line is an answer for the relay
	authOver              // refused: "*" and QUIT follow, the relay hears none of it
)

// login opens the library's client and logs in, if the configuration says so. A mechanism that
// the relay offers and then does not know (RFC 4954 6: 504, 534, and what others say in its
// place) is followed by the next; any other refusal ends the login.
func (s *Session) login(tr *trace) *Error {
	r := &s.relay
	if r.Username == "" || r.Auth == AuthNone {
		tr.skip(StepAuth, "no login configured")
		return s.openLibrary()
	}
	if r.Auth == AuthXOAUTH2 {
		return s.loginToken(tr)
	}
	done := tr.begin(StepAuth)
	mechs, fault := s.mechanisms()
	if fault != nil {
		s.sayQuit()
		return done.fail(fault, *r)
	}
	for i, mech := range mechs {
		fault := s.loginWith(mech)
		if fault == nil {
			out, detail := StepOK, "logged in with "+mech
			if !s.tls {
				out, detail = StepWarning, detail+" without TLS: the password can be read on the way"
			}
			done(out, detail, 235, map[string]string{"mechanism": mech})
			return nil
		}
		next := Means(Said{Phase: PhaseAuth, Reply: fault.Reply}).Action == ActNextMechanism
		switch {
		case next && i < len(mechs)-1:
			continue
		case next:
			fault.Hint = "the server takes none of the mechanisms that it offers and this service knows (" + strings.Join(mechs, ", ") + "): " +
				"some providers want an app password, or a login of another kind"
		case fault.Reply.Code == 535 && i < len(mechs)-1:
			fault.Hint = loginHint + "; set auth if the account logs in by another mechanism on offer (" + strings.Join(mechs[i+1:], ", ") + ")"
		}
		return done.fail(fault, *r)
	}
	return nil // mechanisms gives at least one
}

// openLibrary opens the library's client without a login of its own.
func (s *Session) openLibrary() *Error {
	client, err := s.library("").Connect()
	if err != nil {
		return &Error{Phase: PhaseEHLO, Temporary: true, Err: fmt.Errorf("the mail library cannot begin: %w", err)}
	}
	s.client = client
	return nil
}

// library is a client of the mail library that talks to this session, and to nobody else.
func (s *Session) library(mech string) *mail.SMTPServer {
	s.lib = libraryConn{s: s, mech: mech, out: []byte("220 session\r\n")}
	srv := mail.NewSMTPClient()
	srv.Host, srv.Port = s.relay.Host, s.relay.Port
	// never leaves this process: the session has greeted the relay itself
	srv.Helo = "localhost"
	srv.Encryption = mail.EncryptionNone
	srv.Authentication = mail.AuthNone
	srv.KeepAlive = true
	// with them set the library leaks goroutines and never returns; deadlines are the
	// connection's
	srv.ConnectTimeout, srv.SendTimeout = 0, 0
	srv.CustomConn = &s.lib
	return srv
}

func (s *Session) loginWith(mech string) *Error {
	srv := s.library(mech)
	srv.Username, srv.Password = s.relay.Username, s.relay.Password
	srv.Authentication = map[string]mail.AuthType{"PLAIN": mail.AuthPlain, "LOGIN": mail.AuthLogin, "CRAM-MD5": mail.AuthCRAMMD5}[mech]
	s.authErr = nil
	client, err := srv.Connect()
	s.lib.auth = authNone
	if s.authErr != nil {
		return s.authErr
	}
	if err != nil {
		return &Error{Phase: PhaseAuth, Temporary: true, Err: errors.New("the login dialogue failed")}
	}
	s.client = client
	return nil
}

// mechanisms are the login mechanisms to try, best first, out of the relay's own list. No login
// leaves in clear unless the configuration permits it.
func (s *Session) mechanisms() ([]string, *Error) {
	r := &s.relay
	offered := strings.Fields(strings.ToUpper(s.ext["AUTH"]))
	if len(offered) == 0 {
		return nil, &Error{Phase: PhaseAuth, Err: errNoAuth}
	}
	if !s.tls && !r.AllowPlaintextAuth {
		return nil, &Error{Phase: PhaseAuth, Err: errPlaintextAuth}
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
	case AuthXOAUTH2:
		order = []string{"XOAUTH2"}
	}
	mechs := slices.DeleteFunc(slices.Clone(order), func(m string) bool { return !slices.Contains(offered, m) })
	if len(mechs) == 0 {
		return nil, &Error{Phase: PhaseAuth,
			Err: fmt.Errorf("%w: offered are %s, wanted is %s", errNoMechanism, strings.Join(offered, ", "), strings.Join(order, " or "))}
	}
	return mechs, nil
}

var (
	errNoAuth        = errors.New("the server offers no login here")
	errPlaintextAuth = errors.New("a login without TLS is not permitted for this mail server")
	errNoMechanism   = errors.New("no login mechanism in common")
)

// maxAuthLine is how long an AUTH command with an initial response may be (RFC 4954 4); a
// longer response follows a challenge.
const maxAuthLine = 512

// beginAuth starts the login at the relay. LOGIN goes without the initial response that the
// library sends, because strict servers refuse it; so does any that makes the line too long.
func (c *libraryConn) beginAuth(line string) {
	d := c.s.relay.Timeouts.Command
	if name, ok := strings.CutPrefix(line, "AUTH LOGIN "); ok {
		rep, _, err := c.s.command(d, "AUTH LOGIN")
		if err == nil && rep.Code == 334 {
			rep, _, err = c.s.command(d, name)
		}
		if err == nil && rep.Code == 334 {
			// Whatever the prompt said, it is the password's turn; the library knows only this
			// spelling.
			c.auth = authAnswers
			c.answer("334 " + base64.StdEncoding.EncodeToString([]byte("Password:")))
			return
		}
		c.authDone(rep, err)
		return
	}
	if mech, initial, ok := strings.Cut(line[len("AUTH "):], " "); ok && len(line)+len(crlf) > maxAuthLine {
		rep, _, err := c.s.command(d, "AUTH "+mech)
		if err != nil || rep.Code != 334 {
			c.authDone(rep, err)
			return
		}
		line = initial // is the answer to the empty challenge
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
