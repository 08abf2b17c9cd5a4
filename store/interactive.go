package store

import (
	"context"
	"sync"
	"time"
)

const (
	// interactiveBatch is how many mails one statement of bulk takes while the window is open:
	// a few milliseconds of a processor and of the disk.
	interactiveBatch = 100
	// interactiveWindow is how long the window stays open after the last interactive work
	// began. Statements of bulk are small already when the next caller comes.
	interactiveWindow = 2 * time.Second
	// maxYield is the longest that one step of bulk waits for interactive work: with callers
	// all the time bulk goes on at a pace.
	maxYield = 20 * time.Millisecond
)

// interactive is the one rule by which bulk yields to callers. While the store works for a mail
// that its caller waits for (php mode), each step of bulk waits for that work, 20 ms at most,
// and for two seconds after the last such work began the statements of bulk go one at a time,
// 100 mails each.
//
// Work is the acceptance, the mark and the result of such a mail. A mail that waits for its
// relay needs nothing of this machine and holds up nobody.
type interactive struct {
	turn chan struct{} // holds a value while a statement of bulk has its turn

	// mu guards what follows. Who does interactive work writes it, and bulk reads it.
	mu      sync.Mutex
	working int // pieces of interactive work under way
	// closed when there is none any more; replaced when the next one begins
	idle  chan struct{}
	until time.Time // the end of the window
}

func newInteractive() *interactive { return &interactive{turn: make(chan struct{}, 1)} }

// begin opens the window for a piece of interactive work. end says that it is done.
func (w *interactive) begin() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.working++; w.working == 1 {
		w.idle = make(chan struct{})
	}
	if until := time.Now().Add(interactiveWindow); until.After(w.until) {
		w.until = until
	}
	return w.end
}

func (w *interactive) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.working--; w.working == 0 {
		close(w.idle)
	}
}

// open says whether the window is open.
func (w *interactive) open() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Before(w.until)
}

// yield waits for the interactive work that is under way, maxYield at most. Work that takes
// longer than the window, because the database is away, holds up nobody any more.
func (w *interactive) yield(ctx context.Context) {
	w.mu.Lock()
	n, idle, open := w.working, w.idle, time.Now().Before(w.until)
	w.mu.Unlock()
	if n == 0 || !open {
		return
	}
	t := time.NewTimer(maxYield)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	case <-ctx.Done():
	}
}

// bulkTurn waits until a statement of bulk may run and returns what ends its turn. When ctx
// ends first there is none to wait for: the statement fails with ctx's error.
func (w *interactive) bulkTurn(ctx context.Context) (done func()) {
	if !w.open() {
		return func() {}
	}
	select {
	case w.turn <- struct{}{}:
		return func() { <-w.turn }
	case <-ctx.Done():
		return func() {}
	}
}

// Yield waits a moment, 20 ms at most, while the store works for a mail that its caller waits
// for. Every step of bulk asks: a mail that is sent, a few that are composed, a group that is
// stored.
func (s *Store) Yield(ctx context.Context) { s.interactive.yield(ctx) }

// BulkItems is how many mails a statement of bulk takes now. Who claims bulk asks for no more.
func (s *Store) BulkItems() int {
	if s.interactive.open() {
		return interactiveBatch
	}
	return batchItems
}

// Pressed says whether work that can wait should: mail whose caller waits is being handled, or
// was within the last two seconds, or most connections for mail are in use.
func (s *Store) Pressed() bool {
	if s.interactive.open() {
		return true
	}
	st := s.write.Stats()
	return st.MaxOpenConnections > 1 && st.InUse*4 >= st.MaxOpenConnections*3
}
