package smtpx_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// short keeps every wait of a test bounded; the silent phases of the tests below end by it.
var short = smtpx.Timeouts{Connect: 5 * time.Second, Command: 1500 * time.Millisecond, Rcpt: 1500 * time.Millisecond, Data: 1500 * time.Millisecond, Block: 2 * time.Second, Dot: 1500 * time.Millisecond}

const raw = "From: a@x.example\r\nSubject: s\r\n\r\n.dot\r\nbody\r\n"

func relay(s *smtpxtest.Server) smtpx.Relay {
	return smtpx.Relay{Host: "127.0.0.1", Port: s.Port(), Encryption: smtpx.EncryptionNone, Timeouts: short}
}

func dial(t *testing.T, r smtpx.Relay) *smtpx.Session {
	t.Helper()
	s, err := new(smtpx.Dialer).Dial(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// modes runs f with and without PIPELINING.
func modes(t *testing.T, f func(t *testing.T, ext []string)) {
	t.Run("pipelined", func(t *testing.T) { f(t, []string{"PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"}) })
	t.Run("lock step", func(t *testing.T) { f(t, []string{"8BITMIME", "ENHANCEDSTATUSCODES"}) })
}

func statuses(o smtpx.Outcome) string {
	var b strings.Builder
	for _, r := range o.Recipients {
		b.WriteByte("nADRU"[r.Status])
	}
	return b.String()
}

func to(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("r%d@y.example", i))
	}
	return out
}

func tx(n int) *smtpx.Transaction {
	return &smtpx.Transaction{From: "a@x.example", To: to(n), Raw: []byte(raw)}
}

// on scripts one answer for a verb's nth use on any connection (0 = every).
func on(verb string, nth int, a smtpxtest.Action) func(smtpxtest.Command) *smtpxtest.Action {
	return func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == verb && (nth == 0 || c.Nth == nth) {
			return &a
		}
		return nil
	}
}

func all(fs ...func(smtpxtest.Command) *smtpxtest.Action) func(smtpxtest.Command) *smtpxtest.Action {
	return func(c smtpxtest.Command) *smtpxtest.Action {
		for _, f := range fs {
			if a := f(c); a != nil {
				return a
			}
		}
		return nil
	}
}

