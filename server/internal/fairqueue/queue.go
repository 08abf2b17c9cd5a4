package fairqueue

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Item is what a queue carries. An item is in one queue at a time.
type Item interface {
	comparable
	// Place says where the item belongs. The queue keeps its number there.
	Place() *Place
}

// Place is where an item belongs in the line.
type Place struct {
	Priority int16 // the higher the more urgent
	Team     string

	number int64 // in order of arrival; the queue alone reads and writes it
}

// Queue carries the items. Any goroutine may call any method; one feeder calls AwaitNeed, Looks
// and Looked.
type Queue[T Item] struct {
	room int // for what the feeder brings: it fetches more when half of it is free

	// mu guards what follows. Three kinds wait: workers for items, one is woken for each; the
	// feeder, and whoever waits for the end; and those who bring bulk, for a shorter line.
	mu                sync.Mutex
	work, feed, space *sync.Cond
	items             line[T]
	directRoom        int // for items that are handed over in memory; the scale loop sets it
	promised          int // reservations: items that are not durable yet; counted in open
	open              int // promised, or put and not settled
	// the last claim found nothing more, and all that came since found room: what comes now is
	// behind nothing
	acceptsDirect bool
	asked         bool  // mail may be due: the feeder looks as soon as the line is short
	urgent        bool  // some of that may be more urgent than what is in the line
	over          bool  // the feeder was told that there is nothing left to do
	closed        bool  // nothing more will be put
	aborted       bool  // no session can be had: workers stop, the feeder too
	last          int64 // number
	barriers      []*barrier
}

// barrier waits for the items that were open when it was raised.
type barrier struct {
	upTo int64
	left int
	done chan struct{}
}

// New makes a queue whose feeder is asked to look, with room for so many items that the feeder
// brings.
func New[T Item](room int) *Queue[T] {
	q := &Queue[T]{room: room, directRoom: room, asked: true}
	q.work, q.feed, q.space = sync.NewCond(&q.mu), sync.NewCond(&q.mu), sync.NewCond(&q.mu)
	return q
}

// Put adds an item; false when the queue was aborted (the item still counts as open until it is
// settled).
func (q *Queue[T]) Put(j T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admit(j)
	return q.add(j)
}

// Aside counts an item in that needs no worker.
func (q *Queue[T]) Aside(j T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admit(j)
}

// admit numbers an item and counts it in. With mu held.
func (q *Queue[T]) admit(j T) {
	q.open++
	q.last++
	j.Place().number = q.last
}

// add puts an item that was admitted into the line; false when the queue was aborted. With mu
// held.
func (q *Queue[T]) add(j T) bool {
	if q.aborted {
		return false
	}
	q.items.add(j)
	q.work.Signal()
	return true
}

// length is how many items are in the line or promised to it. With mu held.
func (q *Queue[T]) length() int { return q.items.len() + q.promised }

// Reserve promises an item that is not durable yet; fill or giveUp keeps the promise, and until
// then the queue does not end. It is false when there is no room, an older backlog waits in the
// database, or the queue is over. What is more urgent than something in the line goes before
// that and is let in whatever waits.
func (q *Queue[T]) Reserve(priority int16) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.aborted || q.closed || q.over {
		return false
	}
	if lowest, any := q.items.minPriority(); !any || priority <= lowest {
		// One that finds no room is older than what comes next, and waits in the database.
		q.acceptsDirect = q.acceptsDirect && q.length() < q.directRoom
		if !q.acceptsDirect {
			return false
		}
	}
	q.promised++
	q.open++
	return true
}

// Fill puts an item that was promised; false when the queue was aborted meanwhile (the item
// still counts as open until it is settled).
func (q *Queue[T]) Fill(j T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.promised--
	q.open-- // admit counts it again, with its number
	q.admit(j)
	return q.add(j)
}

// GiveUp takes a promise back.
func (q *Queue[T]) GiveUp() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.promised--
	q.open--
	q.feed.Broadcast()
}

// AwaitSpace waits until the line is short enough to take what comes in memory, or for
// maxWait.
func (q *Queue[T]) AwaitSpace(ctx context.Context, maxWait time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		q.mu.Lock()
		q.space.Broadcast()
		q.mu.Unlock()
	})()
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.aborted && !q.closed && ctx.Err() == nil && (!q.acceptsDirect || q.length() > q.directRoom/2) {
		q.space.Wait()
	}
}

// SetDirectRoom says how deep the line may be for items that are handed over.
func (q *Queue[T]) SetDirectRoom(n int) {
	q.mu.Lock()
	q.directRoom = n
	q.mu.Unlock()
}

// MinPriority is the lowest priority of what is in the line, false when nothing is.
func (q *Queue[T]) MinPriority() (int16, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.items.minPriority()
}

