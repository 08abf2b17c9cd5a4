// Package catchall is an SMTP server that takes every mail and sends none on, for the demo and
// for trying things out. It may ask for a login, and answers some addresses with faults. It
// shares no code with the client of this service.
package catchall

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Mail is one received mail.
type Mail struct {
	From string
	To   []string
	Raw  []byte
}

// Server is a running catch-all server. Set the fields before Start.
type Server struct {
	// Listen is the address to listen on; empty = a loopback port of the system's choice.
	Listen string
	// Username and Password, when set, are required. With XOAUTH2 the password is the token.
	Username, Password string
	// Slow is how long a mail to slow@ waits for its answer; 0 = 10 s.
	Slow time.Duration
	// Took is told of each mail that is taken, and keeps it: Mails stays empty then. Its error
	// is told to the sender as a refusal for now. nil = mails are kept in memory. Refused is
	// told of each address that was answered with a fault. Several goroutines call them.
	Took    func(Mail) error
	Refused func(address, reply string)

	srv      *smtp.Server
	listener net.Listener
	ended    context.Context // ends with Close
	end      context.CancelFunc

	mu    sync.Mutex // guards the rest; sessions write it
	mails []Mail
	grey  map[string]bool // greylisted once: "sender recipient"
}

// Start listens.
func (s *Server) Start() error {
	if s.Listen == "" {
		s.Listen = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return err
	}
	s.listener = l
	s.ended, s.end = context.WithCancel(context.Background())
	s.srv = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &session{s: s, conn: c.Conn()}, nil }))
	s.srv.Domain = "catchall.localhost"
	s.srv.AllowInsecureAuth = true // it has no TLS
	s.srv.EnableSMTPUTF8 = true
	s.srv.MaxMessageBytes = 64 << 20
	s.srv.MaxRecipients = 1000
	s.srv.ErrorLog = discard{}
	go func() { _ = s.srv.Serve(l) }() // ends with Close
	return nil
}

// Port is where it listens.
func (s *Server) Port() int { return s.listener.Addr().(*net.TCPAddr).Port }

// Addr is where it listens, as host and port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close ends it.
func (s *Server) Close() error {
	s.end()
	return s.srv.Close()
}

// Mails are those received so far.
func (s *Server) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Mail(nil), s.mails...)
}

func (s *Server) told(address string, e *smtp.SMTPError) {
	if s.Refused != nil {
		s.Refused(address, fmt.Sprintf("%d %d.%d.%d %s", e.Code, e.EnhancedCode[0], e.EnhancedCode[1], e.EnhancedCode[2], e.Message))
	}
}

type session struct {
	s    *Server
	conn net.Conn
	ok   bool
	mail Mail
}

func (x *session) AuthMechanisms() []string {
	if x.s.Username == "" {
		return nil
	}
	return []string{sasl.Plain, sasl.Login, "XOAUTH2"}
}

func (x *session) Auth(mech string) (sasl.Server, error) {
	check := func(user, pass string) error {
		if user != x.s.Username || pass != x.s.Password {
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "Username and password not accepted"}
		}
		x.ok = true
		return nil
	}
	switch mech {
	case sasl.Plain:
		return sasl.NewPlainServer(func(_, user, pass string) error { return check(user, pass) }), nil
	case "XOAUTH2":
		return &xoauth2{check: check}, nil
	}
	return &login{check: check}, nil
}

func (x *session) Mail(from string, _ *smtp.MailOptions) error {
	if x.s.Username != "" && !x.ok {
		return &smtp.SMTPError{Code: 530, EnhancedCode: smtp.EnhancedCode{5, 7, 0}, Message: "Authentication required"}
	}
	if err := x.strike(fault(atMail, from), from); err != nil {
		return err
	}
	x.mail.From = from
	return nil
}

func (x *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if err := x.strike(fault(atRcpt, to), to); err != nil {
		return err
	}
	x.mail.To = append(x.mail.To, to)
	return nil
}

func (x *session) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	x.mail.Raw = raw
	for _, to := range x.mail.To {
		if err := x.strike(fault(atDot, to), to); err != nil {
			return err
		}
	}
	return x.keep()
}

// keep takes the mail.
func (x *session) keep() error {
	if x.s.Took != nil {
		if err := x.s.Took(x.mail); err != nil {
			return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "The mail could not be kept"}
		}
		return nil
	}
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.s.mails = append(x.s.mails, x.mail)
	return nil
}

func (x *session) Reset()        { x.mail = Mail{} }
func (x *session) Logout() error { return nil }

type discard struct{}

func (discard) Printf(string, ...any) {}
func (discard) Println(...any)        {}

// login is the old two-prompt mechanism, which the sasl package only has for clients.
type login struct {
	check func(user, pass string) error
	user  *string
}

func (l *login) Next(response []byte) ([]byte, bool, error) {
	switch {
	case response == nil:
		return []byte("Username:"), false, nil
	case l.user == nil:
		u := string(response)
		l.user = &u
		return []byte("Password:"), false, nil
	}
	return nil, true, l.check(*l.user, string(response))
}

// xoauth2 takes an access token as Gmail and Exchange Online do. A refusal is a JSON that the
// client answers with an empty line.
type xoauth2 struct {
	check   func(user, token string) error
	refused error
}

func (o *xoauth2) Next(response []byte) ([]byte, bool, error) {
	if o.refused != nil {
		return nil, true, o.refused
	}
	if response == nil {
		return []byte{}, false, nil
	}
	user, rest, _ := strings.Cut(string(response), "\x01")
	user, _ = strings.CutPrefix(user, "user=")
	token, _ := strings.CutPrefix(strings.TrimRight(rest, "\x01"), "auth=Bearer ")
	if o.refused = o.check(user, token); o.refused == nil {
		return nil, true, nil
	}
	return []byte(`{"status":"401","schemes":"bearer"}`), false, nil
}
