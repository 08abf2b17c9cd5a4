package engine

import (
	"time"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// job is one claimed mail on its way: the attempt, and what it holds of this process. It is owned by
// one goroutine at a time: a worker, or a flight.
type job struct {
	*lifecycle.Attempt
	raw   []byte
	seq   int64 // its number in the drain's queue
	over  bool  // it is settled, or another replica's
	begun bool  // it is recorded that this owner is at it

	weight int64 // bytes taken from the engine's budget
	handed int64 // bytes taken from the budget of what was handed over in memory
}

func newJob(c *store.Claimed, owner store.ReplicaID, now time.Time) *job {
	return &job{Attempt: lifecycle.Begin(c, owner, now)}
}

// mailboxes are the addresses at the positions.
func (j *job) mailboxes(positions []int) []string {
	to := make([]string, len(positions))
	for i, p := range positions {
		to[i] = j.Mail.Recipients[p].Mailbox
	}
	return to
}
