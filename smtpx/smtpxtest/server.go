// Package smtpxtest is an SMTP server whose every answer can be scripted, and a sink that is
// fast enough not to be what is measured. Both listen on loopback.
package smtpxtest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Command is what the client said. Verb is upper case: EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA,
// DOT (the end of the body), RSET, QUIT; CONNECT before the greeting.
type Command struct {
	Verb string
	Arg  string // what follows the verb, or the raw body for DOT
	Conn int    // 1 is the first connection
	Nth  int    // 1 is the first of this verb in this connection
}

// Action is what the server does instead of its ordinary answer. The parts are done in this
// order.
type Action struct {
	Reply  string // sent as it is, CRLF included; "" = nothing
	Drip   bool   // Reply goes out a byte every 20 ms
	Flood  bool   // Reply goes out again and again until the client is gone
	Hang   bool   // say nothing more until the client or the test ends
	Reset  bool   // end the connection with a TCP reset
	Close  bool   // end the connection
	Refuse bool   // Reply is a refusal: nothing is recorded, and DATA does not begin a body
}

// Server is one scripted server. Set the fields before Start.
type Server struct {
	// On is asked before each answer; nil = the ordinary one. Connections ask it at the same
	// time, so what it writes needs a lock.
	On func(Command) *Action
	// Extensions offered after EHLO; nil = PIPELINING, 8BITMIME, ENHANCEDSTATUSCODES,
	// SIZE 10485760.
	Extensions []string
	// TLS is the certificate to use; Implicit speaks TLS from the first byte, else STARTTLS is
	// offered.
	TLS      *tls.Config
	Implicit bool
	// Username and Password enable AUTH with Mechanisms (default PLAIN LOGIN CRAM-MD5).
	Username, Password string
	Mechanisms         []string
	// Refusal is the JSON of the challenge before a refusal of XOAUTH2; "" = none. Password is
	// the token then.
	Refusal      string
	StrictLogin  bool // AUTH LOGIN with an initial response is refused
	LowerPrompts bool // "username:" instead of "Username:"
	// Delay is waited before each flight of answers: the round trip of a distant relay.
	Delay time.Duration
	// Idle is how long a session may lie idle between two mails before the server closes it;
	// 0 = for ever. Inside a mail, and before the first one, a slow client has all the time it
	// needs.
	Idle time.Duration
	// Discard keeps neither mails nor lines, for runs of hours; On sees them.
	Discard bool

	listener net.Listener
	mu       sync.Mutex
	mails    []Mail
	lines    []string
	first    [][]byte
	conns    map[net.Conn]bool
	count    int
	ended    chan struct{}
	wg       sync.WaitGroup
}

// Mail is one mail that was answered 2yz after the dot.
type Mail struct {
	From string
	To   []string
	Data []byte // without dot-stuffing and final dot
	Conn int
}

// Start listens; the server ends with the test.
func (s *Server) Start(t testing.TB) *Server {
	t.Helper()
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Listen is Start outside a test; the server ends with Close.
func (s *Server) Listen() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.listener, s.conns, s.ended = l, map[net.Conn]bool{}, make(chan struct{})
	s.wg.Go(s.accept)
	return nil
}

// Close ends every connection.
func (s *Server) Close() {
	s.mu.Lock()
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
	_ = s.listener.Close()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Port is where it listens.
func (s *Server) Port() int { return s.listener.Addr().(*net.TCPAddr).Port }

// Mails are those accepted so far.
func (s *Server) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

// Lines are the command lines received so far, of all connections.
func (s *Server) Lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

// Conns is how many connections there were.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Open is how many connections stand.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// FirstBytes is the first byte of each connection, before any TLS.
func (s *Server) FirstBytes() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.first)
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.count++
		n := s.count
		s.conns[c] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			x := &conn{s: s, n: n, raw: c, nth: map[string]int{}}
			x.serve()
			_ = c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// conn is one connection.
type conn struct {
	s    *Server
	n    int
	raw  net.Conn
	c    net.Conn
	br   *bufio.Reader
	out  bytes.Buffer
	nth  map[string]int
	tls  bool
	from string
	to   []string
	mail bool
	said string // the last scripted reply
}

// tap records the first byte that arrives.
type tap struct {
	net.Conn
	s    *Server
	once sync.Once
}

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	if n > 0 && !t.s.Discard {
		t.once.Do(func() {
			t.s.mu.Lock()
			t.s.first = append(t.s.first, []byte{b[0]})
			t.s.mu.Unlock()
		})
	}
	return n, err
}

func (x *conn) use(c net.Conn) {
	x.c = c
	x.br = bufio.NewReaderSize(c, 64<<10)
}

func (x *conn) startTLS() bool {
	t := tls.Server(x.c, x.s.TLS)
	if t.Handshake() != nil {
		return false
	}
	x.use(t)
	x.tls = true
	return true
}

func (x *conn) serve() {
	x.use(&tap{Conn: x.raw, s: x.s})
	if x.s.Implicit && !x.startTLS() {
		return
	}
	if !x.answer(Command{Verb: "CONNECT"}, "220 smtpxtest ready\r\n") {
		return
	}
	for {
		if x.br.Buffered() == 0 && !x.flush() {
			return
		}
		if x.s.Idle > 0 {
			var until time.Time
			if x.nth["DOT"] > 0 && x.nth["DOT"] == x.nth["MAIL"] {
				until = time.Now().Add(x.s.Idle)
			}
			_ = x.raw.SetReadDeadline(until) // fails only when it is closed already
		}
		line, err := x.br.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		if !x.s.Discard {
			x.s.mu.Lock()
			x.s.lines = append(x.s.lines, line)
			x.s.mu.Unlock()
		}
		verb, arg, _ := strings.Cut(line, " ")
		if !x.command(strings.ToUpper(verb), arg) {
			_ = x.flush()
			return
		}
	}
}

