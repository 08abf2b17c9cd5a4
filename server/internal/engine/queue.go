package engine

import (
	"slices"
	"sync"
)

// queue carries a drain's jobs from the feeder to the workers. It is bounded for the feeder and unbounded for workers that give a job back, which a
// channel cannot be, and it counts what is not settled yet, so that the feeder knows when the drain is over.
type queue struct {
	mu       sync.Mutex
	work     *sync.Cond // workers wait here for jobs, one is woken for each
	feed     *sync.Cond // the feeder waits here, and whoever waits for the end
	items    line
	room     int   // for claimed jobs
	handRoom int   // for jobs that are handed over in memory
	reserved int   // places kept for jobs that are not durable yet; counted in open
	open     int   // put and not settled
	kicked   bool  // somebody asked the feeder to look again
	overflow bool  // mail for which there was no room waits in the database: look again when there is
	closed   bool  // nothing more will be put
	dead     bool  // no session can be had: workers stop, the feeder too
	seq      int64 // of the job that came last
	barriers []*barrier
}

// barrier waits for the jobs that were open when it was raised.
type barrier struct {
	upTo int64
	left int
	done chan struct{}
}

func newQueue(room int) *queue {
	q := &queue{room: room, handRoom: room}
	q.work, q.feed = sync.NewCond(&q.mu), sync.NewCond(&q.mu)
	return q
}

// put adds a job, waiting for room; false when the queue is dead (the job still counts as open until it is settled).
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

// reserve keeps a place for a job that is not durable yet, false when there is no room or the queue is over. settled gives it back.
func (q *queue) reserve() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead || q.closed || q.items.len()+q.reserved >= q.handRoom {
		return false
	}
	q.reserved++
	q.open++
	return true
}

// pin keeps the queue from being drained until giveUp.
func (q *queue) pin() {
	q.mu.Lock()
	q.reserved++
	q.open++
	q.mu.Unlock()
}

// putReserved fills a place; false when the queue has died meanwhile (the job still counts as open until it is settled).
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

// raise returns a channel that is closed when all jobs of this moment are settled. Places that are kept for later do not count.
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

// take returns the next job. With block it waits, and nil means the work is over; without, nil means there is none just now.
func (q *queue) take(block bool) *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	for block && q.items.len() == 0 && !q.closed && !q.dead {
		q.work.Wait()
	}
	if block && q.dead {
		return nil
	}
	j := q.items.next()
	if j != nil {
		q.feed.Broadcast()
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
	q.overflow = true
	q.feed.Broadcast()
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

// waitIdle blocks the feeder until there is something to do for it.
func (q *queue) waitIdle() wake {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.open > 0 && !q.kicked && !q.dead && !(q.overflow && q.items.len()+q.reserved < q.room/2) {
		q.feed.Wait()
	}
	kicked := q.kicked || q.overflow
	q.kicked, q.overflow = false, false
	switch {
	case q.dead:
		return wokenDead
	case kicked:
		return wokenKicked
	}
	return wokenIdle
}

func (q *queue) kick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.kicked = true
	q.feed.Broadcast()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.work.Broadcast()
	q.feed.Broadcast()
}

func (q *queue) kill() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dead = true
	q.work.Broadcast()
	q.feed.Broadcast()
}

// drained blocks until the queue is empty or dead. Only after close: jobs may still be given back to it by workers.
func (q *queue) drained() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.open > 0 && !q.dead {
		q.feed.Wait()
	}
}
