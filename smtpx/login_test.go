package smtpx_test

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

func TestT3_ConnectIsBounded(t *testing.T) {
	for verb := range map[string]bool{"CONNECT": true, "EHLO": true, "AUTH": true} {
		srv := (&smtpxtest.Server{Username: "u", Password: "p", On: on(verb, 0, smtpxtest.Action{Hang: true})}).Start(t)
		r := relay(srv)
		r.Username, r.Password, r.AllowPlaintextAuth = "u", "p", true
		r.Timeouts.Connect, r.Timeouts.Command = 200*time.Millisecond, time.Minute
		start := time.Now()
		_, err := new(smtpx.Dialer).Dial(context.Background(), r)
		if err == nil || time.Since(start) > time.Second || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("silence at %s: %v after %v", verb, err, time.Since(start))
		}
	}
}

func fault(t *testing.T, r smtpx.Relay) *smtpx.Error {
	t.Helper()
	s, err := new(smtpx.Dialer).Dial(context.Background(), r)
	if err == nil {
		_ = s.Close()
		t.Fatal("the session opened")
	}
	var e *smtpx.Error
	if !errors.As(err, &e) {
		t.Fatalf("%T", err)
	}
	return e
}

func noClear(t *testing.T, srv *smtpxtest.Server, secret string) {
	t.Helper()
	for _, l := range srv.Lines() {
		if strings.HasPrefix(l, "AUTH") || strings.Contains(l, secret) {
			t.Fatalf("credentials in clear: %q", l)
		}
	}
}

func TestT4a_STARTTLSIsMandatory(t *testing.T) {
	good, ca := smtpxtest.Certificate(t, time.Now().Add(1000*time.Hour), "127.0.0.1")
	srv := (&smtpxtest.Server{TLS: good, Extensions: []string{"-STARTTLS", "PIPELINING"}, Username: "u", Password: "secret"}).Start(t)
	r := relay(srv)
	r.Encryption, r.Username, r.Password, r.CAPEM, r.Timeouts = smtpx.EncryptionSTARTTLS, "u", "secret", ca, smtpx.Timeouts{}
	e := fault(t, r)
	if e.Phase != smtpx.PhaseSTARTTLS || e.Temporary || e.Hint == "" {
		t.Fatalf("%+v", e)
	}
	noClear(t, srv, "secret")
	// In lower case it is an offer like any other.
	srv = (&smtpxtest.Server{TLS: good, Extensions: []string{"starttls", "pipelining", "auth plain"}, Username: "u", Password: "secret"}).Start(t)
	r.Port = srv.Port()
	s := dial(t, r)
	if !s.TLS() {
		t.Fatal("no TLS")
	}
	if o := s.Send(context.Background(), tx(2)); statuses(o) != "AA" {
		t.Fatal(o.Err)
	}
}

func TestT4b_LoginIsNeverSkipped(t *testing.T) {
	for name, tc := range map[string]struct {
		ext   []string
		opens bool
	}{
		"not offered":                        {[]string{"-AUTH", "PIPELINING"}, false},
		"only XOAUTH2":                       {[]string{"AUTH XOAUTH2"}, false},
		"T4c PLAIN-CLIENTTOKEN is not PLAIN": {[]string{"AUTH PLAIN-CLIENTTOKEN"}, false},
		"AUTH=LOGIN":                         {[]string{"AUTH=LOGIN"}, true},
		"lower case":                         {[]string{"auth login plain"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			ext := tc.ext
			if ext[0] == "-AUTH" {
				ext = ext[1:]
			}
			srv := &smtpxtest.Server{Extensions: ext, Username: "u", Password: "p"}
			if name == "not offered" {
				srv.Username = ""
			}
			srv.Start(t)
			r := relay(srv)
			r.Username, r.Password, r.AllowPlaintextAuth = "u", "p", true
			if tc.opens {
				dial(t, r)
				return
			}
			if e := fault(t, r); e.Phase != smtpx.PhaseAuth || e.Temporary || e.Hint == "" {
				t.Fatalf("%+v", e)
			}
		})
	}
}

