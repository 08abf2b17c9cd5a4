package engine

import (
	"context"
	"log/slog"
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
	if e.log.Enabled(context.Background(), slog.LevelDebug) {
		e.write(slog.LevelDebug, "attempt", slog.String("mail_id", m.ID.String()), slog.String("mail_server", m.MailServer),
			slog.String("outcome", string(v.Outcome)), slog.String("failure", string(v.Failure)), slog.String("ended", v.End.String()))
	}
}

// ended tells of a mail whose result is durable, when sending is done with it.
func (e *Engine) ended(m *store.Claimed, v lifecycle.Verdict) {
	if v.Kind == store.SettleRetry {
		return
	}
	e.cfg.Observer.Ended(m.MailServer, m.Kind, v.Status)
	if e.log.Enabled(context.Background(), slog.LevelInfo) {
		var room [12]slog.Attr
		e.write(slog.LevelInfo, "mail", mailLine(room[:0], m, v, e.now())...)
	}
}

// write writes a line. Unlike the methods of the logger it does not look up who calls, which no
// line shows and every line would pay for.
func (e *Engine) write(level slog.Level, text string, attrs ...slog.Attr) {
	r := slog.NewRecord(time.Now(), level, text, 0)
	r.AddAttrs(attrs...)
	// A log that cannot be written has no place to say so.
	_ = e.log.Handler().Handle(context.Background(), r)
}

// mailLine is what the log says of a mail that sending is done with: neither addresses nor the
// subject. took_ms counts from its acceptance.
func mailLine(to []slog.Attr, m *store.Claimed, v lifecycle.Verdict, now time.Time) []slog.Attr {
	to = append(to, slog.String("mail_id", m.ID.String()), slog.String("reference", m.Reference), slog.String("kind", string(m.Kind)),
		slog.String("mail_server", m.MailServer), slog.String("status", string(v.Status)))
	var accepted, rejected, deferred, unknown int
	for i := range v.Progress.Results {
		switch v.Progress.Results[i].Status {
		case store.RecipientAccepted:
			accepted++
		case store.RecipientRejected:
			rejected++
		case store.RecipientDeferred:
			deferred++
		case store.RecipientUnknown:
			unknown++
		}
	}
	for _, n := range [...]struct {
		name string
		n    int
	}{{"accepted", accepted}, {"rejected", rejected}, {"deferred", deferred}, {"unknown", unknown}} {
		if n.n > 0 {
			to = append(to, slog.Int(n.name, n.n))
		}
	}
	return append(to, slog.Int64("took_ms", now.Sub(m.CreateTime).Milliseconds()), slog.String("caller", m.Caller))
}

// dotAnswered tells how long the relay took to reply to the dot, if it did.
func (e *Engine) dotAnswered(j *job, o smtpx.Outcome) {
	if !o.DotTime.IsZero() && !j.dotAt.IsZero() {
		e.cfg.Observer.DotAnswered(j.way.Via.Name, o.DotTime.Sub(j.dotAt))
	}
}
