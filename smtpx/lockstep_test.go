package smtpx_test

import (
	"context"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// TestPipeliningThatIsNone: a relay that offers PIPELINING and answers a flight with too few or
// other replies, or refuses it by that name, loses no mail and gets the next session in lock
// step. One that pipelines is not taken for it.
func TestPipeliningThatIsNone(t *testing.T) {
	for name, c := range map[string]struct {
		at    string
		reply smtpxtest.Action
		lock  bool // the next session is in lock step
	}{
		"an answer is missing":  {"RCPT", smtpxtest.Action{Reply: "", Hang: true}, true},
		"another one's answer":  {"RCPT", smtpxtest.Action{Reply: "354 go on\r\n", Refuse: true}, true},
		"refused by its name":   {"DATA", smtpxtest.Action{Reply: "503 5.5.0 Improper use of SMTP command pipelining\r\n", Refuse: true}, true},
		"an ordinary refusal":   {"RCPT", smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n", Refuse: true}, false},
		"a word after the body": {"DOT", smtpxtest.Action{Reply: "451 4.3.0 later\r\n", Refuse: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := (&smtpxtest.Server{On: func(cmd smtpxtest.Command) *smtpxtest.Action {
				if cmd.Conn == 1 && cmd.Verb == c.at {
					a := c.reply
					return &a
				}
				return nil
			}}).Start(t)
			d := new(smtpx.Dialer)
			r := relay(srv)
			r.Timeouts.Rcpt, r.Timeouts.Data = 300*time.Millisecond, 300*time.Millisecond
			s, err := d.Dial(context.Background(), r)
			if err != nil {
				t.Fatal(err)
			}
			if !s.Pipelining() {
				t.Fatal("the first session does not pipeline")
			}
			if o := s.Send(context.Background(), tx(1)); statuses(o) == "A" {
				t.Errorf("the first mail: %s, %+v", statuses(o), o)
			}
			_ = s.Close()
			s, err = d.Dial(context.Background(), r)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := s.Pipelining(), !c.lock; got != want {
				t.Errorf("the second session pipelines: %v, want %v", got, want)
			}
			if o := s.Send(context.Background(), tx(1)); statuses(o) != "A" {
				t.Errorf("the second mail: %s, %+v", statuses(o), o)
			}
			_ = s.Close()
		})
	}
}
