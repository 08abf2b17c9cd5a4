package smtpx_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// means are replies as relays give them, and whom each is about. at lists the phases; behind
// says that an earlier recipient of the mail was accepted.
var means = []struct {
	reply, at, want string
	behind          bool
}{
	// 421, with any enhanced code or none, is about the session.
	{reply: "421 4.4.2 rate exceeded", at: "mail rcpt data dot", want: "session slower"},
	{reply: "421 4.7.0 try again later", at: "mail rcpt data dot", want: "session slower"},
	{reply: "421 closing", at: "mail rcpt data dot", want: "session slower"},
	{reply: "421 4.3.2 too many connections", at: "greeting ehlo auth", want: "server wait"},
	{reply: "432 4.3.2 concurrent connections limit exceeded", at: "mail rcpt data dot", want: "session slower"},
	{reply: "451 4.3.2 too many concurrent connections", at: "mail data dot", want: "session slower"},
	{reply: "451 4.7.0 slow down", at: "mail rcpt data dot", want: "session slower"},
	{reply: "450 4.7.1 rate limit exceeded", at: "mail rcpt data dot", want: "session slower"},

	// Greylisting and policy are about the mail, or the recipient.
	{reply: "450 4.7.1 try again later", at: "mail data dot", want: "mail defer, slower"},
	{reply: "451 4.7.1 greylisted", at: "mail data dot", want: "mail defer, slower"},
	{reply: "452 4.7.0 policy", at: "mail data dot", want: "mail defer, slower"},
	{reply: "451 4.7.1 greylisted", at: "rcpt", want: "recipient defer"},
	{reply: "451 4.3.0 local error", at: "mail data dot", want: "mail defer"},
	{reply: "452 4.3.1 out of space", at: "mail data dot", want: "mail defer"},
	{reply: "450 4.2.1 mailbox busy", at: "rcpt", want: "recipient defer"},
	{reply: "455 what", at: "rcpt", want: "recipient defer"},

	// A login that is gone, a dialogue out of order, a server that takes no mail: every mail
	// would hear it.
	{reply: "530 5.7.0 authentication required", at: "mail rcpt data", want: "server suspend"},
	{reply: "503 5.5.1 need MAIL", at: "mail rcpt data", want: "server suspend"},
	{reply: "502 5.5.1 not implemented", at: "mail rcpt data", want: "server suspend"},
	{reply: "521 5.3.2 no mail here", at: "mail rcpt data", want: "server suspend"},
	{reply: "554 too many connections from you", at: "mail rcpt data", want: "server suspend, slower"},
	{reply: "554 5.7.57 client was not authenticated", at: "mail rcpt data dot", want: "server suspend"},
	{reply: "550 5.7.57 client not authenticated", at: "dot", want: "server suspend"},

	// The sender's address belongs to the mail server. Size belongs to the mail.
	{reply: "550 5.7.1 sender not allowed", at: "mail", want: "server suspend"},
	{reply: "553 5.7.1 sender address rejected: not owned by user", at: "mail", want: "server suspend"},
	{reply: "501 5.1.7 bad sender", at: "mail", want: "server suspend"},
	{reply: "552 5.3.4 too big", at: "mail", want: "mail refuse"},
	{reply: "552 too big", at: "mail", want: "mail refuse"},
	{reply: "554 5.3.4 too big", at: "mail", want: "mail refuse"},
	{reply: "550 5.6.7 needs SMTPUTF8", at: "mail", want: "mail refuse"},

	// An account at its limit, said in words.
	{reply: "430 4.2.0 STOREDRV; mailbox logon failure; failure accessing mailbox", at: "mail rcpt data dot", want: "server suspend"},
	{reply: "430 4.2.0 STOREDRV.Submission.Exception:OutboundSpamException", at: "dot", want: "server suspend"},
	{reply: "554 5.2.252 SendAsDenied; a@x.example not allowed to send as b@x.example", at: "dot", want: "server suspend"},
	{reply: "550 5.4.5 Daily user sending limit exceeded", at: "mail rcpt data dot", want: "server suspend"},
	{reply: "554 5.2.0 submission quota exceeded", at: "mail rcpt data dot", want: "server suspend"},
	{reply: "451 4.7.1 hourly limit reached", at: "mail rcpt data dot", want: "server suspend"},
	{reply: "552 5.2.2 mailbox quota exceeded", at: "rcpt", want: "recipient refuse"},
	{reply: "552 5.2.2 mailbox quota exceeded", at: "dot", want: "mail refuse"},

	// Too many recipients for one transaction.
	{reply: "452 4.5.3 too many recipients", at: "rcpt", behind: true, want: "session split"},
	{reply: "450 4.5.3 too many recipients", at: "rcpt", behind: true, want: "session split"},
	{reply: "451 4.5.3 too many recipients", at: "rcpt", behind: true, want: "session split"},
	{reply: "552 5.5.3 too many recipients", at: "rcpt", behind: true, want: "session split"},
	{reply: "452 too many recipients", at: "rcpt", behind: true, want: "session split"},
	{reply: "452 4.5.3 too many recipients", at: "rcpt", want: "recipient defer"},
	{reply: "552 5.5.3 too many recipients", at: "rcpt", want: "recipient defer"},
	{reply: "452 4.2.2 mailbox full", at: "rcpt", behind: true, want: "recipient defer"},
	{reply: "550 5.5.3 no", at: "rcpt", behind: true, want: "recipient refuse"},

	// What is refused for good.
	{reply: "550 5.1.1 no such user", at: "rcpt", want: "recipient refuse"},
	{reply: "550 no such user", at: "rcpt", want: "recipient refuse"},
	{reply: "554 5.7.1 relay access denied", at: "rcpt", want: "recipient refuse"},
	{reply: "554 5.7.1 spam", at: "data dot", want: "mail refuse"},
	{reply: "550 5.7.1 policy", at: "data dot", want: "mail refuse"},
	{reply: "503 5.5.1 out of order", at: "dot", want: "mail refuse"},

	// Opening a session.
	{reply: "504 5.5.4 unrecognized mechanism", at: "auth", want: "server next mechanism"},
	{reply: "500 5.5.2 what", at: "auth", want: "server next mechanism"},
	{reply: "502 5.5.1 no", at: "auth", want: "server next mechanism"},
	{reply: "503 5.5.1 no", at: "auth", want: "server next mechanism"},
	{reply: "534 5.7.9 mechanism too weak", at: "auth", want: "server next mechanism"},
	{reply: "535 5.7.8 bad credentials", at: "auth", want: "server suspend"},
	{reply: "530 5.7.0 must issue STARTTLS first", at: "auth", want: "server suspend"},
	{reply: "454 4.7.0 temporary authentication failure", at: "auth", want: "server wait"},
	{reply: "454 4.7.0 TLS not available", at: "starttls", want: "server wait"},
	{reply: "421 4.3.2 closing", at: "starttls", want: "server wait"},
	{reply: "500 5.5.1 unknown", at: "starttls", want: "server wait"},
	{reply: "554 5.7.1 your address is blocked", at: "greeting ehlo", want: "server suspend"},
	{reply: "450 4.3.2 busy", at: "greeting ehlo", want: "server wait"},

	{reply: "250 2.0.0 ok", at: "greeting ehlo auth mail rcpt data dot", want: ""},
	{reply: "354 go on", at: "data", want: ""},
}

