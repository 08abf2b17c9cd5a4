package smtpx

import "context"

// Trace hears the steps of a session while they happen: those of opening it by way of
// [WithTrace], those of a mail by way of Transaction.Trace. It hears neither addresses nor what
// the relay said, only its reply codes, so that nothing of a mail reaches whoever records the
// steps.
//
// Step is called on the goroutine that works for the session, once a step has ended, and must
// not wait for anything. code is the relay's reply code, 0 where the step has none.
type Trace struct {
	Step func(kind StepKind, outcome StepOutcome, code int)
}

// Steps of a transaction that a probe does not have. StepMailFrom and StepRcptTo are the
// others.
const (
	StepData StepKind = "data" // the reply to DATA
	StepGate StepKind = "gate" // whether the final dot may leave
	StepDot  StepKind = "dot"  // the reply to the final dot, or that none came
)

type traceKey struct{}

// WithTrace makes [Dialer.Dial] tell the steps of opening a session to t.
func WithTrace(ctx context.Context, t *Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceOf is the Trace that ctx carries, nil without one.
func TraceOf(ctx context.Context) *Trace {
	t, _ := ctx.Value(traceKey{}).(*Trace)
	return t
}

// step tells that a step has ended.
func (t *Trace) step(kind StepKind, outcome StepOutcome, code int) {
	if t != nil && t.Step != nil {
		t.Step(kind, outcome, code)
	}
}

// replied tells of a reply: a step is well when the relay took it.
func (t *Trace) replied(kind StepKind, code int) {
	if t == nil || code == 0 && kind == StepData { // it was not asked
		return
	}
	outcome := StepFailed
	if code/100 == 2 || code == 354 {
		outcome = StepOK
	}
	t.step(kind, outcome, code)
}