// TestMatrix is the session matrix: what each fault means for each recipient, whether the relay
// got content, and whether the connection can be used again.
func TestMatrix(t *testing.T) {
	reply := func(s string) smtpxtest.Action { return smtpxtest.Action{Reply: s + "\r\n"} }
	for name, tc := range map[string]struct {
		on       func(smtpxtest.Command) *smtpxtest.Action
		n        int
		want     string // n not tried, A accepted, D deferred, R rejected, U unknown
		lockStep string // where it differs
		mails    int
		reuse    bool
		down     bool
		code     int // of the first recipient that is not accepted
		phase    smtpx.Phase
	}{
		"all well":                   {nil, 3, "AAA", "", 1, true, false, 0, ""},
		"T1a one of three refused":   {on("RCPT", 2, reply("550 5.1.1 no such user")), 3, "ARA", "", 1, true, false, 550, smtpx.PhaseRcpt},
		"one greylisted":             {on("RCPT", 1, reply("451 4.7.1 later")), 3, "DAA", "", 1, true, false, 451, smtpx.PhaseRcpt},
		"all refused":                {on("RCPT", 0, reply("550 no")), 3, "RRR", "", 0, true, false, 550, smtpx.PhaseRcpt},
		"all refused, 354 anyway":    {all(on("RCPT", 0, reply("550 no")), on("DATA", 0, reply("354 go on"))), 3, "RRR", "", 0, true, false, 550, smtpx.PhaseRcpt},
		"data 451":                   {on("DATA", 1, reply("451 4.3.0 later")), 2, "DD", "", 0, true, false, 451, smtpx.PhaseData},
		"data 554 after one refused": {all(on("RCPT", 1, reply("550 no")), on("DATA", 1, reply("554 5.5.1 no"))), 2, "RR", "", 0, true, false, 550, smtpx.PhaseRcpt},
		"mail refused":               {on("MAIL", 1, reply("550 5.7.1 not you")), 2, "RR", "", 0, false, true, 550, smtpx.PhaseMail},
		"mail deferred":              {on("MAIL", 1, reply("451 4.7.1 later")), 2, "DD", "", 0, true, false, 451, smtpx.PhaseMail},
		"mail refused, rest accepted, 354 anyway": {all(on("MAIL", 1, smtpxtest.Action{Reply: "550 5.7.1 not you\r\n"}), on("RCPT", 0, reply("250 fine")), on("DATA", 1, reply("354 go on"))),
			2, "RR", "", 0, false, true, 550, smtpx.PhaseMail},
		"421 at mail":                   {on("MAIL", 1, smtpxtest.Action{Reply: "421 4.3.2 bye\r\n", Close: true}), 2, "nn", "DD", 0, false, true, 0, ""},
		"421 in the middle of rcpt":     {on("RCPT", 2, smtpxtest.Action{Reply: "421 4.3.2 bye\r\n", Close: true}), 3, "nDn", "nDn", 0, false, true, 0, ""},
		"close at rcpt":                 {on("RCPT", 2, smtpxtest.Action{Close: true}), 3, "nnn", "", 0, false, true, 0, ""},
		"silence at mail":               {on("MAIL", 1, smtpxtest.Action{Hang: true}), 2, "nn", "", 0, false, true, 0, ""},
		"silence at rcpt":               {on("RCPT", 1, smtpxtest.Action{Hang: true}), 2, "nn", "", 0, false, true, 0, ""},
		"silence at data":               {on("DATA", 1, smtpxtest.Action{Hang: true}), 2, "nn", "", 0, false, true, 0, ""},
		"reset at data":                 {on("DATA", 1, smtpxtest.Action{Reset: true}), 2, "nn", "", 0, false, true, 0, ""},
		"dot 552":                       {on("DOT", 1, reply("552 5.3.4 too big")), 2, "RR", "", 0, true, false, 552, smtpx.PhaseDot},
		"dot 452":                       {on("DOT", 1, reply("452 4.3.1 full")), 2, "DD", "", 0, true, false, 452, smtpx.PhaseDot},
		"T7c dot 250 without text":      {on("DOT", 1, smtpxtest.Action{Reply: "250\r\n"}), 1, "A", "", 1, true, false, 0, ""},
		"T7c dot 251":                   {on("DOT", 1, smtpxtest.Action{Reply: "251 forwarded\r\n"}), 1, "A", "", 1, true, false, 0, ""},
		"dot close":                     {on("DOT", 1, smtpxtest.Action{Close: true}), 2, "UU", "", 0, false, false, 0, smtpx.PhaseDot},
		"dot reset":                     {on("DOT", 1, smtpxtest.Action{Reset: true}), 2, "UU", "", 0, false, false, 0, smtpx.PhaseDot},
		"dot silence":                   {on("DOT", 1, smtpxtest.Action{Hang: true}), 2, "UU", "", 0, false, false, 0, smtpx.PhaseDot},
		"dot garbage":                   {on("DOT", 1, smtpxtest.Action{Reply: "ok whatever\r\n"}), 2, "UU", "", 0, false, false, 0, smtpx.PhaseDot},
		"dot refused after one refused": {all(on("RCPT", 1, reply("550 5.1.1 no")), on("DOT", 1, reply("451 later"))), 2, "RD", "", 0, true, false, 550, smtpx.PhaseRcpt},
		"surplus reply at rcpt":         {on("RCPT", 1, smtpxtest.Action{Reply: "250 a\r\n250 b\r\n"}), 2, "nn", "*", 0, false, true, 0, ""},
		"garbled reply":                 {on("RCPT", 2, smtpxtest.Action{Reply: "2x0 ok\r\n"}), 3, "nnn", "", 0, false, true, 0, ""},
		"codes differ in one reply":     {on("RCPT", 1, smtpxtest.Action{Reply: "250-a\r\n550 b\r\n"}), 2, "nn", "", 0, false, true, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			modes(t, func(t *testing.T, ext []string) {
				t.Parallel()
				srv := (&smtpxtest.Server{On: tc.on, Extensions: ext}).Start(t)
				s := dial(t, relay(srv))
				start := time.Now()
				o := s.Send(context.Background(), tx(tc.n))
				if d := time.Since(start); d > 3*time.Second {
					t.Errorf("took %v", d)
				}
				want := tc.want
				if tc.lockStep != "" && len(ext) == 2 {
					want = tc.lockStep
				}
				if name == "421 at mail" && len(ext) == 3 {
					want = "DD"
					if statuses(o) == "nn" {
						// the close may cut the rest of the flight off before or after the 421
						// is read
						want = "nn"
					}
				}
				if want != "*" && statuses(o) != want {
					t.Fatalf("outcome %s, want %s: %+v (%v)", statuses(o), want, o, o.Err)
				}
				if want == "*" && strings.ContainsAny(statuses(o), "AR") {
					t.Fatalf("outcome %s after a surplus reply", statuses(o))
				}
				content := 0 // a lone dot for nobody is allowed, content is not
				for _, m := range srv.Mails() {
					if len(m.Data) > 0 {
						content++
					}
				}
				if content != tc.mails && !strings.Contains(want, "U") {
					t.Fatalf("the relay took %d mails, want %d", content, tc.mails)
				}
				if o.ServerDown != tc.down && want != "*" {
					t.Errorf("server down: %v", o.ServerDown)
				}
				for _, r := range o.Recipients {
					if tc.code != 0 && r.Status != smtpx.StatusAccepted {
						if r.Reply.Code != tc.code || r.Phase != tc.phase {
							t.Errorf("reply %+v in phase %s, want %d in %s", r.Reply, r.Phase, tc.code, tc.phase)
						}
						break
					}
				}
				if s.Usable() != tc.reuse && want != "*" {
					t.Fatalf("usable %v, want %v", s.Usable(), tc.reuse)
				}
				if tc.reuse && tc.on != nil && !strings.HasPrefix(name, "all refused") && !strings.HasPrefix(name, "T7c") && !strings.Contains(name, "refused, 354") {
					if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
						t.Fatalf("the next mail on this connection: %s (%v)", statuses(o), o.Err)
					}
				}
			})
		})
	}
}

