package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// queue carries a drain's jobs from the feeder to the workers. It is bounded for the feeder and
// unbounded for workers that give a job back, which a channel cannot be, and it counts what is
// not settled yet, so that the feeder knows when the drain is over.
type queue struct {
	mu       sync.Mutex
	work     *sync.Cond // workers wait here for jobs, one is woken for each
	feed     *sync.Cond // the feeder waits here, and whoever waits for the end
	space    *sync.Cond // those who bring bulk wait here for the line to get short
	items    line
	room     int  // for claimed jobs
	handRoom int  // for jobs that are handed over in memory
	reserved int  // places kept for jobs that are not durable yet; counted in open
	open     int  // put and not settled
	hungry   bool // the last claim found nothing more: new mail may come by hand
	kicked   bool // somebody asked the feeder to look again
	// mail for which there was no room waits in the database: look again when there is
	overflow bool
	closed   bool  // nothing more will be put
	dead     bool  // no session can be had: workers stop, the feeder too
	lingers  bool  // a drain that is idle waits for more: constant
	seq      int64 // of the job that came last
	barriers []*barrier
}

// barrier waits for the jobs that were open when it was raised.
type barrier struct {
	upTo int64
	left int
	done chan struct{}
}

func newQueue(room int, lingers bool) *queue {
	q := &queue{room: room, handRoom: room, lingers: lingers}
	q.work, q.feed, q.space = sync.NewCond(&q.mu), sync.NewCond(&q.mu), sync.NewCond(&q.mu)
	return q
}

// put adds a job, waiting for room; false when the queue is dead (the job still counts as open
// until it is settled).
func (q *queue) put(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admit(j)
	for q.items.len()+q.reserved >= q.room && !q.dead {
		q.feed.Wait()
	}
	return q.add(j)
}

// add puts a job that was admitted into the line; false when the queue is dead. With mu held.
func (q *queue) add(j *job) bool {
	if q.dead {
		return false
	}
	q.items.add(j)
	q.work.Signal()
	return true
}

// reserve keeps a place for a job that is not durable yet, false when there is no room, an
// older backlog waits in the database, or the queue is over. What is more urgent than something
// in the line goes before that and gets a place in any case. settled gives it back.
func (q *queue) reserve(priority int16) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead || q.closed || q.ending() {
		return false
	}
	if least, any := q.items.least(); !any || priority <= least {
		if !q.hungry {
			return false
		}
		if q.items.len()+q.reserved >= q.handRoom {
			// this one is older than what comes next, and waits in the database
			q.hungry = false
			return false
		}
	}
	q.reserved++
	q.open++
	if q.open == 1 {
		q.feed.Broadcast() // it lingers
	}
	return true
}

// ending says that every job is settled and that the drain ends unless somebody asks it to look
// again: what is accepted now is for the next pass. With mu held.
func (q *queue) ending() bool { return q.open == 0 && !q.lingers }

// aside counts a job in that needs no worker.
func (q *queue) aside(j *job) {
	q.mu.Lock()
	q.admit(j)
	q.mu.Unlock()
}

// least is the lowest priority of what waits here, AnyPriority when nothing does.
func (q *queue) least() int16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p, any := q.items.least(); any {
		return p
	}
	return store.AnyPriority
}

// setHungry says whether the last claim found nothing more.
func (q *queue) setHungry(hungry bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hungry = hungry
	if hungry {
		q.space.Broadcast()
	}
}

// awaitSpace waits until the line is short enough to take what comes by hand, or for as long as
// most.
func (q *queue) awaitSpace(ctx context.Context, most time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		q.mu.Lock()
		q.space.Broadcast()
		q.mu.Unlock()
	})()
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.dead && !q.closed && ctx.Err() == nil && (!q.hungry || q.items.len()+q.reserved > q.handRoom/2) {
		q.space.Wait()
	}
}

// pin keeps the queue from being drained until giveUp.
func (q *queue) pin() {
	q.mu.Lock()
	q.reserved++
	q.open++
	q.mu.Unlock()
}

// putReserved fills a place; false when the queue has died meanwhile (the job still counts as
// open until it is settled).
func (q *queue) putReserved(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reserved--
	q.open-- // admit counts it again, with its number
	q.admit(j)
	return q.add(j)
}

// giveUp gives a place back.
func (q *queue) giveUp() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reserved--
	q.open--
	q.feed.Broadcast()
}

