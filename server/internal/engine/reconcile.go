package engine

import (
	"context"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// reconcile gives back what this replica owns and does not know of: unmarked mail is due again
// as it was, marked mail is settled as after a crash.
func (e *Engine) reconcile(ctx context.Context) {
	me := e.lease.Replica()
	owned, err := e.journal.Owned(ctx, me)
	if err != nil {
		return // the renewal of the lease says what is wrong
	}
	lost := e.ledger.Unknown(owned)
	if len(lost) == 0 {
		return
	}
	released, marked, err := e.journal.TakeBack(ctx, me, lost)
	if err != nil {
		if ctx.Err() == nil {
			e.log.Error("mail that this replica owns and does not know of is not given back yet", "mails", len(lost), "error", err)
		}
		return
	}
	e.log.Warn("gave back mail that this replica owned and did not know of", "requeued", released, "unknown", len(marked))
	e.settleCrashed(me, marked)
}

// settleCrashed settles marked mail that nobody was at any more.
func (e *Engine) settleCrashed(me store.ReplicaID, marked []*store.Claimed) {
	now := e.now()
	for _, c := range marked {
		e.ledger.Take(c.ID, c.Claim)
	}
	for _, c := range marked {
		v := lifecycle.Crash(c, me, now)
		e.attempted(c, v)
		s := e.follow(c, c.Attempts+1)
		s.over(v.Outcome, v.Failure)
		e.ledger.Record(v.Settlement, func(mine bool) {
			if mine {
				e.ended(c, v)
			}
		})
	}
}

// Replica is this process in the database.
func (e *Engine) Replica() store.ReplicaID { return e.lease.Replica() }
