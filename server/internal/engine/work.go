package engine

import (
	"context"
	"sync"
)

// work counts what is under way, until nothing new may begin. To be counted in and to end the
// counting exclude each other: whatever was let in is waited for, and nothing begins after the
// wait.
type work struct {
	// held by who is being counted in, and alone by who ends the counting
	mu       sync.RWMutex
	stopping chan struct{}  // closed with mu held; anybody may wait for it
	under    sync.WaitGroup // drains, live sends and calls
	looked   func()         // called between the look and the count; nil but in a test
}

func newWork() work { return work{stopping: make(chan struct{})} }

// begin counts a piece of work in, false when nothing new may begin. done counts it out.
func (w *work) begin() bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.stopped() {
		return false
	}
	if w.looked != nil {
		w.looked()
	}
	w.under.Add(1)
	return true
}

func (w *work) done() { w.under.Done() }

// concurrently runs f in a goroutine of its own that is counted too. Only what is counted in
// may call it: then the count is not zero, and what has begun may end with it also after stop.
func (w *work) concurrently(f func()) { w.under.Go(f) }

// stop lets nothing new begin from now on. It may be called again.
func (w *work) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped() {
		close(w.stopping)
	}
}

// stopped says whether stop was called.
func (w *work) stopped() bool {
	select {
	case <-w.stopping:
		return true
	default:
		return false
	}
}

// wait waits for what is under way, false if ctx ended first. stop comes before it.
func (w *work) wait(ctx context.Context) bool {
	over := make(chan struct{})
	go func() { w.under.Wait(); close(over) }()
	select {
	case <-over:
		return true
	case <-ctx.Done():
		return false
	}
}
