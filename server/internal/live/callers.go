package live

import (
	"context"
	"errors"
	"sync"
)

// callers knows whether anybody still waits for a send, and cuts it before the dot when nobody
// does.
type callers struct {
	mu      sync.Mutex // guards what follows
	waiting int
	past    bool   // the dot may have left
	dropped bool   // the mail is not this replica's any more: nothing is written
	reason  string // why it was cut, "" if it was not
	cut     context.CancelFunc
}

func (c *callers) join() {
	c.mu.Lock()
	c.waiting++
	c.mu.Unlock()
}

// Gone takes one caller away. The last one cuts the send if nothing has left yet.
func (c *callers) Gone(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting > 0 {
		c.waiting--
	}
	if c.waiting == 0 && !c.past {
		c.reason = reason
		c.cut()
	}
}

// PassDot closes the way back, false when the send was cut first.
func (c *callers) PassDot() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason != "" {
		return false
	}
	c.past = true
	return true
}

// Dropped says whether the mail is not this replica's any more: nothing is written for it.
func (c *callers) Dropped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped
}

// CutReason is why the send was cut before its dot, "" if it was not.
func (c *callers) CutReason() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// Drop cuts a send before its dot: its mail is not this replica's any more.
func (c *callers) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.past && c.reason == "" {
		c.reason, c.dropped = "taken: a person has stopped it, or another replica has it", true
		c.cut()
	}
}

// PastDot says whether the way back is closed.
func (c *callers) PastDot() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.past
}

// cutBy says how the send is cut from now on, and cuts it if that was asked for before.
func (c *callers) cutBy(cut context.CancelFunc) {
	c.mu.Lock()
	c.cut = cut
	asked := c.reason != ""
	c.mu.Unlock()
	if asked {
		cut()
	}
}

// WhyGone is the reason a php-mode mail keeps when its caller's wait ended before the dot.
func WhyGone(ctx context.Context) string {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return "deadline: the caller's time ran out before the mail left"
	}
	return "cancelled: the caller went away before the mail left"
}