func TestMailIsWhatWasSubmitted(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		srv := (&smtpxtest.Server{Extensions: ext}).Start(t)
		s := dial(t, relay(srv))
		for _, size := range []int{1, 10, 4090, 4091, 4092, 4093, 4094, 4095, 4096, 4097, 8191, 8192, 8193, 300_000} {
			body := "Subject: s\r\n\r\n" + strings.Repeat(".\r\n.x\r\n", size/7) + strings.Repeat("y", size%7) + "\r\n"
			o := s.Send(context.Background(), &smtpx.Transaction{From: "a@x.example", To: []string{"b@y.example", "c@y.example"}, Raw: []byte(body)})
			if statuses(o) != "AA" || o.RemoteID != "4F2A1" {
				t.Fatalf("%s %q (%v)", statuses(o), o.RemoteID, o.Err)
			}
			ms := srv.Mails()
			m := ms[len(ms)-1]
			if string(m.Data) != body || m.From != "a@x.example" || strings.Join(m.To, " ") != "b@y.example c@y.example" {
				t.Fatalf("size %d arrived otherwise: %d octets from %s to %v", size, len(m.Data), m.From, m.To)
			}
		}
		if srv.Conns() != 1 {
			t.Fatalf("%d connections", srv.Conns())
		}
	})
}

