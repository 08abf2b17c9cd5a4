package engine

import (
	"context"
	"runtime"
	"testing"
)

// TestNothingBeginsAfterTheWait: a stop that falls between the look of what begins and its
// count waits for that count, and so the wait for all work does not end before it.
func TestNothingBeginsAfterTheWait(t *testing.T) {
	w := newWork()
	over := make(chan struct{})
	w.looked = func() {
		go func() {
			defer close(over)
			w.stop()
			w.wait(context.Background())
		}()
		for { // until the stop has come as far as it can
			select {
			case <-over:
				return
			default:
			}
			if !w.mu.TryRLock() {
				return // it waits
			}
			w.mu.RUnlock()
			runtime.Gosched()
		}
	}
	if !w.begin() {
		t.Fatal("work may begin before the stop")
	}
	select {
	case <-over:
		t.Error("the wait for all work ended before work that was let in")
	default:
	}
	w.done()
	<-over
	if w.looked = nil; w.begin() {
		t.Error("work began after the stop")
	}
}

// TestWorkBeside: what begins beside work under way is waited for, also after the stop; the
// wait's own patience ends it.
func TestWorkBeside(t *testing.T) {
	w := newWork()
	if !w.begin() {
		t.Fatal("work may begin before the stop")
	}
	w.stop()
	w.stop()
	let, ended := make(chan struct{}), false
	w.concurrently(func() { <-let; ended = true })
	w.done()
	hasty, cancel := context.WithCancel(context.Background())
	cancel()
	if w.wait(hasty) {
		t.Error("the wait ended before the work beside")
	}
	close(let)
	if !w.wait(context.Background()) || !ended {
		t.Error("the work beside was not waited for")
	}
}
