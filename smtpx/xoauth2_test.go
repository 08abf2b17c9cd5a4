package smtpx_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// tokens gives what it has, one after the other; the last one stays.
type tokens struct {
	mu      sync.Mutex
	have    []smtpx.Token
	err     error
	asked   int
	refused []string
}

func (k *tokens) Token(context.Context) (smtpx.Token, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.err != nil {
		return smtpx.Token{}, k.err
	}
	t := k.have[0]
	if len(k.have) > 1 {
		k.have = k.have[1:]
	}
	return t, nil
}

func (k *tokens) Refused(t smtpx.Token) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refused = append(k.refused, t.Access)
}

func xoauth2(srv *smtpxtest.Server, k smtpx.Tokens) smtpx.Relay {
	r := relay(srv)
	r.Auth, r.Username, r.Tokens, r.AllowPlaintextAuth = smtpx.AuthXOAUTH2, "shop@x.example", k, true
	return r
}

// TestXOAUTH2: a short token goes with the command, a long one behind a challenge, and the
// session sends mail.
func TestXOAUTH2(t *testing.T) {
	for _, token := range []string{"ya29.short", strings.Repeat("e", 2000), strings.Repeat("e", 8000)} {
		srv := (&smtpxtest.Server{Username: "shop@x.example", Password: token, Mechanisms: []string{"PLAIN", "XOAUTH2"}}).Start(t)
		r := xoauth2(srv, &tokens{have: []smtpx.Token{{Access: token}}})
		s := dial(t, r)
		if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
			t.Fatal(o.Err)
		}
		if l := srv.Lines(); len(token) > 500 && !strings.Contains("\n"+strings.Join(l, "\n")+"\n", "\nAUTH XOAUTH2\n") {
			t.Errorf("a token of %d octets goes with the command", len(token))
		}
	}
	for name, bad := range map[string]string{"none": "", "a blank": "a b", "a break": "a\r\nMAIL FROM:<x@y.example>", "too long": strings.Repeat("e", 12000)} {
		srv := (&smtpxtest.Server{Username: "shop@x.example", Password: "t", Mechanisms: []string{"XOAUTH2"}}).Start(t)
		if e := fault(t, xoauth2(srv, &tokens{have: []smtpx.Token{{Access: bad}}})); e.Phase != smtpx.PhaseToken && e.Phase != smtpx.PhaseAuth {
			t.Errorf("token with %s: %v", name, e)
		}
	}
}

// TestXOAUTH2Refused: the reply and the provider's JSON are both kept, on one printable line,
// and nothing else is tried in the token's place.
func TestXOAUTH2Refused(t *testing.T) {
	srv := (&smtpxtest.Server{Username: "shop@x.example", Password: "right", Mechanisms: []string{"PLAIN", "LOGIN", "XOAUTH2"},
		Refusal: `{"status":"401","schemes":"Bearer","scope":"https://mail.google.com/"}` + "\r\n"}).Start(t)
	k := &tokens{have: []smtpx.Token{{Access: "wrong", Fresh: true}}}
	e := fault(t, xoauth2(srv, k))
	if e.Phase != smtpx.PhaseAuth || e.Reply.Code != 535 || !strings.Contains(e.Error(), "not accepted") || !strings.Contains(e.Error(), `"status":"401"`) ||
		!strings.Contains(e.Hint, "https://mail.google.com/") || strings.ContainsAny(e.Error(), "\r\n") {
		t.Errorf("%v\n%s", e, e.Hint)
	}
	if k.asked != 1 || len(k.refused) != 1 {
		t.Errorf("asked for %d tokens, %q refused, want one of each: it was fresh", k.asked, k.refused)
	}
	for _, l := range srv.Lines() {
		if strings.HasPrefix(l, "AUTH") && !strings.HasPrefix(l, "AUTH XOAUTH2") {
			t.Errorf("fell back to %q", l)
		}
	}
}

// TestXOAUTH2Again: a kept token that is refused is replaced once, on a connection of its own.
func TestXOAUTH2Again(t *testing.T) {
	for name, c := range map[string]struct {
		right        string
		opens        bool
		conns, asked int
	}{"the second is taken": {"new", true, 2, 2}, "neither is": {"other", false, 2, 2}} {
		srv := (&smtpxtest.Server{Username: "shop@x.example", Password: c.right, Mechanisms: []string{"XOAUTH2"}}).Start(t)
		k := &tokens{have: []smtpx.Token{{Access: "old"}, {Access: "new"}}}
		s, err := new(smtpx.Dialer).Dial(context.Background(), xoauth2(srv, k))
		if (err == nil) != c.opens || k.asked != c.asked {
			t.Errorf("%s: %v after %d tokens", name, err, k.asked)
		}
		if err == nil {
			_ = s.Close()
		}
		srv.Close()
		if got := srv.Conns(); got != c.conns {
			t.Errorf("%s: got %d connections, want %d", name, got, c.conns)
		}
	}
}

