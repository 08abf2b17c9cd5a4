package engine_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// What a reply does to a mail.
const (
	// it waits a little and loses no attempt; the mail server is not to blame
	slows  = "slows"
	defers = "defers" // it loses an attempt and waits about a minute; nothing else happens
	// it loses no attempt; after a fresh login the mail server is suspended
	suspends = "suspends"
	refuses  = "refuses" // its recipients are refused for good; nothing else happens
)

// replies are replies as relays give them, where they give them, and what each does to a mail,
// in either mode and whether commands leave in flights or in lock step.
var replies = []struct {
	words, at string
	close     bool
	does      string
}{
	{"421 4.4.2 rate exceeded", "MAIL RCPT DATA DOT", true, slows},
	{"421 4.7.0 slow", "MAIL RCPT DATA DOT", true, slows},
	{"421 service closing", "MAIL RCPT DATA DOT", true, slows},
	{"432 4.3.2 concurrent connections limit exceeded", "MAIL RCPT DATA DOT", false, slows},
	{"451 4.7.0 slow down", "MAIL RCPT DATA DOT", false, slows},
	{"450 4.7.1 try again later", "MAIL RCPT DATA DOT", false, defers},
	{"451 4.7.1 try again later", "MAIL RCPT DATA DOT", false, defers},
	{"452 4.7.1 try again later", "MAIL RCPT DATA DOT", false, defers},
	{"451 4.3.0 local error", "MAIL RCPT DATA DOT", false, defers},
	{"530 5.7.0 authentication required", "MAIL RCPT DATA", false, suspends},
	{"503 5.5.1 bad sequence", "MAIL RCPT DATA", false, suspends},
	{"502 5.5.1 not implemented", "MAIL RCPT DATA", false, suspends},
	{"521 5.3.2 takes no mail", "MAIL RCPT DATA", false, suspends},
	{"554 too many connections", "MAIL RCPT DATA", false, suspends},
	{"554 5.7.57 client was not authenticated", "MAIL RCPT DATA", false, suspends},
	{"550 5.7.1 sender not allowed", "MAIL", false, suspends},
	{"553 5.7.1 not owned by user", "MAIL", false, suspends},
	{"501 5.1.7 bad sender", "MAIL", false, suspends},
	{"550 5.4.5 daily sending limit exceeded", "MAIL RCPT DATA", false, suspends},
	{"552 5.3.4 too big", "MAIL DATA DOT", false, refuses},
	{"552 too big", "MAIL", false, refuses},
	{"554 5.3.4 too big", "MAIL", false, refuses},
	{"550 5.1.1 no such user", "RCPT", false, refuses},
	{"554 5.7.1 spam", "DATA DOT", false, refuses},
}