func (q *queue) admit(j *job) {
	q.open++
	q.seq++
	j.seq = q.seq
}

// raise returns a channel that is closed when all jobs of this moment are settled. Places that
// are kept for later do not count.
func (q *queue) raise() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := &barrier{upTo: q.seq, left: q.open - q.reserved, done: make(chan struct{})}
	if b.left <= 0 {
		close(b.done)
	} else {
		q.barriers = append(q.barriers, b)
	}
	return b.done
}

// putNow adds a job whether there is room or not; false when the queue is over.
func (q *queue) putNow(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admit(j)
	return !q.closed && q.add(j)
}

// putBack returns a job that was taken and not begun.
func (q *queue) putBack(j *job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items.giveBack(j)
	q.work.Signal()
}

// take returns the next job, nil when there is none just now.
func (q *queue) take() *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.next()
}

// await waits for the next job, for as long as idle. nil means that the work is over, or that
// none came.
func (q *queue) await(idle time.Duration) *job {
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
	for q.items.len() == 0 && !q.closed && !q.dead && !late {
		q.work.Wait()
	}
	if q.dead {
		return nil
	}
	return q.next()
}

// next takes a job out of the line. With mu held.
func (q *queue) next() *job {
	j := q.items.next()
	if j != nil {
		q.feed.Broadcast()
		if q.items.len()+q.reserved == q.handRoom/2 {
			q.space.Broadcast()
		}
	}
	return j
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.items.len()
}

// setHandRoom says how deep the line may be for jobs that are handed over.
func (q *queue) setHandRoom(n int) {
	q.mu.Lock()
	q.handRoom = n
	q.mu.Unlock()
}

// overflowed notes that mail waits in the database for which there was no room here.
func (q *queue) overflowed() {
	q.mu.Lock()
	if !q.ending() {
		q.overflow = true
		q.feed.Broadcast()
	}
	q.mu.Unlock()
}

// settled counts a job out.
func (q *queue) settled(j *job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open--
	q.barriers = slices.DeleteFunc(q.barriers, func(b *barrier) bool {
		if j.seq > b.upTo {
			return false
		}
		if b.left--; b.left == 0 {
			close(b.done)
		}
		return b.left == 0
	})
	q.feed.Broadcast()
}

// wake says why a feeder that waited goes on.
type wake int

const (
	wokenIdle   wake = iota // every job is settled
	wokenKicked             // somebody asks to look again
	wokenDead               // no session can be had
)

// waitIdle blocks the feeder until there is something to do for it. When every job is settled
// it waits a little longer, for as long as linger: new work may come.
func (q *queue) waitIdle(linger time.Duration) wake {
	q.mu.Lock()
	defer q.mu.Unlock()
	var timer *time.Timer
	over := false
	rest := func() {
		if timer != nil {
			timer.Stop()
			timer = nil
		}
	}
	defer rest()
	for {
		switch short := q.items.len()+q.reserved < q.room/2; {
		case q.dead:
			return wokenDead
		case q.kicked || q.overflow && short:
			q.kicked, q.overflow = false, false
			return wokenKicked
		case q.open > 0:
			rest()
		case over || linger <= 0:
			return wokenIdle
		case timer == nil:
			seq := q.seq
			timer = time.AfterFunc(linger, func() {
				q.mu.Lock()
				defer q.mu.Unlock()
				if over = q.open == 0 && q.seq == seq; !over {
					timer = nil // something came and went: from the beginning
				}
				q.feed.Broadcast()
			})
		}
		q.feed.Wait()
	}
}

func (q *queue) kick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.kicked = true
	q.feed.Broadcast()
}

// unkick notes that the feeder is about to look.
func (q *queue) unkick() {
	q.mu.Lock()
	q.kicked = false
	q.mu.Unlock()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.space.Broadcast()
	q.work.Broadcast()
	q.feed.Broadcast()
}

// isDead reports whether workers and feeder have been told to stop.
func (q *queue) isDead() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dead
}

func (q *queue) kill() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dead = true
	q.space.Broadcast()
	q.work.Broadcast()
	q.feed.Broadcast()
}

// drained blocks until the queue is empty or dead. Only after close: jobs may still be given
// back to it by workers.
func (q *queue) drained() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.open > 0 && !q.dead {
		q.feed.Wait()
	}
}