// TestOneRoundTrip: with PIPELINING, mail k leaves together with the envelope of k+1; outcomes
// come in order, each exactly once.
func TestOneRoundTrip(t *testing.T) {
	srv := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		switch {
		case c.Verb == "RCPT" && strings.Contains(c.Arg, "bad"):
			return &smtpxtest.Action{Reply: "550 5.1.1 no\r\n"}
		case c.Verb == "DOT" && strings.Contains(c.Arg, "spam"):
			return &smtpxtest.Action{Reply: "554 5.7.1 spam\r\n"}
		}
		return nil
	}}).Start(t)
	s := dial(t, relay(srv))
	var order, got []string
	gates := 0
	submit := func(name, rcpt, body, want string) {
		order = append(order, name+want)
		err := s.Submit(context.Background(), &smtpx.Transaction{From: "a@x.example", To: []string{rcpt, "ok@y.example"}, Raw: []byte("Subject: " + name + "\r\n\r\n" + body + "\r\n"),
			Gate: func(context.Context) error { gates++; return nil },
			Done: func(o smtpx.Outcome) { got = append(got, name+statuses(o)) }})
		if err != nil {
			t.Fatal(err)
		}
	}
	submit("1", "a@y.example", "x", "AA")
	if len(got) != 0 || gates != 0 || len(srv.Mails()) != 0 {
		t.Fatalf("the first mail did not wait for the second: %v", got)
	}
	submit("2", "bad@y.example", "x", "RA")
	if len(got) != 1 {
		t.Fatalf("the first mail's outcome did not come with the second's envelope: %v", got)
	}
	submit("3", "a@y.example", "spam", "RR")
	submit("4", "a@y.example", "x", "AA")
	if err := s.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, " ") != strings.Join(order, " ") || gates != 4 {
		t.Fatalf("outcomes %v, want %v; %d gates", got, order, gates)
	}
	if len(srv.Mails()) != 3 || srv.Conns() != 1 {
		t.Fatalf("%d mails over %d connections", len(srv.Mails()), srv.Conns())
	}
}

// TestOneRoundTripBreaks: mail k breaks after its dot; k+1, of whose body nothing left, is not
// tried.
func TestOneRoundTripBreaks(t *testing.T) {
	for name, a := range map[string]smtpxtest.Action{"close": {Close: true}, "silence": {Hang: true}, "reset": {Reset: true}} {
		t.Run(name, func(t *testing.T) {
			srv := (&smtpxtest.Server{On: on("DOT", 1, a)}).Start(t)
			s := dial(t, relay(srv))
			var got []string
			var second smtpx.Outcome
			if err := s.Submit(context.Background(), &smtpx.Transaction{From: "a@x.example", To: to(1), Raw: []byte(raw), Done: func(o smtpx.Outcome) { got = append(got, statuses(o)) }}); err != nil {
				t.Fatal(err)
			}
			err := s.Submit(context.Background(), &smtpx.Transaction{From: "a@x.example", To: to(1), Raw: []byte(raw),
				Gate: func(context.Context) error { t.Error("the second gate was asked"); return nil },
				Done: func(o smtpx.Outcome) { got = append(got, statuses(o)); second = o }})
			if err == nil || strings.Join(got, " ") != "U n" || !second.ServerDown || second.DotSent {
				t.Fatalf("%v, error %v, second %+v", got, err, second)
			}
		})
	}
}

