package engine

import (
	"time"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Observer hears what the engine does, once an event. It is called where mail is sent, so it
// must not wait for anything.
type Observer interface {
	// Attempted: an attempt at a mail of the mail server has ended.
	Attempted(server string, outcome lifecycle.Outcome, failure smtpx.Failure)
	// Ended: sending is done with a mail, and that is durable.
	Ended(server string, kind store.Kind, status store.MailStatus)
	// DotAnswered: the relay of the mail server has replied to a final dot.
	DotAnswered(server string, took time.Duration)
}

// deaf is the Observer where none is given.
type deaf struct{}

func (deaf) Attempted(string, lifecycle.Outcome, smtpx.Failure) {}
func (deaf) Ended(string, store.Kind, store.MailStatus)         {}
func (deaf) DotAnswered(string, time.Duration)                  {}

// attempted tells of an attempt that has ended.
func (e *Engine) attempted(m *store.Claimed, v lifecycle.Verdict) {
	e.cfg.Observer.Attempted(m.MailServer, v.Outcome, v.Failure)
}

// ended tells of a mail whose result is durable, when sending is done with it.
func (e *Engine) ended(m *store.Claimed, v lifecycle.Verdict) {
	if v.Kind == store.SettleRetry {
		return
	}
	e.cfg.Observer.Ended(m.MailServer, m.Kind, v.Status)
}

// dotAnswered tells how long the relay took to reply to the dot, if it did.
func (e *Engine) dotAnswered(j *job, o smtpx.Outcome) {
	if !o.DotTime.IsZero() && !j.dotAt.IsZero() {
		e.cfg.Observer.DotAnswered(j.way.Via.Name, o.DotTime.Sub(j.dotAt))
	}
}
