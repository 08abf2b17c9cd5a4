package engine

import (
	"time"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/store"
)

// job is one claimed mail on its way: the attempt, and what it holds of this process. It is
// owned by one goroutine at a time: a worker, or a flight.
type job struct {
	*lifecycle.Attempt
	// the configuration that the attempt began with; nil for what is only settled
	server *store.MailServer
	raw    []byte
	seq    int64 // its number in the drain's queue
	over   bool  // it is settled, or another replica's
	begun  bool  // it is recorded that this owner is at it
	rated  bool  // it holds a mail of its mail server's limits
	todo   int   // recipients that were to be tried when the attempt began

	weight int64 // bytes taken from the engine's budget
	direct int64 // bytes taken from the budget of what was handed over in memory
}

func newJob(c *store.Claimed, owner store.ReplicaID, now time.Time) *job {
	j := &job{Attempt: lifecycle.Begin(c, owner, now)}
	j.todo = j.Left()
	return j
}

// spend says that the mail leaves now, whatever comes of it.
func (j *job) spend(r *relay.Relay) {
	if j.rated {
		r.Spend(1)
		j.rated = false
	}
}

// settleRate says what became of what the job had taken out of the mail server's limits: it is
// used when something was decided about the mail, and comes back when nothing left.
func (j *job) settleRate(r *relay.Relay) {
	if j.Left() < j.todo {
		j.spend(r)
	}
	if j.rated {
		r.GiveBack(1)
		j.rated = false
	}
}

// mailboxes are the addresses at the positions.
func (j *job) mailboxes(positions []int) []string {
	to := make([]string, len(positions))
	for i, p := range positions {
		to[i] = j.Mail.Recipients[p].Mailbox
	}
	return to
}
