package api

import (
	"testing"
	"time"
)

// TestPace: time is taken by waiting and earned by bytes, up to the patience of the beginning.
func TestPace(t *testing.T) {
	const most = 30 * time.Second
	p := newPace(most)
	for _, x := range []struct {
		bytes        int64
		waited, left time.Duration
	}{
		{0, 10 * time.Second, 20 * time.Second},                   // silence
		{uploadRate, time.Second, 20 * time.Second},               // exactly the rate
		{10 * uploadRate, time.Second, 29 * time.Second},          // faster
		{18 << 20, 0, most},                                       // all at once earns no more
		{uploadRate, 11 * time.Second, 20 * time.Second},          // slower
		{uploadRate / 2, 20500 * time.Millisecond, 0},             // and out of time
		{uploadRate / 16, time.Second / 8, -time.Second * 1 / 16}, // behind
	} {
		p.came(x.bytes, x.waited)
		if p.left != x.left {
			t.Fatalf("%d bytes after %v leave %v, want %v", x.bytes, x.waited, p.left, x.left)
		}
	}
}
