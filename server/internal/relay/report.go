package relay

import (
	"context"
	"errors"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// Outcome is what a transaction says about the mail server.
type Outcome int

const (
	// Nothing that is about the mail server.
	Nothing Outcome = iota
	// Answered: a mail was accepted, or refused for itself. Only that is a success; a greeting
	// is none.
	Answered
	// Crowded: the same, and fewer connections would help. It suspends nobody.
	Crowded
	// Throttled: the relay says that we are too fast or too many.
	Throttled
	// ThrownOut: the same, and it ends the session with that.
	ThrownOut
	// Interrupted: the connection was lost, or closed by the relay, before anything was
	// decided; the mail is tried again on a fresh one.
	Interrupted
	// Lost: the same, and the mail has had its tries.
	Lost
)

// maxThrottled is how many throttling answers in a row, with nothing accepted between them,
// suspend the mail server.
const maxThrottled = 3

// Report says what a transaction on a session has shown that was begun at a time. The error is
// not nil when the mail server is suspended by that.
func (r *Relay) Report(ctx context.Context, session Session, s *store.MailServer, began time.Time, o Outcome, text string) error {
	switch o {
	case Answered:
		r.answered(ctx, session, s, began, -1)
	case Crowded:
		r.answered(ctx, session, s, began, 1)
	case Throttled, ThrownOut:
		return r.onThrottle(ctx, s, began, o == ThrownOut, text)
	case Interrupted, Lost:
		return r.lost(ctx, session, s, o == Lost, text)
	}
	return nil
}

// answered marks the mail server well, and takes cut connections off those it may have.
func (r *Relay) answered(ctx context.Context, session Session, s *store.MailServer, began time.Time, cut int) {
	r.mu.Lock()
	if cut < 0 {
		r.window.grow(began, time.Now(), r.rs.MaxConnections(s), r.open >= r.limit())
	}
	if st := r.standing[session]; st != nil {
		st.proven, st.probe = true, false
	}
	r.throttled, r.cut = 0, min(max(0, r.cut+cut), r.rs.MaxConnections(s)-1)
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	if r.rs.breakers.succeeded(ctx, s) {
		r.mu.Lock()
		r.serve() // it was suspended, and connections ramp up
		r.mu.Unlock()
	}
}

// onThrottle slows the mail server down when it says that we are too fast or too many: fewer
// connections, see window, and after several such answers in a row the breaker. An answer to
// what was under way at the one before counts for the breaker where the relay hung up with it.
func (r *Relay) onThrottle(ctx context.Context, s *store.MailServer, began time.Time, out bool, text string) error {
	r.mu.Lock()
	if !r.window.shrink(began, time.Now(), r.rs.MaxConnections(s)) && !out {
		r.mu.Unlock()
		return nil
	}
	r.throttled++
	suspend := r.throttled >= maxThrottled
	if suspend {
		r.throttled = 0
	}
	r.mu.Unlock()
	if !suspend {
		return nil
	}
	until := r.suspend(ctx, s, "throttled: "+text)
	r.rs.cfg.Logger.Warn("mail server throttles: suspended", "mail_server", s.Name, "answer", text, "next_try", until.UTC().Format(time.RFC3339))
	return errors.New("throttled: " + text)
}

// lost judges a session that ended before its first success. The mail server is down when no
// other session has had one, and the mail its tries; a probe has one try.
func (r *Relay) lost(ctx context.Context, session Session, s *store.MailServer, final bool, text string) error {
	r.sweep(time.Time{}) // idle sessions that the relay has closed do not stand
	r.mu.Lock()
	st := r.standing[session]
	proven, probe := st == nil || st.proven, st != nil && st.probe
	if st != nil {
		st.probe = false
	}
	others := 0
	for other, x := range r.standing {
		if other != session && x.proven {
			others++
		}
	}
	down := !proven && others == 0 && (final || probe)
	if !proven && others > 0 && final {
		r.wantsFewer(others)
	}
	r.mu.Unlock()
	if !down {
		return nil
	}
	until := r.suspend(ctx, s, text)
	r.rs.cfg.Logger.Error("mail server is down: it lets us in and takes no mail", "mail_server", s.Name, "error", text, "next_try", until.UTC().Format(time.RFC3339))
	return errors.New(text)
}

// suspend opens the breaker, and returns when the next try may be.
func (r *Relay) suspend(ctx context.Context, s *store.MailServer, reason string) time.Time {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	r.rs.cfg.Observer.Suspended(s.Name)
	return r.rs.breakers.failed(ctx, s, reason)
}

// wantsFewer notes that the relay refuses more connections than the n that stand: for a while
// there are no more, longer each time. With mu held.
func (r *Relay) wantsFewer(n int) {
	r.refused++
	r.atMost, r.atMostUntil = max(1, n), r.rs.cfg.Now().Add(rest(r.refused))
}
