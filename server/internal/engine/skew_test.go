package engine

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// slowClock is a database whose clock is ahead of ours and whose answers take their time on the
// way back.
type slowClock struct {
	Journal
	ahead, back time.Duration
}

func (c slowClock) Now(context.Context) (time.Time, error) {
	now := time.Now().Add(c.ahead)
	time.Sleep(c.back)
	return now, nil
}

// TestSlowAnswerIsNoClock: an answer that was on its way for seconds says nothing about clocks
// unless they differ by more than that explains.
func TestSlowAnswerIsNoClock(t *testing.T) {
	const hour = time.Hour
	for _, c := range []struct {
		name        string
		ahead, back time.Duration
		before      time.Duration // the difference that is known already
		want        time.Duration
	}{
		{"quick, same clocks", 0, 10 * time.Millisecond, 0, 0},
		{"quick, an hour ahead", hour, 0, 0, hour},
		{"slow, same clocks", 0, 8 * time.Second, 0, 0},
		{"slow, the known hour", hour, 8 * time.Second, hour, hour},
		{"slow, an unknown hour", hour, 8 * time.Second, 0, hour - 4*time.Second},
		{"slow, the hour is over", 0, 8 * time.Second, hour, -4 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := New(Config{Journal: slowClock{ahead: c.ahead, back: c.back}})
				e.skew.Store(int64(c.before))
				e.setClock(t.Context())
				if got := time.Duration(e.skew.Load()); got != c.want {
					t.Errorf("got a difference of %v, want %v", got, c.want)
				}
			})
		})
	}
}