func replyOf(s string) smtpx.Reply {
	code, text, _ := strings.Cut(s, " ")
	n, _ := strconv.Atoi(code)
	r := smtpx.Reply{Code: n, Text: text}
	if first, rest, _ := strings.Cut(text, " "); strings.Count(first, ".") == 2 && first[0] == code[0] {
		r.Enhanced, r.Text = first, rest
	}
	return r
}

func spellMeaning(m smtpx.Meaning) string {
	s := strings.TrimSpace(string(m.About) + " " + string(m.Action))
	if m.Slower && m.Action != smtpx.ActSlower && m.Action != smtpx.ActWait {
		s += ", slower"
	}
	return s
}

// TestMeans: the table, row by row.
func TestMeans(t *testing.T) {
	for _, c := range means {
		for at := range strings.FieldsSeq(c.at) {
			got := smtpx.Means(smtpx.Said{Phase: smtpx.Phase(at), Reply: replyOf(c.reply), Behind: c.behind})
			if spellMeaning(got) != c.want {
				t.Errorf("%q at %s, behind an accepted one %v: got %q, want %q", c.reply, at, c.behind, spellMeaning(got), c.want)
			}
		}
	}
	// Every refusal has a meaning, whatever its code and wherever it is said.
	for code := 400; code < 600; code++ {
		for _, at := range []smtpx.Phase{smtpx.PhaseGreeting, smtpx.PhaseEHLO, smtpx.PhaseSTARTTLS, smtpx.PhaseAuth, smtpx.PhaseMail, smtpx.PhaseRcpt, smtpx.PhaseData, smtpx.PhaseDot} {
			if got := smtpx.Means(smtpx.Said{Phase: at, Reply: smtpx.Reply{Code: code}}); got.About == "" || got.Action == "" {
				t.Errorf("%d at %s means nothing", code, at)
			}
		}
	}
}

