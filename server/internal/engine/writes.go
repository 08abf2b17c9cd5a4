package engine

import (
	"context"
	"sync"
)

// writes counts writes that are handed over and not durable yet. Unlike a
// sync.WaitGroup it may grow while somebody waits: when a drain breaks off, its workers may
// still hear replies while what waited in the line goes back.
type writes struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n falls to 0; nil while nobody waits
}

func (w *writes) begin() {
	w.mu.Lock()
	w.n++
	w.mu.Unlock()
}

func (w *writes) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n--; w.n == 0 && w.none != nil {
		close(w.none)
		w.none = nil
	}
}

// wait returns at a moment when every write is durable, or when ctx ends.
func (w *writes) wait(ctx context.Context) {
	w.mu.Lock()
	if w.n == 0 {
		w.mu.Unlock()
		return
	}
	if w.none == nil {
		w.none = make(chan struct{})
	}
	none := w.none
	w.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
	}
}
