package smtpx

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// refuseLocally finds what no relay needs to be asked about. The last line of defence: nothing
// unchecked reaches a command (RFC 5321 4.1.2).
func (s *Session) refuseLocally(t *Transaction) *Error {
	bad := func(p Phase, text string) *Error { return &Error{Phase: p, Err: errors.New(text)} }
	switch {
	case len(t.To) == 0 || len(t.To) > MaxRecipients:
		return bad(PhaseRcpt, "a transaction takes 1 to "+strconv.Itoa(MaxRecipients)+" recipients")
	case !wireSafe(t.From):
		return bad(PhaseMail, "the sender is not a mailbox that may go into a command")
	case len(t.Raw) == 0:
		return bad(PhaseData, "the message is empty")
	case s.sizeLimit > 0 && int64(len(t.Raw)) > s.sizeLimit:
		return bad(PhaseMail, fmt.Sprintf("the message has %d bytes; the server takes %d", len(t.Raw), s.sizeLimit))
	case bareLineEnd(t.Raw):
		return bad(PhaseData, "the message has a bare CR or LF, or a NUL")
	}
	if (t.UTF8 || !ascii(t.From)) && !s.smtputf8 {
		return bad(PhaseMail, "the sender or the message needs SMTPUTF8, which the server does not offer")
	}
	return nil
}

// unreachable says why no command may name a recipient, "" when one may.
func (s *Session) unreachable(to string) string {
	switch {
	case !wireSafe(to):
		return "the recipient is not a mailbox that may go into a command"
	case !ascii(to) && !s.smtputf8:
		return "the address needs SMTPUTF8, which the server does not offer"
	}
	return ""
}

// reachable is t without the recipients that no command may name. They are refused, and they
// alone: what one recipient needs is nobody else's refusal. nil: nobody is left.
func (s *Session) reachable(t *Transaction) *Transaction {
	first := slices.IndexFunc(t.To, func(to string) bool { return s.unreachable(to) != "" })
	if first < 0 {
		return t
	}
	c, all := *t, make([]RecipientOutcome, len(t.To))
	c.To = nil
	for i, to := range t.To {
		if why := s.unreachable(to); why != "" {
			all[i] = RecipientOutcome{Status: StatusRejected, Phase: PhaseRcpt, Reply: Reply{Text: why}}
		} else {
			c.To = append(c.To, to)
		}
	}
	c.Done = func(o Outcome) {
		for i, k := 0, 0; i < len(all); i++ {
			if all[i].Status != StatusRejected {
				all[i] = o.Recipients[k]
				k++
			}
		}
		o.Recipients = all
		if t.Done != nil {
			t.Done(o)
		}
	}
	if len(c.To) == 0 {
		c.Done(Outcome{Err: &Error{Phase: PhaseRcpt, Err: errors.New(all[0].Reply.Text)}})
		return nil
	}
	return &c
}

// wireSafe is the strict pattern for what stands between < and >: a dot-atom, an @, a domain.
// Independent of ParseAddress on purpose.
func wireSafe(a string) bool {
	if len(a) > 320 {
		return false
	}
	local, domain, ok := strings.Cut(a, "@")
	if !ok || local == "" || domain == "" || strings.Contains(domain, "@") {
		return false
	}
	for _, r := range a {
		if r <= ' ' || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 || strings.ContainsRune(`<>"\(),:;[]`, r) {
			return false
		}
	}
	return true
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// bareLineEnd looks for a CR without LF, an LF without CR, or a NUL: the ways a body could be
// read as two mails.
func bareLineEnd(b []byte) bool {
	if bytes.IndexByte(b, 0) >= 0 {
		return true
	}
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return bytes.IndexByte(b, '\r') >= 0
		}
		if i == 0 || b[i-1] != '\r' || bytes.IndexByte(b[:i-1], '\r') >= 0 {
			return true
		}
		b = b[i+1:]
	}
}
