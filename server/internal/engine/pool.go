package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

const (
	idleLimit = 20 * time.Second // below what common relays allow an idle client (Postfix: 5 minutes, some providers: 30 s)
	poolSweep = time.Second
	slotPoll  = 200 * time.Millisecond // how often a slot is looked for that other replicas hold
)

var errNoConnection = errors.New("no connection is free")

// pool is everything about one mail server's connections in this process: how many there are, against the mail server's limit, and the open sessions that
// php-mode mails hand to each other. A php-mode mail waits here only for mails of the same mail server in php mode: of a php-mode server's connections the
// batch gets at most half, and with one connection in all it gives way.
type pool struct {
	e    *Engine
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
	owed  []permit // guarded by slots: could not be given back yet
}

type idleSession struct {
	s     Session
	since time.Time
}

// carried is what is known of a session in the pool's hands.
type carried struct {
	mails   int
	version int64
	permit  permit
}

// permit is the right to one connection.
type permit struct {
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

// pool returns the mail server's pool, told about the newest configuration.
func (fs *flights) pool(e *Engine, s *store.MailServer) *pool {
	fs.mu.Lock()
	p := fs.pools[s.Name]
	if p == nil {
		p = &pool{e: e, name: s.Name, server: s, carried: map[Session]*carried{}}
		fs.pools[s.Name] = p
	}
	fs.mu.Unlock()
	p.configure(s)
	return p
}

// configure takes a newer configuration and closes idle sessions of an older one.
func (p *pool) configure(s *store.MailServer) {
	p.mu.Lock()
	if s.Version <= p.server.Version {
		p.mu.Unlock()
		return
	}
	p.server = s
	old := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, i := range old {
		p.discard(i.s)
	}
}

// limit is how many connections there may be now.
func (p *pool) limit() int {
	return p.e.breakers.ramp(p.server, p.e.maxConnections(p.server))
}

// get returns a session for a php-mode mail, reused or new; it waits until ctx ends. Every get is followed by a put of the session, unless it failed.
func (p *pool) get(ctx context.Context, s *store.MailServer) (Session, error) {
	for {
		session, w, err := p.find()
		if w != nil {
			session, err = p.wait(ctx, w)
		}
		switch {
		case err != nil:
			return nil, err
		case session == nil:
			return p.dial(ctx, s)
		case session.Usable():
			return session, nil
		}
		p.discard(session)
	}
}

// find returns an idle session, or a permit (no session), or a place in the queue.
func (p *pool) find() (Session, *waiter, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		s := p.idle[n-1].s
		p.idle = p.idle[:n-1]
		return s, nil, nil
	}
	if p.open < p.limit() && len(p.waiters) == 0 {
		p.open++
		return nil, nil, nil
	}
	w := &waiter{c: make(chan grant, 1)}
	p.waiters = append(p.waiters, w)
	return nil, w, nil
}

func (p *pool) wait(ctx context.Context, w *waiter) (Session, error) {
	select {
	case g := <-w.c:
		return g.session, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	for i, x := range p.waiters {
		if x == w {
			p.waiters = append(p.waiters[:i], p.waiters[i+1:]...)
			p.mu.Unlock()
			return nil, ctx.Err()
		}
	}
	p.mu.Unlock()
	if g := <-w.c; g.session != nil { // granted while ctx ended
		p.put(g.session)
	} else {
		p.release(permit{})
	}
	return nil, ctx.Err()
}

// dial opens a session on a permit that was taken, for a php-mode mail.
func (p *pool) dial(ctx context.Context, s *store.MailServer) (Session, error) {
	pm := permit{}
	for {
		ok, err := p.slot(ctx, s, &pm)
		if err != nil {
			p.release(pm)
			return nil, err
		}
		if ok {
			break
		}
		select {
		case <-time.After(slotPoll):
		case <-ctx.Done():
			p.release(pm)
			return nil, ctx.Err()
		}
	}
	session, err := p.connect(ctx, s, false)
	if err != nil {
		p.release(pm)
		return nil, err
	}
	p.mu.Lock()
	p.carried[session] = &carried{version: s.Version, permit: pm}
	p.mu.Unlock()
	return session, nil
}

// slot takes one of the mail server's connections over all replicas, where it has a limit of its own.
func (p *pool) slot(ctx context.Context, s *store.MailServer, pm *permit) (bool, error) {
	if s.Limits.MaxConnections == 0 {
		return true, nil
	}
	p.slots.Lock()
	defer p.slots.Unlock()
	if !p.payOwed() {
		return false, nil // a slot that is owed may be the one that would be taken
	}
	pm.replica = p.e.lease.replica()
	n, ok, err := p.e.journal.TakeSlot(ctx, pm.replica, s.Name, int(s.Limits.MaxConnections))
	pm.slot, pm.slotted = n, ok
	return ok, err
}

// connect opens a session past the breaker and tells the breaker. A failure beside sessions that stand only means that the relay wants fewer connections.
func (p *pool) connect(ctx context.Context, s *store.MailServer, force bool) (Session, error) {
	if err := p.e.breakers.allow(ctx, s, force); err != nil {
		return nil, err
	}
	began := time.Now()
	session, err := p.e.cfg.Dial(ctx, s)
	// What was learned is written down also when the caller has gone meanwhile.
	bctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), breakerWrite)
	defer cancel()
	if err == nil {
		p.mu.Lock()
		p.live++
		p.mu.Unlock()
		p.e.breakers.opened(bctx, s)
		return session, nil
	}
	if ctx.Err() != nil && time.Since(began) < patience {
		return nil, err // it was stopped: little was learned
	}
	p.sweep(time.Time{}) // idle sessions that the relay has closed do not stand
	p.mu.Lock()
	down := p.live == 0
	p.mu.Unlock()
	if down {
		until := p.e.breakers.failed(bctx, s, err.Error())
		p.e.log.Error("mail server is down: no session", "mail_server", s.Name, "error", err, "next_try", until.UTC().Format(time.RFC3339))
	}
	return nil, err
}

