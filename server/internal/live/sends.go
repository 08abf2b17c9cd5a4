package live

import (
	"sync"
	"time"

	"github.com/google/uuid"
)

// Sends holds what is under way.
type Sends struct {
	mu      sync.Mutex // guards both
	byID    map[uuid.UUID]*Send
	stopped bool
}

// NewSends makes one of which nothing is under way.
func NewSends() *Sends { return &Sends{byID: map[uuid.UUID]*Send{}} }

// Add is false when nothing new may begin.
func (ss *Sends) Add(s *Send) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.stopped {
		return false
	}
	ss.byID[s.Mail.ID] = s
	return true
}

// Remove takes out a send that is over.
func (ss *Sends) Remove(s *Send) {
	ss.mu.Lock()
	delete(ss.byID, s.Mail.ID)
	ss.mu.Unlock()
}

// Get is the send of a mail, nil when none is under way.
func (ss *Sends) Get(id uuid.UUID) *Send {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.byID[id]
}

// Stop lets nothing new begin.
func (ss *Sends) Stop() {
	ss.mu.Lock()
	ss.stopped = true
	ss.mu.Unlock()
}

// Before are the sends whose mail was durable by then.
func (ss *Sends) Before(t time.Time) []*Send {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	var out []*Send
	for _, s := range ss.byID {
		if s.beganBy(t) {
			out = append(out, s)
		}
	}
	return out
}

// Waits says whether a send has not passed its dot for so long.
func (ss *Sends) Waits(d time.Duration) bool {
	for _, s := range ss.Before(time.Now().Add(-d)) {
		if !s.PastDot() {
			return true
		}
	}
	return false
}
