package smtpx_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// The rows of the traps and of the session matrix that no other test of this package holds;
// TRAPS.md lists them all.

// TestT1b_TheNextMailBegins: after every way a transaction can fail and leave the connection
// open, the relay takes the next MAIL; a relay that refuses RSET is not used further.
func TestT1b_TheNextMailBegins(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		var mu sync.Mutex
		open := false // a transaction the relay has not ended
		srv := (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
			mu.Lock()
			defer mu.Unlock()
			switch c.Verb {
			case "RSET", "DOT":
				open = false
			case "MAIL":
				if open {
					return &smtpxtest.Action{Reply: "503 5.5.1 nested MAIL command\r\n", Refuse: true}
				}
				open = true
			case "RCPT":
				if strings.Contains(c.Arg, "bad") {
					return &smtpxtest.Action{Reply: "550 5.1.1 no\r\n", Refuse: true}
				}
			}
			return nil
		}}).Start(t)
		s := dial(t, relay(srv))
		for range 3 {
			bad := tx(2)
			bad.To = []string{"bad1@y.example", "bad2@y.example"}
			if o := s.Send(context.Background(), bad); statuses(o) != "RR" {
				t.Fatalf("%s (%v)", statuses(o), o.Err)
			}
			if o := s.Send(context.Background(), tx(2)); statuses(o) != "AA" {
				t.Fatalf("the next mail: %s (%v)", statuses(o), o.Err)
			}
		}
		srv = (&smtpxtest.Server{Extensions: ext, On: all(on("RCPT", 1, smtpxtest.Action{Reply: "550 no\r\n", Refuse: true}), on("RSET", 0, smtpxtest.Action{Reply: "502 what?\r\n"}))}).Start(t)
		s = dial(t, relay(srv))
		s.Send(context.Background(), tx(1))
		if o := s.Send(context.Background(), tx(1)); statuses(o) != "n" || s.Usable() || len(srv.Mails()) != 0 {
			t.Fatalf("after a refused RSET: %s", statuses(o))
		}
	})
}

// TestRefusedThenSilence: a relay that refuses and then answers nothing any more has refused
// all the same.
func TestRefusedThenSilence(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		for name, a := range map[string]smtpxtest.Action{"silence": {Hang: true}, "close": {Close: true}, "421": {Reply: "421 4.7.0 too many errors\r\n", Close: true}} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				srv := (&smtpxtest.Server{Extensions: ext, On: all(on("RCPT", 1, smtpxtest.Action{Reply: "550 5.1.1 no\r\n", Refuse: true}), on("RCPT", 2, smtpxtest.Action{Reply: "450 4.2.0 later\r\n", Refuse: true}),
					on("RSET", 0, a))}).Start(t)
				s := dial(t, relay(srv))
				if o := s.Send(context.Background(), tx(2)); statuses(o) != "RD" || o.ServerDown {
					t.Fatalf("%s %+v", statuses(o), o)
				}
				if o := s.Send(context.Background(), tx(1)); statuses(o) != "n" || !o.ServerDown || s.Usable() {
					t.Fatalf("the next mail: %s %+v", statuses(o), o)
				}
			})
		}
	})
}

// TestT2b_SuccessDoesNotWaitForQUIT: what the relay accepted is known at once, also when it
// answers nothing any more.
func TestT2b_SuccessDoesNotWaitForQUIT(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		t.Parallel()
		srv := (&smtpxtest.Server{Extensions: ext, On: all(on("QUIT", 0, smtpxtest.Action{Hang: true}), on("RSET", 0, smtpxtest.Action{Hang: true}))}).Start(t)
		s := dial(t, relay(srv))
		begin := time.Now()
		if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" || time.Since(begin) > 3*time.Second {
			t.Fatalf("%s after %v", statuses(o), time.Since(begin))
		}
		begin = time.Now()
		_ = s.Close()
		if d := time.Since(begin); d > 8*time.Second {
			t.Fatalf("close took %v", d)
		}
	})
}

