package quota

import (
	"time"
)

// Thing is what a caller may hold so much of at once.
type Thing string

const (
	Streams     Thing = "php_streams"
	Tests       Thing = "tests"
	Watchers    Thing = "watchers"
	Uploads     Thing = "uploads"
	UploadBytes Thing = "upload_bytes"
	StrictBytes Thing = "strict_bytes"
)

// things says how much there is of each for a caller, what it is called, and when who is over
// the limit may come again.
var things = map[Thing]struct {
	limit func(*Limits) int64
	text  string
	after time.Duration
}{
	Streams:     {func(l *Limits) int64 { return int64(l.Streams) }, "SendStream calls in php mode at once", 2 * time.Second},
	Tests:       {func(l *Limits) int64 { return int64(l.Tests) }, "TestMailServer calls at once", 2 * time.Second},
	Watchers:    {func(l *Limits) int64 { return int64(l.Watchers) }, "watchers at once", 15 * time.Second},
	Uploads:     {func(l *Limits) int64 { return int64(l.Uploads) }, "uploads at once", 2 * time.Second},
	UploadBytes: {func(l *Limits) int64 { return l.UploadBytes }, "bytes of uploads at once", 2 * time.Second},
	StrictBytes: {func(l *Limits) int64 { return l.StrictBytes }, "bytes of strict batches at once", 2 * time.Second},
}

// held is what one caller holds of one thing.
type held struct {
	caller string
	thing  Thing
}

// Held is part of what a caller holds. It is used by one goroutine at a time.
type Held struct {
	q  *Quota
	by held
	n  int64
}

// Hold takes n of a thing for a caller, until Give. More of it may be taken meanwhile. An error
// says that there is not so much; Give may be called all the same.
func (q *Quota) Hold(caller string, thing Thing, n int64) (*Held, error) {
	h := &Held{q: q, by: held{caller, thing}}
	return h, h.More(n)
}

// More takes n more.
func (h *Held) More(n int64) error {
	if h.q == nil {
		return nil
	}
	t := things[h.by.thing]
	limit := t.limit(&h.q.limits)
	if limit == 0 {
		return nil
	}
	h.q.holdMu.Lock()
	had := h.q.held[h.by]
	if had+n <= limit {
		h.q.held[h.by] += n
		h.n += n
		h.q.holdMu.Unlock()
		return nil
	}
	h.q.holdMu.Unlock()
	return h.q.exceeded(string(h.by.thing), limit, t.after, "the caller has as many as it may have: %d %s", limit, t.text)
}

// Give gives back what was taken; a second time it does nothing.
func (h *Held) Give() {
	if h == nil || h.n == 0 {
		return
	}
	h.q.holdMu.Lock()
	defer h.q.holdMu.Unlock()
	if left := h.q.held[h.by] - h.n; left > 0 {
		h.q.held[h.by] = left
	} else {
		delete(h.q.held, h.by)
	}
	h.n = 0
}

// Test takes the right to make one TestMailServer, of so many at once and so many a minute.
func (q *Quota) Test(caller string) (*Held, error) {
	h, err := q.Hold(caller, Tests, 1)
	if err != nil || q == nil || q.limits.TestsPerMinute == 0 {
		return h, err
	}
	b, ok := q.tests.Load(caller)
	if !ok {
		b, _ = q.tests.LoadOrStore(caller, &bucket{})
	}
	if wait := b.(*bucket).take(q.now(), q.limits.TestsPerMinute, time.Minute); wait > 0 {
		h.Give()
		return h, q.exceeded("tests_per_minute", int64(q.limits.TestsPerMinute), wait, "more than %d tests of mail servers a minute", q.limits.TestsPerMinute)
	}
	return h, nil
}

// Holds says how much of a thing a caller holds.
func (q *Quota) Holds(caller string, thing Thing) int64 {
	if q == nil {
		return 0
	}
	q.holdMu.Lock()
	defer q.holdMu.Unlock()
	return q.held[held{caller, thing}]
}
