package engine

import (
	"sync"
	"testing"
)

// TestWritesGrowWhileSomebodyWaits is what a drain does that breaks off: it waits, again and
// again, while its workers go on handing over. The race detector, and the panic of a WaitGroup
// that is used like this, are its judges.
func TestWritesGrowWhileSomebodyWaits(t *testing.T) {
	var w writes
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for range 2000 {
				w.begin()
				var hand sync.WaitGroup
				hand.Go(w.end)
				hand.Wait()
			}
		})
	}
	for range 2000 {
		w.wait(t.Context())
	}
	workers.Wait()
	w.wait(t.Context())
	if w.n != 0 || w.none != nil {
		t.Errorf("got %d writes under way (waited for: %v), want none", w.n, w.none != nil)
	}
}
