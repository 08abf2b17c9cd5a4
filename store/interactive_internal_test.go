package store

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestYield: a step of bulk waits for interactive work, but not long, and for none when there
// is none.
func TestYield(t *testing.T) {
	for name, test := range map[string]struct {
		work func(w *interactive)
		want time.Duration
	}{
		"nobody is there":              {func(*interactive) {}, 0},
		"work is under way":            {func(w *interactive) { w.begin() }, maxYield},
		"work ends soon":               {func(w *interactive) { time.AfterFunc(maxYield/4, w.begin()) }, maxYield / 4},
		"one of two ends soon":         {func(w *interactive) { w.begin(); time.AfterFunc(maxYield/4, w.begin()) }, maxYield},
		"work has ended":               {func(w *interactive) { w.begin()() }, 0},
		"work has ended, another came": {func(w *interactive) { w.begin()(); w.begin() }, maxYield},
		"work takes very long":         {func(w *interactive) { w.begin(); time.Sleep(interactiveWindow) }, 0},
		"and another came":             {func(w *interactive) { w.begin(); time.Sleep(interactiveWindow); w.begin() }, maxYield},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newInteractive()
				test.work(w)
				began := time.Now()
				w.yield(t.Context())
				if took := time.Since(began); took != test.want {
					t.Errorf("waited %v, want %v", took, test.want)
				}
			})
		})
	}
}

// TestWindowStaysOpen: the window is open from the begin of interactive work until two seconds
// after it.
func TestWindowStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, began := &Store{interactive: newInteractive()}, time.Now()
		for _, step := range []struct {
			at   time.Duration
			do   func()
			want int
		}{
			{0, func() {}, batchItems},
			{time.Second, func() { s.interactive.begin()() }, interactiveBatch},
			{2900 * time.Millisecond, func() { s.interactive.begin()() }, interactiveBatch},
			{4800 * time.Millisecond, func() {}, interactiveBatch},
			{4900 * time.Millisecond, func() {}, batchItems},
		} {
			time.Sleep(step.at - time.Since(began))
			step.do()
			if got := s.BulkItems(); got != step.want {
				t.Errorf("after %v: a statement takes %d mails, want %d", step.at, got, step.want)
			}
		}
	})
}
