package smtpx_test

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// TestSTARTTLSRefused: a relay that offers STARTTLS and then does not do it is in trouble for
// now. Its words are told, nobody is told that it is too old, and neither a login nor a mail
// leaves in clear. The same holds for one that hangs up.
func TestSTARTTLSRefused(t *testing.T) {
	conf, ca := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	for _, c := range []struct {
		says  smtpxtest.Action
		code  int
		words string
	}{
		{smtpxtest.Action{Reply: "454 4.7.0 TLS not available due to local problem\r\n"}, 454, "454 4.7.0 TLS not available due to local problem"},
		{smtpxtest.Action{Reply: "454 TLS not available\r\n", Close: true}, 454, "454 TLS not available"},
		{smtpxtest.Action{Reply: "421 4.3.2 closing\r\n", Close: true}, 421, "421 4.3.2 closing"},
		{smtpxtest.Action{Reply: "421-4.7.0 too many\r\n421 4.7.0 later\r\n"}, 421, "421 4.7.0 too many later"},
		{smtpxtest.Action{Reply: "500 5.5.1 unknown command\r\n"}, 500, "500 5.5.1 unknown command"},
		{smtpxtest.Action{Reply: "503 5.5.1 bad sequence\r\n"}, 503, "503 5.5.1 bad sequence"},
		{smtpxtest.Action{Reply: "554 5.7.3 no\r\n"}, 554, "554 5.7.3 no"},
		{smtpxtest.Action{Close: true}, 0, "closed"},
		{smtpxtest.Action{Reset: true}, 0, "closed"},
	} {
		name := c.words
		if c.says.Reset {
			name = "reset"
		}
		t.Run(name, func(t *testing.T) {
			modes(t, func(t *testing.T, ext []string) {
				srv := (&smtpxtest.Server{TLS: conf, Extensions: ext, Username: "u", Password: "secret", On: on("STARTTLS", 1, c.says)}).Start(t)
				r := relay(srv)
				r.Encryption, r.CAPEM, r.Username, r.Password, r.Timeouts = smtpx.EncryptionSTARTTLS, ca, "u", "secret", smtpx.Timeouts{}
				_, err := new(smtpx.Dialer).Dial(context.Background(), r)
				res := smtpx.Probe(context.Background(), new(smtpx.Dialer), r, smtpx.ProbeOptions{From: "a@x.example", Recipient: "b@x.example"})
				var dialled *smtpx.Error
				if !errors.As(err, &dialled) || res.Success || res.Err == nil {
					t.Fatalf("dial %v, probe %+v", err, res)
				}
				for what, e := range map[string]*smtpx.Error{"dial": dialled, "probe": res.Err} {
					if e.Phase != smtpx.PhaseSTARTTLS || !e.Temporary || e.Reply.Code != c.code || !strings.Contains(e.Error(), c.words) || strings.Contains(e.Error()+e.Hint, "old") {
						t.Errorf("%s: %+v, %q, hint %q", what, e, e.Error(), e.Hint)
					}
					if c.code == 0 {
						continue
					}
					if m := smtpx.Means(smtpx.Said{Phase: e.Phase, Reply: e.Reply}); m.About != smtpx.AboutServer || m.Action != smtpx.ActWait {
						t.Errorf("%s: means %+v", what, m)
					}
					if e.Hint == "" || smtpx.FailureOf(smtpx.Said{Phase: e.Phase, Reply: e.Reply}) != smtpx.FailTLS {
						t.Errorf("%s: hint %q", what, e.Hint)
					}
				}
				noClear(t, srv, "secret")
				for _, l := range srv.Lines() {
					if verb, _, _ := strings.Cut(l, " "); verb != "EHLO" && verb != "STARTTLS" && verb != "QUIT" {
						t.Errorf("the relay heard %q", l)
					}
				}
			})
		})
	}
}

// TestHintsOfTLS: what to do follows from what went wrong, not from where.
func TestHintsOfTLS(t *testing.T) {
	conf, ca := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	common, commonCA := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "CN=127.0.0.1")
	other, otherCA := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "x.example", "192.0.2.1")
	old := conf.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	for name, c := range map[string]struct {
		srv  *smtpxtest.Server
		ca   []byte
		hint string
	}{
		"TLS 1.1, from the first byte": {&smtpxtest.Server{TLS: old, Implicit: true}, ca, "too old"},
		"TLS 1.1, by STARTTLS":         {&smtpxtest.Server{TLS: old}, ca, "too old"},
		"ca_pem of something else":     {&smtpxtest.Server{TLS: conf}, []byte("no certificate"), "ca_pem"},
		"somebody in the line":         {&smtpxtest.Server{TLS: conf, On: on("STARTTLS", 0, smtpxtest.Action{Reply: "220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n"})}, ca, "this network"},
		"not the authority":            {&smtpxtest.Server{TLS: conf}, nil, "ca_pem"},
		"not by STARTTLS":              {&smtpxtest.Server{TLS: conf, Extensions: []string{"-STARTTLS"}}, ca, "ENCRYPTION_TLS on port 465"},
		"a common name alone":          {&smtpxtest.Server{TLS: common}, commonCA, "subjectAltName"},
		"another name":                 {&smtpxtest.Server{TLS: other}, otherCA, "x.example, 192.0.2.1"},
		"EHLO 501":                     {&smtpxtest.Server{TLS: conf, On: on("EHLO", 1, smtpxtest.Action{Reply: "501 5.5.4 invalid host name\r\n"})}, ca, "helo_name"},
		"hung up in the handshake":     {&smtpxtest.Server{TLS: conf, On: on("STARTTLS", 1, smtpxtest.Action{Reply: "220 go\r\n", Close: true})}, ca, "hangs up"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := c.srv.Start(t)
			r := relay(srv)
			r.Encryption, r.CAPEM, r.Timeouts = smtpx.EncryptionSTARTTLS, c.ca, smtpx.Timeouts{}
			if c.srv.Implicit {
				r.Encryption = smtpx.EncryptionTLS
			}
			if e := fault(t, r); !strings.Contains(e.Hint, c.hint) {
				t.Errorf("%v: hint %q, want %q", e, e.Hint, c.hint)
			}
		})
	}
}
