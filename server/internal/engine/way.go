package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// way is how mail of a mail server leaves: through itself, or through its fallback while it
// cannot be used. A mail server has one drain for each way.
type way struct {
	server *store.MailServer // whose mail it is
	via    *store.MailServer // through which it leaves
	// a mail server that has failed and has a fallback is tried with one mail, so that the rest
	// need not wait for what comes of it
	probe bool
}

// wayKey names a way.
type wayKey struct{ server, via string }

func (w way) key() wayKey { return wayKey{w.server.Name, w.via.Name} }

// direct is the way of a mail server that can be used.
func direct(s *store.MailServer) way { return way{server: s, via: s} }

func (w way) diverts() bool { return w.server.Name != w.via.Name }

// mayDivert says why no mail may leave now by a way through a fallback, nil if it may. A pause
// is a person's wish to wait; a mail server that is switched off only says that it is not to
// be used itself.
func (e *Engine) mayDivert(w way) error {
	newer, now := false, w.server
	if n := e.newest.get(w.server.Name); n != nil && n.Version > w.server.Version {
		newer, now = true, n
	}
	if err := e.usable(now); err != nil && !errors.Is(err, errUnavailable) {
		return err
	}
	if newer {
		return errReconfigured
	}
	err := e.mayLeave(w.via)
	if err != nil && !errors.Is(err, errReconfigured) {
		return fmt.Errorf("fallback %s: %w", w.via.Name, err)
	}
	return err
}

// mayTake says why no mail may leave now by a way, nil if it may.
func (e *Engine) mayTake(w way) error {
	if w.diverts() {
		return e.mayDivert(w)
	}
	return e.mayLeave(w.server)
}

// fallback is the way through a mail server's fallback, false when it has none that can be
// used now.
func (e *Engine) fallback(ctx context.Context, s *store.MailServer) (way, bool) {
	if s.Fallback == "" {
		return way{}, false
	}
	via, err := e.journal.Server(ctx, store.Everything, s.Fallback)
	if err != nil {
		return way{}, false // the mail waits as it would without one
	}
	e.heard(via)
	w := way{server: s, via: via}
	if e.mayDivert(w) != nil || via.Team != "" && via.Team != s.Team || e.relays.Suspended(via) != nil {
		return way{}, false
	}
	return w, true
}

// ways are those that mail of s, as it was just read, takes now; none while it has to wait.
// force is for a person's word: the mail server itself is tried.
func (e *Engine) ways(ctx context.Context, s *store.MailServer, force bool) []way {
	err := e.mayLeave(s)
	switch {
	case err == nil && (force || !e.relays.Failing(s)):
		return []way{direct(s)}
	case err != nil && !errors.Is(err, errUnavailable):
		return nil
	}
	w, diverts := e.fallback(ctx, s)
	suspended := e.relays.Suspended(s)
	var ws []way
	if diverts {
		ws = append(ws, w)
	}
	switch {
	case err != nil:
	case suspended == nil:
		d := direct(s)
		d.probe = diverts
		ws = append(ws, d)
	case !diverts:
		e.log.Debug("batch: mail server is suspended", "mail_server", s.Name, "reason", suspended.Reason, "next_try", suspended.RetryAt)
	}
	return ws
}

// beginAnew starts a drain with the new configuration or by the way that mail goes now, or
// makes the one that runs look once more.
func (d *drain) beginAnew(ctx context.Context) {
	if !d.outdated() && !d.hasOtherWay() {
		return
	}
	next, err := d.e.startDrains(ctx, []string{d.server.Name}, false)
	if err != nil {
		d.e.log.Error("batch: cannot read a mail server", "mail_server", d.server.Name, "error", err)
	}
	d.mu.Lock()
	d.next = append(d.next, next...)
	d.mu.Unlock()
}

// followers are the drains that this one begins for what it leaves behind, if it leaves
// anything.
func (d *drain) followers(ctx context.Context) []*drain {
	if d.broken() || d.probe || d.outdated() {
		select {
		case <-d.left:
		case <-ctx.Done():
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.next
	d.next = nil
	return next
}

// setAside settles what must not be sent, or not this way.
func (d *drain) setAside(j *job, now time.Time) bool {
	end, unsendable := j.Unsendable(now)
	why := ""
	if !unsendable && d.diverts() {
		if err := j.MayGoThrough(d.via); err != nil {
			end, unsendable = lifecycle.OwnOnly, true
			why = fmt.Sprintf("waits for mail server %s: not sent through the fallback %s: %v", d.server.Name, d.via.Name, err)
		}
	}
	if unsendable {
		d.jobs.Aside(j)
		d.finish(j, end, why)
	}
	return unsendable
}

// hasOtherWay says whether the mail that a drain leaves behind can go another way now.
func (d *drain) hasOtherWay() bool {
	switch failing := d.e.relays.Failing(d.server); {
	case d.diverts():
		return d.goesBack()
	case d.probe && !failing:
		return true
	default:
		return d.server.Fallback != "" && d.e.relays.Suspended(d.server) != nil
	}
}

// goesBack says whether a drain through a fallback has to end, because the mail server itself
// can be used again.
func (d *drain) goesBack() bool {
	return d.diverts() && d.e.mayLeave(d.server) == nil && !d.e.relays.Failing(d.server)
}

// takeWay says how a mail of php mode leaves now. One that may not go through the fallback goes
// the way it would go without one.
func (e *Engine) takeWay(ctx context.Context, s *store.MailServer, a *lifecycle.Attempt) (way, error) {
	s, err := e.current(s)
	if err != nil && !errors.Is(err, errUnavailable) || err == nil && e.relays.Suspended(s) == nil {
		return direct(s), err
	}
	if w, ok := e.detour(ctx, s, a); ok {
		return w, nil
	}
	return direct(s), err
}

// detour is the way through the fallback, if this mail may take it now.
func (e *Engine) detour(ctx context.Context, s *store.MailServer, a *lifecycle.Attempt) (way, bool) {
	w, ok := e.fallback(ctx, s)
	return w, ok && a.MayGoThrough(w.via) == nil
}

// keepWay is a way for the next transaction of the same mail, with the configuration of now.
func (e *Engine) keepWay(w way) (way, error) {
	if w.diverts() {
		return w, e.mayDivert(w)
	}
	s, err := e.current(w.server)
	return direct(s), err
}
