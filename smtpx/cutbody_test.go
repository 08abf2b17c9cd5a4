package smtpx_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// bodyRelay takes some of the body of every mail and then does what end says.
func bodyRelay(t *testing.T, ext string, take int64, end func(c *net.TCPConn)) smtpx.Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	serve := func(c *net.TCPConn) {
		defer c.Close()
		_ = c.SetReadBuffer(64 << 10) // the client's outcome tells of every failure here
		br := bufio.NewReader(c)
		_, _ = io.WriteString(c, "220 relay\r\n")
		for {
			line, err := br.ReadString('\n')
			switch {
			case err != nil:
				return
			case strings.HasPrefix(line, "EHLO"):
				_, _ = io.WriteString(c, "250-relay\r\n250 "+ext+"\r\n")
			case strings.HasPrefix(line, "DATA"):
				_, _ = io.WriteString(c, "354 go on\r\n")
				_, _ = io.CopyN(io.Discard, br, take)
				end(c)
				return
			default:
				_, _ = io.WriteString(c, "250 ok\r\n")
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c.(*net.TCPConn))
		}
	}()
	return smtpx.Relay{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Encryption: smtpx.EncryptionNone, Timeouts: short}
}

// largeBody is more than the buffers between two processes hold.
func largeBody() []byte { return body(200_000) }

// body is a mail of so many lines of 78 octets.
func body(lines int) []byte {
	return []byte("Subject: s\r\n\r\n" + strings.Repeat(strings.Repeat("z", 76)+"\r\n", lines))
}

// TestCutInTheBodyIsNotTried: a connection that breaks, or falls silent, before the block with
// the dot was begun has delivered nothing. The mail is not tried, the gate was not asked, and
// nobody is in doubt.
func TestCutInTheBodyIsNotTried(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	ends := map[string]func(*net.TCPConn){
		"close":   func(*net.TCPConn) {},
		"reset":   func(c *net.TCPConn) { _ = c.SetLinger(0) },
		"silence": func(*net.TCPConn) { <-over },
		"garbage": func(c *net.TCPConn) { _, _ = io.WriteString(c, "what?\r\n") },
		// of no command
		"250": func(c *net.TCPConn) { _, _ = io.WriteString(c, "250 ok\r\n") },
	}
	for name, end := range ends {
		for _, ext := range []string{"PIPELINING", "8BITMIME"} {
			for _, take := range []int64{0, 100 << 10} {
				t.Run(name+" "+ext, func(t *testing.T) {
					t.Parallel()
					r := bodyRelay(t, ext, take, end)
					r.Timeouts = smtpx.Timeouts{Block: 300 * time.Millisecond}
					s := dial(t, r)
					x := tx(2)
					x.Raw = largeBody()
					x.Gate = func(context.Context) error { t.Error("the gate was asked"); return nil }
					o := s.Send(context.Background(), x)
					if statuses(o) != "nn" || o.DotSent || !o.ServerDown || o.Err == nil || o.Err.Phase != smtpx.PhaseData || s.Usable() {
						t.Errorf("%s %+v, dot sent %v, usable %v", statuses(o), o.Err, o.DotSent, s.Usable())
					}
				})
			}
		}
	}
	for code, want := range map[string]string{"552 5.3.4 too big": "RR", "452 4.3.1 full": "DD"} {
		r := bodyRelay(t, "PIPELINING", 1<<20, func(c *net.TCPConn) { _, _ = io.WriteString(c, code+"\r\n") })
		s := dial(t, r)
		x := tx(2)
		x.Raw = largeBody()
		x.Gate = func(context.Context) error { t.Error("the gate was asked"); return nil }
		if o := s.Send(context.Background(), x); statuses(o) != want || o.DotSent {
			t.Errorf("%s: %s %+v", code, statuses(o), o.Err)
		}
	}
}

