package smtpx

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	mail "github.com/xhit/go-simple-mail/v2"
)

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

// maxAuthLine is how long an AUTH command with an initial response may be (RFC 4954 4); a longer
// response follows a challenge.
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
			// Whatever the prompt said, it is the password's turn; the library knows only this spelling.
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