func TestT4c_MechanismIsChosenHere(t *testing.T) {
	srv := (&smtpxtest.Server{Username: "u", Password: "p", Mechanisms: []string{"PLAIN", "CRAM-MD5", "LOGIN"}}).Start(t)
	r := relay(srv)
	r.Username, r.Password, r.AllowPlaintextAuth = "u", "p", true
	dial(t, r)
	if l := strings.Join(srv.Lines(), " "); !strings.Contains(l, "AUTH CRAM-MD5") || strings.Contains(l, "AUTH PLAIN") {
		t.Fatalf("without TLS the password went in clear: %s", l)
	}
	r.AllowPlaintextAuth = false
	if e := fault(t, r); e.Phase != smtpx.PhaseAuth {
		t.Fatalf("%+v", e)
	}
	r.AllowPlaintextAuth, r.Auth = true, smtpx.AuthLogin
	dial(t, r)
	// T4d: a mechanism that is not offered is not said.
	srv = (&smtpxtest.Server{Username: "u", Password: "p", Mechanisms: []string{"PLAIN"}}).Start(t)
	r.Port, r.Auth = srv.Port(), smtpx.AuthCRAMMD5
	if e := fault(t, r); e.Phase != smtpx.PhaseAuth || e.Temporary {
		t.Fatalf("%+v", e)
	}
	noClear(t, srv, "AUTH")
}

func TestT4e_StrictLogin(t *testing.T) {
	for _, lower := range []bool{false, true} {
		srv := (&smtpxtest.Server{Username: "user", Password: "xyNabc", Mechanisms: []string{"LOGIN"}, StrictLogin: true, LowerPrompts: lower}).Start(t)
		r := relay(srv)
		// "xyNabc" is eHlOYWJj in base64: a continuation line that looks like EHLO to a matcher
		// without an AUTH state.
		r.Username, r.Password, r.AllowPlaintextAuth = "user", "xyNabc", true
		s := dial(t, r)
		if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
			t.Fatal(o.Err)
		}
	}
}

func TestLoginRefused(t *testing.T) {
	for _, mech := range []string{"PLAIN", "LOGIN", "CRAM-MD5"} {
		srv := (&smtpxtest.Server{Username: "u", Password: "right", Mechanisms: []string{mech}}).Start(t)
		r := relay(srv)
		r.Username, r.Password, r.AllowPlaintextAuth = "u", "wrong-secret", true
		e := fault(t, r)
		if e.Phase != smtpx.PhaseAuth || e.Reply.Code != 535 || e.Reply.Enhanced != "5.7.8" || e.Temporary || e.Hint == "" || strings.Contains(e.Error()+e.Hint, "wrong-secret") {
			t.Fatalf("%s: %+v", mech, e)
		}
	}
	srv := (&smtpxtest.Server{Username: "u", Password: "p", On: on("AUTH", 0, smtpxtest.Action{Reply: "454 4.7.0 try later\r\n"})}).Start(t)
	r := relay(srv)
	r.Username, r.Password, r.AllowPlaintextAuth = "u", "p", true
	if e := fault(t, r); !e.Temporary || e.Reply.Code != 454 {
		t.Fatalf("%+v", e)
	}
}

func TestT4f_FirstByteIsTLS(t *testing.T) {
	good, ca := smtpxtest.Certificate(t, time.Now().Add(1000*time.Hour), "127.0.0.1")
	srv := (&smtpxtest.Server{TLS: good, Implicit: true, Username: "u", Password: "secret"}).Start(t)
	r := relay(srv)
	r.Encryption, r.Username, r.Password, r.CAPEM = smtpx.EncryptionTLS, "u", "secret", ca
	s := dial(t, r)
	if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" || !s.TLS() {
		t.Fatal(o.Err)
	}
	if b := srv.FirstBytes(); len(b) != 1 || b[0][0] != 0x16 {
		t.Fatalf("first byte % x, want a TLS handshake record", b)
	}
	if !s.Usable() { // what TLS itself sends unasked must not be taken for a word of the server
		t.Fatal("not usable after a good mail")
	}
}