func TestGateRefuses(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		for _, size := range []int{10, 5000, 300_000} {
			srv := (&smtpxtest.Server{Extensions: ext}).Start(t)
			s := dial(t, relay(srv))
			no := errors.New("lease lost")
			calls := 0
			o := s.Send(context.Background(), &smtpx.Transaction{From: "a@x.example", To: to(2), Raw: []byte("S: x\r\n\r\n" + strings.Repeat("z", size) + "\r\n"),
				Gate: func(context.Context) error { calls++; return no }})
			if statuses(o) != "nn" || o.DotSent || o.ServerDown || calls != 1 || o.Err == nil || o.Err.Phase != smtpx.PhaseGate || !errors.Is(o.Err, no) {
				t.Fatalf("%s %+v, %d calls", statuses(o), o, calls)
			}
			if len(srv.Mails()) != 0 || s.Usable() {
				t.Fatal("something left, or the connection is still in use")
			}
		}
		srv := (&smtpxtest.Server{Extensions: ext, On: on("RCPT", 0, smtpxtest.Action{Reply: "550 no\r\n"})}).Start(t)
		o := dial(t, relay(srv)).Send(context.Background(), &smtpx.Transaction{From: "a@x.example", To: to(2), Raw: []byte(raw),
			Gate: func(context.Context) error { t.Error("the gate was asked for nobody"); return nil }})
		if statuses(o) != "RR" {
			t.Fatal(statuses(o))
		}
	})
}

// TestT2_CancelReturnsAtOnce: before the dot the end of the context ends the wait; after the
// dot the reply is still awaited.
func TestT2_CancelReturnsAtOnce(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		for _, verb := range []string{"MAIL", "RCPT", "DATA"} {
			srv := (&smtpxtest.Server{Extensions: ext, On: on(verb, 1, smtpxtest.Action{Hang: true})}).Start(t)
			r := relay(srv)
			r.Timeouts = smtpx.Timeouts{Command: time.Minute, Rcpt: time.Minute, Data: time.Minute}
			s := dial(t, r)
			ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
			start := time.Now()
			o := s.Send(ctx, tx(2))
			cancel()
			if d := time.Since(start); d > time.Second || statuses(o) != "nn" {
				t.Errorf("%s: %s after %v", verb, statuses(o), d)
			}
		}
		release := make(chan struct{})
		srv := (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "DOT" {
				<-release
			}
			return nil
		}}).Start(t)
		r := relay(srv)
		r.Timeouts.Dot = time.Minute
		s := dial(t, r)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { cancel(); <-time.After(200 * time.Millisecond); close(release) }()
		o := s.Send(context.WithoutCancel(ctx), tx(1))
		if statuses(o) != "A" {
			t.Fatalf("after the dot: %s (%v)", statuses(o), o.Err)
		}
	})
}

func TestAfterTheDotCancelWaits(t *testing.T) {
	dot, release := make(chan struct{}), make(chan struct{})
	srv := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
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
		<-time.After(100 * time.Millisecond)
		close(release)
	}()
	if o := s.Send(ctx, tx(1)); statuses(o) != "A" {
		t.Fatalf("%s (%v)", statuses(o), o.Err)
	}
}

func TestT5a_SMTPUTF8OnlyWhereNeeded(t *testing.T) {
	u := tx(1)
	u.To = []string{"jörg@y.example"}
	modes(t, func(t *testing.T, ext []string) {
		srv := (&smtpxtest.Server{Extensions: append(ext, "SMTPUTF8")}).Start(t)
		s := dial(t, relay(srv))
		said := func() string { return strings.Join(srv.Lines(), "\n") }
		if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" || strings.Contains(said(), "SMTPUTF8") {
			t.Fatalf("plain mail: %s\n%s", statuses(o), said())
		}
		if o := s.Send(context.Background(), u); statuses(o) != "A" || strings.Count(said(), " BODY=8BITMIME SMTPUTF8") != 1 {
			t.Fatalf("%s\n%s", statuses(o), said())
		}
	})
	srv := (&smtpxtest.Server{}).Start(t)
	s := dial(t, relay(srv))
	o := s.Send(context.Background(), u)
	if statuses(o) != "R" || strings.Contains(strings.Join(srv.Lines(), "\n"), "MAIL") {
		t.Fatalf("without the extension: %s", statuses(o))
	}
}

