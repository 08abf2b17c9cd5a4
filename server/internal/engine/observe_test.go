package engine_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
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
	t.Parallel()
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

// TestMailLine: the end of a mail is one line that says which and what became of its
// recipients, and neither an address nor the subject.
func TestMailLine(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	r := newRig(t, storetest.SQLiteDSN(t), nil, func(c *engine.Config) { c.Logger = slog.New(slog.NewJSONHandler(&said, nil)) })
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" && strings.Contains(c.Arg, "gone@") {
			return &smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n", Refuse: true}
		}
		return nil
	}}).Start(t)
	s := r.server("relay", store.ModeDaemon, relay, store.Limits{})
	m := newMail(s, store.KindInvoice, "a@y.example", "b@y.example", "gone@y.example")
	m.Reference, m.Caller, m.Subject = "R-1", "billing", "secret subject"
	r.queue(s, m)
	r.batch("")
	r.stop()
	lines := 0
	for line := range strings.Lines(said.String()) {
		var got map[string]any
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		if got["msg"] != "mail" {
			continue
		}
		lines++
		took, timed := got["took_ms"].(float64)
		delete(got, "took_ms")
		delete(got, "time")
		want := map[string]any{"level": "INFO", "msg": "mail", "mail_id": m.ID.String(), "reference": "R-1", "kind": "invoice", "mail_server": "relay",
			"status": "partially_sent", "accepted": 2.0, "rejected": 1.0, "caller": "billing"}
		if !timed || took < 0 || !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, took %v, want %v", got, took, want)
		}
	}
	if lines != 1 {
		t.Errorf("got %d lines, want 1:\n%s", lines, said.String())
	}
	for _, secret := range []string{"@y.example", "secret subject"} {
		if strings.Contains(said.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// BenchmarkMailLine says what the line of a mail costs, with a log of JSON that goes nowhere.
func BenchmarkMailLine(b *testing.B) {
	write := engine.MailLine(slog.New(slog.NewJSONHandler(io.Discard, nil)))
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	b.ReportAllocs()
	for b.Loop() {
		write()
	}
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	b.ReportMetric(float64(after.Utime.Nano()-before.Utime.Nano())/float64(b.N), "cpu-ns/op")
}
