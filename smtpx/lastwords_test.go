package smtpx_test

import (
	"context"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// TestLastWords: what a relay says before it closes is kept: its code, its enhanced code and
// its words stand in the fault and with every recipient that got no answer of its own, in both
// modes, whether the relay closes at once, resets, or goes on answering.
func TestLastWords(t *testing.T) {
	const words = "421 4.7.0 slow down, you are too fast"
	for _, c := range []struct {
		verb  string
		nth   int
		phase smtpx.Phase
	}{{"MAIL", 1, smtpx.PhaseMail}, {"RCPT", 1, smtpx.PhaseRcpt}, {"RCPT", 2, smtpx.PhaseRcpt}, {"RCPT", 3, smtpx.PhaseRcpt}, {"DATA", 1, smtpx.PhaseData}, {"DOT", 1, smtpx.PhaseDot}} {
		for name, end := range map[string]smtpxtest.Action{"close": {Close: true}, "stay": {Refuse: true}} {
			modes(t, func(t *testing.T, ext []string) {
				end.Reply = words + "\r\n"
				srv := (&smtpxtest.Server{Extensions: ext, On: on(c.verb, c.nth, end)}).Start(t)
				s := dial(t, relay(srv))
				o := s.Send(context.Background(), tx(3))
				for i, r := range o.Recipients {
					if r.Reply.Code != 421 || r.Reply.Enhanced != "4.7.0" || r.Reply.Text != "slow down, you are too fast" || r.Phase != c.phase {
						t.Errorf("%s %d, %s, recipient %d: %+v", c.verb, c.nth, name, i, r)
					}
				}
				if o.Err == nil || o.Err.Reply.Code != 421 || o.Err.Phase != c.phase || !strings.Contains(o.Err.Error(), words) || !o.ServerDown || s.Usable() {
					t.Errorf("%s %d, %s: %v, server down %v", c.verb, c.nth, name, o.Err, o.ServerDown)
				}
			})
		}
	}
	// A refusal of the sender and a close: the same, as the refusal that it is.
	modes(t, func(t *testing.T, ext []string) {
		srv := (&smtpxtest.Server{Extensions: ext, On: on("MAIL", 1, smtpxtest.Action{Reply: "550 5.7.1 not you\r\n", Close: true})}).Start(t)
		o := dial(t, relay(srv)).Send(context.Background(), tx(2))
		if statuses(o) != "RR" || o.Recipients[1].Reply.Code != 550 || o.Err == nil || o.Err.Reply.Text != "not you" || o.Err.Phase != smtpx.PhaseMail {
			t.Errorf("%s %+v", statuses(o), o.Err)
		}
	})
}
