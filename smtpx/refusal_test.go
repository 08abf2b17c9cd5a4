package smtpx_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// TestRefusalMatrix is F8 and F9: MAIL, RCPT k of n, DATA and the dot, refused for now and for
// good. Every recipient has the outcome and the reply that the relay gave it, the others have
// the mail, nobody else has, no content goes to a relay that accepted nobody, and the next mail
// goes over the same connection.
func TestRefusalMatrix(t *testing.T) {
	type refusal struct {
		name string
		verb string
		hits func(k, n int) bool // recipients, for RCPT
	}
	refusals := []refusal{
		{"mail", "MAIL", nil}, {"data", "DATA", nil}, {"dot", "DOT", nil},
		{"first rcpt", "RCPT", func(k, n int) bool { return k == 1 }},
		{"middle rcpt", "RCPT", func(k, n int) bool { return k == (n+1)/2 }},
		{"last rcpt", "RCPT", func(k, n int) bool { return k == n }},
		{"all but the first rcpt", "RCPT", func(k, n int) bool { return k > 1 }},
		{"all but the last rcpt", "RCPT", func(k, n int) bool { return k < n }},
		{"every third rcpt", "RCPT", func(k, n int) bool { return k%3 == 2 }},
		{"every rcpt", "RCPT", func(k, n int) bool { return true }},
	}
	cases := 0
	modes(t, func(t *testing.T, ext []string) {
		for _, rf := range refusals {
			for _, code := range []int{450, 451, 452, 550, 552, 554} {
				for _, n := range []int{1, 2, smtpx.MaxRecipients} {
					for _, anyway := range []bool{false, true} {
						// DATA is answered 354 though nobody was accepted
						if anyway && rf.verb != "MAIL" && rf.name != "every rcpt" {
							continue
						}
						cases++
						t.Run(fmt.Sprintf("%s %d of %d, 354 anyway %v", rf.name, code, n, anyway), func(t *testing.T) {
							t.Parallel()
							refuse(t, ext, rf.verb, rf.hits, code, n, anyway)
						})
					}
				}
			}
		}
	})
	t.Logf("%d cases", cases)
}

func refuse(t *testing.T, ext []string, verb string, hits func(k, n int) bool, code, n int, anyway bool) {
	text := func(k int) string { return fmt.Sprintf("%d %d.0.%d not this one", code, code/100, k) }
	srv := (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
		switch {
		case c.Verb == verb && verb == "RCPT" && c.Nth <= n && hits(c.Nth, n), c.Verb == verb && verb != "RCPT" && c.Nth == 1:
			return &smtpxtest.Action{Reply: text(c.Nth) + "\r\n", Refuse: true}
		case anyway && c.Verb == "RCPT" && verb == "MAIL" && c.Nth <= n:
			return &smtpxtest.Action{Reply: "250 fine\r\n"}
		case anyway && c.Verb == "DATA" && c.Nth == 1:
			return &smtpxtest.Action{Reply: "354 go on\r\n"}
		}
		return nil
	}}).Start(t)
	s := dial(t, relay(srv))
	o := s.Send(context.Background(), tx(n))
	phase := map[string]smtpx.Phase{"MAIL": smtpx.PhaseMail, "RCPT": smtpx.PhaseRcpt, "DATA": smtpx.PhaseData, "DOT": smtpx.PhaseDot}[verb]
	var served []string
	for k := 1; k <= n; k++ {
		r := o.Recipients[k-1]
		if verb == "RCPT" && !hits(k, n) {
			served = append(served, to(n)[k-1])
			if r.Status != smtpx.StatusAccepted || r.Phase != smtpx.PhaseDot {
				t.Fatalf("recipient %d of %d: %+v, want accepted", k, n, r)
			}
			continue
		}
		want := smtpx.RecipientOutcome{Status: smtpx.StatusDeferred, Phase: phase, Reply: smtpx.Reply{Code: code, Enhanced: strings.Fields(text(1))[1], Text: "not this one"}}
		if verb == "RCPT" {
			want.Reply.Enhanced = strings.Fields(text(k))[1]
		}
		if code >= 500 {
			want.Status = smtpx.StatusRejected
		}
		// TestMeans has what that is
		want.Means = smtpx.Means(smtpx.Said{Phase: phase, Reply: want.Reply})
		if r != want {
			t.Fatalf("recipient %d of %d: %+v, want %+v", k, n, r, want)
		}
	}
	// a lone dot for nobody
	content := slices.DeleteFunc(srv.Mails(), func(m smtpxtest.Mail) bool { return len(m.Data) == 0 })
	switch {
	case len(served) == 0 && len(content) != 0:
		t.Fatalf("content for nobody: %+v", content)
	case len(served) > 0 && (len(content) != 1 || !slices.Equal(content[0].To, served) || string(content[0].Data) != raw):
		t.Fatalf("%d mails arrived, want one for %d", len(content), len(served))
	}
	// 552 is about the size of the mail. Else the sender's address is the mail server's: a
	// fresh login may help, this session does not
	aboutServer := verb == "MAIL" && code >= 500 && code != 552
	if o.ServerDown != aboutServer || o.DotSent != (verb == "DOT" || len(served) > 0) {
		t.Errorf("server down %v, dot sent %v", o.ServerDown, o.DotSent)
	}
	if aboutServer || verb == "MAIL" && anyway && len(ext) == 3 {
		if s.Usable() {
			// a lone dot would be taken as an empty mail, and to end the body there is nothing
			// else
			t.Error("the connection is still used")
		}
		return
	}
	if o := s.Send(context.Background(), tx(2)); statuses(o) != "AA" || srv.Conns() != 1 {
		t.Fatalf("the next mail: %s over %d connections (%v)", statuses(o), srv.Conns(), o.Err)
	}
}

