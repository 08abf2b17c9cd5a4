package engine

import (
	"slices"
	"sync"
)

// queue carries a drain's jobs from the feeder to the workers. It is bounded for the feeder and unbounded for workers that give a job back, which a
// channel cannot be, and it counts what is not settled yet, so that the feeder knows when the drain is over.
type queue struct {
	mu     sync.Mutex
	cond   *sync.Cond
	items  []*job
	room   int
	open   int  // put and not settled
	kicked bool // somebody asked the feeder to look again
	closed bool // nothing more will be put
	dead   bool // no session can be had: workers stop, the feeder too
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
	q.open++
	for len(q.items) >= q.room && !q.dead {
		q.cond.Wait()
	}
	if q.dead {
		return false
	}
	q.items = append(q.items, j)
	q.cond.Broadcast()
	return true
}

// putFirst adds an urgent job before all less urgent ones, whether there is room or not; false when the queue is over.
func (q *queue) putFirst(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open++
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

// settled counts one job out.
func (q *queue) settled() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open--
	q.cond.Broadcast()
}

// waitIdle blocks the feeder until every job is settled or somebody kicks it; false when the queue is dead.
func (q *queue) waitIdle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.open > 0 && !q.kicked && !q.dead {
		q.cond.Wait()
	}
	q.kicked = false
	return !q.dead
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
