package relay_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/store"
)

// crowd is a queue that never ends in front of a relay that takes so many connections, and says
// "too many" to a mail's dot while there are more.
type crowd struct {
	*bench
	r     *relay.Relay
	takes func() int

	mu             sync.Mutex
	sent, refused  int
	fewest, widest int // connections, behind the first second of a run
	settled        time.Time
}

// work is a worker of the batch: a mail takes 100 ms.
func (c *crowd) work(pm *relay.Permit, done <-chan struct{}) {
	ctx := context.Background()
	defer c.r.Release(pm)
	s, err := c.r.Connect(ctx, pm, c.server, false)
	if err != nil {
		return
	}
	defer c.r.CloseSession(s)
	for !c.r.Surplus(pm) {
		began := time.Now()
		time.Sleep(100 * time.Millisecond)
		select {
		case <-done:
			return
		default:
		}
		c.bench.mu.Lock()
		open := c.open
		c.bench.mu.Unlock()
		o := relay.Answered
		c.mu.Lock()
		if open > c.takes() {
			o = relay.Throttled
			c.refused++
		} else {
			c.sent++
		}
		if time.Now().After(c.settled) {
			c.fewest, c.widest = min(c.fewest, open), max(c.widest, open)
		}
		c.mu.Unlock()
		if c.r.Report(ctx, s, c.server, began, o, "432 4.3.2 concurrent connections") != nil {
			return
		}
	}
}

// run works for so long, hiring as a drain does, and returns what was sent and refused, and how
// many connections there were.
func (c *crowd) run(d time.Duration) (sent, refused, fewest, widest int) {
	c.mu.Lock()
	c.sent, c.refused, c.fewest, c.widest, c.settled = 0, 0, 100, 0, time.Now().Add(time.Second)
	c.mu.Unlock()
	done := make(chan struct{})
	var wg sync.WaitGroup
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for {
			pm, ok := c.r.TryBatch(context.Background(), c.server)
			if !ok {
				break
			}
			wg.Go(func() { c.work(pm, done) })
		}
	}
	close(done)
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent, c.refused, c.fewest, c.widest
}

// TestSettlesBelowALimit: a relay that takes three connections gets three. It is asked seldom
// whether it takes a fourth, so nearly as many mails leave as three connections carry, few are
// told that they are too many, and the mail server is not suspended. When the relay takes more,
// it gets more.
func TestSettlesBelowALimit(t *testing.T) {
	run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
		b.server.Mode = store.ModeDaemon
		limit := 3
		c := &crowd{bench: b, r: r, takes: func() int { return limit }}
		sent, refused, _, _ := c.run(time.Minute)
		t.Logf("the first minute: %d sent, %d told that they are too many", sent, refused)
		if sent < 60*30*85/100 || refused > 60 {
			t.Errorf("the first minute: %d sent, want 85 %% of %d; %d told that they are too many, want 60 at most", sent, 60*30, refused)
		}
		sent, refused, fewest, widest := c.run(3 * time.Minute)
		t.Logf("three minutes more: %d sent, %d told that they are too many, %d to %d connections", sent, refused, fewest, widest)
		if sent < 180*30*97/100 || refused > 20 || fewest < 2 || widest > 4 {
			t.Errorf("three minutes more: %d sent, want 97 %% of %d; %d told that they are too many, want 20 at most; %d to %d connections, want 2 to 4",
				sent, 180*30, refused, fewest, widest)
		}
		if got := b.breaker(); got.Failures > 0 || got.LastFailure != "" {
			t.Errorf("%+v", got)
		}
		c.mu.Lock()
		limit = 10
		c.mu.Unlock()
		if _, _, _, widest := c.run(3 * time.Minute); widest != 10 {
			t.Errorf("a relay that takes ten again gets %d connections", widest)
		}
	})
}

// TestWindowIsForgotten: an hour after its last complaint, and as soon as it is configured
// anew, a relay is what it ever was.
func TestWindowIsForgotten(t *testing.T) {
	for name, c := range map[string]struct {
		after time.Duration
		anew  bool
		want  int
	}{
		"at once": {0, false, 4}, "an hour later": {time.Hour, false, 9}, "configured anew": {0, true, 9},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
				b.server.Mode = store.ModeDaemon
				s, err := r.Get(context.Background(), b.server)
				if err != nil {
					t.Fatal(err)
				}
				_ = r.Report(context.Background(), s, b.server, time.Now(), relay.Throttled, "432")
				time.Sleep(c.after)
				_ = r.Report(context.Background(), s, b.server, time.Now(), relay.Answered, "")
				if c.anew {
					next := *b.server
					next.Version++
					b.server = &next
					r = b.relays.Of(b.server)
				}
				if got := b.workers(r); got != c.want {
					t.Errorf("%d more connections, want %d", got, c.want)
				}
				r.Put(s)
			})
		})
	}
}
