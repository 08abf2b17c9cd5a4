package engine

import (
	"context"
	"sync"
	"time"
)

// calm lets the batch give way to php-mode callers: while one of their mails is under way, bulk waits a moment before it goes on. A machine whose processors
// the batch keeps busy would else make every step of a caller's mail wait for its turn.
type calm struct {
	mu sync.Mutex
	n  int           // php-mode mails under way
	c  chan struct{} // closed when there is none any more
}

func (c *calm) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n++; c.n == 1 {
		c.c = make(chan struct{})
	}
}

func (c *calm) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 {
		close(c.c)
	}
}

// giveWay is the longest that one mail, or one group, of the batch waits: with callers all the time the batch goes on at a pace.
const giveWay = 20 * time.Millisecond

// GiveWay waits, 20 ms at most, while a php-mode mail is under way. Who prepares a batch asks now and then, so that composing does not keep the processor
// from a caller.
func (e *Engine) GiveWay(ctx context.Context) { e.calm.wait(ctx) }

func (c *calm) wait(ctx context.Context) {
	c.mu.Lock()
	n, over := c.n, c.c
	c.mu.Unlock()
	if n == 0 {
		return
	}
	t := time.NewTimer(giveWay)
	defer t.Stop()
	select {
	case <-over:
	case <-t.C:
	case <-ctx.Done():
	}
}
