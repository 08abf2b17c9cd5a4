package engine

import (
	"time"

	"github.com/maildispatch/maildispatch/server/internal/brake"
	"github.com/maildispatch/maildispatch/server/internal/fairqueue"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/store"
)

// job is one claimed mail on its way: the attempt, and what it holds of this process. It is
// owned by one goroutine at a time: a worker, or a live send.
type job struct {
	*lifecycle.Attempt
	// how it leaves, with the configuration that the attempt began with; empty for what is only
	// settled
	way    brake.Way
	raw    []byte
	dotAt  time.Time // when the gate last let a dot leave
	place  fairqueue.Place
	charge charge // of the limits of the mail server that it goes through
	over   bool   // it is settled, or another replica's
	begun  bool   // it is recorded that this owner is at it
	told   bool   // the journal knows the way
	todo   int    // recipients that were to be tried when the attempt began
	span   span   // of the attempt

	weight int64 // bytes taken from the engine's budget
	direct int64 // bytes taken from the budget of what was handed over in memory
}

func newJob(c *store.Claimed, owner store.ReplicaID, now time.Time) *job {
	j := &job{Attempt: lifecycle.Begin(c, owner, now)}
	j.todo = j.Left()
	j.place = fairqueue.Place{Priority: c.Priority, Team: c.Team}
	return j
}

// Place is where the job belongs in its drain's queue.
func (j *job) Place() *fairqueue.Place { return &j.place }

// take lets the job go a way. why is what the mail server before it failed with, "" when that
// was not tried.
func (j *job) take(w brake.Way, why string, now time.Time) {
	j.way, j.told, j.todo = w, !w.Diverts(), j.Left()
	if j.charge == spent { // of another mail server's limits
		j.charge = unpaid
	}
	if w.Diverts() {
		j.GoThrough(w.Via.Name, why, now)
	}
}

// tellsWay is what has to be recorded before the next mark, so that the journal says which way
// the mail went also if this process dies; nil when that is known.
func (j *job) tellsWay() *store.Settlement {
	if j.told {
		return nil
	}
	j.told = true
	return j.Progress()
}

// standsBack says whether a mail server's words about this mail alone hold it back until behind
// the next try: that meets another mail. Where it goes on through a fallback at once, or its
// caller waits, it does not.
func (j *job) standsBack() bool {
	return !j.Interactive && (j.way.Server.Fallback == "" || j.way.Diverts())
}

// charge is what a job has of a mail server's limits.
type charge int

const (
	unpaid   charge = iota // nothing
	reserved               // one mail that may leave
	spent                  // it has left, as the limits count it
)

// spend says that the mail leaves now, whatever comes of it.
func (j *job) spend(r *relay.Relay) {
	if j.charge == reserved {
		r.Spend(1)
	}
	j.charge = spent
}

// settleRate says what became of what the job had taken out of the mail server's limits: it is
// used when something was decided about the mail, and comes back when nothing left.
func (j *job) settleRate(r *relay.Relay) {
	if j.Left() < j.todo {
		j.spend(r)
	}
	if j.charge == reserved {
		r.GiveBack(1)
		j.charge = unpaid
	}
}
