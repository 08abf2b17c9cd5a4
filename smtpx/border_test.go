package smtpx_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

const (
	smuggled = "MAIL FROM:<ceo@bank.example>\r\nRCPT TO:<victim@y.example>\r\nDATA\r\nFrom: ceo@bank.example\r\n\r\nsmuggled\r\n.\r\nNOOP"
	// NUL, a terminal's escape, C1, a change of direction, line ends, not UTF-8
	hostile = "a\x00b\x1b[2J\x9b\u202e\u2028\r\nc"
)

// TestClean: what is made printable is valid UTF-8 of printable characters and no longer than
// asked.
func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"550 5.1.1 no such user": "550 5.1.1 no such user",
		"grüße 😀":                "grüße 😀",
		"a\x00b\r\nc\td":         "a b  c d",
		"\x1b]0;x\x07\u009b1m":   " ]0;x  1m",
		"a\u202eb\u2028c\u200bd": "a b c d",
		"\xfc\xdf x\xff":         "? x?",
		"\ufffd":                 "\ufffd",
	} {
		if got := smtpx.Clean(in, 1<<10); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	for limit := range 12 {
		got := smtpx.Clean("aü😀ü\x00ü", limit)
		if len(got) > limit || !utf8.ValidString(got) || limit-len(got) > 3 {
			t.Errorf("limit %d: got %q", limit, got)
		}
	}
}

func printable(t *testing.T, what, s string, limit int) {
	t.Helper()
	if len(s) > limit || !utf8.ValidString(s) || strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
		t.Errorf("%s: %d octets, %.300q", what, len(s), s)
	}
}

func cleanError(t *testing.T, e *smtpx.Error) {
	t.Helper()
	if e == nil {
		t.Fatal("no fault")
	}
	printable(t, "error", e.Error(), 1<<10)
	printable(t, "hint", e.Hint, 1<<10)
	printable(t, "reply", e.Reply.Text, 1<<10)
	if e.Err != nil {
		printable(t, "cause", e.Err.Error(), 1<<10)
	}
}

// TestForeignTextIsClean: whatever a certificate, a name server or a relay writes comes out of
// a send and of a probe printable and short, and its cause can still be told.
func TestForeignTextIsClean(t *testing.T) {
	long := strings.Repeat("x\x01", 20000)
	conf, _ := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "a\x00b\x1b.example", strings.Repeat("n", 5000)+".example")
	trusted, ca := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "s\x00u\x1b"+strings.Repeat("c", 900), "127.0.0.1")
	list := strings.Repeat("250-AUTH "+strings.Repeat("XOAUTHX ", 500)+"\r\n", 15)
	lookup := func(context.Context, string) ([]netip.Addr, error) { return nil, &net.DNSError{Err: hostile + long} }
	for _, c := range []struct {
		name   string
		server *smtpxtest.Server
		change func(*smtpx.Relay)
		dialer *smtpx.Dialer
		ok     bool
	}{
		{name: "names of a certificate", server: &smtpxtest.Server{Implicit: true, TLS: conf}, change: func(r *smtpx.Relay) { r.Encryption = smtpx.EncryptionTLS }},
		{name: "subject of a good certificate", server: &smtpxtest.Server{Implicit: true, TLS: trusted}, ok: true,
			change: func(r *smtpx.Relay) { r.Encryption, r.CAPEM = smtpx.EncryptionTLS, ca }},
		{name: "name server", server: &smtpxtest.Server{}, change: func(r *smtpx.Relay) { r.Host = "x.example" }, dialer: &smtpx.Dialer{Lookup: lookup}},
		{name: "greeting", server: &smtpxtest.Server{On: on("CONNECT", 0, smtpxtest.Action{Reply: "554 " + hostile[:8] + "\r\n"})}},
		{name: "60 KB of login mechanisms", server: &smtpxtest.Server{On: on("EHLO", 0, smtpxtest.Action{Reply: "250-x\r\n" + list + "250 8BITMIME\r\n"})},
			change: func(r *smtpx.Relay) { r.Username, r.Password, r.AllowPlaintextAuth = "u", "p", true }},
		{name: "60 KB of extensions", ok: true, server: &smtpxtest.Server{On: on("EHLO", 0, smtpxtest.Action{Reply: "250-x\r\n" + strings.Repeat("250-X"+strings.Repeat("Y\x01", 1900)+"\r\n", 15) + "250 8BITMIME\r\n"})}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := relay(c.server.Start(t))
			if c.change != nil {
				c.change(&r)
			}
			if c.dialer == nil {
				c.dialer = new(smtpx.Dialer)
			}
			res := smtpx.Probe(context.Background(), c.dialer, r, smtpx.ProbeOptions{})
			for _, st := range res.Steps {
				printable(t, string(st.Kind)+" detail", st.Detail, 200)
				printable(t, string(st.Kind)+" hint", st.Hint, 1<<10)
				for k, v := range st.Facts {
					printable(t, string(st.Kind)+" fact "+k, v, 200)
				}
			}
			if res.Success != c.ok {
				t.Fatalf("success is %v: %v", res.Success, res.Err)
			}
			if c.ok {
				return
			}
			cleanError(t, res.Err)
			_, err := c.dialer.Dial(context.Background(), r)
			var fault *smtpx.Error
			if !errors.As(err, &fault) {
				t.Fatal(err)
			}
			cleanError(t, fault)
		})
	}
}