// noToken is a fault of a provider with its hint.
type noToken struct{}

func (noToken) Error() string { return "400 invalid_client" }
func (noToken) Hint() string  { return "make a new client secret" }

// TestNoToken: while no token can be had the mail server is not connected to, and no login of
// another kind is tried.
func TestNoToken(t *testing.T) {
	srv := (&smtpxtest.Server{Username: "shop@x.example", Password: "p", Mechanisms: []string{"PLAIN", "XOAUTH2"}}).Start(t)
	r := xoauth2(srv, &tokens{err: noToken{}})
	r.Password = "p"
	e := fault(t, r)
	if e.Phase != smtpx.PhaseToken || !e.Temporary || e.Hint != "make a new client secret" || !errors.Is(e, noToken{}) {
		t.Errorf("%+v", e)
	}
	res := smtpx.Probe(context.Background(), new(smtpx.Dialer), r, smtpx.ProbeOptions{})
	if res.Success || res.Steps[0].Kind != smtpx.StepToken || res.Steps[0].Outcome != smtpx.StepFailed || res.Steps[0].Hint != "make a new client secret" ||
		res.Steps[1].Outcome != smtpx.StepSkipped {
		t.Errorf("%+v", res.Steps)
	}
	srv.Close()
	if srv.Conns() != 0 {
		t.Error("the mail server was connected to")
	}
}

// TestProviderHints: what Exchange Online and Gmail say at login and at the mailbox leads to
// what a person can do.
func TestProviderHints(t *testing.T) {
	const (
		token    = smtpx.AuthXOAUTH2
		password = smtpx.AuthPlain
	)
	for _, c := range []struct {
		auth       smtpx.Auth
		verb, says string
		want       string
	}{
		// learn.microsoft.com, "Authenticate an IMAP, POP or SMTP connection"
		{token, "AUTH", "535 5.7.3 Authentication unsuccessful [LO4P123CA0001.GBRP123.PROD.OUTLOOK.COM]", "SMTP.SendAsApp"},
		{password, "AUTH", "535 5.7.3 Authentication unsuccessful [LO4P123CA0001.GBRP123.PROD.OUTLOOK.COM]", "username or password is wrong"},
		{token, "AUTH", "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information.", "Set-CASMailbox"},
		{password, "AUTH", "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.", "Set-CASMailbox"},
		{password, "AUTH", "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.", "AUTH_XOAUTH2"},
		{password, "AUTH", "550 5.7.30 Basic authentication is not supported for Client Submission.", "AUTH_XOAUTH2"},
		{token, "MAIL", "430 4.2.0 STOREDRV; mailbox logon failure; failure accessing mailbox", "no right on the sender's mailbox"},
		{token, "RCPT", "554 5.2.252 SendAsDenied; app@x.example not allowed to send as shop@x.example", "no right on the sender's mailbox"},
		// support.google.com/a/answer/3726730
		{password, "AUTH", "534 5.7.9 Application-specific password required. For more information, go to", "app password"},
		{token, "AUTH", "535 5.7.8 Username and Password not accepted. For more information, go to", "domain-wide delegation"},
	} {
		srv := (&smtpxtest.Server{Username: "shop@x.example", Password: "t", Mechanisms: []string{"PLAIN", "XOAUTH2"}, On: on(c.verb, 0, smtpxtest.Action{Reply: c.says + "\r\n"})}).Start(t)
		r := xoauth2(srv, &tokens{have: []smtpx.Token{{Access: "t", Fresh: true}}})
		r.Auth, r.Password = c.auth, "t"
		res := smtpx.Probe(context.Background(), new(smtpx.Dialer), r, smtpx.ProbeOptions{From: "shop@x.example", Recipient: "a@x.example"})
		if res.Err == nil || !strings.Contains(res.Err.Hint, c.want) {
			t.Errorf("%s with %s: got hint %q, want one with %q", c.says, c.auth, res.Err.Hint, c.want)
		}
	}
	// A password where only tokens are taken, and a token where none is.
	srv := (&smtpxtest.Server{Username: "u", Password: "p", Mechanisms: []string{"XOAUTH2"}}).Start(t)
	r := relay(srv)
	r.Username, r.Password, r.AllowPlaintextAuth = "u", "p", true
	if e := fault(t, r); !strings.Contains(e.Hint, "AUTH_XOAUTH2") {
		t.Errorf("only XOAUTH2 offered: hint %q", e.Hint)
	}
	srv = (&smtpxtest.Server{Username: "shop@x.example", Password: "t", Mechanisms: []string{"PLAIN"}}).Start(t)
	if e := fault(t, xoauth2(srv, &tokens{have: []smtpx.Token{{Access: "t"}}})); e.Phase != smtpx.PhaseAuth || !strings.Contains(e.Hint, "no XOAUTH2") {
		t.Errorf("no XOAUTH2 offered: %v, hint %q", e, e.Hint)
	}
}
