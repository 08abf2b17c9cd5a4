package smtpx

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// TestGuard: only a printable line is written, whoever made it. It is the last door: whatever
// was forgotten before it stays inside.
func TestGuard(t *testing.T) {
	s := &Session{smtputf8: true}
	for _, good := range []string{"QUIT\r\n", "EHLO x.example\r\n", "MAIL FROM:<a@x.example> SIZE=1\r\n", "RCPT TO:<josé@x.example>\r\n",
		"MAIL FROM:<jörg@x.example> SMTPUTF8\r\n", "AUTH PLAIN " + strings.Repeat("A", 12000) + "\r\n"} {
		if !s.oneLine([]byte(good)) {
			t.Errorf("%.60q is refused", good)
		}
	}
	for _, bad := range []string{"", "QUIT", "QUIT\n", "A\nB\r\n", "A\rB\r\n", "A\r\nB\r\n", "A\x00\r\n", "A\x7f\r\n", "A\tB\r\n", "EHLO grüße.example\r\n",
		"RCPT TO:<a\u0085@x.example>\r\n", "RCPT TO:<a\u2028@x.example>\r\n", "RCPT TO:<a\xff@x.example>\r\n", "RCPT TO:<é>\r\nRSET\r\n",
		"AUTH PLAIN " + strings.Repeat("A", 12288) + "\r\n"} {
		if s.oneLine([]byte(bad)) {
			t.Errorf("%.60q is taken", bad)
		}
	}
	s.smtputf8 = false
	if s.oneLine([]byte("RCPT TO:<josé@x.example>\r\n")) {
		t.Error("without SMTPUTF8")
	}
}

// written counts what is written to it.
type written struct {
	net.Conn
	n int
}

func (w *written) Write(p []byte) (int, error)   { w.n += len(p); return len(p), nil }
func (w *written) Read([]byte) (int, error)      { return 0, net.ErrClosed }
func (w *written) SetDeadline(t time.Time) error { return nil }

// TestCommandIsGuarded: a line that the guard refuses is not written at all.
func TestCommandIsGuarded(t *testing.T) {
	for _, line := range []string{"EHLO x\r\nRSET", "EHLO x\nRSET", "EHLO \x00"} {
		c := &written{}
		s := newSession(c, Relay{})
		if _, _, err := s.command(quitWait, line); !errors.Is(err, errUnsafe) || c.n != 0 {
			t.Errorf("%q: %v, %d octets were written", line, err, c.n)
		}
	}
}