func TestT4g_InjectionAfterSTARTTLS(t *testing.T) {
	good, ca := smtpxtest.Certificate(t, time.Now().Add(1000*time.Hour), "127.0.0.1")
	srv := (&smtpxtest.Server{TLS: good, On: on("STARTTLS", 0, smtpxtest.Action{Reply: "220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n"})}).Start(t)
	r := relay(srv)
	r.Encryption, r.CAPEM = smtpx.EncryptionSTARTTLS, ca
	if e := fault(t, r); e.Phase != smtpx.PhaseSTARTTLS || !strings.Contains(e.Error(), "in clear") {
		t.Fatalf("%+v", e)
	}
}

func TestT4h_CertificateIsChecked(t *testing.T) {
	far := time.Now().Add(1000 * time.Hour)
	other, otherCA := smtpxtest.Certificate(t, far, "mail.other.example")
	old, oldCA := smtpxtest.Certificate(t, time.Now().Add(-time.Hour), "127.0.0.1")
	self, _ := smtpxtest.Certificate(t, far, "127.0.0.1")
	for name, tc := range map[string]struct {
		cert *tls.Config
		ca   []byte
		hint string
	}{
		"other name":  {other, otherCA, "mail.other.example"},
		"expired":     {old, oldCA, "expired"},
		"self-signed": {self, nil, "ca_pem"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, enc := range []smtpx.Encryption{smtpx.EncryptionTLS, smtpx.EncryptionSTARTTLS} {
				srv := (&smtpxtest.Server{TLS: tc.cert, Implicit: enc == smtpx.EncryptionTLS, Username: "u", Password: "secret"}).Start(t)
				r := relay(srv)
				r.Encryption, r.CAPEM, r.Username, r.Password = enc, tc.ca, "u", "secret"
				if e := fault(t, r); !strings.Contains(e.Hint, tc.hint) || e.Phase != smtpx.PhaseTLS && e.Phase != smtpx.PhaseSTARTTLS {
					t.Fatalf("%v (%s)", e, e.Hint)
				}
				noClear(t, srv, "secret")
			}
		})
	}
	plain := (&smtpxtest.Server{}).Start(t)
	r := relay(plain)
	r.Encryption = smtpx.EncryptionTLS
	if e := fault(t, r); !strings.Contains(e.Hint, "ENCRYPTION_STARTTLS") {
		t.Fatalf("plain server on a TLS configuration: %v (%s)", e, e.Hint)
	}
	tlsOnly := (&smtpxtest.Server{TLS: self, Implicit: true}).Start(t)
	r = relay(tlsOnly)
	r.Timeouts.Connect = 300 * time.Millisecond
	if e := fault(t, r); !strings.Contains(e.Hint, "ENCRYPTION_TLS") {
		t.Fatalf("TLS server on a plain configuration: %v (%s)", e, e.Hint)
	}
}

// TestLongLogin: a response that would make the AUTH line too long follows the server's
// challenge (RFC 4954 4), and every line stays within its limit.
func TestLongLogin(t *testing.T) {
	for _, n := range []int{10, 350, 400, 1024} {
		for _, mech := range []string{"PLAIN", "LOGIN", "CRAM-MD5"} {
			password := strings.Repeat("p", n)
			srv := (&smtpxtest.Server{Username: "user@x.example", Password: password, Mechanisms: []string{mech}}).Start(t)
			r := relay(srv)
			r.Username, r.Password, r.AllowPlaintextAuth = "user@x.example", password, true
			s := dial(t, r)
			if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
				t.Errorf("%s, %d octets: %s", mech, n, statuses(o))
			}
			for _, l := range srv.Lines() {
				if strings.HasPrefix(l, "AUTH") && len(l) > 510 {
					t.Errorf("%s, %d octets: an AUTH line of %d", mech, n, len(l))
				}
			}
		}
	}
}
