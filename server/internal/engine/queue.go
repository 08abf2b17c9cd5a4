package engine

import (
	"slices"
	"sync"
)

// queue carries a drain's jobs from the feeder to the workers. It is bounded for the feeder and unbounded for workers that give a job back, which a
// channel cannot be, and it counts what is not settled yet, so that the feeder knows when the drain is over.
type queue struct {
	mu       sync.Mutex
	cond     *sync.Cond
	items    []*job
	room     int
	reserved int   // places kept for jobs that are not durable yet; counted in open
	open     int   // put and not settled
	kicked   bool  // somebody asked the feeder to look again
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
	q := &queue{room: room}
	q.cond = sync.NewCond(&q.mu)
	return q
}

// put adds a job, waiting for room; false when the queue is dead (the job still counts as open until it is settled).
func (q *queue) put(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admit(j)
	for len(q.items)+q.reserved >= q.room && !q.dead {
		q.cond.Wait()
	}
	if q.dead {
		return false
	}
	q.items = append(q.items, j)
	q.cond.Broadcast()
	return true
}

// reserve keeps a place for a job that is not durable yet, false when there is no room or the queue is over. settled gives it back.
func (q *queue) reserve() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead || q.closed || len(q.items)+q.reserved >= q.room {
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
	if q.dead {
		return false
	}
	q.items = append(q.items, j)
	q.cond.Broadcast()
	return true
}

// giveUp gives a place back.
func (q *queue) giveUp() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reserved--
	q.open--
	q.cond.Broadcast()
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

// putFirst adds an urgent job before all less urgent ones, whether there is room or not; false when the queue is over.
func (q *queue) putFirst(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admit(j)
	if q.dead || q.closed {
		return false
	}
	i := 0
	for i < len(q.items) && q.items[i].mail.Priority >= j.mail.Priority {
		i++
	}
	q.items = slices.Insert(q.items, i, j)
	q.cond.Broadcast()
	return true
}

// putBack returns a job that was taken and not begun.
func (q *queue) putBack(j *job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append([]*job{j}, q.items...)
	q.cond.Broadcast()
}

// take returns the next job. With block it waits, and nil means the work is over; without, nil means there is none just now.
func (q *queue) take(block bool) *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	for block && len(q.items) == 0 && !q.closed && !q.dead {
		q.cond.Wait()
	}
	if len(q.items) == 0 || block && q.dead {
		return nil
	}
	j := q.items[0]
	q.items[0] = nil
	q.items = q.items[1:]
	q.cond.Broadcast()
	return j
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
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
	q.cond.Broadcast()
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
	for q.open > 0 && !q.kicked && !q.dead {
		q.cond.Wait()
	}
	kicked := q.kicked
	q.kicked = false
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
	q.cond.Broadcast()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.cond.Broadcast()
}

func (q *queue) kill() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dead = true
	q.cond.Broadcast()
}

// drained blocks until the queue is empty or dead. Only after close: jobs may still be given back to it by workers.
func (q *queue) drained() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.open > 0 && !q.dead {
		q.cond.Wait()
	}
}
