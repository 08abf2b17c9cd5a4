package smtpx

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	mail "github.com/xhit/go-simple-mail/v2"
)

// Session is one logged-in connection to a relay. It is used by one goroutine at a time.
//
// The library drives the dialogue, but over a net.Conn of ours (libraryConn): it says MAIL,
// RCPT, DATA and a stand-in for the body to us, we say them to the relay, several at once where
// it offers PIPELINING, read every reply and keep the truth per recipient. The library's own
// return value is never the outcome of a mail. Without this its Send hangs for ever on a silent
// relay, drops TLS silently, fails a whole mail for one refused recipient, and cannot tell what
// happened after the dot.
//
// With PIPELINING a mail costs one round trip: body and dot of mail k leave in one write with
// MAIL, RCPT and DATA of mail k+1 (RFC 2920 3.1). Mail k waits behind its DATA until
// Submit(k+1) or Flush.
type Session struct {
	relay Relay
	conn  net.Conn
	br    *bufio.Reader
	tls   bool

	ext         map[string]string
	pipelining  bool
	lockStep    *lockStep // the Dialer's; nil without one
	address     string    // host and port, by which lockStep knows the relay
	smtputf8    bool
	sizeOffered bool
	sizeLimit   int64

	lib     libraryConn
	client  *mail.SMTPClient
	authErr *Error

	cur       *transfer // being said by the library
	held      *transfer // behind its 354, body in hand, dot not sent
	spare     *transfer // used again
	needReset bool      // the next flight begins with RSET
	inData    bool      // the relay waits for a body
	dead      error     // why nothing more can be sent

	flight []byte // commands of the flight being written
	block  []byte // of the body being written

	mu    sync.Mutex // guards what cancellation touches from another goroutine
	ended bool       // ctx of the running call is over
	// a dot may have left and its reply is awaited: cutting now would only make the outcome
	// unknown
	pastDot  bool
	deadline time.Time
}

// transfer is one transaction on its way.
type transfer struct {
	t    *Transaction
	rcpt []RecipientOutcome
	ok   int // recipients accepted at RCPT
	took int // of them, when the relay said that there are too many

	last   Reply // by which the relay ended the session or the transaction
	lastAt Phase
}

// dotGrace is how long the reply after a dot is awaited once the call was cancelled. Cutting at
// once would only make an unknown outcome.
const dotGrace = 60 * time.Second

func newSession(c net.Conn, r Relay) *Session {
	s := &Session{relay: r}
	s.lib.s = s
	s.setConn(c)
	return s
}

// watch makes the end of ctx end the waits of the session; the returned func ends the watch.
func (s *Session) watch(ctx context.Context) func() {
	s.mu.Lock()
	s.ended = false
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended = true
		s.applyDeadline()
	})
	return func() {
		stop()
		s.mu.Lock()
		s.ended = false
		s.mu.Unlock()
	}
}

// setDeadline bounds the next waits; a call that is over stays over.
func (s *Session) setDeadline(d time.Duration) {
	s.mu.Lock()
	s.deadline = time.Now().Add(d)
	s.applyDeadline()
	s.mu.Unlock()
}

// applyDeadline sets the connection's deadline from the phase's and the call's state. s.mu is
// held.
func (s *Session) applyDeadline() {
	t := s.deadline
	switch {
	case s.ended && s.pastDot:
		if g := time.Now().Add(dotGrace); g.Before(t) {
			t = g
		}
	case s.ended:
		t = time.Unix(1, 0)
	}
	_ = s.conn.SetDeadline(t) // fails only on a closed connection, which the next read reports
}

func (s *Session) setPastDot(v bool) {
	s.mu.Lock()
	s.pastDot = v
	if s.ended {
		s.applyDeadline()
	}
	s.mu.Unlock()
}

func (s *Session) readReply(d time.Duration) (Reply, []string, error) {
	s.setDeadline(d)
	return replyReader{s.br}.read()
}

// command sends one line and reads its reply.
func (s *Session) command(d time.Duration, line string) (Reply, []string, error) {
	b := append([]byte(line), crlf...)
	if !s.oneLine(b) {
		return Reply{}, nil, errUnsafe
	}
	s.setDeadline(d)
	if _, err := s.conn.Write(b); err != nil {
		return Reply{}, nil, err
	}
	return s.readReply(d)
}

// fault is an error of a phase out of a reply or a broken read. Temporary unless the relay said
// 5yz.
func (s *Session) fault(p Phase, rep Reply, err error) *Error {
	if err != nil {
		return &Error{Phase: p, Temporary: true, Err: cleanNet(err)}
	}
	return &Error{Phase: p, Reply: rep, Temporary: rep.Code < 500 || p == PhaseSTARTTLS}
}