// TestT2_NoPhaseUndoesTheEndOfTheCall: a call that is over before it begins waits for nothing,
// though every phase sets its own deadline; past the dot the reply is awaited.
func TestT2_NoPhaseUndoesTheEndOfTheCall(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		for _, verb := range []string{"MAIL", "RCPT", "DATA"} {
			srv := (&smtpxtest.Server{Extensions: ext, On: on(verb, 1, smtpxtest.Action{Hang: true})}).Start(t)
			r := relay(srv)
			r.Timeouts = smtpx.Timeouts{Command: time.Minute, Rcpt: time.Minute, Data: time.Minute}
			s := dial(t, r)
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			begin := time.Now()
			if o := s.Send(ctx, tx(2)); statuses(o) != "nn" || time.Since(begin) > 5*time.Second {
				t.Errorf("%s: %s after %v", verb, statuses(o), time.Since(begin))
			}
		}
		dot, release := make(chan struct{}), make(chan struct{})
		srv := (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "DOT" {
				close(dot)
				<-release
			}
			return nil
		}}).Start(t)
		r := relay(srv)
		r.Timeouts.Dot = time.Minute
		s := dial(t, r)
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-dot
			cancel()
			<-time.After(50 * time.Millisecond) // for the end of the call to do harm, if it can
			close(release)
		}()
		if o := s.Send(ctx, tx(1)); statuses(o) != "A" {
			t.Errorf("cancelled behind the dot: %s (%v)", statuses(o), o.Err)
		}
	})
}

// TestT3b_NoSessionWithoutItsLogin: whatever happens to a login, there is an error, soon, and
// no open connection.
func TestT3b_NoSessionWithoutItsLogin(t *testing.T) {
	for _, mech := range []string{"PLAIN", "LOGIN", "CRAM-MD5"} {
		for name, a := range map[string]smtpxtest.Action{
			"refused": {Reply: "535 5.7.8 no\r\n"}, "deferred": {Reply: "454 4.7.0 later\r\n"}, "closed": {Close: true}, "reset": {Reset: true}, "silent": {Hang: true}, "garbage": {Reply: "yes\r\n"},
			"another success": {Reply: "250 fine\r\n"}, "endless challenges": {Reply: "334 \r\n"},
		} {
			t.Run(mech+" "+name, func(t *testing.T) {
				t.Parallel()
				srv := (&smtpxtest.Server{Username: "u", Password: "secret", Mechanisms: []string{mech}, On: on("AUTH", 0, a)}).Start(t)
				r := relay(srv)
				r.Username, r.Password, r.AllowPlaintextAuth = "u", "secret", true
				begin := time.Now()
				e := fault(t, r)
				if e.Phase != smtpx.PhaseAuth || time.Since(begin) > 5*time.Second || strings.Contains(e.Error()+e.Hint, "secret") {
					t.Errorf("%+v after %v", e, time.Since(begin))
				}
				if wantTemporary := name != "refused"; e.Temporary != wantTemporary && name != "another success" && name != "endless challenges" {
					t.Errorf("temporary %v: %+v", e.Temporary, e)
				}
			})
		}
	}
}

// TestT5b_CommandsHoldNothingElse: whatever the relay offers, RCPT holds one address and MAIL
// the sender and its size.
func TestT5b_CommandsHoldNothingElse(t *testing.T) {
	for _, pipelining := range []string{"PIPELINING", "HELP"} {
		srv := (&smtpxtest.Server{Extensions: []string{pipelining, "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING", "BINARYMIME", "SIZE", "DELIVERBY"}}).Start(t)
		if o := dial(t, relay(srv)).Send(context.Background(), tx(3)); statuses(o) != "AAA" {
			t.Fatal(o.Err)
		}
		var said []string
		for _, l := range srv.Lines() {
			if !strings.HasPrefix(l, "EHLO") {
				said = append(said, l)
			}
		}
		want := "MAIL FROM:<a@x.example> SIZE=45|RCPT TO:<r0@y.example>|RCPT TO:<r1@y.example>|RCPT TO:<r2@y.example>|DATA"
		if got := strings.Join(said, "|"); got != want {
			t.Errorf("said %s, want %s", got, want)
		}
	}
}

// TestGateIsAskedOnce: once for every mail, whatever its size is to the buffers of the library,
// and never with the dot already gone.
func TestGateIsAskedOnce(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		srv := (&smtpxtest.Server{Extensions: ext}).Start(t)
		s := dial(t, relay(srv))
		for i := range 300 {
			asked, before := 0, len(srv.Mails())
			x := tx(1)
			x.Raw = []byte("Subject: s\r\n\r\n" + strings.Repeat("y", 3900+i) + "\r\n")
			x.Gate = func(context.Context) error {
				asked++
				if len(srv.Mails()) != before {
					t.Error("the mail was there before the gate opened")
				}
				return nil
			}
			if o := s.Send(context.Background(), x); statuses(o) != "A" || asked != 1 {
				t.Fatalf("body of %d: %s, asked %d times", len(x.Raw), statuses(o), asked)
			}
			if ms := srv.Mails(); string(ms[len(ms)-1].Data) != string(x.Raw) {
				t.Fatalf("body of %d arrived otherwise", len(x.Raw))
			}
		}
	})
}

