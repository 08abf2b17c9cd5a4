package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// queue carries a drain's jobs to the workers, and tells the feeder when to look for more. The
// feeder brings pages, which it fetches while the line is short; callers bring what they have
// made durable, as far as there is room; workers give back what they took and did not begin. It
// counts what is not settled yet, so that the feeder knows when the drain is over.
type queue struct {
	room    int  // claimed jobs: the feeder fetches more when half of it is free
	lingers bool // a drain that is idle waits for more

	// mu guards what follows. Three kinds wait: workers for jobs, one is woken for each; the
	// feeder, and whoever waits for the end; and those who bring bulk, for a shorter line.
	mu                sync.Mutex
	work, feed, space *sync.Cond
	items             line
	directRoom        int // for jobs that are handed over in memory; the scale loop sets it
	promised          int // reservations: jobs that are not durable yet; counted in open
	open              int // promised, or put and not settled
	// the last claim found nothing more, and all that came since found room: what comes now is
	// behind nothing
	acceptsDirect bool
	asked         bool  // mail may be due: the feeder looks as soon as the line is short
	urgent        bool  // some of that may be more urgent than what is in the line
	over          bool  // the feeder was told that there is nothing left to do
	closed        bool  // nothing more will be put
	dead          bool  // no session can be had: workers stop, the feeder too
	seq           int64 // of the job that came last
	barriers      []*barrier
}

// barrier waits for the jobs that were open when it was raised.
type barrier struct {
	upTo int64
	left int
	done chan struct{}
}

// newQueue makes the queue of a drain whose feeder is asked to look.
func newQueue(room int, lingers bool) *queue {
	q := &queue{room: room, directRoom: room, lingers: lingers, asked: true}
	q.work, q.feed, q.space = sync.NewCond(&q.mu), sync.NewCond(&q.mu), sync.NewCond(&q.mu)
	return q
}

// put adds a job; false when the queue is dead (the job still counts as open until it is
// settled).
func (q *queue) put(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admit(j)
	return q.add(j)
}

// aside counts a job in that needs no worker.
func (q *queue) aside(j *job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admit(j)
}

// admit numbers a job and counts it in. With mu held.
func (q *queue) admit(j *job) {
	q.open++
	q.seq++
	j.seq = q.seq
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

// length is how many jobs are in the line or promised to it. With mu held.
func (q *queue) length() int { return q.items.len() + q.promised }

// reserve promises a job that is not durable yet; fill or giveUp keeps the promise, and until
// then the queue does not end. It is false when there is no room, an older backlog waits in the
// database, or the queue is over. What is more urgent than something in the line goes before
// that and is let in whatever waits.
func (q *queue) reserve(priority int16) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead || q.closed || q.over {
		return false
	}
	if least, any := q.items.least(); !any || priority <= least {
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

// fill puts a job that was promised; false when the queue has died meanwhile (the job still
// counts as open until it is settled).
func (q *queue) fill(j *job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.promised--
	q.open-- // admit counts it again, with its number
	q.admit(j)
	return q.add(j)
}

// giveUp takes a promise back.
func (q *queue) giveUp() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.promised--
	q.open--
	q.feed.Broadcast()
}

// awaitSpace waits until the line is short enough to take what comes in memory, or for as long
// as most.
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
	for !q.dead && !q.closed && ctx.Err() == nil && (!q.acceptsDirect || q.length() > q.directRoom/2) {
		q.space.Wait()
	}
}

// setDirectRoom says how deep the line may be for jobs that are handed over.
func (q *queue) setDirectRoom(n int) {
	q.mu.Lock()
	q.directRoom = n
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

// raise returns a channel that is closed when all jobs of this moment are settled. What is only
// promised does not count.
func (q *queue) raise() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := &barrier{upTo: q.seq, left: q.open - q.promised, done: make(chan struct{})}
	if b.left <= 0 {
		close(b.done)
	} else {
		q.barriers = append(q.barriers, b)
	}
	return b.done
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
		if q.length() == q.directRoom/2 {
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

// waiting are the jobs in the line.
func (q *queue) waiting() []*job {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.items.all()
}

// remove takes the jobs that taken says out of the line. The caller settles them.
func (q *queue) remove(taken func(*job) bool) []*job {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.items.remove(taken)
	if len(out) > 0 {
		q.feed.Broadcast()
		q.space.Broadcast()
	}
	return out
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

// wakeReason says why a feeder that waited goes on.
type wakeReason int

const (
	wakeLook   wakeReason = iota // mail may be due, and the line is short
	wakeUrgent                   // more urgent mail than some of the line may be due
	wakeIdle                     // every job is settled, and nothing is asked
	wakeDead                     // no session can be had
)

// awaitNeed blocks the feeder until there is something to do for it. When every job is settled
// it waits a little longer, for as long as linger: new work may come. After wakeIdle nothing is
// let in before the feeder looks again.
func (q *queue) awaitNeed(linger time.Duration) wakeReason {
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
		case q.dead:
			return wakeDead
		case q.asked && q.length() <= q.room/2:
			return wakeLook
		case q.urgent && q.items.len() > 0:
			q.urgent = false
			return wakeUrgent
		case q.open > 0:
			rest()
		case late || linger <= 0:
			q.over = true
			return wakeIdle
		case timer == nil:
			seq := q.seq
			timer = time.AfterFunc(linger, func() {
				q.mu.Lock()
				defer q.mu.Unlock()
				if late = q.open == 0 && q.seq == seq; !late {
					timer = nil // something came and went: from the beginning
				}
				q.feed.Broadcast()
			})
		}
		q.feed.Wait()
	}
}

// ask tells the feeder that mail may be due which is not here; urgent, that it may be more
// urgent than some of the line. It is false when the feeder has been told that there is nothing
// left to do: it looks again only if its drain goes on.
func (q *queue) ask(urgent bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked = true
	q.urgent = q.urgent || urgent
	q.feed.Broadcast()
	return !q.over && !q.closed
}

// looks notes that the feeder is about to look: what is asked from now on is for the next time.
func (q *queue) looks() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked, q.urgent, q.over = false, false, false
}

// looked says whether the feeder found all that is due.
func (q *queue) looked(all bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.acceptsDirect = all
	q.asked = q.asked || !all
	if all {
		q.space.Broadcast()
	}
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
