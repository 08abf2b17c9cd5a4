package relay

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

const (
	// IdleLimit is how long a connection stands idle: less than common relays allow (Postfix:
	// 5 minutes, some providers: 30 s).
	IdleLimit = 20 * time.Second
	poolSweep = time.Second
	// how often a slot is looked for that other replicas hold
	slotPoll = 200 * time.Millisecond
	// for a write of what was learned, which its caller does not bound
	writeTime = 5 * time.Second
	dialLimit = probeFor - 10*time.Second
)

// Relay is everything about one mail server's connections in this process: how many there are,
// against the mail server's limits, and the open sessions that php-mode mails hand to each
// other. A php-mode mail waits here only for mails of the same mail server in php mode: of a
// php-mode server's connections the batch gets at most half, and with one connection in all it
// yields.
//
// Lock order: mu, then the locks of breakers and slots, which are leaves. No lock is held
// during a statement or a command to the relay.
type Relay struct {
	rs   *Relays
	name string
	rate rate

	mu       sync.Mutex        // guards everything below
	server   *store.MailServer // the newest configuration seen
	open     int               // permits in use: a session each, or one that is being opened
	batch    int               // of them the batch's
	leaving  int               // permits of the batch whose workers were told to end
	standing map[Session]*standing
	idle     []Session // php mode's, the one used last at the end
	waiters  []*waiter

	throttled   int       // throttling answers in a row
	window      window    // connections that a relay bears that throttles
	cut         int       // connections taken off because mails are deferred as if it did
	refused     int       // sessions in a row that were refused while others stood
	atMost      int       // connections until atMostUntil, after that
	atMostUntil time.Time // zero: no such limit
	alike       alike     // refusals in a row; see Judge
	takes       int       // recipients of a transaction until takesUntil; see Took
	takesUntil  time.Time
}

// standing is what is known of an open session.
type standing struct {
	permit  *Permit
	version int64
	mails   int       // php mode's
	since   time.Time // idle since then
	proven  bool      // a mail was answered on it
	probe   bool      // it was opened on a suspended mail server, and has no verdict yet
}

// Permit is the right to one connection. Its holder gives it back with Release.
type Permit struct {
	batch bool
	slot  store.Slot  // over all replicas, where the mail server limits that; see slots.held
	lost  atomic.Bool // another replica has the slot by now: end soon

	// Guarded by Relay.mu.
	dialing   bool // a session is being opened on it
	abandoned bool // its holder has gone meanwhile: it belongs to the goroutine that dials
	leaving   bool
}

// waiter is a php-mode mail that waits for a session or for a permit, whichever comes first.
type waiter struct{ c chan grant }

type grant struct {
	session Session // nil: a permit was granted
}

// configure takes a newer configuration and closes idle sessions of an older one.
func (r *Relay) configure(s *store.MailServer) {
	r.mu.Lock()
	if s.Version <= r.server.Version {
		r.mu.Unlock()
		return
	}
	r.server = s
	old := r.idle
	r.idle = nil
	r.throttled, r.window, r.cut, r.refused, r.atMostUntil, r.takesUntil, r.alike = 0, window{}, 0, 0, time.Time{}, time.Time{}, alike{}
	r.mu.Unlock()
	for _, i := range old {
		r.discard(i)
	}
}

// newest is the newest configuration seen.
func (r *Relay) newest() *store.MailServer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.server
}

// limit is how many connections there may be now. With mu held.
func (r *Relay) limit() int {
	n := r.rs.breakers.ramp(r.server, r.window.most(r.rs.MaxConnections(r.server)-r.cut))
	if !r.atMostUntil.IsZero() && r.rs.cfg.Now().Before(r.atMostUntil) {
		n = min(n, r.atMost)
	}
	return max(1, n)
}

// Get returns a session for a php-mode mail, reused or new; it waits until ctx ends, but not
// for a mail server that is suspended. Every Get is followed by a Put of the session, unless it
// failed.
func (r *Relay) Get(ctx context.Context, s *store.MailServer) (Session, error) {
	for {
		session, w, err := r.find(s)
		if w != nil {
			session, err = r.wait(ctx, w)
		}
		switch {
		case err != nil:
			return nil, err
		case session == nil:
			return r.dial(ctx, s)
		case session.Usable():
			return session, nil
		}
		r.discard(session)
	}
}

// find returns an idle session, or a permit (no session), or a place in the queue. A caller
// hears at once of a suspension, but waits for a probe of this process.
func (r *Relay) find(s *store.MailServer) (Session, *waiter, error) {
	b := r.rs.breakers.get(s)
	r.mu.Lock()
	defer r.mu.Unlock()
	if b != nil && b.Failures > 0 {
		now := r.rs.cfg.Now()
		if now.Before(b.RetryAt) || now.Before(b.ProbeUntil) && r.open == 0 {
			return nil, nil, &SuspendedError{b.Reason, Later(b.RetryAt, b.ProbeUntil)}
		}
	}
	if n := len(r.idle); n > 0 {
		session := r.idle[n-1]
		r.idle = r.idle[:n-1]
		return session, nil, nil
	}
	if r.open < r.limit() && len(r.waiters) == 0 {
		r.open++
		return nil, nil, nil
	}
	w := &waiter{c: make(chan grant, 1)}
	r.waiters = append(r.waiters, w)
	return nil, w, nil
}

