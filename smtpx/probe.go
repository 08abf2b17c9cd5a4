package smtpx

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"
)

// StepKind names a step of opening a session, and of asking about a recipient.
type StepKind string

const (
	StepToken    StepKind = "token"
	StepDNS      StepKind = "dns"
	StepTCP      StepKind = "tcp"
	StepTLS      StepKind = "tls"
	StepGreeting StepKind = "greeting"
	StepEHLO     StepKind = "ehlo"
	StepSTARTTLS StepKind = "starttls"
	StepAuth     StepKind = "auth"
	StepMailFrom StepKind = "mail_from"
	StepRcptTo   StepKind = "rcpt_to"
	StepQuit     StepKind = "quit"
)

// StepOutcome is how a step went.
type StepOutcome string

const (
	StepOK      StepOutcome = "ok"
	StepWarning StepOutcome = "warning"
	StepFailed  StepOutcome = "failed"
	StepSkipped StepOutcome = "skipped"
)

// Step is one line of a probe's report.
type Step struct {
	Kind    StepKind
	Outcome StepOutcome
	Detail  string
	Hint    string
	Code    int
	Elapsed time.Duration
	Facts   map[string]string
}

// ProbeOptions say what to ask beyond the login.
type ProbeOptions struct {
	From      string // mailbox for MAIL FROM
	Recipient string // mailbox for RCPT TO; "" = neither is asked
}

// ProbeResult is the report.
type ProbeResult struct {
	Success bool // a mail could be sent from here on
	Steps   []Step
	Err     *Error // of the step that failed
}

// Probe opens a session exactly as a send does and reports every step. DATA is never said. ctx
// bounds the whole; its last moment is kept back so that the step's own error arrives instead
// of the caller's.
func Probe(ctx context.Context, d *Dialer, r Relay, opt ProbeOptions) ProbeResult {
	if t, ok := ctx.Deadline(); ok {
		left := time.Until(t)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left-min(left/10, 500*time.Millisecond))
		defer cancel()
	}
	tr := &trace{}
	s, fault := d.dial(ctx, r, tr)
	if fault == nil {
		stop := s.watch(ctx)
		if opt.Recipient != "" {
			fault = s.ask(tr, opt)
		} else {
			tr.skip(StepMailFrom, "no probe recipient")
			tr.skip(StepRcptTo, "no probe recipient")
		}
		if fault == nil || s.dead == nil {
			done := tr.begin(StepQuit)
			if rep, _, err := s.command(quitWait, "QUIT"); err != nil || rep.Code/100 != 2 {
				done(StepWarning, "no goodbye from the server; mail is not affected", rep.Code, nil)
			} else {
				done(StepOK, "goodbye", rep.Code, nil)
			}
		}
		stop()
		s.drop()
	}
	steps := tr.complete(r)
	for i := range steps {
		if fault != nil && steps[i].Outcome == StepFailed {
			steps[i].Hint = fault.Hint // after the whole dial, which knows about timeouts
			steps[i].Detail = Clean(fault.Error(), maxShown)
		}
	}
	return ProbeResult{Success: fault == nil, Steps: steps, Err: fault}.clean()
}

// ask says MAIL FROM and RCPT TO and takes it back.
func (s *Session) ask(tr *trace, opt ProbeOptions) *Error {
	tm := s.relay.Timeouts
	t := &Transaction{From: opt.From, To: []string{opt.Recipient}, Raw: []byte("x")}
	if why := s.unreachable(opt.Recipient); why != "" {
		tr.skip(StepMailFrom, "the recipient cannot be asked about")
		return tr.begin(StepRcptTo).fail(&Error{Phase: PhaseRcpt, Err: errors.New(why)}, s.relay)
	}
	done := tr.begin(StepMailFrom)
	if fault := s.refuseLocally(t); fault != nil {
		return done.fail(withHint(fault, s.relay), s.relay)
	}
	s.sizeOffered = false // there is no message to give a size of
	line := s.appendMail(nil, t)
	rep, _, err := s.command(tm.Command, string(line[:len(line)-2]))
	if err != nil || rep.Code/100 != 2 {
		return done.fail(withHint(s.probeFault(PhaseMail, rep, err), s.relay), s.relay)
	}
	done(StepOK, shown(rep), rep.Code, nil)
	done = tr.begin(StepRcptTo)
	rep, _, err = s.command(tm.Rcpt, "RCPT TO:<"+opt.Recipient+">")
	if err != nil || rep.Code/100 != 2 {
		return done.fail(withHint(s.probeFault(PhaseRcpt, rep, err), s.relay), s.relay)
	}
	done(StepOK, shown(rep), rep.Code, nil)
	if rep, _, err := s.command(tm.Command, "RSET"); err != nil || rep.Code/100 != 2 {
		s.kill(errClosed)
	}
	return nil
}

