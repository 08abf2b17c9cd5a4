package smtpx

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Tokens gives the access tokens by which a mail server is logged in to with [AuthXOAUTH2].
// Several goroutines use it at once.
type Tokens interface {
	// Token is an access token that is valid now. An error may say what a person can do about
	// it, by a method Hint() string.
	Token(ctx context.Context) (Token, error)
	// Refused says that the mail server did not take the token: it is not given out again.
	Refused(t Token)
}

// Token is an access token.
type Token struct {
	Access string
	// the provider issued it for this call, or for calls that waited with it
	Fresh bool
	Facts map[string]string // for the report of a probe; nil = none
}

// withToken opens a session with an access token. The token comes first: while no token can be
// had, no connection of the mail server is taken up. A token that was kept and is refused (535)
// is replaced once. One that was fresh is not: another would be refused as well.
func (d *Dialer) withToken(ctx context.Context, r Relay, tr *trace) (*Session, *Error) {
	for again := false; ; again = true {
		done := tr.begin(StepToken)
		token, err := r.Tokens.Token(ctx)
		if err == nil {
			err = presentable(r.Username, token.Access)
		}
		if err != nil {
			if ctx.Err() != nil {
				err = timeoutError(ctx)
			}
			return nil, done.fail(&Error{Phase: PhaseToken, Temporary: true, Err: err}, r)
		}
		detail := "a valid token was there"
		if token.Fresh {
			detail = "the provider issued a token"
		}
		done(StepOK, detail, 0, token.Facts)
		r.Password = token.Access
		s, fault := d.session(ctx, r, tr)
		if fault == nil || fault.Phase != PhaseAuth || fault.Reply.Code != 535 {
			return s, fault
		}
		r.Tokens.Refused(token)
		if again || token.Fresh {
			return nil, fault
		}
	}
}

// presentable: the mailbox and the token are set apart by 0x01 in the response, and the token
// is visible ASCII (RFC 6750 2.1).
func presentable(user, token string) error {
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return errors.New("the provider gave no usable access token")
	}
	if strings.ContainsFunc(user, func(r rune) bool { return r < ' ' }) {
		return errors.New("the username holds a control character")
	}
	return nil
}

// loginToken logs in with XOAUTH2, a mechanism of Google's that Microsoft took over:
// base64("user=" mailbox 0x01 "auth=Bearer " token 0x01 0x01). A server that refuses it says
// why in a challenge (334) of base64 JSON, waits for an empty line, and gives its reply then.
func (s *Session) loginToken(tr *trace) *Error {
	r := &s.relay
	done := tr.begin(StepAuth)
	if _, fault := s.mechanisms(); fault != nil {
		s.sayQuit()
		return done.fail(fault, *r)
	}
	t := r.Timeouts.Command
	response := base64.StdEncoding.EncodeToString([]byte("user=" + r.Username + "\x01auth=Bearer " + r.Password + "\x01\x01"))
	line := "AUTH XOAUTH2 " + response
	var (
		rep   Reply
		lines []string
		err   error
	)
	if len(line)+len(crlf) > maxAuthLine {
		if rep, lines, err = s.command(t, "AUTH XOAUTH2"); err == nil && rep.Code == 334 {
			rep, lines, err = s.command(t, response)
		}
	} else {
		rep, lines, err = s.command(t, line)
	}
	said := ""
	if err == nil && rep.Code == 334 {
		said = challengeText(lines[len(lines)-1])
		rep, _, err = s.command(t, "")
	}
	if err != nil || rep.Code != 235 {
		fault := s.fault(PhaseAuth, rep, err)
		if said != "" {
			fault.Err = fmt.Errorf("the provider's reason: %s", said)
		}
		if err == nil {
			s.sayQuit()
		}
		return done.fail(fault, *r)
	}
	detail, out := "logged in with XOAUTH2", StepOK
	if !s.tls {
		out, detail = StepWarning, detail+" without TLS: the token can be read on the way"
	}
	done(out, detail, 235, map[string]string{"mechanism": "XOAUTH2"})
	return s.openLibrary()
}

