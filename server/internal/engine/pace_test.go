package engine_test

import (
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
)

// TestPace: a group of bulk waits for a relay that takes it soon, and for one that is not known
// yet, or what comes before its connections stand would be a backlog; never for one that is
// slow, and not for longer than a backlog takes to go.
func TestPace(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rate        int64
		age, behind time.Duration
		want        bool
	}{
		"quick":                   {1000, time.Hour, 0, true},
		"quick, with a backlog":   {1000, time.Hour, 29 * time.Second, true},
		"quick, backlog for long": {1000, time.Hour, 30 * time.Second, false},
		"slow":                    {999, time.Hour, 0, false},
		"not known":               {0, 1999 * time.Millisecond, 0, true},
		"known":                   {0, 2 * time.Second, 0, false},
	} {
		if got := engine.Paces(c.rate, 500, c.age, c.behind); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
