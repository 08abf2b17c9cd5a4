package engine

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/brake"
	"github.com/maildispatch/maildispatch/smtpx"
)

// A person's stop takes a mail from the replica that has it: the mail is cancelled or held at
// once, and the replica's token ends, so that the gate lets no dot leave. What is here is for
// the replica to notice before it gets so far.

// stopLoop looks for php-mode mail that a person has stopped while it waits for a connection.
// It has a goroutine of its own: the look may take as long as the database does, and the brake
// must not wait for it.
func (e *Engine) stopLoop(ctx context.Context) {
	t := time.NewTicker(brake.Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if e.live.Waits(brake.Every) {
				e.lookThrough(ctx)
			}
		}
	}
}

// lookThrough drops what waits in this process for a connection and is not this replica's any
// more. Nothing is written for it. What comes meanwhile is not looked at; its mark tells.
func (e *Engine) lookThrough(ctx context.Context) {
	select { // no mutex: a look takes as long as the database does
	case e.looking <- struct{}{}:
		defer func() { <-e.looking }()
	case <-ctx.Done():
		return
	}
	me := e.lease.Replica()
	var lines []*drain
	e.drains.mu.Lock()
	for _, d := range e.drains.running {
		lines = append(lines, d)
	}
	e.drains.mu.Unlock()
	waiting := map[*job]bool{} // before it is asked whose they are
	for _, d := range lines {
		for _, j := range d.jobs.Waiting() {
			waiting[j] = j.Owner == me
		}
	}
	sends := e.live.Before(time.Now())
	if len(waiting)+len(sends) == 0 {
		return
	}
	owned, err := e.journal.Owned(ctx, me)
	if err != nil {
		return // the marks tell, one by one
	}
	mine := make(map[uuid.UUID]bool, len(owned))
	for _, o := range owned {
		mine[o.ID] = true
	}
	for _, d := range lines {
		for _, j := range d.jobs.Remove(func(j *job) bool { return waiting[j] && !mine[j.Mail.ID] }) {
			d.lost(j)
		}
	}
	for _, s := range sends {
		if !mine[s.Mail.ID] && s.Mail.Owner == me {
			s.Drop()
		}
	}
}

// lost leaves a mail to whoever has taken it from this replica.
func (d *drain) lost(j *job) {
	j.over = true
	j.span.over(lost, smtpx.FailNone)
	j.settleRate(d.relay)
	d.e.log.Info("mail was taken from this replica before its dot", "mail_id", j.Mail.ID)
	d.e.ledger.Let(j.Mail.ID, j.Mail.Claim)
	d.e.releaseMemory(j)
	d.jobs.Settled(j)
}
