package smtpx

import (
	"strings"
	"sync"
	"time"
)

// lockStepFor is how long a relay that offers PIPELINING and could not do it is spoken to in
// lock step.
const lockStepFor = time.Hour

// lockStep knows the relays that offer PIPELINING and cannot do it: the answers to a flight did
// not fit it, or a refusal named it. Sessions of all goroutines write and read it.
type lockStep struct {
	mu    sync.Mutex
	until map[string]time.Time // by host and port
}

func (l *lockStep) note(relay string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until == nil {
		l.until = map[string]time.Time{}
	}
	l.until[relay] = time.Now().Add(lockStepFor)
}

func (l *lockStep) holds(relay string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Before(l.until[relay])
}

// cannotPipeline notes that this relay's answers to a flight did not fit it.
func (s *Session) cannotPipeline() {
	if s.pipelining && s.lockStep != nil {
		s.lockStep.note(s.address)
	}
}

// mindsPipelining says whether a reply refuses the flight as such, as Postfix does with
// reject_unauth_pipelining.
func (o Outcome) mindsPipelining() bool {
	for _, r := range o.Recipients {
		if r.Reply.Code >= 400 && strings.Contains(strings.ToLower(r.Reply.Text), "pipelining") {
			return true
		}
	}
	return false
}