// TestRefusedWhileTheBodyLeaves: a relay that says 552 in the middle of the body and closes has
// refused the mail; that the write failed makes no doubt of it.
func TestRefusedWhileTheBodyLeaves(t *testing.T) {
	for _, ext := range []string{"PIPELINING", "8BITMIME"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- refuseInTheBody(l, ext) }()
		s := dial(t, smtpx.Relay{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Encryption: smtpx.EncryptionNone, Timeouts: short})
		x := tx(2)
		x.Raw = []byte("Subject: s\r\n\r\n" + strings.Repeat(strings.Repeat("z", 76)+"\r\n", 200_000))
		o := s.Send(context.Background(), x)
		if statuses(o) != "RR" || o.Recipients[0].Reply.Code != 552 || o.DotSent || s.Usable() {
			t.Errorf("%s: %s %+v, usable %v", ext, statuses(o), o.Err, s.Usable())
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = l.Close()
	}
}

// refuseInTheBody serves one connection up to some way into the body.
func refuseInTheBody(l net.Listener, ext string) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	// the client's outcome tells of every failure here
	_, _ = io.WriteString(c, "220 relay\r\n")
	br := bufio.NewReader(c)
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(line, "EHLO"):
			_, _ = io.WriteString(c, "250-relay\r\n250 "+ext+"\r\n")
		case strings.HasPrefix(line, "DATA"):
			_, _ = io.WriteString(c, "354 go on\r\n")
			if _, err := io.CopyN(io.Discard, br, 1<<20); err != nil {
				return err
			}
			_, err := io.WriteString(c, "552 5.3.4 too big\r\n")
			return err // and close, with most of the body unread: the client's write fails
		default:
			_, _ = io.WriteString(c, "250 ok\r\n")
		}
	}
}

// TestRoundTrips: at a distance, a mail costs two round trips by itself and one in a row of
// mails, however many recipients it has.
func TestRoundTrips(t *testing.T) {
	const trip = 200 * time.Millisecond
	srv := (&smtpxtest.Server{Delay: trip}).Start(t)
	r := relay(srv)
	r.Timeouts = smtpx.Timeouts{}
	s := dial(t, r)
	begin := time.Now()
	if o := s.Send(context.Background(), tx(3)); statuses(o) != "AAA" {
		t.Fatal(o.Err)
	}
	if d := time.Since(begin); d > 4*trip { // six in lock step
		t.Errorf("one mail took %v", d)
	}
	begin = time.Now()
	for range 6 {
		if err := s.Submit(context.Background(), tx(3)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 10*trip { // twelve, if each had two
		t.Errorf("six mails took %v", d)
	}
}

// allocated is how much f allocates in all.
func allocated(f func()) int {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc - before.TotalAlloc)
}

// TestT8_MemoryOfALargeFile: composing allocates the encoded file once, sending nothing up to
// the gate; the library's own composer took ten times.
func TestT8_MemoryOfALargeFile(t *testing.T) {
	from, err := message.ParseAddress("a@x.example")
	if err != nil {
		t.Fatal(err)
	}
	m := &message.Message{From: from, Subject: "s", Text: "t", MessageID: "1@x.example", Attachments: []message.Attachment{{Filename: "a.pdf", Content: make([]byte, 16<<20)}}}
	var ps []message.Piece
	composing := allocated(func() {
		if ps, err = message.Compose(m); err != nil {
			t.Fatal(err)
		}
	})
	size := message.Size(ps)
	if composing > size+size/8 {
		t.Errorf("composing %d bytes allocates %d", size, composing)
	}
	sink := &smtpxtest.Sink{}
	if err := sink.Start(); err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	s := dial(t, smtpx.Relay{Host: "127.0.0.1", Port: sink.Port(), Encryption: smtpx.EncryptionNone})
	x := tx(1)
	x.Raw = message.Join(ps)
	// Up to the gate; behind it blocks of one size leave, and the sink would be measured too.
	sending := allocated(func() {
		x.Gate = func(context.Context) error { return errors.New("enough") }
		if o := s.Send(context.Background(), x); o.Err == nil || o.Err.Phase != smtpx.PhaseGate {
			t.Errorf("%s (%v)", statuses(o), o.Err)
		}
	})
	t.Logf("%d bytes: composing allocates %d, sending %d", size, composing, sending)
	if sending > size/8 {
		t.Errorf("sending %d bytes allocates %d", size, sending)
	}
}

// TestEndlessRelays is F6: 64 relays at once that answer for ever, in lines and in one line, at
// every phase, are each cut, and cost little memory.
func TestEndlessRelays(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		endless := map[string]string{"lines": strings.Repeat("250-"+strings.Repeat("y", 500)+"\r\n", 400), "one line": strings.Repeat("250 xxxx", 25_000)}
		healthy := (&smtpxtest.Server{Extensions: ext}).Start(t)
		var grown int
		for name, text := range endless {
			srv := (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb == []string{"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"}[c.Conn%6] {
					return &smtpxtest.Action{Reply: text, Hang: true}
				}
				return nil
			}}).Start(t)
			var wg sync.WaitGroup
			grown = allocated(func() {
				for range 64 {
					wg.Go(func() {
						s, err := new(smtpx.Dialer).Dial(context.Background(), relay(srv))
						if err != nil {
							return
						}
						defer s.Close()
						if o := s.Send(context.Background(), tx(2)); strings.Trim(statuses(o), "nU") != "" {
							t.Errorf("%s: %s", name, statuses(o))
						}
					})
				}
				quiet := relay(healthy)
				quiet.Timeouts = smtpx.Timeouts{} // a loaded machine answers late
				if o := dial(t, quiet).Send(context.Background(), tx(2)); statuses(o) != "AA" {
					t.Errorf("%s: a healthy relay meanwhile: %s (%v)", name, statuses(o), o.Err)
				}
				wg.Wait()
			})
			t.Logf("%s: 64 connections allocated %d KiB in all, both ends", name, grown>>10)
			if grown > 48<<20 {
				t.Errorf("%s: %d bytes for 64 relays", name, grown)
			}
		}
	})
}

