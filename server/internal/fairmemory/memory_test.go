package fairmemory

import (
	"context"
	"testing"
)

// TestMemoryShares: a mail server gets at most half of what the others leave free, and its
// first mail beyond that.
func TestMemoryShares(t *testing.T) {
	m := New(64)
	for _, step := range []struct {
		server string
		bytes  int64 // negative: given back
		ok     bool
	}{
		{"a", 33, true}, // its first
		{"a", 1, false}, // beyond half
		{"a", -33, true},
		{"a", 16, true},
		{"a", 17, false},
		{"a", 16, true},
		{"b", 8, true},
		{"b", 9, false},
		{"b", 8, true},
		{"c", 17, false}, // there are 16
		{"c", 16, true},
		{"d", 1, false},
		{"a", -32, true},
		{"d", 16, true},
	} {
		if step.bytes < 0 {
			m.Release(step.server, -step.bytes)
		} else if got := m.TryReserve(step.server, step.bytes); got != step.ok {
			t.Errorf("%d for %s: got %v, want %v; held %v", step.bytes, step.server, got, step.ok, m.held)
		}
	}
}

// TestMemoryIsHandedOn: who waits gets memory in order of arrival; a mail server's mails do not
// overtake each other, and pass those of another that do not fit. Who gives up holds nothing.
func TestMemoryIsHandedOn(t *testing.T) {
	m := New(64)
	got := make(chan string, 9)
	wait := func(ctx context.Context, name, server string, n int64) {
		m.mu.Lock()
		before := len(m.waiting)
		m.mu.Unlock()
		go func() {
			if err := m.Reserve(ctx, server, n); err != nil {
				name += " gave up"
			}
			got <- name
		}()
		for waiting := before; waiting == before; {
			m.mu.Lock()
			waiting = len(m.waiting)
			m.mu.Unlock()
		}
	}
	hear := func(want string) {
		t.Helper()
		if name := <-got; name != want {
			t.Errorf("got %s, want %s", name, want)
		}
	}
	m.TryReserve("a", 32)
	m.TryReserve("b", 16)
	c, giveUp := context.WithCancel(t.Context())
	wait(c, "a1", "a", 32)
	wait(t.Context(), "a2", "a", 1)
	wait(t.Context(), "b1", "b", 8)
	if m.TryReserve("a", 1) {
		t.Error("a mail overtook one of its mail server")
	}
	m.Release("b", 8) // b1 passes a1, which needs all that a may have
	hear("b1")
	m.Release("a", 16)
	giveUp()
	first, second := <-got, <-got
	if min(first, second) != "a1 gave up" || max(first, second) != "a2" {
		t.Errorf("got %s and %s", first, second)
	}
	m.Release("a", 17)
	m.Release("b", 16)
	if m.used != 0 || len(m.held) != 0 || len(m.waiting) != 0 {
		t.Errorf("left: %d, %v, %d waiting", m.used, m.held, len(m.waiting))
	}
}