// TestCancelInTheBody: a call that ends while the body is being written ends at once, and
// without a doubt.
func TestCancelInTheBody(t *testing.T) {
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	reached := make(chan struct{})
	r := bodyRelay(t, "PIPELINING", 100<<10, func(*net.TCPConn) { close(reached); <-over })
	r.Timeouts = smtpx.Timeouts{}
	s := dial(t, r)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-reached; cancel() }()
	x := tx(1)
	x.Raw = largeBody()
	begin := time.Now()
	if o := s.Send(ctx, x); statuses(o) != "n" || o.DotSent {
		t.Errorf("%s %+v", statuses(o), o.Err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

// shortConn takes only so much of the block with the final dot.
type shortConn struct {
	net.Conn
	take func(dot int) int
	cut  error
}

func (c *shortConn) Write(p []byte) (int, error) {
	dot := bytes.Index(p, []byte("\r\n.\r\n"))
	if dot < 0 {
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:c.take(dot+2)])
	_ = c.Conn.Close()
	return n, errors.Join(c.cut, err)
}

// TestCutInTheLastBlock: of the block with the dot, too, what the connection did not take has
// not left. From the dot on nobody knows.
func TestCutInTheLastBlock(t *testing.T) {
	for name, c := range map[string]struct {
		take func(dot int) int
		want string
	}{
		"nothing":            {func(int) int { return 0 }, "nn"},
		"half of the body":   {func(dot int) int { return dot / 2 }, "nn"},
		"all but the dot":    {func(dot int) int { return dot }, "nn"},
		"the dot":            {func(dot int) int { return dot + 1 }, "UU"},
		"the dot and a CRLF": {func(dot int) int { return dot + 3 }, "UU"},
	} {
		for _, cut := range []error{os.ErrDeadlineExceeded, io.ErrClosedPipe} {
			modes(t, func(t *testing.T, ext []string) {
				srv := (&smtpxtest.Server{Extensions: ext}).Start(t)
				d := &smtpx.Dialer{Connect: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
					conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
					return &shortConn{conn, c.take, cut}, err
				}}
				s, err := d.Dial(context.Background(), relay(srv))
				if err != nil {
					t.Fatal(err)
				}
				asked := 0
				x := tx(2)
				x.Gate = func(context.Context) error { asked++; return nil }
				o := s.Send(context.Background(), x)
				if statuses(o) != c.want || o.DotSent != (c.want == "UU") || asked != 1 {
					t.Errorf("%s: %s %+v, dot sent %v, the gate was asked %d times", name, statuses(o), o.Err, o.DotSent, asked)
				}
			})
		}
	}
}

// TestGateClosesALargeBody: the gate of a large mail is asked when all but its last block has
// left, and what it refuses does not arrive.
func TestGateClosesALargeBody(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, ext []string) {
		srv := (&smtpxtest.Server{Extensions: ext}).Start(t)
		r := relay(srv)
		r.Timeouts = smtpx.Timeouts{} // a busy machine may take long to read it
		s := dial(t, r)
		no := errors.New("no")
		x := tx(1)
		x.Raw = body(20_000) // some twenty blocks, and the relay reads them all
		x.Gate = func(context.Context) error { return no }
		if o := s.Send(context.Background(), x); statuses(o) != "n" || o.DotSent || o.Err.Phase != smtpx.PhaseGate || !errors.Is(o.Err, no) || s.Usable() {
			t.Errorf("%s %+v", statuses(o), o.Err)
		}
		if n := len(srv.Mails()); n != 0 {
			t.Errorf("%d mails arrived", n)
		}
		x.Gate = func(context.Context) error { return nil }
		if o := dial(t, r).Send(context.Background(), x); statuses(o) != "A" || !o.DotSent {
			t.Errorf("%s %+v", statuses(o), o.Err)
		}
	})
}

// TestOneRecipientsNeed: a recipient that no command may name is refused alone, in its place,
// whatever the others are.
func TestOneRecipientsNeed(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		srv := (&smtpxtest.Server{Extensions: ext, On: on("RCPT", 2, smtpxtest.Action{Reply: "550 5.1.1 no\r\n"})}).Start(t)
		s := dial(t, relay(srv))
		x := tx(0)
		x.To = []string{"josé@y.example", "a@y.example", "b@y.example", "x\r\n@y.example", "c@y.example", "jörg@y.example"}
		if o := s.Send(context.Background(), x); statuses(o) != "RARRAR" || o.Recipients[2].Reply.Code != 550 || !strings.Contains(o.Recipients[0].Reply.Text, "SMTPUTF8") {
			t.Errorf("%s %+v", statuses(o), o.Recipients)
		}
		if m := srv.Mails(); len(m) != 1 || strings.Join(m[0].To, " ") != "a@y.example c@y.example" {
			t.Errorf("arrived: %+v", m)
		}
		// A header, or the sender, concerns them all.
		x.To, x.UTF8 = []string{"a@y.example", "b@y.example"}, true
		if o := s.Send(context.Background(), x); statuses(o) != "RR" {
			t.Errorf("%s %+v", statuses(o), o.Err)
		}
	})
}