func TestT5d_BareLineEndsAreRefused(t *testing.T) {
	srv := (&smtpxtest.Server{}).Start(t)
	s := dial(t, relay(srv))
	for _, bad := range []string{"a\n.\nb", "a\r.\rb", "a\r\n.\rb\r\n", "a\x00b\r\n", "a\n", "\r", "a\r\nb\r"} {
		x := tx(1)
		x.Raw = []byte(bad)
		if o := s.Send(context.Background(), x); statuses(o) != "R" {
			t.Errorf("%q: %s", bad, statuses(o))
		}
	}
	if len(srv.Mails()) != 0 || !s.Usable() {
		t.Fatal("something left")
	}
}

func TestT6d_NothingUncheckedReachesACommand(t *testing.T) {
	srv := (&smtpxtest.Server{}).Start(t)
	s := dial(t, relay(srv))
	for _, bad := range []string{`"v@evil.test> NOTIFY=NEVER"@x.test`, "a@x.test> SIZE=1", "a b@x.test", "a@x.test\r\nRCPT TO:<v@evil.test>", "a@b@c", "a", "<a@x.test>", "a,b@x.test", "a@[127.0.0.1]", "a\x00@x.test", ""} {
		for _, from := range []bool{true, false} {
			x := tx(1)
			if from {
				x.From = bad
			} else {
				x.To = []string{bad}
			}
			if o := s.Send(context.Background(), x); statuses(o) != "R" {
				t.Errorf("%q: %s", bad, statuses(o))
			}
		}
	}
	for _, l := range srv.Lines() {
		if strings.HasPrefix(l, "MAIL") || strings.HasPrefix(l, "RCPT") {
			t.Fatalf("said: %q", l)
		}
	}
}

func TestSizeIsComparedBeforeMAIL(t *testing.T) {
	srv := (&smtpxtest.Server{Extensions: []string{"PIPELINING", "SIZE 30"}}).Start(t)
	s := dial(t, relay(srv))
	if o := s.Send(context.Background(), tx(2)); statuses(o) != "RR" || strings.Contains(strings.Join(srv.Lines(), "\n"), "MAIL") {
		t.Fatalf("%s", statuses(o))
	}
}

// TestT7d_IdleClose: a connection that died while idle is found before anything leaves.
func TestT7d_IdleClose(t *testing.T) {
	for name, a := range map[string]smtpxtest.Action{"goodbye": {Reply: "250 ok\r\n421 4.4.2 idle too long\r\n", Close: true}, "close": {Reply: "250 ok\r\n", Close: true}} {
		t.Run(name, func(t *testing.T) {
			srv := (&smtpxtest.Server{On: on("DOT", 1, a)}).Start(t)
			s := dial(t, relay(srv))
			if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
				t.Fatalf("%s (%v)", statuses(o), o.Err)
			}
			deadline := time.Now().Add(2 * time.Second)
			for s.Usable() {
				if time.Now().After(deadline) {
					t.Fatal("a closed connection is taken for usable")
				}
				runtime.Gosched()
			}
			if o := s.Send(context.Background(), tx(1)); statuses(o) != "n" || !o.ServerDown {
				t.Fatalf("%s %+v", statuses(o), o)
			}
		})
	}
}

func TestT7e_RepliesAreBounded(t *testing.T) {
	for name, reply := range map[string]string{
		"long line":     "250 " + strings.Repeat("x", 100_000) + "\r\n",
		"many lines":    strings.Repeat("250-"+strings.Repeat("y", 500)+"\r\n", 1000) + "250 end\r\n",
		"never a reply": strings.Repeat("\r\n", 10),
	} {
		t.Run(name, func(t *testing.T) {
			modes(t, func(t *testing.T, ext []string) {
				srv := (&smtpxtest.Server{Extensions: ext, On: on("RCPT", 1, smtpxtest.Action{Reply: reply})}).Start(t)
				s := dial(t, relay(srv))
				if o := s.Send(context.Background(), tx(1)); statuses(o) != "n" || s.Usable() {
					t.Fatalf("%s", statuses(o))
				}
			})
			srv := (&smtpxtest.Server{On: on("CONNECT", 1, smtpxtest.Action{Reply: strings.ReplaceAll(reply, "250", "220")})}).Start(t)
			if e := fault(t, relay(srv)); e.Phase != smtpx.PhaseGreeting {
				t.Fatalf("%+v", e)
			}
		})
	}
	// Dripping bytes do not extend a deadline.
	srv := (&smtpxtest.Server{On: on("RCPT", 1, smtpxtest.Action{Reply: "250 " + strings.Repeat("x", 1000) + "\r\n", Drip: true})}).Start(t)
	s := dial(t, relay(srv))
	start := time.Now()
	if o := s.Send(context.Background(), tx(1)); statuses(o) != "n" || time.Since(start) > 2*time.Second {
		t.Fatalf("%s after %v", statuses(o), time.Since(start))
	}
}