// challengeText is what the challenge of a refusal says.
func challengeText(line string) string {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
	if err != nil || !utf8.Valid(b) {
		return Clean(line, maxShown)
	}
	return Clean(string(b), maxShown)
}

// providerHint is a row of what providers say about logins of applications and about mailboxes.
// The first row that fits holds.
type providerHint struct {
	codes    string // "535 550"; "" = any
	enhanced string // "" = any
	words    string // one of these, set apart by "|", in the reply in any case; "" = any
	auth     string // "token": only with XOAUTH2; "password": only without; "" = any
	hint     string
}

const (
	needsOAuth = "the provider takes OAuth 2 logins only: set auth to AUTH_XOAUTH2 and give oauth2 (server/OPERATING.md shows it for Exchange Online and Gmail)"
	noRight    = "the account has no right on the sender's mailbox: give it one (Exchange Online: Add-MailboxPermission with FullAccess, or Add-RecipientPermission with SendAs)"
)

// providerHints are from what Exchange Online and Gmail document and say.
var providerHints = []providerHint{
	{enhanced: "5.7.30", hint: needsOAuth},
	{enhanced: "5.7.139", words: "smtpclientauthentication", hint: "SMTP logins are switched off for the tenant or the mailbox: an administrator can allow them for this mailbox (Set-CASMailbox -SmtpClientAuthenticationDisabled $false)"},
	{enhanced: "5.7.139", auth: "password", hint: "the tenant does not take this login (its security defaults, or a policy): set auth to AUTH_XOAUTH2 and give oauth2"},
	{enhanced: "5.7.139", hint: "the tenant does not take this login (a policy, or the mailbox is locked): the sign-in log of the tenant says why"},
	{codes: "535", enhanced: "5.7.3", auth: "token", hint: "Exchange Online takes the token and gives it no right: the application needs the application permission SMTP.SendAsApp " +
		"with an administrator's consent, a service principal in Exchange (New-ServicePrincipal), and FullAccess to the mailbox (Add-MailboxPermission); username is that mailbox"},
	{words: "storedrv|sendasdenied|send as denied", hint: noRight},
	{enhanced: "5.7.9", words: "application-specific password", hint: "the provider wants an app password, or an OAuth 2 login: auth AUTH_XOAUTH2 with oauth2"},
	{codes: "535", enhanced: "5.7.8", auth: "token", hint: "the token is not valid for this mailbox: check username, the scopes (Gmail: https://mail.google.com/) " +
		"and, for a service account, its domain-wide delegation for that scope"},
	{codes: "535", auth: "token", hint: "the provider does not take the token for this mailbox: check username, scopes and the application's permissions"},
	{codes: "504 534 500 502 503", auth: "token", hint: "the server offers XOAUTH2 and does not take it: check the host with the provider"},
}

// hintOfProvider is the hint of the first row that fits, "" if none does.
func hintOfProvider(e *Error, r Relay) string {
	if errors.Is(e.Err, errNoMechanism) {
		switch {
		case r.Auth == AuthXOAUTH2:
			return "this server offers no XOAUTH2 here: check host, port and encryption with the provider, or set another auth"
		case strings.Contains(e.Err.Error(), "XOAUTH2"):
			return needsOAuth
		}
		return ""
	}
	if e.Reply.Code == 0 {
		return ""
	}
	auth := "password"
	if r.Auth == AuthXOAUTH2 {
		auth = "token"
	}
	text := strings.ToLower(e.Reply.Text)
	for _, h := range providerHints {
		if (h.auth == "" || h.auth == auth && e.Phase == PhaseAuth) && (h.enhanced == "" || h.enhanced == e.Reply.Enhanced) &&
			(h.codes == "" || hasWord(h.codes, fmt.Sprint(e.Reply.Code))) && hasAny(text, h.words) {
			return h.hint
		}
	}
	return ""
}

// hasAny reports whether one of the words, set apart by "|", is in text; true for no words.
func hasAny(text, words string) bool {
	if words == "" {
		return true
	}
	for w := range strings.SplitSeq(words, "|") {
		if strings.Contains(text, w) {
			return true
		}
	}
	return false
}