// TestIdleSessionIsKept: a session that was idle for longer than any wait of it is as good as
// before.
func TestIdleSessionIsKept(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		t.Parallel()
		srv := (&smtpxtest.Server{Extensions: ext}).Start(t)
		r := relay(srv)
		s := dial(t, r)
		<-time.After(2 * r.Timeouts.Command)
		if !s.Usable() {
			t.Fatal("a fresh session is not used after its last wait's deadline")
		}
		if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
			t.Fatal(o.Err)
		}
		<-time.After(2 * r.Timeouts.Dot)
		if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" || srv.Conns() != 1 {
			t.Fatalf("%s (%v)", statuses(o), o.Err)
		}
	})
}

// TestKeptSessionDies is F7 at the session: a relay that says goodbye or resets between two
// mails costs the second nothing.
func TestKeptSessionDies(t *testing.T) {
	for _, verb := range []string{"MAIL", "RCPT", "DATA"} {
		for name, a := range map[string]smtpxtest.Action{"421": {Reply: "421 4.3.2 bye\r\n", Close: true, Refuse: true}, "close": {Close: true}, "reset": {Reset: true}} {
			t.Run(verb+" "+name, func(t *testing.T) {
				modes(t, func(t *testing.T, ext []string) {
					t.Parallel()
					srv := (&smtpxtest.Server{Extensions: ext, On: on(verb, 2, a)}).Start(t)
					s := dial(t, relay(srv))
					if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
						t.Fatal(o.Err)
					}
					o := s.Send(context.Background(), tx(1))
					if !o.ServerDown || o.DotSent || strings.Trim(statuses(o), "nD") != "" || s.Usable() || len(srv.Mails()) != 1 {
						t.Fatalf("%s %+v, usable %v, %d mails", statuses(o), o, s.Usable(), len(srv.Mails()))
					}
					if name != "421" && !errors.As(error(o.Err), new(*smtpx.Error)) {
						t.Fatal("no error")
					}
				})
			})
		}
	}
}

// TestFlightIsCapped: a transaction takes at most 100 recipients; more are refused before the
// relay hears of them.
func TestFlightIsCapped(t *testing.T) {
	srv := (&smtpxtest.Server{}).Start(t)
	s := dial(t, relay(srv))
	o := s.Send(context.Background(), tx(smtpx.MaxRecipients+1))
	if strings.Trim(statuses(o), "R") != "" || strings.Contains(strings.Join(srv.Lines(), "\n"), "MAIL") || !s.Usable() {
		t.Fatalf("%s", statuses(o))
	}
}

// TestT3_AFailedOpeningCloses: a relay that is not taken sees the connection end at once, not
// when the memory is tidied.
func TestT3_AFailedOpeningCloses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "220 relay\r\n") // the read tells of every failure
		br := bufio.NewReader(c)
		if _, err := br.ReadString('\n'); err != nil {
			ended <- err
			return
		}
		_, _ = io.WriteString(c, "550 not you\r\n")
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, err = br.ReadByte()
		ended <- err
	}()
	if _, err := new(smtpx.Dialer).Dial(context.Background(), smtpx.Relay{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Encryption: smtpx.EncryptionNone, Timeouts: short}); err == nil {
		t.Fatal("a session with a relay that refused EHLO")
	}
	if err := <-ended; err != io.EOF {
		t.Fatalf("the relay read %v, want the end of the connection", err)
	}
}
