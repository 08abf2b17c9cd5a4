package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// ear is an Observer that writes down what it hears.
type ear struct {
	mu    sync.Mutex // guards heard
	heard []string
}

func (e *ear) note(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, fmt.Sprintf(format, args...))
}

func (e *ear) Attempted(server string, o lifecycle.Outcome, f smtpx.Failure) {
	e.note("attempt %s %s %s", server, o, f)
}
func (e *ear) Ended(server string, k store.Kind, s store.MailStatus) {
	e.note("end %s %s %s", server, k, s)
}
func (e *ear) DotAnswered(server string, took time.Duration) {
	if took <= 0 || took > time.Minute {
		e.note("dot %s took %v", server, took)
		return
	}
	e.note("dot %s", server)
}
func (e *ear) Opened(server string, f smtpx.Failure) { e.note("open %s %s", server, f) }
func (e *ear) Suspended(server string)               { e.note("suspend %s", server) }

// TestObserver: an observer hears once of each session, dot, attempt and end, in either mode,
// and of a mail that waits for another attempt no end.
func TestObserver(t *testing.T) {
	refuses := map[string]*smtpxtest.Action{
		"gone@y.example": {Reply: "550 5.1.1 no such user\r\n", Refuse: true},
		"full@y.example": {Reply: "452 4.2.2 mailbox full\r\n", Refuse: true},
	}
	for _, mode := range []store.Mode{store.ModePHP, store.ModeDaemon} {
		t.Run(string(mode), func(t *testing.T) {
			heard := &ear{}
			r := newRig(t, storetest.SQLiteDSN(t), nil, func(c *engine.Config) { c.Observer, c.Connections = heard, heard })
			relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb == "RCPT" {
					for to, a := range refuses {
						if strings.Contains(c.Arg, to) {
							return a
						}
					}
				}
				return nil
			}}).Start(t)
			s := r.server("relay", mode, relay, store.Limits{})
			mails := []*store.NewMail{newMail(s, store.KindInvoice, "a@y.example"), newMail(s, store.KindBulk, "gone@y.example"), newMail(s, store.KindOther, "full@y.example")}
			for _, m := range mails {
				if mode == store.ModeDaemon {
					r.queue(s, m)
				} else if _, err := r.send(ctx(t), s, m); err != nil {
					t.Fatal(err)
				}
			}
			r.batch("")
			want := []string{"open relay ", "dot relay", "attempt relay sent ", "end relay invoice sent", "attempt relay failed no_such_mailbox", "end relay bulk failed"}
			if mode == store.ModeDaemon {
				want = append(want, "attempt relay deferred mailbox_full")
			} else { // its caller has heard it, and nothing goes again by itself
				want = append(want, "attempt relay failed mailbox_full", "end relay other failed")
			}
			heard.mu.Lock()
			defer heard.mu.Unlock()
			got := slices.Clone(heard.heard)
			slices.Sort(got)
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Errorf("got %q,\nwant %q", got, want)
			}
		})
	}
}