// TestMeansOnTheWire: a mail's outcome carries the meaning of what a relay said, with and
// without PIPELINING.
func TestMeansOnTheWire(t *testing.T) {
	for _, c := range means {
		for at := range strings.FieldsSeq(c.at) {
			verb := map[string]string{"mail": "MAIL", "rcpt": "RCPT", "data": "DATA", "dot": "DOT"}[at]
			if verb == "" || c.want == "" {
				continue
			}
			nth, who := 1, 0
			if c.behind {
				nth, who = 2, 1
			}
			t.Run(fmt.Sprintf("%s at %s", c.reply, at), func(t *testing.T) {
				modes(t, func(t *testing.T, ext []string) {
					t.Parallel()
					srv := (&smtpxtest.Server{Extensions: ext, On: on(verb, nth, smtpxtest.Action{Reply: c.reply + "\r\n", Refuse: true})}).Start(t)
					o := dial(t, relay(srv)).Send(context.Background(), tx(2))
					if got := spellMeaning(o.Recipients[who].Means); got != c.want || o.Recipients[who].Reply != replyOf(c.reply) {
						t.Errorf("got %q, want %q: %+v", got, c.want, o.Recipients)
					}
				})
			})
		}
	}
}

// TestNextMechanism: a mechanism that the relay offers and does not take is followed by the
// next; a wrong password is not tried twice.
func TestNextMechanism(t *testing.T) {
	conf, ca := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	for _, c := range []struct {
		refused map[string]string
		used    string // "" = no login
		tried   int
		hint    string
	}{
		{map[string]string{"PLAIN": "504 5.5.4 unrecognized"}, "LOGIN", 2, ""},
		{map[string]string{"PLAIN": "534 5.7.9 too weak", "LOGIN": "500 what"}, "CRAM-MD5", 3, ""},
		{map[string]string{"PLAIN": "502 no"}, "LOGIN", 2, ""},
		{map[string]string{"PLAIN": "503 no"}, "LOGIN", 2, ""},
		{map[string]string{"PLAIN": "504 a", "LOGIN": "504 b", "CRAM-MD5": "504 c"}, "", 3, "none of the mechanisms"},
		{map[string]string{"PLAIN": "535 5.7.8 wrong"}, "", 1, "LOGIN, CRAM-MD5"},
		{map[string]string{"PLAIN": "454 4.7.0 later"}, "", 1, "try again later"},
		{map[string]string{"CRAM-MD5": "530 5.7.0 STARTTLS first"}, "", 1, "ENCRYPTION_STARTTLS"},
	} {
		encryption := smtpx.EncryptionTLS
		if c.hint == "ENCRYPTION_STARTTLS" {
			encryption = smtpx.EncryptionNone
		}
		srv := (&smtpxtest.Server{TLS: conf, Implicit: encryption == smtpx.EncryptionTLS, Username: "u", Password: "p", On: func(cmd smtpxtest.Command) *smtpxtest.Action {
			mech, _, _ := strings.Cut(cmd.Arg, " ")
			if rep := c.refused[mech]; cmd.Verb == "AUTH" && rep != "" {
				return &smtpxtest.Action{Reply: rep + "\r\n", Refuse: true}
			}
			return nil
		}}).Start(t)
		r := relay(srv)
		r.Encryption, r.CAPEM = encryption, ca
		r.Username, r.Password, r.AllowPlaintextAuth, r.Auth = "u", "p", true, smtpx.AuthAuto
		s, err := new(smtpx.Dialer).Dial(context.Background(), r)
		tried := 0
		for _, l := range srv.Lines() {
			if strings.HasPrefix(l, "AUTH ") {
				tried++
			}
		}
		if tried != c.tried {
			t.Errorf("%v: %d mechanisms were tried, want %d: %q", c.refused, tried, c.tried, srv.Lines())
		}
		if (err == nil) != (c.used != "") {
			t.Errorf("%v: %v", c.refused, err)
			continue
		}
		if err != nil {
			var fault *smtpx.Error
			if !errors.As(err, &fault) || fault.Phase != smtpx.PhaseAuth || !strings.Contains(fault.Hint, c.hint) {
				t.Errorf("%v: %v, hint %q", c.refused, err, fault.Hint)
			}
			continue
		}
		if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
			t.Errorf("%v: %s", c.refused, statuses(o))
		}
		_ = s.Close()
	}
}
