package engine

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"
)

const (
	// mails below cost no more than what their claim has brought in, and wait for nobody
	largeMail = 256 << 10
	// of a large mail until its dot has left: as read, as joined, as written to the relay, and
	// what waits to be collected
	copiesHeld = 4
)

// memory is what mail of the batch may take of this process.
//
// A mail server gets at most half of what the others leave free, so that there is room for one
// more whatever the others hold, and however long. Who holds nothing gets its first mail also
// beyond that.
type memory struct {
	max int64
	// direct is a budget of its own, so that what waits in memory never keeps what is being
	// sent from being loaded.
	direct    *semaphore.Weighted
	directMax int64

	// mu guards what follows. Workers take and give back.
	mu      sync.Mutex
	used    int64
	held    map[string]int64 // by mail server; the sum is used
	waiting []*roomWaiter    // in order of arrival
}

// roomWaiter waits for memory. ready is closed, under memory.mu, when it has what it asked for.
type roomWaiter struct {
	server string
	bytes  int64
	ready  chan struct{}
}

func newMemory(max int64) *memory {
	return &memory{max: max, directMax: max / 4, direct: semaphore.NewWeighted(max / 4), held: map[string]int64{}}
}

// fits says whether server may have n bytes more. With mu held.
func (m *memory) fits(server string, n int64) bool {
	own := m.held[server]
	free := m.max - m.used
	return own+n <= (own+free)/2 || own == 0 && n <= free
}

// grant gives server n bytes. With mu held.
func (m *memory) grant(server string, n int64) {
	m.used += n
	m.held[server] += n
}

// tryReserve takes n bytes for server, false when they are not free or another mail of server
// waits.
func (m *memory) tryReserve(server string, n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.ContainsFunc(m.waiting, func(w *roomWaiter) bool { return w.server == server }) || !m.fits(server, n) {
		return false
	}
	m.grant(server, n)
	return true
}

// reserve waits for n bytes for server. Who waits must hold none: all might wait for each
// other.
func (m *memory) reserve(ctx context.Context, server string, n int64) error {
	w := &roomWaiter{server: server, bytes: n, ready: make(chan struct{})}
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

// release gives back n of server's bytes.
func (m *memory) release(server string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.giveBack(server, n)
}

// giveBack is release with mu held.
func (m *memory) giveBack(server string, n int64) {
	m.used -= n
	if m.held[server] -= n; m.held[server] == 0 {
		delete(m.held, server)
	}
	m.serve()
}

// serve gives those who wait what fits, in order of arrival. A mail server whose turn does not
// fit lets others pass, but none of its own mails. With mu held.
func (m *memory) serve() {
	blocked := map[string]bool{}
	m.waiting = slices.DeleteFunc(m.waiting, func(w *roomWaiter) bool {
		if blocked[w.server] || !m.fits(w.server, w.bytes) {
			blocked[w.server] = true
			return false
		}
		m.grant(w.server, w.bytes)
		close(w.ready)
		return true
	})
}

// cost is what a job takes of memory until its dot has left.
func (m *memory) cost(j *job) int64 { return min(copiesHeld*j.Mail.SizeBytes, m.max/2) }

// tryReserve takes what a large mail needs of memory, false when that is not free now. A mail
// that its caller waits for takes none: it was counted when it came in, and must not wait
// behind the batch.
func (e *Engine) tryReserve(j *job) bool {
	if j.Mail.SizeBytes < largeMail || j.Interactive || j.weight > 0 {
		return true
	}
	if c := e.memory.cost(j); e.memory.tryReserve(j.Mail.MailServer, c) {
		j.weight = c
	}
	return j.weight > 0
}

// load brings a claimed mail's raw message into memory. A large one waits for room.
func (e *Engine) load(ctx context.Context, j *job) error {
	if !e.tryReserve(j) {
		c := e.memory.cost(j)
		if err := e.memory.reserve(ctx, j.Mail.MailServer, c); err != nil {
			return err
		}
		j.weight = c
	}
	raw, err := e.journal.LoadRaw(ctx, j.Mail)
	if err != nil {
		e.unload(j)
		return err
	}
	j.raw = raw
	return nil
}

// dotLeaves gives back all but one copy: the body is written but for its last block, and what
// is left to wait for is the relay's reply, perhaps for minutes.
func (e *Engine) dotLeaves(j *job) {
	if one := j.Mail.SizeBytes; j.weight > one {
		e.memory.release(j.Mail.MailServer, j.weight-one)
		j.weight = one
	}
}

// releaseBody lets go of a message that will be loaded again: what only waits must not keep
// others from being sent.
func (e *Engine) releaseBody(j *job) {
	if j.weight > 0 {
		e.memory.release(j.Mail.MailServer, j.weight)
		j.weight, j.raw = 0, nil
	}
}

// unload gives back all that a job holds.
func (e *Engine) unload(j *job) {
	e.releaseBody(j)
	if j.direct > 0 {
		e.memory.direct.Release(j.direct)
		j.direct = 0
	}
	j.raw, j.Mail.Raw = nil, nil
}