func (r *Relay) wait(ctx context.Context, w *waiter) (Session, error) {
	select {
	case g := <-w.c:
		return g.session, nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	for i, x := range r.waiters {
		if x == w {
			r.waiters = append(r.waiters[:i], r.waiters[i+1:]...)
			r.mu.Unlock()
			return nil, ctx.Err()
		}
	}
	r.mu.Unlock()
	if g := <-w.c; g.session != nil { // granted while ctx ended
		r.Put(g.session)
	} else {
		r.Release(&Permit{})
	}
	return nil, ctx.Err()
}

// dial opens a session on a permit that was taken, for a php-mode mail.
func (r *Relay) dial(ctx context.Context, s *store.MailServer) (Session, error) {
	pm := &Permit{}
	for {
		ok, err := r.slot(ctx, s, pm)
		if err != nil {
			r.Release(pm)
			return nil, err
		}
		if ok {
			break
		}
		select {
		case <-time.After(slotPoll):
		case <-ctx.Done():
			r.Release(pm)
			return nil, ctx.Err()
		}
	}
	session, err := r.Connect(ctx, pm, s, false)
	if err != nil {
		r.Release(pm)
		return nil, err
	}
	return session, nil
}

// slot takes one of the mail server's connections over all replicas, where it has a limit of
// its own.
func (r *Relay) slot(ctx context.Context, s *store.MailServer, pm *Permit) (bool, error) {
	if s.Limits.MaxConnections == 0 {
		return true, nil
	}
	return r.rs.slots.take(ctx, s.Name, int(s.Limits.MaxConnections), pm)
}

// Connect opens a session past the breaker and tells the breaker. It does so on a goroutine and
// a deadline of its own, so that what is learned about the mail server does not depend on how
// long a caller can wait. When ctx ends first the permit goes with that goroutine; Release then
// does nothing, and a session of php mode that comes late is there for the next.
func (r *Relay) Connect(ctx context.Context, pm *Permit, s *store.MailServer, force bool) (Session, error) {
	type answer struct {
		session Session
		err     error
	}
	c := make(chan answer, 1)
	r.mu.Lock()
	pm.dialing = true
	r.mu.Unlock()
	r.rs.spawn(func() {
		session, err := r.openSession(smtpx.TraceOf(ctx), pm, s, force)
		r.mu.Lock()
		pm.dialing = false
		abandoned := pm.abandoned
		if !abandoned {
			c <- answer{session, err}
		}
		r.mu.Unlock()
		switch {
		case !abandoned:
		case err != nil:
			r.release(pm)
		case pm.batch:
			r.CloseSession(session)
			r.release(pm)
		default:
			r.Put(session)
		}
	})
	select {
	case a := <-c:
		return a.session, a.err
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if pm.dialing {
		pm.abandoned = true
		return nil, ctx.Err()
	}
	a := <-c
	return a.session, a.err
}

// openSession opens one session, whose steps tr hears. A failure while others stand only means
// that the relay wants fewer connections.
func (r *Relay) openSession(tr *smtpx.Trace, pm *Permit, s *store.MailServer, force bool) (Session, error) {
	ctx, cancel := context.WithTimeout(r.rs.base, dialLimit)
	defer cancel()
	probe, err := r.rs.breakers.allow(ctx, s, force)
	if err != nil {
		return nil, err
	}
	if tr != nil {
		ctx = smtpx.WithTrace(ctx, tr)
	}
	session, err := r.rs.cfg.Dial(ctx, s)
	if err == nil {
		r.rs.cfg.Observer.Opened(s.Name, smtpx.FailNone)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.standing[session] = &standing{permit: pm, version: s.Version, probe: probe}
		if probe || len(r.standing) > 1 {
			r.refused, r.atMostUntil = 0, time.Time{}
		}
		return session, nil
	}
	if r.rs.base.Err() != nil {
		return nil, err // we are stopping: nothing was learned
	}
	r.rs.cfg.Observer.Opened(s.Name, FailureOf(err))
	r.sweep(time.Time{}) // idle sessions that the relay has closed do not stand
	r.mu.Lock()
	n := len(r.standing)
	if n > 0 && !probe {
		r.wantsFewer(n)
	}
	r.mu.Unlock()
	if n == 0 || probe {
		until := r.suspend(ctx, s, err.Error())
		r.rs.cfg.Logger.Error("mail server is down: no session", "mail_server", s.Name, "error", err, "next_try", until.UTC().Format(time.RFC3339))
	}
	return nil, err
}

// Put gives a session back: to the next who waits, or to the idle ones.
func (r *Relay) Put(s Session) {
	r.mu.Lock()
	st := r.standing[s]
	st.mails++
	if !s.Usable() || st.mails >= r.rs.MailsPerConnection(r.server) || st.version != r.server.Version || r.rs.cfg.Stopping() || r.open > r.limit() || st.permit.lost.Load() {
		r.mu.Unlock()
		r.discard(s)
		return
	}
	if len(r.waiters) > 0 {
		w := r.waiters[0]
		r.waiters = r.waiters[1:]
		w.c <- grant{session: s}
	} else {
		st.since = time.Now()
		r.idle = append(r.idle, s)
	}
	r.mu.Unlock()
}

// takeOff takes a session off the standing ones. It is at once no reason to call a relay that
// cannot be reached merely short of connections.
func (r *Relay) takeOff(s Session) (*standing, *store.MailServer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.standing[s]
	delete(r.standing, s)
	return st, r.server
}

// endProbe gives the probe of a session that is gone back if it is undecided.
func (r *Relay) endProbe(st *standing, server *store.MailServer) {
	if !st.probe {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeTime)
	defer cancel()
	r.rs.breakers.endProbe(ctx, server)
}

// discard closes a session without making anybody wait for its QUIT; its permit is free only
// after that.
func (r *Relay) discard(s Session) {
	st, server := r.takeOff(s)
	r.rs.spawn(func() {
		r.endProbe(st, server)
		_ = s.Close()
		r.release(st.permit)
	})
}

// CloseSession closes a session of the batch, whose permit stays with its worker.
func (r *Relay) CloseSession(s Session) {
	if err := s.Close(); err != nil {
		r.rs.cfg.Logger.Debug("close session", "mail_server", r.name, "error", err)
	}
	r.endProbe(r.takeOff(s))
}

// Release gives a permit back, unless a goroutine that dials has it.
func (r *Relay) Release(pm *Permit) {
	r.mu.Lock()
	mine := !pm.abandoned
	r.mu.Unlock()
	if mine {
		r.release(pm)
	}
}

func (r *Relay) release(pm *Permit) {
	r.rs.slots.give(pm)
	r.mu.Lock()
	r.open--
	if pm.batch {
		r.batch--
	}
	if pm.leaving {
		r.leaving--
	}
	r.serve()
	r.mu.Unlock()
}

// serve grants free permits to those who wait. With mu held.
func (r *Relay) serve() {
	for len(r.waiters) > 0 && r.open < r.limit() {
		w := r.waiters[0]
		r.waiters = r.waiters[1:]
		r.open++
		w.c <- grant{}
	}
}

// TryBatch takes a permit for a worker of the batch, false when there is none for it now.
func (r *Relay) TryBatch(ctx context.Context, s *store.MailServer) (*Permit, bool) {
	pm := &Permit{batch: true}
	r.mu.Lock()
	limit := r.limit()
	share := limit
	if s.Mode == store.ModePHP {
		share = max(1, limit/2)
	}
	if r.batch >= share || len(r.waiters) > 0 {
		r.mu.Unlock()
		return nil, false
	}
	var spare Session
	if r.open >= limit {
		if len(r.idle) == 0 || r.standing[r.idle[0]].probe {
			r.mu.Unlock()
			return nil, false
		}
		spare = r.idle[0]
		r.idle = r.idle[1:]
	}
	r.open++
	r.batch++
	r.mu.Unlock()
	if spare != nil {
		r.discard(spare)
	}
	ok, err := r.slot(ctx, s, pm)
	if err != nil || !ok {
		r.Release(pm)
		return nil, false
	}
	return pm, true
}

// Surplus says that a worker of the batch should end: a php-mode mail waits and the batch has
// all there is, there are more connections than there may be now, or its slot is another
// replica's.
func (r *Relay) Surplus(pm *Permit) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !pm.leaving && (pm.lost.Load() || len(r.waiters) > 0 && r.batch >= r.open || r.open-r.leaving > r.limit()) {
		pm.leaving = true
		r.leaving++
	}
	return pm.leaving
}

// Down reports whether no session stands.
func (r *Relay) Down() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.standing) == 0
}

// Probing reports whether a session is one on a suspended mail server that has no verdict yet:
// until it has one there is no other.
func (r *Relay) Probing(s Session) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.standing[s]
	return st != nil && st.probe
}

// sweep closes what has been idle since before t and what the relay has closed, and lets those
// in who wait for a ramp.
func (r *Relay) sweep(t time.Time) {
	r.mu.Lock()
	var old []Session
	keep := r.idle[:0]
	for _, s := range r.idle {
		if r.standing[s].since.Before(t) || !s.Usable() {
			old = append(old, s)
		} else {
			keep = append(keep, s)
		}
	}
	r.idle = keep
	r.serve()
	r.mu.Unlock()
	for _, s := range old {
		r.discard(s)
	}
}