// TestForeignTextInOutcomes: the same for what is said about a mail.
func TestForeignTextInOutcomes(t *testing.T) {
	text := strings.Repeat("\xff\x01y\u202e", 900)
	for _, verb := range []string{"MAIL", "RCPT", "DATA", "DOT"} {
		for _, code := range []string{"250", "451", "550", "421", "xyz"} {
			modes(t, func(t *testing.T, ext []string) {
				srv := (&smtpxtest.Server{Extensions: ext, On: on(verb, 0, smtpxtest.Action{Reply: code + " 2.0.0 queued as \x01\u009b1 " + text + "\r\n"})}).Start(t)
				s := dial(t, relay(srv))
				o := s.Send(context.Background(), tx(2))
				for _, r := range o.Recipients {
					printable(t, verb+" "+code, r.Reply.Text, 1<<10)
				}
				printable(t, "remote id", o.RemoteID, 128)
				if o.Err != nil {
					cleanError(t, o.Err)
				}
			})
		}
	}
}

// TestHelo: what a configured name becomes in EHLO.
func TestHelo(t *testing.T) {
	for in, want := range map[string]string{
		"mail.x.example":                "mail.x.example",
		"x":                             "x",
		"MAIL.x.example":                "mail.x.example",
		"bücher.example":                "xn--bcher-kva.example",
		"xn--bcher-kva.example":         "xn--bcher-kva.example",
		"[192.0.2.1]":                   "[192.0.2.1]",
		"[IPv6:::1]":                    "[IPv6:::1]",
		"[IPv6:2001:db8::1]":            "[IPv6:2001:db8::1]",
		"":                              "",
		" ":                             "",
		"_":                             "",
		"192.0.2.1":                     "",
		"::1":                           "",
		"[::1]":                         "",
		"[IPv6:192.0.2.1]":              "",
		"]]192.0.2.1":                   "",
		"[192.0.2.1":                    "",
		"[[192.0.2.1]]":                 "",
		"[192.0.2.1]]":                  "",
		"[mail.x.example]":              "",
		"[IPv6:fe80::1%x]":              "",
		"fe80::1%x":                     "",
		"fe80::1%x\r\n" + smuggled:      "",
		"[IPv6:fe80::1%\r\nRSET\r\n]":   "",
		"x.example\r\nRSET":             "",
		"x.example\x00":                 "",
		"x.example.":                    "",
		strings.Repeat("a.", 127) + "a": "",
	} {
		got, err := smtpx.HeloName(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
}

// TestHost: the form in which a host is stored, looked up and compared with a certificate.
func TestHost(t *testing.T) {
	for in, want := range map[string]string{
		"mail.x.example":    "mail.x.example",
		"MAIL.x.example":    "MAIL.x.example", // a password is sealed for the spelling
		"bücher.example":    "xn--bcher-kva.example",
		"BÜCHER.example":    "xn--bcher-kva.example",
		"127.0.0.1":         "127.0.0.1",
		"::1":               "::1",
		"[::1]":             "[::1]",
		"[127.0.0.1]":       "",
		"[[::1]]":           "",
		"]]127.0.0.1":       "",
		"fe80::1%eth0":      "",
		"[fe80::1%eth0]":    "",
		"fe80::1%\r\nRSET":  "",
		"x y":               "",
		"127.1":             "",
		"x.example\r\nQUIT": "",
	} {
		got, err := smtpx.Host(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
}

// TestInternationalHost: it is looked up, and looked for in the certificate, by its A-labels.
func TestInternationalHost(t *testing.T) {
	conf, ca := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "xn--mnchen-3ya.example")
	srv := (&smtpxtest.Server{TLS: conf, Implicit: true}).Start(t)
	asked := ""
	d := &smtpx.Dialer{Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
		asked = host
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}}
	r := relay(srv)
	r.Host, r.Encryption, r.CAPEM = "münchen.example", smtpx.EncryptionTLS, ca
	s, err := d.Dial(context.Background(), r)
	if err != nil || asked != "xn--mnchen-3ya.example" {
		t.Fatalf("asked for %q: %v", asked, err)
	}
	_ = s.Close()
}

// TestNothingUncheckedIsACommand: a name, a login or an address with line ends in it, however
// it came to be configured, reaches no command, neither in a probe nor in a send. The relay
// hears nothing but what the session says by itself.
func TestNothingUncheckedIsACommand(t *testing.T) {
	own := []string{"AUTH", "DATA", "EHLO", "HELO", "MAIL", "QUIT", "RCPT", "RSET", "STARTTLS"}
	for _, helo := range []string{"fe80::1%x\r\n" + smuggled, "x\r\n" + smuggled, "x\n" + smuggled, "x\r" + smuggled, "[IPv6:::1%\r\n" + smuggled + "]", "x\x00y", "x y", "grüße\r\nQUIT"} {
		modes(t, func(t *testing.T, ext []string) {
			srv := (&smtpxtest.Server{Extensions: ext}).Start(t)
			r := relay(srv)
			r.HeloName = helo
			res := smtpx.Probe(context.Background(), &smtpx.Dialer{}, r, smtpx.ProbeOptions{From: "a@x.example", Recipient: "b@x.example"})
			_, err := (&smtpx.Dialer{}).Dial(context.Background(), r)
			var fault *smtpx.Error
			if res.Success || !errors.As(err, &fault) || fault.Phase != smtpx.PhaseEHLO || !strings.Contains(fault.Hint, "helo_name") {
				t.Fatalf("%q: probe %+v, dial %v", helo, res, err)
			}
			cleanError(t, fault)
			cleanError(t, res.Err)
			if lines := srv.Lines(); slices.ContainsFunc(lines, func(l string) bool { return l != "QUIT" }) || len(srv.Mails()) != 0 {
				t.Errorf("%q: the relay heard %q and took %d mails", helo, lines, len(srv.Mails()))
			}
		})
	}
	// A login's text is base64 and may hold anything; the commands stay the session's own.
	for _, login := range []string{"u\r\n" + smuggled, "u\nRSET", "u\x00"} {
		for _, mech := range []string{"PLAIN", "LOGIN", "CRAM-MD5"} {
			srv := (&smtpxtest.Server{Username: login, Password: login, Mechanisms: []string{mech}}).Start(t)
			r := relay(srv)
			r.Username, r.Password, r.AllowPlaintextAuth = login, login, true
			if s, err := (&smtpx.Dialer{}).Dial(context.Background(), r); err == nil {
				s.Send(context.Background(), tx(1))
				_ = s.Close()
			}
			for _, m := range srv.Mails() {
				if m.From != "a@x.example" {
					t.Errorf("%s %q: a mail from %q left", mech, login, m.From)
				}
			}
			for _, l := range srv.Lines() {
				verb, _, _ := strings.Cut(l, " ")
				if strings.Contains(l, "bank.example") || strings.Contains(l, "victim") || !slices.Contains(own, verb) && strings.ContainsAny(l, " :<") {
					t.Errorf("%s %q: the relay heard %q", mech, login, l)
				}
			}
		}
	}
	for _, bad := range []string{"a@x.example>\r\n" + smuggled, "a\n@x.example", "a\x00@x.example", "a@x.example> NOTIFY=NEVER"} {
		modes(t, func(t *testing.T, ext []string) {
			srv := (&smtpxtest.Server{Extensions: ext}).Start(t)
			s := dial(t, relay(srv))
			for _, tr := range []*smtpx.Transaction{{From: bad, To: to(1), Raw: []byte(raw)}, {From: "a@x.example", To: []string{bad}, Raw: []byte(raw)}} {
				if o := s.Send(context.Background(), tr); statuses(o) != "R" {
					t.Errorf("%q: %s, %v", bad, statuses(o), o.Err)
				}
			}
			for _, l := range srv.Lines() {
				if !strings.HasPrefix(l, "EHLO ") {
					t.Errorf("%q: the relay heard %q", bad, l)
				}
			}
		})
	}
}