// TestT2b_OutcomeBeforeQUIT: the outcome is there when the reply is read, whatever happens at
// QUIT.
func TestT2b_OutcomeBeforeQUIT(t *testing.T) {
	t.Parallel()
	srv := (&smtpxtest.Server{On: on("QUIT", 1, smtpxtest.Action{Hang: true})}).Start(t)
	s := dial(t, relay(srv))
	if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
		t.Fatal(o.Err)
	}
	start := time.Now()
	_ = s.Close()
	if d := time.Since(start); d > 7*time.Second {
		t.Fatalf("close took %v", d)
	}
}

func TestBigFlight(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		srv := (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "RCPT" && c.Nth%7 == 3 {
				return &smtpxtest.Action{Reply: "550 5.1.1 no\r\n"}
			}
			return nil
		}}).Start(t)
		o := dial(t, relay(srv)).Send(context.Background(), tx(smtpx.MaxRecipients))
		for i, r := range o.Recipients {
			want := smtpx.StatusAccepted
			if (i+1)%7 == 3 {
				want = smtpx.StatusRejected
			}
			if r.Status != want {
				t.Fatalf("recipient %d: %v", i, r)
			}
		}
	})
}

func TestDestinationIsAskedBeforeDialling(t *testing.T) {
	srv := (&smtpxtest.Server{}).Start(t)
	d := &smtpx.Dialer{Allow: func(netip.AddrPort) error { return smtpx.ErrNotAllowed }, Lookup: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}}
	r := relay(srv)
	for _, host := range []string{"127.0.0.1", "rebound.example"} {
		r.Host = host
		if _, err := d.Dial(context.Background(), r); !errors.Is(err, smtpx.ErrNotAllowed) {
			t.Fatalf("%s: %v", host, err)
		}
	}
	if srv.Conns() != 0 {
		t.Fatal("dialled")
	}
}

// TestNothingIsLeftBehind: goroutines and descriptors are back at their baseline after sends
// that got stuck at every phase.
func TestNothingIsLeftBehind(t *testing.T) {
	srv := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == []string{"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"}[c.Conn%6] {
			return &smtpxtest.Action{Hang: true}
		}
		return nil
	}}).Start(t)
	r := relay(srv)
	r.Timeouts = smtpx.Timeouts{Connect: 200 * time.Millisecond, Command: 50 * time.Millisecond, Rcpt: 50 * time.Millisecond, Data: 50 * time.Millisecond, Dot: 50 * time.Millisecond}
	fds := func() int { e, _ := os.ReadDir("/proc/self/fd"); return len(e) }
	g, f := runtime.NumGoroutine(), fds()
	var wg sync.WaitGroup
	for range 120 {
		wg.Go(func() {
			s, err := new(smtpx.Dialer).Dial(context.Background(), r)
			if err != nil {
				return
			}
			s.Send(context.Background(), tx(2))
			_ = s.Close()
		})
	}
	wg.Wait()
	srv.Close()
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > g+2 || fds() > f+2 {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines (was %d), %d descriptors (was %d)", runtime.NumGoroutine(), g, fds(), f)
		}
		<-time.After(20 * time.Millisecond)
	}
}