func (x *conn) flush() bool {
	if x.out.Len() == 0 {
		return true
	}
	if x.s.Delay > 0 {
		select {
		case <-time.After(x.s.Delay):
		case <-x.s.ended:
			return false
		}
	}
	_, err := x.c.Write(x.out.Bytes())
	x.out.Reset()
	return err == nil
}

// answer gives the scripted answer, or the ordinary one. False ends the connection. refused
// tells whether the script refused.
func (x *conn) answer(cmd Command, ordinary string) bool {
	ok, _ := x.scripted(cmd, ordinary)
	return ok
}

func (x *conn) scripted(cmd Command, ordinary string) (ok, refused bool) {
	x.nth[cmd.Verb]++
	cmd.Conn, cmd.Nth = x.n, x.nth[cmd.Verb]
	var a *Action
	if x.s.On != nil {
		a = x.s.On(cmd)
	}
	if a == nil {
		x.out.WriteString(ordinary)
		return true, false
	}
	x.said = a.Reply
	switch {
	case a.Drip:
		_ = x.flush()
		for i := range len(a.Reply) {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-x.s.ended:
				return false, true
			}
			if _, err := x.c.Write([]byte{a.Reply[i]}); err != nil {
				return false, true
			}
		}
	case a.Flood:
		for x.flush() {
			x.out.WriteString(a.Reply)
		}
		return false, true
	default:
		x.out.WriteString(a.Reply)
	}
	if a.Hang {
		_ = x.flush()
		gone := make(chan struct{})
		go func() { // the client may go on talking; nobody answers
			b := make([]byte, 4096)
			for {
				if _, err := x.c.Read(b); err != nil {
					close(gone)
					return
				}
			}
		}()
		select {
		case <-gone:
		case <-x.s.ended:
			_ = x.raw.Close()
			<-gone
		}
		return false, true
	}
	if a.Reset {
		if tc, is := x.raw.(*net.TCPConn); is {
			_ = tc.SetLinger(0)
		}
		return false, true
	}
	if a.Close {
		_ = x.flush()
		return false, true
	}
	return true, a.Refuse || a.Reply == "" || a.Reply[0] == '4' || a.Reply[0] == '5'
}

func (x *conn) command(verb, arg string) bool {
	cmd := Command{Verb: verb, Arg: arg}
	switch verb {
	case "EHLO", "HELO":
		return x.answer(cmd, x.ehlo())
	case "STARTTLS":
		ok, refused := x.scripted(cmd, "220 go ahead\r\n")
		if !ok || refused {
			return ok
		}
		return x.flush() && x.startTLS()
	case "AUTH":
		return x.auth(cmd)
	case "MAIL":
		if x.mail {
			x.out.WriteString("503 5.5.1 nested MAIL\r\n")
			return true
		}
		ok, refused := x.scripted(cmd, "250 2.1.0 sender ok\r\n")
		if !refused {
			x.mail, x.from, x.to = true, between(arg), nil
		}
		return ok
	case "RCPT":
		ok, refused := x.scripted(cmd, "250 2.1.5 recipient ok\r\n")
		if !refused {
			x.to = append(x.to, between(arg))
		}
		return ok
	case "DATA":
		ordinary := "354 go on\r\n"
		if !x.mail || len(x.to) == 0 {
			ordinary = "554 5.5.1 no valid recipients\r\n"
		}
		ok, refused := x.scripted(cmd, ordinary)
		if !ok {
			return false
		}
		if refused || !bytes.Contains(x.out.Bytes(), []byte("354")) {
			return true
		}
		return x.body()
	case "RSET":
		x.mail = false
		return x.answer(cmd, "250 2.0.0 reset\r\n")
	case "NOOP":
		return x.answer(cmd, "250 2.0.0 ok\r\n")
	case "QUIT":
		_ = x.answer(cmd, "221 2.0.0 bye\r\n")
		return false
	}
	return x.answer(cmd, "500 5.5.2 unknown command\r\n")
}

func (x *conn) body() bool {
	if !x.flush() {
		return false
	}
	var b bytes.Buffer
	for {
		l, err := x.br.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			b.Write(l)
			continue
		}
		if err != nil {
			return false
		}
		if bytes.Equal(l, []byte(".\r\n")) {
			break
		}
		if l[0] == '.' {
			l = l[1:]
		}
		b.Write(l)
	}
	mail := Mail{From: x.from, To: x.to, Data: b.Bytes(), Conn: x.n}
	x.mail = false
	ok, refused := x.scripted(Command{Verb: "DOT", Arg: b.String()}, "250 2.0.0 Ok: queued as 4F2A1\r\n")
	taken := !refused
	if !ok && x.s.On != nil { // hung or closed: taken only where a 2yz had been given
		taken = strings.HasPrefix(x.said, "2")
	}
	if taken && !x.s.Discard {
		x.s.mu.Lock()
		x.s.mails = append(x.s.mails, mail)
		x.s.mu.Unlock()
	}
	return ok
}
