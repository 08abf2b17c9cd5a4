package quota

import (
	"sync/atomic"
	"time"
)

// bucket is a token bucket as one number: the time at which it will be full again. It may be
// used by any goroutine, and takes no lock.
type bucket struct{ full atomic.Int64 }

// take takes one of n a period, of which all may come at once. Where there is none, wait says
// how long it takes until there is one.
func (b *bucket) take(now time.Time, n int, period time.Duration) (wait time.Duration) {
	step := int64(period) / int64(n)
	for {
		had := b.full.Load()
		next := max(had, now.UnixNano()) + step
		if over := next - now.UnixNano() - int64(period); over > 0 {
			return time.Duration(over)
		}
		if b.full.CompareAndSwap(had, next) {
			return 0
		}
	}
}

// Call charges a call of a caller, from memory alone.
func (q *Quota) Call(caller string) error {
	if q == nil || q.limits.CallsPerSecond == 0 {
		return nil
	}
	b, ok := q.calls.Load(caller)
	if !ok {
		b, _ = q.calls.LoadOrStore(caller, &bucket{})
	}
	if wait := b.(*bucket).take(q.now(), q.limits.CallsPerSecond, time.Second); wait > 0 {
		return q.exceeded("calls_per_second", int64(q.limits.CallsPerSecond), max(wait, leastWait), "more than %d calls a second", q.limits.CallsPerSecond)
	}
	return nil
}

// leastWait keeps who is over a limit of calls from asking again and again.
const leastWait = 100 * time.Millisecond