// TestMailWins: a relay that refuses MAIL says 503 to the rest of the flight; what counts is
// what it said to MAIL, for now or for good.
func TestMailWins(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		for code, want := range map[string]string{"451 4.7.1 later": "DDD", "550 5.7.1 not you": "RRR"} {
			srv := (&smtpxtest.Server{Extensions: ext, On: all(on("MAIL", 1, smtpxtest.Action{Reply: code + "\r\n", Refuse: true}),
				on("RCPT", 1, smtpxtest.Action{Reply: "503 5.5.1 need MAIL\r\n", Refuse: true}), on("RCPT", 2, smtpxtest.Action{Reply: "450 4.5.1 need MAIL\r\n", Refuse: true}),
				on("DATA", 1, smtpxtest.Action{Reply: "503 5.5.1 need RCPT\r\n", Refuse: true}))}).Start(t)
			s := dial(t, relay(srv))
			o := s.Send(context.Background(), tx(3))
			for _, r := range o.Recipients {
				if statuses(o) != want || r.Phase != smtpx.PhaseMail || fmt.Sprint(r.Reply) != code {
					t.Fatalf("%s: %s %+v", code, statuses(o), r)
				}
			}
			if s.Usable() != (code[0] == '4') { // the other is about the mail server
				t.Errorf("%s: usable %v", code, s.Usable())
			}
		}
	})
}

// TestMailWinsWhenCut: a relay that refuses MAIL, says 503 to the rest of the flight and closes
// in the middle of that has refused nobody but by what it said to MAIL.
func TestMailWinsWhenCut(t *testing.T) {
	for code, want := range map[string]string{"451 4.7.1 later": "DDD", "550 5.7.1 not you": "RRR"} {
		for name, last := range map[string]struct {
			verb string
			nth  int
		}{"first RCPT": {"RCPT", 1}, "second RCPT": {"RCPT", 2}, "last RCPT": {"RCPT", 3}} {
			t.Run(code+" closes behind the "+name, func(t *testing.T) {
				srv := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
					switch {
					case c.Verb == "MAIL":
						return &smtpxtest.Action{Reply: code + "\r\n", Refuse: true}
					case c.Verb == "RCPT" || c.Verb == "DATA":
						return &smtpxtest.Action{Reply: "503 5.5.1 need MAIL\r\n", Refuse: true, Close: c.Verb == last.verb && c.Nth == last.nth}
					}
					return nil
				}}).Start(t)
				o := dial(t, relay(srv)).Send(context.Background(), tx(3))
				for _, r := range o.Recipients {
					if statuses(o) != want || r.Phase != smtpx.PhaseMail || fmt.Sprint(r.Reply) != code {
						t.Fatalf("got %s %+v, want %s by %q", statuses(o), r, want, code)
					}
				}
			})
		}
	}
}

// TestGoodbyeIsTheEnd: after a 421 to any command nothing more is said, also where the relay
// does not close.
func TestGoodbyeIsTheEnd(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		for _, at := range []struct {
			verb string
			nth  int
		}{{"MAIL", 1}, {"RCPT", 1}, {"RCPT", 3}, {"DATA", 1}, {"DOT", 1}} {
			srv := (&smtpxtest.Server{Extensions: ext, On: on(at.verb, at.nth, smtpxtest.Action{Reply: "421 4.3.2 bye\r\n", Refuse: true})}).Start(t)
			s := dial(t, relay(srv))
			o := s.Send(context.Background(), tx(3))
			if strings.Trim(statuses(o), "nD") != "" || !o.ServerDown || s.Usable() || len(srv.Mails()) != 0 {
				t.Errorf("%s %d: %s, server down %v, usable %v, %d mails", at.verb, at.nth, statuses(o), o.ServerDown, s.Usable(), len(srv.Mails()))
			}
			if o := s.Send(context.Background(), tx(1)); statuses(o) != "n" {
				t.Errorf("%s %d, the next mail: %s", at.verb, at.nth, statuses(o))
			}
		}
	})
}
