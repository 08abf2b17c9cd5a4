package smtpx

import (
	"context"
	"time"
)

// Phase is the point of a session at which something happened.
type Phase string

const (
	PhaseToken    Phase = "token" // no access token for XOAUTH2
	PhaseDNS      Phase = "dns"
	PhaseConnect  Phase = "connect"
	PhaseTLS      Phase = "tls"
	PhaseGreeting Phase = "greeting"
	PhaseEHLO     Phase = "ehlo"
	PhaseSTARTTLS Phase = "starttls"
	PhaseAuth     Phase = "auth"
	PhaseMail     Phase = "mail"
	PhaseRcpt     Phase = "rcpt"
	PhaseData     Phase = "data" // DATA, and the body up to its final dot
	PhaseGate     Phase = "gate" // the gate refused: the dot did not leave
	PhaseDot      Phase = "dot"  // after the final dot
	PhaseQuit     Phase = "quit"
)

// Status is what became of one recipient in one transaction.
type Status int

const (
	StatusNotTried Status = iota // nothing of it was decided; try again, it cost nothing
	StatusAccepted               // the relay took responsibility (2yz after the dot)
	// temporary refusal (4yz), or the connection broke before the dot
	StatusDeferred
	StatusRejected // permanent refusal (5yz)
	// the dot left and no reply came: it may or may not have been sent
	StatusUnknown
)

// Reply is one complete reply of the relay, text cut to 1 KiB and stripped of control
// characters.
type Reply struct {
	Code     int    // 0 = there was no reply
	Enhanced string // "5.1.1", empty when the relay gave none
	Text     string
}

// RecipientOutcome is the result for Transaction.To at the same position.
type RecipientOutcome struct {
	Status Status
	Phase  Phase // where it was decided
	Reply  Reply
	Means  Meaning // whom the reply is about and what to do; zero without one, or for a success
}

// Outcome is the whole truth about one transaction. Exactly one is delivered per transaction.
type Outcome struct {
	Recipients []RecipientOutcome
	// the final dot may have left; false where a break or a stall is known to have come before
	// it
	DotSent bool
	DotTime time.Time // when the reply after the dot was read
	// queue id read out of the reply after the dot, when it has one ("queued as 4F2A1",
	// "id=1abc")
	RemoteID string
	// how many recipients the relay took before it said that there are too many of them; 0
	// where it did not say so
	Took int
	// first fault of the transaction as a whole; nil when every recipient was decided by a
	// reply
	Err *Error
	// the fault is the server's (connect, TLS, AUTH, 421, broken connection before the dot, a
	// reply about the mail server): it costs the mail no attempt
	ServerDown bool
}

// Transaction is one mail to at most MaxRecipients recipients.
type Transaction struct {
	From string   // bare mailbox, "" = null reverse-path
	To   []string // bare mailboxes, at least one
	// RFC 5322 message with CRLF line ends, not dot-stuffed; shared, never written to
	Raw []byte
	// the message header needs SMTPUTF8 (addresses are looked at by the session itself)
	UTF8 bool

	// Gate is called once, immediately before the write that carries the final dot: the rest of
	// a large body has been written by then. Only when it returns nil may the dot leave. It may
	// block (a durable mark is being committed) and must respect ctx. It is not called when no
	// recipient was accepted, or when the connection breaks before. nil = open.
	Gate func(ctx context.Context) error
	// Done receives the outcome exactly once, on the goroutine that called Submit or Flush,
	// before that call's own return or during a later one.
	Done func(Outcome)
	// Trace hears the steps, from the reply to MAIL to that to the dot. nil = nobody does.
	Trace *Trace
}

// MaxRecipients is the most recipients one transaction takes (RFC 5321 4.5.3.1.8 obliges
// servers to take 100).
const MaxRecipients = 100
