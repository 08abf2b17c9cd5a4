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

// heard writes down steps.
type heard []string

func (h *heard) trace() *smtpx.Trace {
	return &smtpx.Trace{Step: func(k smtpx.StepKind, o smtpx.StepOutcome, code int) {
		*h = append(*h, fmt.Sprintf("%s %s %d", k, o, code))
	}}
}

// TestTrace: a trace hears each step of opening a session and of each mail once, in its order,
// and of no other mail's, also where two mails share a flight.
func TestTrace(t *testing.T) {
	modes(t, func(t *testing.T, ext []string) {
		s := (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
			switch {
			case c.Verb == "RCPT" && strings.Contains(c.Arg, "r1@"):
				return &smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n", Refuse: true}
			case c.Verb == "DOT" && c.Nth == 2:
				return &smtpxtest.Action{Reply: "451 4.3.0 later\r\n", Refuse: true}
			}
			return nil
		}}).Start(t)
		var opening, first, second, third heard
		session, err := new(smtpx.Dialer).Dial(smtpx.WithTrace(t.Context(), opening.trace()), relay(s))
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		for i, h := range []*heard{&first, &second, &third} {
			tx := tx(2 - min(i, 1))
			tx.Trace, tx.Done = h.trace(), func(smtpx.Outcome) {}
			tx.Gate = func(context.Context) error { return nil }
			if h == &third {
				tx.Gate = func(context.Context) error { return context.Canceled }
			}
			if err := session.Submit(t.Context(), tx); err != nil && h != &third {
				t.Fatal(err)
			}
		}
		_ = session.Flush(t.Context()) // the third kills the session
		for _, c := range []struct {
			name      string
			got, want heard
		}{
			{"opening", opening, heard{"tcp ok 0", "greeting ok 220", "ehlo ok 250"}},
			{"first", first, heard{"mail_from ok 250", "rcpt_to ok 250", "rcpt_to failed 550", "data ok 354", "gate ok 0", "dot ok 250"}},
			{"second", second, heard{"mail_from ok 250", "rcpt_to ok 250", "data ok 354", "gate ok 0", "dot failed 451"}},
			{"third", third, heard{"mail_from ok 250", "rcpt_to ok 250", "data ok 354", "gate failed 0"}},
		} {
			if !slices.Equal(c.got, c.want) {
				t.Errorf("%s: got %q, want %q", c.name, c.got, c.want)
			}
		}
	})
}

// TestTraceOfNobody: steps that nobody hears cost nothing.
func TestTraceOfNobody(t *testing.T) {
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if smtpx.TraceOf(ctx) != nil {
			t.Fatal("got a trace")
		}
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}
