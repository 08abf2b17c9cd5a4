package quota

import (
	"errors"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

// hand is a clock that moves when it is told to.
type hand struct {
	mu  sync.Mutex
	now time.Time
}

func newHand() *hand { return &hand{now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)} }

func (h *hand) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *hand) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

// over says whether err is that of a limit, and when the call may be made again.
func over(t *testing.T, err error) (bool, time.Duration) {
	t.Helper()
	var e *apierr.Error
	if err == nil {
		return false, 0
	}
	if !errors.As(err, &e) || e.Code != codes.ResourceExhausted || e.Reason != "QUOTA_EXCEEDED" || e.Metadata["limit"] == "" {
		t.Fatalf("got %v, want RESOURCE_EXHAUSTED with the limit's name", err)
	}
	return true, e.RetryAfter
}

// TestCalls: a second's worth of calls may come at once, whoever comes with them; then they are
// let in as time passes, and the error says when.
func TestCalls(t *testing.T) {
	t.Parallel()
	clock := newHand()
	q := New(Config{Limits: Limits{CallsPerSecond: 20}, Now: clock.Now})
	let := func(caller string, n int) (in int, wait time.Duration) {
		for range n {
			no, w := over(t, q.Call(caller))
			if no {
				wait = w
				continue
			}
			in++
		}
		return in, wait
	}
	if in, wait := let("a", 30); in != 20 || wait != leastWait {
		t.Errorf("at once: got %d in, wait %v, want 20 and %v", in, wait, leastWait)
	}
	if in, _ := let("b", 20); in != 20 {
		t.Errorf("another caller: got %d in, want 20", in)
	}
	clock.pass(time.Second / 2)
	if in, _ := let("a", 30); in != 10 {
		t.Errorf("half a second later: got %d in, want 10", in)
	}
	clock.pass(time.Hour)
	if in, _ := let("a", 30); in != 20 {
		t.Errorf("much later: got %d in, want 20", in)
	}
	var none *Quota
	if err := errors.Join(none.Call("a"), New(Config{}).Call("a")); err != nil {
		t.Errorf("without a limit: %v", err)
	}
}

// TestCallsOfMany: the bucket lets no more in when many goroutines ask it at once.
func TestCallsOfMany(t *testing.T) {
	t.Parallel()
	clock := newHand()
	q := New(Config{Limits: Limits{CallsPerSecond: 1000}, Now: clock.Now})
	var wg sync.WaitGroup
	ins := make([]int, 8)
	for i := range ins {
		wg.Go(func() {
			for range 500 {
				if q.Call("a") == nil {
					ins[i]++
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range ins {
		sum += n
	}
	if sum != 1000 {
		t.Errorf("got %d in, want 1000", sum)
	}
}

// TestHold: each thing has its bound for each caller, and what is given back can be taken
// again.
func TestHold(t *testing.T) {
	t.Parallel()
	q := New(Config{Limits: Limits{Streams: 2, Tests: 2, Watchers: 2, Uploads: 2, UploadBytes: 2, StrictBytes: 2}})
	for thing := range things {
		t.Run(string(thing), func(t *testing.T) {
			one, err1 := q.Hold("a", thing, 1)
			two, err2 := q.Hold("a", thing, 0)
			if err := errors.Join(err1, err2, two.More(1)); err != nil {
				t.Fatal(err)
			}
			three, err := q.Hold("a", thing, 1)
			if no, wait := over(t, err); !no || wait <= 0 {
				t.Errorf("a third: got %v, want to hear when to come again", err)
			}
			three.Give()
			if other, err := q.Hold("b", thing, 2); err != nil {
				t.Errorf("another caller: %v", err)
			} else {
				other.Give()
			}
			one.Give()
			one.Give() // once only
			if no, _ := over(t, two.More(2)); !no {
				t.Error("got 3 of 2")
			}
			if err := two.More(1); err != nil {
				t.Errorf("after one was given back: %v", err)
			}
			two.Give()
		})
	}
	if len(q.held) != 0 {
		t.Errorf("got %v kept of callers who hold nothing", q.held)
	}
}

// TestTests: so many tests at once, and so many a minute.
func TestTests(t *testing.T) {
	t.Parallel()
	clock := newHand()
	q := New(Config{Limits: Limits{Tests: 2, TestsPerMinute: 10}, Now: clock.Now})
	for i := range 10 {
		h, err := q.Test("a")
		if err != nil {
			t.Fatalf("test %d: %v", i, err)
		}
		h.Give()
	}
	h, err := q.Test("a")
	if no, wait := over(t, err); !no || wait != 6*time.Second {
		t.Errorf("the eleventh: got %v, wait %v, want 6 s", err, wait)
	}
	h.Give()
	if len(q.held) != 0 {
		t.Errorf("a refused test holds %v", q.held)
	}
	clock.pass(6 * time.Second)
	if _, err := q.Test("a"); err != nil {
		t.Errorf("after 6 s: %v", err)
	}
	clock.pass(time.Minute)
	if _, err := q.Test("a"); err != nil {
		t.Errorf("a second at once: %v", err)
	}
	if no, _ := over(t, second(q.Test("a"))); !no {
		t.Error("three at once were let in, want two")
	}
}

func second[A, B any](_ A, b B) B { return b }

// BenchmarkCall is what a call of one caller costs in the tap, asked by all goroutines.
func BenchmarkCall(b *testing.B) {
	q := New(Config{Limits: Limits{CallsPerSecond: 1_000_000_000}})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := q.Call("billing"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