// Barrier returns a channel that is closed when all items of this moment are settled. What is
// only promised does not count.
func (q *Queue[T]) Barrier() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := &barrier{upTo: q.last, left: q.open - q.promised, done: make(chan struct{})}
	if b.left <= 0 {
		close(b.done)
	} else {
		q.barriers = append(q.barriers, b)
	}
	return b.done
}

// PutBack returns an item that was taken and not begun.
func (q *Queue[T]) PutBack(j T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items.giveBack(j)
	q.work.Signal()
}

// Take returns the next item, false when there is none just now.
func (q *Queue[T]) Take() (j T, any bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.next()
}

// Await waits for the next item, for as long as idle. False means that the work is over, or
// that none came.
func (q *Queue[T]) Await(idle time.Duration) (j T, any bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	late := false
	if q.items.len() == 0 {
		timer := time.AfterFunc(idle, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			late = true
			q.work.Broadcast()
		})
		defer timer.Stop()
	}
	for q.items.len() == 0 && !q.closed && !q.aborted && !late {
		q.work.Wait()
	}
	if q.aborted {
		return j, false
	}
	return q.next()
}

// next takes an item out of the line. With mu held.
func (q *Queue[T]) next() (j T, any bool) {
	j, any = q.items.next()
	if any {
		q.feed.Broadcast()
		if q.length() == q.directRoom/2 {
			q.space.Broadcast()
		}
	}
	return j, any
}

func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.items.len()
}

// Waiting are the items in the line.
func (q *Queue[T]) Waiting() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.items.all()
}

// Remove takes the items that taken says out of the line. The caller settles them.
func (q *Queue[T]) Remove(taken func(T) bool) []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.items.remove(taken)
	if len(out) > 0 {
		q.feed.Broadcast()
		q.space.Broadcast()
	}
	return out
}

// Settled counts an item out.
func (q *Queue[T]) Settled(j T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open--
	q.barriers = slices.DeleteFunc(q.barriers, func(b *barrier) bool {
		if j.Place().number > b.upTo {
			return false
		}
		if b.left--; b.left == 0 {
			close(b.done)
		}
		return b.left == 0
	})
	q.feed.Broadcast()
}

// Reason says why a feeder that waited goes on.
type Reason int

const (
	Look    Reason = iota // mail may be due, and the line is short
	Urgent                // more urgent mail than some of the line may be due
	Idle                  // every item is settled, and nothing is asked
	Aborted               // no session can be had
)

// AwaitNeed blocks the feeder until there is something to do for it. When every item is settled
// it waits a little longer, for as long as linger: new work may come. After Idle nothing is
// let in before the feeder looks again.
func (q *Queue[T]) AwaitNeed(linger time.Duration) Reason {
	q.mu.Lock()
	defer q.mu.Unlock()
	var timer *time.Timer
	late := false
	rest := func() {
		if timer != nil {
			timer.Stop()
			timer = nil
		}
	}
	defer rest()
	for {
		switch {
		case q.aborted:
			return Aborted
		case q.asked && q.length() <= q.room/2:
			return Look
		case q.urgent && q.items.len() > 0:
			q.urgent = false
			return Urgent
		case q.open > 0:
			rest()
		case late || linger <= 0:
			q.over = true
			return Idle
		case timer == nil:
			last := q.last
			timer = time.AfterFunc(linger, func() {
				q.mu.Lock()
				defer q.mu.Unlock()
				if late = q.open == 0 && q.last == last; !late {
					timer = nil // something came and went: from the beginning
				}
				q.feed.Broadcast()
			})
		}
		q.feed.Wait()
	}
}

// Ask tells the feeder that mail may be due which is not here; urgent, that it may be more
// urgent than some of the line. It is false when the feeder has been told that there is nothing
// left to do: it looks again only if its drain goes on.
func (q *Queue[T]) Ask(urgent bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked = true
	q.urgent = q.urgent || urgent
	q.feed.Broadcast()
	return !q.over && !q.closed
}

// Looks notes that the feeder is about to look: what is asked from now on is for the next time.
func (q *Queue[T]) Looks() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked, q.urgent, q.over = false, false, false
}

// Looked says whether the feeder found all that is due.
func (q *Queue[T]) Looked(all bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.acceptsDirect = all
	q.asked = q.asked || !all
	if all {
		q.space.Broadcast()
	}
}

func (q *Queue[T]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.space.Broadcast()
	q.work.Broadcast()
	q.feed.Broadcast()
}

func (q *Queue[T]) Abort() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.aborted = true
	q.space.Broadcast()
	q.work.Broadcast()
	q.feed.Broadcast()
}

// Drained blocks until the queue is empty or aborted. Only after close: items may still be
// given back to it by workers.
func (q *Queue[T]) Drained() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.open > 0 && !q.aborted {
		q.feed.Wait()
	}
}
