package fairqueue

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestIdleWorkerGoes: a worker waits for its next item for a while and not for ever. While a
// feeder waits for a limit, another process may have what it waits for, and wait for what the
// worker holds.
func TestIdleWorkerGoes(t *testing.T) {
	const idle = 2 * time.Second
	synctest.Test(t, func(t *testing.T) {
		q := New[*mail](10)
		began := time.Now()
		if m, any := q.Await(idle); any || time.Since(began) != idle {
			t.Errorf("got item %v after %v, want none after %v", m, time.Since(began), idle)
		}
		time.AfterFunc(idle/2, func() { q.Put(&mail{}) })
		began = time.Now()
		if m, any := q.Await(idle); !any || time.Since(began) != idle/2 {
			t.Errorf("got item %v after %v, want one after %v", m, time.Since(began), idle/2)
		}
	})
}

// TestPromiseKeepsTheQueue: between the reservation and the commit the feeder is not told that
// there is nothing left to do, and what is promised is no part of a barrier.
func TestPromiseKeepsTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New[*mail](10)
		q.Looks()
		q.Looked(true)
		if !q.Reserve(1) {
			t.Fatal("got no promise, want one: nothing waits elsewhere")
		}
		ended := make(chan time.Time, 1)
		began := time.Now()
		go func() {
			if why := q.AwaitNeed(0); why == Idle {
				ended <- time.Now()
			}
		}()
		select {
		case <-q.Barrier():
		default:
			t.Error("got a barrier that waits for a promise, want one that is passed")
		}
		time.AfterFunc(time.Minute, func() {
			m := &mail{}
			q.Fill(m)
			if got, _ := q.Take(); got != m {
				t.Errorf("got %v, want what was filled in", got)
			}
			q.Settled(m)
		})
		if took := (<-ended).Sub(began); took != time.Minute {
			t.Errorf("got the end after %v, want it when the item was settled", took)
		}
		if q.Reserve(1) || q.Ask(false) {
			t.Error("got a promise or a look from a queue that is over, want none")
		}
	})
}

// TestDirectItemsKeepTheirTurn: what is brought directly does not go before what waits
// elsewhere, unless it is more urgent than something in the line.
func TestDirectItemsKeepTheirTurn(t *testing.T) {
	q := New[*mail](4)
	if q.Reserve(1) {
		t.Error("got a promise before the feeder has looked, want none")
	}
	q.Looks()
	q.Put(&mail{place: Place{Priority: 1}})
	q.Looked(false)
	if q.Reserve(1) {
		t.Error("got a promise while more waits elsewhere, want none")
	}
	if !q.Reserve(2) {
		t.Error("got no promise for what is more urgent than the line, want one")
	}
	q.GiveUp()
	q.Looks()
	q.Looked(true)
	for range 3 {
		if !q.Reserve(1) {
			t.Fatal("got no promise, want one: there is room")
		}
	}
	if q.Reserve(1) {
		t.Error("got a promise beyond the room, want none")
	}
	q.GiveUp()
	if q.Reserve(1) {
		t.Error("got a promise behind one that had to wait elsewhere, want none")
	}
}

// TestFeederLooksWhenTheLineIsShort: it is asked to look, and does when half of its room is
// free; for what is more urgent than the line it looks at once.
func TestFeederLooksWhenTheLineIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New[*mail](4)
		q.Looks()
		for range 4 {
			q.Put(&mail{})
		}
		q.Looked(false)
		q.Ask(true)
		if why := q.AwaitNeed(0); why != Urgent {
			t.Fatalf("got reason %v, want %v", why, Urgent)
		}
		for i := range 4 {
			time.AfterFunc(time.Duration(i+1)*time.Second, func() { q.Take() })
		}
		if why := q.AwaitNeed(0); why != Look || q.Len() != 2 {
			t.Errorf("got reason %v with %d in the line, want %v with 2", why, q.Len(), Look)
		}
	})
}
