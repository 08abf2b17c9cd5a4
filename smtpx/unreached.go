package smtpx

import (
	"slices"
	"strings"
)

// Unreached is the one text for whatever happens before a server has greeted: refused,
// filtered, not permitted, silent, closed, or another protocol. Who reads nothing else learns
// from it nothing of what listens where in the network that the service stands in.
const Unreached = "connect: the mail server is not reached, or does not greet as one"

// UnreachedHint is what can be done about it by somebody who reads Unreached.
const UnreachedHint = "check host, port, encryption and the network in between; a system administrator sees what exactly happened"

// HideUnreached puts [Unreached] in the place of a fault of connecting or greeting, and reports
// whether there was one. text is the text of an [Error], or one that ends with it behind words
// and a colon each: an address, "gave up", "the mail server is suspended until ...". TLS right
// behind the connection counts too, unless it failed over a certificate or a version: only what
// speaks TLS has these.
func HideUnreached(text string) (string, bool) {
	for at := 0; ; {
		rest := text[at:]
		for phase, words := range phaseText {
			detail, is := strings.CutPrefix(rest, words+": ")
			switch {
			case !is && rest != words:
			case phase == PhaseConnect, phase == PhaseGreeting, phase == PhaseTLS && !speaksTLS(detail):
				return text[:at] + Unreached, true
			default:
				return text, false // a later phase: what follows are the server's words
			}
		}
		if said(rest) {
			return text, false
		}
		colon := strings.Index(rest, ": ")
		if colon < 0 {
			return text, false
		}
		at += colon + len(": ")
	}
}

func speaksTLS(detail string) bool {
	return strings.Contains(detail, "certificate") || strings.Contains(detail, "protocol version")
}

// said reports whether text begins with a reply's code.
func said(text string) bool {
	return len(text) >= 4 && text[0] >= '2' && text[0] <= '5' && text[1] >= '0' && text[1] <= '9' && text[2] >= '0' && text[2] <= '9' && text[3] == ' '
}

// HideUnreached is the report as somebody may read it who must not learn what listens where:
// the steps up to the greeting are one, which is reached or is not.
func (r ProbeResult) HideUnreached() ProbeResult {
	at := slices.IndexFunc(r.Steps, func(s Step) bool { return s.Outcome == StepFailed })
	if at < 0 {
		return r
	}
	text, hidden := HideUnreached(r.Steps[at].Detail)
	if !hidden {
		return r
	}
	r.Steps = slices.Clone(r.Steps)
	for i := range r.Steps {
		switch s := &r.Steps[i]; s.Kind {
		case StepTCP:
			*s = Step{Kind: s.Kind, Outcome: StepFailed, Detail: text, Hint: UnreachedHint}
		case StepTLS, StepGreeting:
			*s = Step{Kind: s.Kind, Outcome: StepSkipped, Detail: earlierFailed}
		}
	}
	return r
}
