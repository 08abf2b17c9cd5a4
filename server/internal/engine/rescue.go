package engine

import (
	"context"
	"time"
)

const (
	rescueEvery = 5 * time.Second
	rescuePage  = 200
	forgetEvery = 10 * time.Minute
	countEvery  = time.Second
	changesKept = 3 * 24 * time.Hour // what WatchMails promises
)

func (e *Engine) rescueLoop(ctx context.Context) {
	t := time.NewTicker(rescueEvery)
	defer t.Stop()
	var forgot time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			e.rescue(ctx)
			e.reconcile(ctx)
			if time.Since(forgot) >= forgetEvery {
				forgot = time.Now()
				if _, err := e.journal.ForgetChanges(ctx, changesKept); err != nil && ctx.Err() == nil {
					e.log.Warn("changes not forgotten", "error", err)
				}
				if _, _, err := e.journal.ForgetUploads(ctx); err != nil && ctx.Err() == nil {
					e.log.Warn("uploads not forgotten", "error", err)
				}
			}
		}
	}
}

// countLoop adds up what the counters of the journals have been told. What is not added up yet
// is counted as well, but costs whoever asks.
func (e *Engine) countLoop(ctx context.Context) {
	t := time.NewTicker(countEvery)
	defer t.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			err := e.journal.KeepCounts(ctx)
			if err != nil && !failed && ctx.Err() == nil {
				e.log.Warn("counts not added up", "error", err)
			}
			failed = err != nil
		}
	}
}

// rescue takes over what dead replicas left: unmarked mails become due again, marked ones are
// settled as unknown.
func (e *Engine) rescue(ctx context.Context) {
	for {
		me := e.lease.Replica()
		released, adopted, err := e.journal.Recover(ctx, me, rescuePage)
		if err != nil {
			if ctx.Err() == nil {
				e.log.Error("rescue failed", "error", err)
			}
			return
		}
		if released+len(adopted) > 0 {
			e.log.Warn("rescued the mail of a dead replica", "requeued", released, "unknown", len(adopted))
		}
		e.settleCrashed(me, adopted)
		if released+len(adopted) < rescuePage {
			return
		}
	}
}
