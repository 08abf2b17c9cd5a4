package engine

import (
	"context"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Tracer makes spans of attempts at mails. It is asked only about mails that carry the trace of
// the call that brought them, which few do, so that the others cost nothing.
type Tracer interface {
	// Attempt begins the span of an attempt at the mail. The trace hears the steps, on one
	// goroutine at a time but for those of opening a connection. end is called once. Both are
	// nil where the mail's trace is not followed.
	Attempt(m *store.Claimed, number int) (trace *smtpx.Trace, end func(lifecycle.Outcome, smtpx.Failure))
}

// lost is the outcome of an attempt at a mail that another replica has taken.
const lost lifecycle.Outcome = "lost"

// span is the trace of an attempt at one mail; zero = nobody follows it.
type span struct {
	trace *smtpx.Trace
	end   func(lifecycle.Outcome, smtpx.Failure)
}

// follow begins the span of an attempt.
func (e *Engine) follow(m *store.Claimed, number int) (s span) {
	if len(m.Trace) > 0 && e.cfg.Tracer != nil {
		s.trace, s.end = e.cfg.Tracer.Attempt(m, number)
	}
	return s
}

// follow begins the span of the job's attempt, if it has not begun.
func (e *Engine) followJob(j *job) {
	if j.span.end == nil {
		j.span = e.follow(j.Mail, j.Number())
	}
}

// opening is ctx for opening a connection that the span hears of.
func (s *span) opening(ctx context.Context) context.Context {
	if s.trace == nil {
		return ctx
	}
	return smtpx.WithTrace(ctx, s.trace)
}

// over ends the span; what is over stays so.
func (s *span) over(o lifecycle.Outcome, f smtpx.Failure) {
	if s.end != nil {
		s.end(o, f)
		*s = span{}
	}
}
