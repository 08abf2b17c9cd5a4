package engine

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/server/internal/live"
	"github.com/maildispatch/maildispatch/store"
)

// Send makes a mail durable and tells observe what becomes of it, in order: accepted; in php
// mode also the attempt, a result per recipient and completed when the relay has answered; in
// daemon mode completed (queued) at once. It is called on the caller's goroutine; an error of
// observe means that the caller went away. A mail that is born held is only made durable,
// whatever the mode.
//
// A request_id that was used before for the same content tells the first mail's story, from the
// running send if there is one. Errors: store.ErrRequestIDReused, ErrStopping,
// store.ErrUnavailable and the like (nothing was stored, or, when the database broke at the
// commit, whether it was is unknown and the same request_id finds out), ctx's error, observe's
// error. One with the mark store.ErrUnwritten says that this call has made no new mail and
// never will.
//
// ctx bounds the wait. Before the dot its end ends the attempt: the mail stays in the due-out
// journal as failed. After the dot the engine goes on waiting for the reply without the caller,
// who is told unknown.
func (e *Engine) Send(ctx context.Context, sub *delivery.Submission, observe func(delivery.Event) error) error {
	if !e.begin() {
		return ErrStopping
	}
	defer e.work.done()
	m, now := sub.Mail, e.now()
	paused := sub.Server.Paused(now)
	if m.Mode != store.ModePHP || m.RunAt.After(now) || m.Held != "" || paused {
		told := observe
		if paused {
			told = func(ev delivery.Event) error {
				if ev.Accepted != nil && !ev.Accepted.Duplicate {
					ev.Accepted.PausedUntil = *sub.Server.PauseUntil
				}
				return observe(ev)
			}
		}
		return e.queue(ctx, m, told)
	}
	e.brake.Heard(sub.Server) // its caller has read it, perhaps newer than what is known here
	s := newLiveSend(e, sub)
	if !e.live.Add(s.Send) {
		return ErrStopping
	}
	m.Owner = e.lease.Replica()
	e.ledger.Take(m.ID, store.BornClaim)
	res, err := e.journal.Enqueue(ctx, m)
	if err == nil {
		err = store.Unwritten(res.Err)
	}
	switch {
	case err != nil && !errors.Is(err, store.ErrUnwritten) && (ctx.Err() != nil || errors.Is(err, store.ErrUnavailable)):
		reason := "the database broke while this mail was being accepted; its caller was told so"
		if ctx.Err() != nil {
			reason = live.WhyGone(ctx)
		}
		s.Gone(reason)
		e.work.concurrently(s.settleUnheard)
		return err
	case err != nil:
		e.ledger.Let(m.ID, store.BornClaim)
		e.live.Remove(s.Send)
		return err
	case res.Duplicate:
		e.ledger.Let(m.ID, store.BornClaim)
		e.live.Remove(s.Send)
		return e.replay(ctx, res.ID, observe)
	}
	s.Accepted()
	e.work.concurrently(s.run)
	return s.Watch(ctx, false, observe)
}

// queue is daemon mode: durable, and sent by the batch, or first held.
func (e *Engine) queue(ctx context.Context, m *store.NewMail, observe func(delivery.Event) error) error {
	res, err := e.enqueue(ctx, m)
	if err == nil {
		err = store.Unwritten(res.Err)
	}
	if err != nil {
		return err
	}
	if res.Duplicate {
		return e.replay(ctx, res.ID, observe)
	}
	now := e.now()
	if err := observe(delivery.Event{MailID: m.ID, Time: now, Accepted: &delivery.Accepted{Server: m.MailServer, Mode: m.Mode, Route: m.Route}}); err != nil {
		return err
	}
	return observe(delivery.Event{MailID: m.ID, Time: now, Completed: lifecycle.View(m)})
}

// replayPoll is how often a php-mode mail that another replica is sending is looked at.
const replayPoll = 200 * time.Millisecond

// replay tells the story of a mail that was accepted earlier.
func (e *Engine) replay(ctx context.Context, id uuid.UUID, observe func(delivery.Event) error) error {
	for first := true; ; first = false {
		if s := e.live.Get(id); s != nil && first {
			return s.Watch(ctx, true, observe)
		}
		m, err := e.journal.Mail(ctx, store.Everything, id)
		switch {
		case err != nil && first:
			return store.Unwritten(err) // not told of yet, but known not to be new
		case err != nil:
			return err
		}
		if first {
			if err := observe(delivery.Event{MailID: id, Time: m.CreateTime, Accepted: &delivery.Accepted{Server: m.MailServer, Mode: m.Mode, Route: m.Route, Duplicate: true}}); err != nil {
				return err
			}
		}
		if m.Mode == store.ModePHP && m.Owner != 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(replayPoll):
			}
			continue
		}
		for i := range m.Progress.Attempts {
			a := m.Progress.Attempts[i]
			if err := observe(delivery.Event{MailID: id, Time: a.Start, Attempt: &a}); err != nil {
				return err
			}
		}
		for i, r := range m.Progress.Results {
			if r.Status == store.RecipientPending || r.Status == "" {
				continue
			}
			if err := observe(delivery.Event{MailID: id, Time: r.Time, Recipient: &delivery.Recipient{Recipient: m.Recipients[i], Result: r}}); err != nil {
				return err
			}
		}
		return observe(delivery.Event{MailID: id, Time: e.now(), Completed: m})
	}
}