const (
	breakerWrite = 5 * time.Second
	patience     = 10 * time.Second // a relay that has not let us in for so long is down, also when the caller could not wait longer
)

// put gives a session back: to the next who waits, or to the idle ones.
func (p *pool) put(s Session) {
	p.mu.Lock()
	c := p.carried[s]
	c.mails++
	if !s.Usable() || c.mails >= p.e.mailsPerConnection(p.server) || c.version != p.server.Version || p.e.isStopping() || p.open > p.limit() {
		p.mu.Unlock()
		p.discard(s)
		return
	}
	if len(p.waiters) > 0 {
		w := p.waiters[0]
		p.waiters = p.waiters[1:]
		w.c <- grant{session: s}
	} else {
		p.idle = append(p.idle, idleSession{s, time.Now()})
	}
	p.mu.Unlock()
}

// discard closes a session without making anybody wait for its QUIT; its permit is free only after that.
func (p *pool) discard(s Session) {
	p.mu.Lock()
	c := p.carried[s]
	delete(p.carried, s)
	p.live--
	p.mu.Unlock()
	go func() {
		_ = s.Close()
		p.release(c.permit)
	}()
}

// release gives a permit back.
func (p *pool) release(pm permit) {
	if pm.slotted {
		p.slots.Lock()
		p.owed = append(p.owed, pm)
		p.payOwed()
		p.slots.Unlock()
	}
	p.mu.Lock()
	p.open--
	if pm.batch {
		p.batch--
	}
	p.serve()
	p.mu.Unlock()
}

// payOwed gives back the slots that are owed, as many as the database takes now, and reports
// whether none is left. With slots held.
func (p *pool) payOwed() bool {
	ctx, cancel := context.WithTimeout(context.Background(), breakerWrite)
	defer cancel()
	for len(p.owed) > 0 {
		pm := p.owed[0]
		if err := p.e.journal.GiveSlot(ctx, pm.replica, p.name, pm.slot); err != nil {
			p.e.log.Warn("connection slot not given back yet", "mail_server", p.name, "error", err)
			return false
		}
		p.owed = p.owed[1:]
	}
	return true
}

// serve grants free permits to those who wait. With mu held.
func (p *pool) serve() {
	for len(p.waiters) > 0 && p.open < p.limit() {
		w := p.waiters[0]
		p.waiters = p.waiters[1:]
		p.open++
		w.c <- grant{}
	}
}

// tryBatch takes a permit for a worker of the batch, false when there is none for it now.
func (p *pool) tryBatch(ctx context.Context, s *store.MailServer) (permit, bool) {
	pm := permit{batch: true}
	p.mu.Lock()
	limit := p.limit()
	share := limit
	if s.Mode == store.ModePHP {
		share = max(1, limit/2)
	}
	if p.batch >= share || len(p.waiters) > 0 {
		p.mu.Unlock()
		return pm, false
	}
	var spare Session
	if p.open >= limit {
		if len(p.idle) == 0 {
			p.mu.Unlock()
			return pm, false
		}
		spare = p.idle[0].s
		p.idle = p.idle[1:]
	}
	p.open++
	p.batch++
	p.mu.Unlock()
	if spare != nil {
		p.discard(spare)
	}
	ok, err := p.slot(ctx, s, &pm)
	if err != nil || !ok {
		p.release(pm)
		return pm, false
	}
	return pm, true
}

// giveWay says that a worker of the batch should end because a php-mode mail waits and the batch has all there is.
func (p *pool) giveWay() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waiters) > 0 && p.batch >= p.open
}

// closed notes that a worker's session is gone.
func (p *pool) closed() {
	p.mu.Lock()
	p.live--
	p.mu.Unlock()
}

// sweep closes what has been idle since before t and what the relay has closed, and lets those in who wait for a ramp.
func (p *pool) sweep(t time.Time) {
	p.mu.Lock()
	var old []Session
	keep := p.idle[:0]
	for _, i := range p.idle {
		if i.since.Before(t) || !i.s.Usable() {
			old = append(old, i.s)
		} else {
			keep = append(keep, i)
		}
	}
	p.idle = keep
	p.serve()
	p.mu.Unlock()
	for _, s := range old {
		p.discard(s)
	}
}

// pools sweeps idle sessions until ctx ends.
func (e *Engine) pools(ctx context.Context) {
	t := time.NewTicker(poolSweep)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			for _, p := range e.flights.all() {
				p.sweep(now.Add(-idleLimit))
				p.slots.Lock()
				p.payOwed()
				p.slots.Unlock()
			}
		}
	}
}

func (fs *flights) all() []*pool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	ps := make([]*pool, 0, len(fs.pools))
	for _, p := range fs.pools {
		ps = append(ps, p)
	}
	return ps
}

// closePools says QUIT on every idle session and waits for that.
func (fs *flights) closePools() {
	var wg sync.WaitGroup
	for _, p := range fs.all() {
		p.mu.Lock()
		idle := p.idle
		p.idle = nil
		p.mu.Unlock()
		for _, i := range idle {
			wg.Go(func() { _ = i.s.Close() })
		}
	}
	wg.Wait()
}
