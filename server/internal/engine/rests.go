package engine

import (
	"sync"
	"time"
)

// rests remembers which mail servers are left alone after a session could not be opened. Keyed by mail server; a changed configuration (another
// version) ends the rest.
type rests struct {
	mu sync.Mutex
	m  map[string]restState
}

type restState struct {
	version  int64
	failures int
	until    time.Time
	reason   string
}

// failed notes a failure to open a session and returns when the next try may be.
func (r *rests) failed(server string, version int64, reason string, now time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.m[server]
	if s.version != version {
		s = restState{version: version}
	}
	s.failures++
	s.until = now.Add(rest(s.failures))
	s.reason = reason
	r.m[server] = s
	return s.until
}

// opened forgets earlier failures.
func (r *rests) opened(server string) {
	r.mu.Lock()
	delete(r.m, server)
	r.mu.Unlock()
}

// resting reports whether the mail server is to be left alone now, and why.
func (r *rests) resting(server string, version int64, now time.Time) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.m[server]
	if !ok || s.version != version || !now.Before(s.until) {
		return "", false
	}
	return s.reason, true
}