// TestRepliesInBothModes: what a reply does to a mail, row by row. Its code, enhanced code and
// words stand with every recipient and in the mail's last error; each has a class.
func TestRepliesInBothModes(t *testing.T) {
	t.Parallel()
	type sent struct {
		name, words, at, does string
		mode                  store.Mode
		relay                 *smtpxtest.Server
		server                *store.MailServer
		mail                  *store.NewMail
		began                 time.Time
	}
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	var all []*sent
	for i, c := range replies {
		for at := range strings.FieldsSeq(c.at) {
			for step, ext := range bothExtensions {
				for _, mode := range []store.Mode{store.ModePHP, store.ModeDaemon} {
					relay := (&smtpxtest.Server{Extensions: ext, On: func(cmd smtpxtest.Command) *smtpxtest.Action {
						if cmd.Verb == at {
							return &smtpxtest.Action{Reply: c.words + "\r\n", Refuse: true, Close: c.close}
						}
						return nil
					}}).Start(t)
					x := &sent{name: fmt.Sprintf("%s at %s, %s, %s", c.words, at, mode, step), words: c.words, at: at, does: c.does, mode: mode, relay: relay, began: time.Now()}
					x.server = r.server(fmt.Sprintf("s-%d-%s-%d-%s", i, strings.ToLower(at), len(ext), mode), mode, relay, store.Limits{})
					x.mail = newMail(x.server, store.KindInvoice, "a@y.example", "b@y.example")
					all = append(all, x)
					if mode == store.ModeDaemon {
						r.queue(x.server, x.mail)
						continue
					}
					if _, err := r.send(ctx(t), x.server, x.mail); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	r.batch("")
	tried := time.Now()
	breakers, err := r.store.Breakers(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range all {
		t.Run(x.name, func(t *testing.T) {
			got := r.mail(x.mail.ID)
			b := breakers[x.server.Name]
			if b == nil {
				b = &store.Breaker{}
			}
			// in mode php the caller has heard it, and nothing goes again by itself
			status, attempts, letters, failures, conns := store.MailFailed, 1, "dd", 0, 1
			switch daemon := x.mode == store.ModeDaemon; {
			case x.does == slows:
				failures, conns = b.Failures, x.relay.Conns() // TestRateExceeded counts them
				if daemon {
					status, attempts, letters = store.MailQueued, 0, "pp"
				}
			case x.does == suspends:
				failures, conns = 1, 2 // a fresh login
				if daemon {
					status, attempts, letters = store.MailQueued, 0, "pp"
				}
			case x.does == refuses:
				letters = "rr"
			case daemon:
				status = store.MailDeferred
			}
			if got.Status != status || got.Attempts != attempts || statuses(got) != letters {
				t.Errorf("%s, %s after %d attempts, want %s, %s, %d", got.Status, statuses(got), got.Attempts, status, letters, attempts)
			}
			if b.Failures != failures || x.does == suspends && !strings.Contains(b.Reason, x.words) || x.relay.Conns() != conns {
				t.Errorf("%d failures of the mail server (%s) and %d connections, want %d and %d", b.Failures, b.Reason, x.relay.Conns(), failures, conns)
			}
			switch due := got.DueTime; {
			case x.mode == store.ModePHP || x.does == refuses:
				if due != nil {
					t.Errorf("due at %v", due)
				}
			case due == nil, x.does == slows && due.After(tried.Add(15*time.Second)), x.does == defers && due.Before(x.began.Add(30*time.Second)):
				t.Errorf("due at %v, was tried between %v and %v", due, x.began, tried)
			}
			if !strings.Contains(got.LastError, x.words) {
				t.Errorf("the last error is %q", got.LastError)
			}
			for _, p := range got.Progress.Results {
				words := fmt.Sprintf("%d %s %s", p.Code, p.Enhanced, p.Detail)
				if strings.Join(strings.Fields(words), " ") != x.words || p.Failure == "" {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}

// TestSTARTTLSAnswered: a relay that offers STARTTLS and then says something else is in trouble
// for now, and about that alone: mails wait with its words and lose no attempt, a caller in
// mode php is told them at once, and the mail server is suspended.
func TestSTARTTLSAnswered(t *testing.T) {
	t.Parallel()
	conf, ca := smtpxtest.Certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	r := newRig(t, storetest.SQLiteDSN(t), nil, func(c *engine.Config) {
		c.Dial = func(ctx context.Context, s *store.MailServer) (engine.Session, error) {
			session, err := new(smtpx.Dialer).Dial(ctx, smtpx.Relay{Host: s.SMTP.Host, Port: s.SMTP.Port, Encryption: smtpx.EncryptionSTARTTLS, CAPEM: ca})
			if err != nil {
				return nil, err
			}
			return session, nil
		}
	})
	for _, words := range []string{"454 4.7.0 TLS not available", "421 4.3.2 closing", "500 5.5.1 unknown command"} {
		for step, ext := range bothExtensions {
			for _, mode := range []store.Mode{store.ModePHP, store.ModeDaemon} {
				t.Run(fmt.Sprintf("%s, %s, %s", words, mode, step), func(t *testing.T) {
					relay := (&smtpxtest.Server{TLS: conf, Extensions: ext, On: func(cmd smtpxtest.Command) *smtpxtest.Action {
						if cmd.Verb == "STARTTLS" {
							return &smtpxtest.Action{Reply: words + "\r\n"}
						}
						return nil
					}}).Start(t)
					s := r.server(fmt.Sprintf("tls-%s-%d-%s", words[:3], len(ext), mode), mode, relay, store.Limits{})
					m := newMail(s, store.KindInvoice, "a@y.example")
					want := store.MailFailed
					if mode == store.ModePHP {
						if _, err := r.send(ctx(t), s, m); err != nil {
							t.Fatal(err)
						}
					} else {
						r.queue(s, m)
						r.batch(s.Name)
						want = store.MailQueued
					}
					got := r.mail(m.ID)
					if got.Status != want || mode == store.ModeDaemon && got.Attempts != 0 || !strings.Contains(got.LastError, words) {
						t.Errorf("%s after %d attempts, want %s: %q", got.Status, got.Attempts, want, got.LastError)
					}
					if p := got.Progress.Results[0]; mode == store.ModePHP && p.Failure != string(smtpx.FailTLS) {
						t.Errorf("%+v", p)
					}
					bs, err := r.store.Breakers(ctx(t))
					if err != nil || bs[s.Name] == nil || bs[s.Name].Failures != 1 || !strings.Contains(bs[s.Name].Reason, words) {
						t.Errorf("%+v, %v", bs[s.Name], err)
					}
					for _, l := range relay.Lines() {
						if strings.HasPrefix(l, "MAIL") {
							t.Errorf("in clear: %q", l)
						}
					}
				})
			}
		}
	}
}