func (s *Session) probeFault(p Phase, rep Reply, err error) *Error {
	if err != nil {
		s.kill(err)
	}
	return s.fault(p, rep, err)
}

func shown(rep Reply) string { return Clean(rep.String(), maxShown) }

// trace collects the steps of a probe, or of opening a session that somebody looks at. A nil
// trace collects nothing, which is what a send uses.
type trace struct {
	steps []Step
	hears *Trace // nil = nobody
}

// doneFunc ends a step.
type doneFunc func(o StepOutcome, detail string, code int, facts map[string]string)

func (t *trace) begin(k StepKind) doneFunc {
	if t == nil {
		return func(StepOutcome, string, int, map[string]string) {}
	}
	start := time.Now()
	return func(o StepOutcome, detail string, code int, facts map[string]string) {
		t.steps = append(t.steps, Step{Kind: k, Outcome: o, Detail: detail, Code: code, Elapsed: time.Since(start), Facts: facts})
		t.hears.step(k, o, code)
	}
}

func (t *trace) skip(k StepKind, why string) {
	if t != nil {
		t.steps = append(t.steps, Step{Kind: k, Outcome: StepSkipped, Detail: why})
	}
}

// fail ends a step with a fault and hands it on.
func (d doneFunc) fail(e *Error, r Relay) *Error {
	withHint(e, r)
	d(StepFailed, Clean(e.Error(), maxShown), e.Reply.Code, nil)
	return e
}

// warnCertificate turns a good TLS step into a warning when the certificate is about to expire.
func (t *trace) warnCertificate(s *Session) {
	tc, ok := s.conn.(*tls.Conn)
	if t == nil || !ok {
		return
	}
	st := tc.ConnectionState()
	if len(st.PeerCertificates) == 0 {
		return
	}
	if left := time.Until(st.PeerCertificates[0].NotAfter); left < 14*24*time.Hour {
		last := &t.steps[len(t.steps)-1]
		last.Outcome = StepWarning
		last.Hint = fmt.Sprintf("the certificate expires in %d days: have it renewed", int(left.Hours()/24))
	}
}

const earlierFailed = "an earlier step failed"

// complete gives the steps in the order of a session, those that were not reached as skipped,
// the second EHLO behind STARTTLS folded into the first.
func (t *trace) complete(r Relay) []Step {
	order := []StepKind{StepDNS, StepTCP, StepGreeting, StepEHLO, StepAuth, StepMailFrom, StepRcptTo, StepQuit}
	switch r.Encryption {
	case EncryptionTLS:
		order = []StepKind{StepDNS, StepTCP, StepTLS, StepGreeting, StepEHLO, StepAuth, StepMailFrom, StepRcptTo, StepQuit}
	case EncryptionSTARTTLS:
		order = []StepKind{StepDNS, StepTCP, StepGreeting, StepEHLO, StepSTARTTLS, StepAuth, StepMailFrom, StepRcptTo, StepQuit}
	}
	if r.Auth == AuthXOAUTH2 {
		order = append([]StepKind{StepToken}, order...)
	}
	var out []Step
	failed := false
	for _, k := range order {
		var found *Step
		for i := range t.steps {
			if t.steps[i].Kind == k {
				if found != nil {
					t.steps[i].Elapsed += found.Elapsed
				}
				found = &t.steps[i]
			}
		}
		switch {
		case found != nil:
			out = append(out, *found)
			failed = failed || found.Outcome == StepFailed
		case failed:
			out = append(out, Step{Kind: k, Outcome: StepSkipped, Detail: earlierFailed})
		default:
			out = append(out, Step{Kind: k, Outcome: StepSkipped, Detail: "not needed"})
		}
	}
	return out
}