// cleanNet turns a network error into a text for people.
func cleanNet(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", os.ErrDeadlineExceeded)
	case isEOF(err):
		return errClosed
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// Submit hands over one mail. Its outcome comes through t.Done: now, where it is decided before
// the dot or the relay does not pipeline, else during the next Submit or Flush. An error means
// the session is dead and every transaction handed over has had its Done.
func (s *Session) Submit(ctx context.Context, t *Transaction) error {
	if s.dead != nil {
		tr := s.take(t)
		s.finish(tr, notTried(tr, s.deadFault(PhaseMail)))
		return s.dead
	}
	if fault := s.refuseLocally(t); fault != nil {
		tr := s.take(t)
		s.finish(tr, rejectedAll(tr, fault))
		return nil
	}
	if t = s.reachable(t); t == nil {
		return nil
	}
	tr := s.take(t)
	defer s.watch(ctx)()
	if s.held == nil && s.unread() {
		s.kill(errSurplus)
		s.finish(tr, notTried(tr, &Error{Phase: PhaseMail, Temporary: true, Err: errClosed}))
		return s.dead
	}
	s.cur, s.lib.ctx = tr, ctx
	// the session's record is the outcome, not this error
	_ = mail.SendMessage(t.From, t.To, standIn, s.client)
	if s.cur == tr {
		// The library stopped before the body was complete: only when it refused an address
		// itself, which refuseLocally should have.
		s.cur = nil
		s.needReset = true
		s.finish(tr, rejectedAll(tr, &Error{Phase: PhaseMail, Err: errors.New("the mail library refused the transaction")}))
		if s.inData {
			s.kill(errProtocol)
		}
	}
	if s.held != nil && !s.pipelining {
		s.flushHeld(ctx, nil)
	}
	return s.dead
}

// Flush makes everything handed over leave and be answered.
func (s *Session) Flush(ctx context.Context) error {
	if s.held != nil && s.dead == nil {
		defer s.watch(ctx)()
		s.flushHeld(ctx, nil)
	}
	return s.dead
}

// Send is Submit and Flush for one mail.
func (s *Session) Send(ctx context.Context, t *Transaction) Outcome {
	var out Outcome
	done := t.Done
	c := *t
	c.Done = func(o Outcome) {
		out = o
		if done != nil {
			done(o)
		}
	}
	if s.Submit(ctx, &c) == nil {
		_ = s.Flush(ctx) // Done has the outcome
	}
	return out
}

// Usable reports whether another mail may be submitted: not dead, and the relay has said
// nothing unasked (a goodbye, most often).
func (s *Session) Usable() bool {
	if s.dead != nil {
		return false
	}
	if s.held == nil && s.unread() {
		s.kill(errClosed)
	}
	return s.dead == nil
}

// Pipelining reports whether commands leave in flights (RFC 2920).
func (s *Session) Pipelining() bool { return s.pipelining }

// TLS reports whether the connection is encrypted.
func (s *Session) TLS() bool { return s.tls }

const quitWait = 5 * time.Second

// Close says QUIT, waits at most 5 s for the answer, and closes. A mail that still waits behind
// its DATA has not left; its Done says so.
func (s *Session) Close() error {
	if h := s.held; h != nil {
		s.held = nil
		s.finish(h, notTried(h, &Error{Phase: PhaseGate, Temporary: true, Err: errClosed}))
	}
	if s.dead == nil && !s.inData {
		s.sayQuit()
	}
	if s.dead == nil {
		s.dead = errClosed
	}
	return s.conn.Close()
}

// sayQuit ends the dialogue politely; whatever comes back does not matter any more.
func (s *Session) sayQuit() {
	_, _, _ = s.command(quitWait, "QUIT")
}

// drop closes without a word.
func (s *Session) drop() {
	if s.dead == nil {
		s.dead = errClosed
	}
	_ = s.conn.Close() // nothing was left to lose
}

// kill marks the session as finished and frees its descriptor.
func (s *Session) kill(err error) {
	if s.dead == nil {
		s.dead = cleanNet(err)
		_ = s.conn.Close() // as in drop
	}
}

func (s *Session) deadFault(p Phase) *Error {
	return &Error{Phase: p, Temporary: true, Err: s.dead}
}

// unread reports whether the relay said something unasked, or closed.
func (s *Session) unread() bool {
	said, closed := s.look()
	return said || closed
}

// surplus reports whether the relay said something unasked. That it closed is seen by the next
// command.
func (s *Session) surplus() bool {
	said, _ := s.look()
	return said
}

// look looks for what is there to be read without waiting for it. What the kernel holds may be
// TLS housekeeping, so a hit is looked at.
func (s *Session) look() (said, closed bool) {
	if s.br.Buffered() > 0 {
		return true, false
	}
	raw := s.conn
	if n, ok := raw.(interface{ NetConn() net.Conn }); ok {
		raw = n.NetConn()
	}
	sc, ok := raw.(syscall.Conn)
	if !ok {
		return false, false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false, true
	}
	var one [1]byte
	err = rc.Control(func(fd uintptr) {
		// its Read would fail once the last wait's deadline has passed, and an idle session be
		// taken for closed
		n, _, e := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		said = n > 0
		closed = !said && e != syscall.EAGAIN && e != syscall.EINTR // an end or an error
	})
	if err != nil {
		return false, true
	}
	if !said || !s.tls {
		return said, closed
	}
	s.mu.Lock()
	_ = s.conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	s.mu.Unlock()
	_, err = s.br.Peek(1)
	return err == nil, err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// take prepares a transfer, reusing the buffers of the last one.
func (s *Session) take(t *Transaction) *transfer {
	tr := s.spare
	s.spare = nil
	if tr == nil {
		tr = &transfer{}
	}
	*tr = transfer{t: t}
	// handed out with the outcome, so never reused
	tr.rcpt = make([]RecipientOutcome, len(t.To))
	return tr
}

// finish delivers an outcome.
func (s *Session) finish(tr *transfer, o Outcome) {
	t := tr.t
	o.Took = tr.took
	tr.t, tr.rcpt = nil, nil
	s.spare = tr
	o = o.clean().means()
	if o.mindsPipelining() {
		s.cannotPipeline()
	}
	if why := o.aboutServer(); why.Code != 0 {
		// Every mail would hear it on this session. A fresh login may help; whoever has mails
		// decides.
		o.ServerDown = true
		if o.Err == nil {
			o.Err = &Error{Phase: PhaseRcpt, Reply: why, Temporary: why.Code < 500}
		}
		s.kill(fmt.Errorf("the server takes no mail: %s", why))
	}
	if t.Done != nil {
		t.Done(o)
	}
}

func isEOF(err error) bool {
	return errors.Is(err, errEOF) || errors.Is(err, errUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}
