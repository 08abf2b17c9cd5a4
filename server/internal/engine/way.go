package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/brake"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// serverChanged takes what is here to a newer configuration of a mail server. A drain that runs
// under an older one ends: what it has claimed goes back, and a new drain begins if mail may
// leave.
func (e *Engine) serverChanged(s *store.MailServer) {
	e.relays.Of(s)
	e.drains.brake(e, s)
}

// inUse adds the names of the mail servers that are in use here.
func (e *Engine) inUse(names map[string]bool) {
	for _, s := range e.relays.InUse() {
		names[s.Name] = true
	}
	e.drains.mu.Lock()
	defer e.drains.mu.Unlock()
	for _, d := range e.drains.running {
		names[d.Server.Name], names[d.Via.Name] = true, true
	}
}

// ServerChanged says that a mail server was changed by this process.
func (e *Engine) ServerChanged(ctx context.Context, name string) { e.brake.Read(ctx, name) }

// brake ends the drains that run under an older configuration than s, also those of mail that
// goes through s as a fallback.
func (ds *drains) brake(e *Engine, s *store.MailServer) {
	older := func(x *store.MailServer) bool { return x.Name == s.Name && x.Version < s.Version }
	var stale []*drain
	ds.mu.Lock()
	for _, d := range ds.running {
		if older(d.Server) || older(d.Via) {
			d.stale = true
			stale = append(stale, d)
		}
	}
	ds.mu.Unlock()
	for _, d := range stale {
		err := e.brake.MayTake(d.Way)
		if err == nil {
			err = brake.ErrReconfigured
		}
		if d.abort(err) {
			e.log.Info("batch: begins anew", "mail_server", d.Server.Name, "reason", err)
		}
	}
}

// fallback is the way through a mail server's fallback, false when it has none that can be
// used now.
func (e *Engine) fallback(ctx context.Context, s *store.MailServer) (brake.Way, bool) {
	if s.Fallback == "" {
		return brake.Way{}, false
	}
	via, err := e.journal.Server(ctx, store.Everything, s.Fallback)
	if err != nil {
		return brake.Way{}, false // the mail waits as it would without one
	}
	e.brake.Heard(via)
	w := brake.Way{Server: s, Via: via}
	if e.brake.MayDivert(w) != nil || via.Team != "" && via.Team != s.Team || e.relays.Suspended(via) != nil {
		return brake.Way{}, false
	}
	return w, true
}

// ways are those that mail of s, as it was just read, takes now; none while it has to wait.
// force is for a person's word: the mail server itself is tried.
func (e *Engine) ways(ctx context.Context, s *store.MailServer, force bool) []brake.Way {
	err := e.brake.MayLeave(s)
	switch {
	case err == nil && (force || !e.relays.Failing(s)):
		return []brake.Way{brake.Direct(s)}
	case err != nil && !errors.Is(err, brake.ErrUnavailable):
		return nil
	}
	w, diverts := e.fallback(ctx, s)
	suspended := e.relays.Suspended(s)
	var ws []brake.Way
	if diverts {
		ws = append(ws, w)
	}
	switch {
	case err != nil:
	case suspended == nil:
		d := brake.Direct(s)
		d.Probe = diverts
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
	next, err := d.e.startDrains(ctx, []string{d.Server.Name}, false)
	if err != nil {
		d.e.log.Error("batch: cannot read a mail server", "mail_server", d.Server.Name, "error", err)
	}
	d.mu.Lock()
	d.next = append(d.next, next...)
	d.mu.Unlock()
}

// followers are the drains that this one begins for what it leaves behind, if it leaves
// anything.
func (d *drain) followers(ctx context.Context) []*drain {
	if d.broken() || d.Probe || d.outdated() {
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

// settleUnsendable settles what must not be sent, or not this way.
func (d *drain) settleUnsendable(j *job, now time.Time) bool {
	end, unsendable := j.Unsendable(now)
	why := ""
	if !unsendable && d.Diverts() {
		if err := j.MayGoThrough(d.Via); err != nil {
			end, unsendable = lifecycle.OwnOnly, true
			why = fmt.Sprintf("waits for mail server %s: not sent through the fallback %s: %v", d.Server.Name, d.Via.Name, err)
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
	switch failing := d.e.relays.Failing(d.Server); {
	case d.Diverts():
		return d.goesBack()
	case d.Probe && !failing:
		return true
	default:
		return d.Server.Fallback != "" && d.e.relays.Suspended(d.Server) != nil
	}
}

// goesBack says whether a drain through a fallback has to end, because the mail server itself
// can be used again.
func (d *drain) goesBack() bool {
	return d.Diverts() && d.e.brake.MayLeave(d.Server) == nil && !d.e.relays.Failing(d.Server)
}

// takeWay says how a mail of php mode leaves now. One that may not go through the fallback goes
// the way it would go without one.
func (e *Engine) takeWay(ctx context.Context, s *store.MailServer, a *lifecycle.Attempt) (brake.Way, error) {
	s, err := e.brake.Current(s)
	if err != nil && !errors.Is(err, brake.ErrUnavailable) || err == nil && e.relays.Suspended(s) == nil {
		return brake.Direct(s), err
	}
	if w, ok := e.detour(ctx, s, a); ok {
		return w, nil
	}
	return brake.Direct(s), err
}

// detour is the way through the fallback, if this mail may take it now.
func (e *Engine) detour(ctx context.Context, s *store.MailServer, a *lifecycle.Attempt) (brake.Way, bool) {
	w, ok := e.fallback(ctx, s)
	return w, ok && a.MayGoThrough(w.Via) == nil
}
