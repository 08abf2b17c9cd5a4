package quota

import (
	"context"
	"errors"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/store"
)

const (
	// sampleEvery is how often queues are counted and the disk is looked at, and sampleShare
	// how much of the time counting may take: a queue of a million mails takes a while.
	sampleEvery = time.Second
	sampleShare = 50
	// full is when who met a full queue or disk may come again.
	full = 5 * time.Second
	// forgetEvery is how often allowances of which nothing counts are forgotten.
	forgetEvery = time.Minute
)

// waits reports whether a mail waits in the queue: daemon mode, and what is due later.
func waits(m *store.NewMail) bool {
	return m.Mode != store.ModePHP || m.Held != "" || m.RunAt.After(m.CreateTime)
}

// room says whether there is room for mails that will stand in the queue.
func (q *Quota) room(ms []*store.NewMail, queued bool) *apierr.Error {
	if !queued {
		return nil
	}
	q.roomMu.Lock()
	defer q.roomMu.Unlock()
	if q.diskFull && q.low() {
		return q.noDisk()
	}
	if n := q.limits.Queue; n > 0 && q.depths[ms[0].Team]+q.since[ms[0].Team]+int64(len(ms)) > int64(n) {
		return q.exceeded("queue_depth", int64(n), full, "the team's queue is full")
	}
	return nil
}

func (q *Quota) noDisk() *apierr.Error {
	return q.exceeded("disk_floor_mib", int64(q.limits.DiskMiB), full, "the database's disk is nearly full")
}

// Disk says whether there is room for content that waits.
func (q *Quota) Disk() error {
	if q == nil {
		return nil
	}
	q.roomMu.Lock()
	defer q.roomMu.Unlock()
	if q.diskFull && q.low() {
		return q.noDisk()
	}
	return nil
}

// low looks at the disk. Who is refused is so by what is there now, not by the last sample.
func (q *Quota) low() bool {
	if q.limits.DiskMiB == 0 || q.disk == nil {
		return false
	}
	free, size, ok := q.disk()
	return ok && free < min(int64(q.limits.DiskMiB)<<20, size/20)
}

// accepted counts what comes in between two samples, and with n below 0 what did not come in
// after all.
func (q *Quota) accepted(team string, n int64) {
	if q.limits.Queue == 0 || n == 0 {
		return
	}
	q.roomMu.Lock()
	q.since[team] = max(0, q.since[team]+n) // a sample may have begun anew meanwhile
	q.roomMu.Unlock()
}

// Sample counts the queues and looks at the disk.
func (q *Quota) Sample(ctx context.Context) error {
	full := q.low()
	q.roomMu.Lock()
	was := q.diskFull
	q.diskFull = full
	q.roomMu.Unlock()
	if full != was {
		if full {
			q.log.Error("the database's disk is nearly full: mail in daemon mode and uploads are refused", "floor_mib", q.limits.DiskMiB)
		} else {
			q.log.Info("the database's disk has room again")
		}
	}
	if q.limits.Queue == 0 {
		return nil
	}
	q.roomMu.Lock()
	q.since = map[string]int64{} // in the count already, or counted twice until the next
	q.roomMu.Unlock()
	depths, err := q.store.QueueDepths(ctx)
	if err != nil {
		return err // what was counted before holds
	}
	q.roomMu.Lock()
	q.depths = depths
	q.roomMu.Unlock()
	return nil
}

// Run keeps what is counted in step with the database until ctx ends.
func (q *Quota) Run(ctx context.Context) {
	var forgot time.Time
	failed := false
	note := func(err error) {
		if (err != nil) != failed && ctx.Err() == nil {
			if failed = err != nil; failed {
				q.log.Warn("quotas: the database cannot be asked: what was counted before holds", "error", err)
			}
		}
	}
	for {
		began := time.Now()
		err := q.Sample(ctx)
		pause := max(sampleEvery, sampleShare*time.Since(began))
		// each for itself: a queue that cannot be counted keeps nothing from others
		err = errors.Join(err, q.giveBack(false))
		if time.Since(forgot) >= forgetEvery {
			forgot = time.Now()
			err = errors.Join(err, q.store.ForgetAllowances(ctx))
		}
		note(err)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			if err := q.giveBack(true); err != nil {
				q.log.Warn("quotas: what was taken in advance is not given back", "error", err)
			}
			return
		}
	}
}
