package smtpx

import (
	"errors"
	"fmt"
	"strings"
)

// Error is a fault with the phase it happened in. Its text never holds a password or a
// message's content. It is printable and at most 1 KiB, whatever a relay, a certificate or a
// name server said.
type Error struct {
	Phase     Phase
	Reply     Reply
	Temporary bool
	Hint      string // what a person can do about it; may be empty
	Err       error  // cause; nil when Reply says it all
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(phaseText[e.Phase])
	if e.Reply.Code != 0 {
		fmt.Fprintf(&b, ": %s", e.Reply)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return Clean(b.String(), maxText)
}

func (e *Error) Unwrap() error { return e.Err }

var phaseText = map[Phase]string{
	PhaseToken: "access token", PhaseDNS: "name lookup", PhaseConnect: "connect", PhaseTLS: "tls", PhaseGreeting: "greeting", PhaseEHLO: "ehlo", PhaseSTARTTLS: "starttls",
	PhaseAuth: "login", PhaseMail: "mail from", PhaseRcpt: "rcpt to", PhaseData: "data", PhaseGate: "held back before the dot", PhaseDot: "after the dot",
	PhaseQuit: "quit",
}

// String is the reply as the relay wrote it, on one line.
func (r Reply) String() string {
	if r.Code == 0 {
		return "no reply"
	}
	s := fmt.Sprint(r.Code)
	if r.Enhanced != "" {
		s += " " + r.Enhanced
	}
	if r.Text != "" {
		s += " " + r.Text
	}
	return s
}

var (
	errProtocol     = errors.New("the answer is not SMTP")
	errReplyTooLong = errors.New("the answer is longer than 64 KiB, or a line of it longer than 4 KiB")
	errSurplus      = errors.New("the server answered more than it was asked")
	errClosed       = errors.New("the connection is closed")
	errHeloName     = errors.New("helo_name")
	// ErrNotAllowed: the destination is outside what the service may dial.
	ErrNotAllowed = errors.New("destination is not allowed")
)
