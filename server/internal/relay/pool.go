package relay

import (
	"context"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

const (
	idleLimit = 20 * time.Second // below what common relays allow an idle client (Postfix: 5 minutes, some providers: 30 s)
	poolSweep = time.Second
	slotPoll  = 200 * time.Millisecond // how often a slot is looked for that other replicas hold
)

// Relay is everything about one mail server's connections in this process: how many there are, against the mail server's limit, and the open sessions that
// php-mode mails hand to each other. A php-mode mail waits here only for mails of the same mail server in php mode: of a php-mode server's connections the
// batch gets at most half, and with one connection in all it gives way.
type Relay struct {
	rs   *Relays
	name string

	mu      sync.Mutex
	server  *store.MailServer // the newest configuration seen
	open    int               // permits in use: a session each, or one that is being opened
	batch   int               // of them the batch's
	live    int               // sessions that stand
	idle    []idleSession
	waiters []*waiter
	carried map[Session]*carried

	// slots orders what this process asks the database about connection slots, so that a slot that
	// is given back once more cannot be one that was taken again meanwhile. Taken before mu.
	slots sync.Mutex
	owed  []Permit // guarded by slots: could not be given back yet
}

type idleSession struct {
	s     Session
	since time.Time
}

// carried is what is known of a session in the pool's hands.
type carried struct {
	mails   int
	version int64
	permit  Permit
}

// Permit is the right to one connection.
type Permit struct {
	batch   bool
	slot    int // over all replicas, where the mail server limits that
	replica store.ReplicaID
	slotted bool
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
	r.mu.Unlock()
	for _, i := range old {
		r.discard(i.s)
	}
}

// limit is how many connections there may be now.
func (r *Relay) limit() int {
	return r.rs.breakers.ramp(r.server, r.rs.MaxConnections(r.server))
}

// Get returns a session for a php-mode mail, reused or new; it waits until ctx ends. Every get is followed by a put of the session, unless it failed.
func (r *Relay) Get(ctx context.Context, s *store.MailServer) (Session, error) {
	for {
		session, w, err := r.find()
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

// find returns an idle session, or a permit (no session), or a place in the queue.
func (r *Relay) find() (Session, *waiter, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.idle); n > 0 {
		s := r.idle[n-1].s
		r.idle = r.idle[:n-1]
		return s, nil, nil
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
		r.Release(Permit{})
	}
	return nil, ctx.Err()
}

// dial opens a session on a permit that was taken, for a php-mode mail.
func (r *Relay) dial(ctx context.Context, s *store.MailServer) (Session, error) {
	pm := Permit{}
	for {
		ok, err := r.slot(ctx, s, &pm)
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
	session, err := r.Connect(ctx, s, false)
	if err != nil {
		r.Release(pm)
		return nil, err
	}
	r.mu.Lock()
	r.carried[session] = &carried{version: s.Version, permit: pm}
	r.mu.Unlock()
	return session, nil
}

// slot takes one of the mail server's connections over all replicas, where it has a limit of its own.
func (r *Relay) slot(ctx context.Context, s *store.MailServer, pm *Permit) (bool, error) {
	if s.Limits.MaxConnections == 0 {
		return true, nil
	}
	r.slots.Lock()
	defer r.slots.Unlock()
	if !r.payOwed() {
		return false, nil // a slot that is owed may be the one that would be taken
	}
	pm.replica = r.rs.cfg.Replica()
	n, ok, err := r.rs.cfg.Journal.TakeSlot(ctx, pm.replica, s.Name, int(s.Limits.MaxConnections))
	pm.slot, pm.slotted = n, ok
	return ok, err
}

// Connect opens a session past the breaker and tells the breaker. A failure beside sessions that stand only means that the relay wants fewer connections.
func (r *Relay) Connect(ctx context.Context, s *store.MailServer, force bool) (Session, error) {
	if err := r.rs.breakers.allow(ctx, s, force); err != nil {
		return nil, err
	}
	began := time.Now()
	session, err := r.rs.cfg.Dial(ctx, s)
	// What was learned is written down also when the caller has gone meanwhile.
	bctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), breakerWrite)
	defer cancel()
	if err == nil {
		r.mu.Lock()
		r.live++
		r.mu.Unlock()
		r.rs.breakers.opened(bctx, s)
		return session, nil
	}
	if ctx.Err() != nil && time.Since(began) < patience {
		return nil, err // it was stopped: little was learned
	}
	r.sweep(time.Time{}) // idle sessions that the relay has closed do not stand
	r.mu.Lock()
	down := r.live == 0
	r.mu.Unlock()
	if down {
		until := r.rs.breakers.failed(bctx, s, err.Error())
		r.rs.cfg.Logger.Error("mail server is down: no session", "mail_server", s.Name, "error", err, "next_try", until.UTC().Format(time.RFC3339))
	}
	return nil, err
}

const (
	breakerWrite = 5 * time.Second
	patience     = 10 * time.Second // a relay that has not let us in for so long is down, also when the caller could not wait longer
)

// Put gives a session back: to the next who waits, or to the idle ones.
func (r *Relay) Put(s Session) {
	r.mu.Lock()
	c := r.carried[s]
	c.mails++
	if !s.Usable() || c.mails >= r.rs.MailsPerConnection(r.server) || c.version != r.server.Version || r.rs.cfg.Stopping() || r.open > r.limit() {
		r.mu.Unlock()
		r.discard(s)
		return
	}
	if len(r.waiters) > 0 {
		w := r.waiters[0]
		r.waiters = r.waiters[1:]
		w.c <- grant{session: s}
	} else {
		r.idle = append(r.idle, idleSession{s, time.Now()})
	}
	r.mu.Unlock()
}

// discard closes a session without making anybody wait for its QUIT; its permit is free only after that.
func (r *Relay) discard(s Session) {
	r.mu.Lock()
	c := r.carried[s]
	delete(r.carried, s)
	r.live--
	r.mu.Unlock()
	go func() {
		_ = s.Close()
		r.Release(c.permit)
	}()
}

// Release gives a permit back.
func (r *Relay) Release(pm Permit) {
	if pm.slotted {
		r.slots.Lock()
		r.owed = append(r.owed, pm)
		r.payOwed()
		r.slots.Unlock()
	}
	r.mu.Lock()
	r.open--
	if pm.batch {
		r.batch--
	}
	r.serve()
	r.mu.Unlock()
}

// payOwed gives back the slots that are owed, as many as the database takes now, and reports
// whether none is left. With slots held.
func (r *Relay) payOwed() bool {
	ctx, cancel := context.WithTimeout(context.Background(), breakerWrite)
	defer cancel()
	for len(r.owed) > 0 {
		pm := r.owed[0]
		if err := r.rs.cfg.Journal.GiveSlot(ctx, pm.replica, r.name, pm.slot); err != nil {
			r.rs.cfg.Logger.Warn("connection slot not given back yet", "mail_server", r.name, "error", err)
			return false
		}
		r.owed = r.owed[1:]
	}
	return true
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
func (r *Relay) TryBatch(ctx context.Context, s *store.MailServer) (Permit, bool) {
	pm := Permit{batch: true}
	r.mu.Lock()
	limit := r.limit()
	share := limit
	if s.Mode == store.ModePHP {
		share = max(1, limit/2)
	}
	if r.batch >= share || len(r.waiters) > 0 {
		r.mu.Unlock()
		return pm, false
	}
	var spare Session
	if r.open >= limit {
		if len(r.idle) == 0 {
			r.mu.Unlock()
			return pm, false
		}
		spare = r.idle[0].s
		r.idle = r.idle[1:]
	}
	r.open++
	r.batch++
	r.mu.Unlock()
	if spare != nil {
		r.discard(spare)
	}
	ok, err := r.slot(ctx, s, &pm)
	if err != nil || !ok {
		r.Release(pm)
		return pm, false
	}
	return pm, true
}

// YieldsTo says that a worker of the batch should end because a php-mode mail waits and the batch has all there is.
func (r *Relay) YieldsTo() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiters) > 0 && r.batch >= r.open
}

// Closed notes that a worker's session is gone.
func (r *Relay) Closed() {
	r.mu.Lock()
	r.live--
	r.mu.Unlock()
}

// sweep closes what has been idle since before t and what the relay has closed, and lets those in who wait for a ramp.
func (r *Relay) sweep(t time.Time) {
	r.mu.Lock()
	var old []Session
	keep := r.idle[:0]
	for _, i := range r.idle {
		if i.since.Before(t) || !i.s.Usable() {
			old = append(old, i.s)
		} else {
			keep = append(keep, i)
		}
	}
	r.idle = keep
	r.serve()
	r.mu.Unlock()
	for _, s := range old {
		r.discard(s)
	}
}
