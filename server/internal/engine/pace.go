package engine

import (
	"context"
	"time"
)

// pace holds up a group of bulk a little while the relay is quick enough to take it soon, so
// that it goes there in memory and not through a backlog in the database: faster for all of it
// together. A slow relay, or one with a long backlog, holds up nobody. What comes before the
// connections stand would be a backlog that takes many seconds to go.
func (d *drain) pace(ctx context.Context, n int) {
	if paces(d.rate.Load(), n, time.Since(d.began), time.Since(time.Unix(0, d.fed.Load()))) {
		d.jobs.AwaitSpace(ctx, maxPace)
	}
}

// paces says whether a group of n waits for a drain that runs for age, sends rate mails a
// second, and has had a backlog in the database for behind.
func paces(rate int64, n int, age, behind time.Duration) bool {
	quick := age < unjudged || rate >= 2*int64(n)*int64(time.Second/maxPace)
	return quick && behind < paceFor
}
