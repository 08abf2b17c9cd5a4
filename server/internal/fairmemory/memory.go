// Package fairmemory shares memory among mail servers. Each gets at most half of what the
// others leave free, so that there is room for one more whatever the others hold, and however
// long. Who holds nothing gets its first piece also beyond that.
package fairmemory

import (
	"context"
	"slices"
	"sync"
)

// Memory is what is shared. Any goroutine may call any method.
type Memory struct {
	max int64

	// mu guards what follows. Workers take and give back.
	mu      sync.Mutex
	used    int64
	held    map[string]int64 // by mail server; the sum is used
	waiting []*waiter        // in order of arrival
}

// waiter waits for memory. ready is closed, under Memory.mu, when it has what it asked for.
type waiter struct {
	server string
	bytes  int64
	ready  chan struct{}
}

// New makes a memory of so many bytes.
func New(max int64) *Memory {
	return &Memory{max: max, held: map[string]int64{}}
}

// fits says whether server may have n bytes more. With mu held.
func (m *Memory) fits(server string, n int64) bool {
	own := m.held[server]
	free := m.max - m.used
	return own+n <= (own+free)/2 || own == 0 && n <= free
}

// grant gives server n bytes. With mu held.
func (m *Memory) grant(server string, n int64) {
	m.used += n
	m.held[server] += n
}

// TryReserve takes n bytes for server, false when they are not free or another mail of server
// waits.
func (m *Memory) TryReserve(server string, n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.ContainsFunc(m.waiting, func(w *waiter) bool { return w.server == server }) || !m.fits(server, n) {
		return false
	}
	m.grant(server, n)
	return true
}

// Reserve waits for n bytes for server. Who waits must hold none: all might wait for each
// other.
func (m *Memory) Reserve(ctx context.Context, server string, n int64) error {
	w := &waiter{server: server, bytes: n, ready: make(chan struct{})}
	m.mu.Lock()
	m.waiting = append(m.waiting, w)
	m.serve()
	m.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.waiting, w); i >= 0 {
		m.waiting = slices.Delete(m.waiting, i, i+1)
		m.serve() // who waited behind it may fit
		return ctx.Err()
	}
	m.giveBack(server, n)
	return ctx.Err()
}

// Release gives back n of server's bytes.
func (m *Memory) Release(server string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.giveBack(server, n)
}

// giveBack is Release with mu held.
func (m *Memory) giveBack(server string, n int64) {
	m.used -= n
	if m.held[server] -= n; m.held[server] == 0 {
		delete(m.held, server)
	}
	m.serve()
}

// serve gives those who wait what fits, in order of arrival. A mail server whose turn does not
// fit lets others pass, but none of its own mails. With mu held.
func (m *Memory) serve() {
	blocked := map[string]bool{}
	m.waiting = slices.DeleteFunc(m.waiting, func(w *waiter) bool {
		if blocked[w.server] || !m.fits(w.server, w.bytes) {
			blocked[w.server] = true
			return false
		}
		m.grant(w.server, w.bytes)
		close(w.ready)
		return true
	})
}
