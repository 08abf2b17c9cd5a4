package engine

import (
	"context"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

const (
	idleLimit = 20 * time.Second // below what common relays allow an idle client (Postfix: 5 minutes, some providers: 30 s)
	poolSweep = 5 * time.Second
)

// pool keeps a mail server's open sessions between php-mode mails and bounds how many there are. A mail waits here only for mails of the same mail
// server in php mode, never for a batch.
type pool struct {
	e     *Engine
	slots chan struct{}
	most  int // mails a session carries

	mu      sync.Mutex
	version int64 // of the configuration the idle sessions were opened with
	idle    []idleSession
	served  map[Session]int
}

type idleSession struct {
	s     Session
	since time.Time
}

// pool returns the mail server's pool; a changed connection limit makes a new one.
func (fs *flights) pool(e *Engine, s *store.MailServer) *pool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := e.maxConnections(s)
	p := fs.pools[s.Name]
	if p == nil || cap(p.slots) != n || p.most != e.mailsPerConnection(s) {
		if p != nil {
			go p.close()
		}
		p = &pool{e: e, most: e.mailsPerConnection(s), slots: make(chan struct{}, n), served: map[Session]int{}, version: s.Version}
		fs.pools[s.Name] = p
	}
	return p
}

// get returns a session, reused or new; it waits for a slot until ctx ends. Every get is followed by a put of the session, unless it failed.
func (p *pool) get(ctx context.Context, s *store.MailServer) (Session, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		session := p.pop(s.Version)
		if session == nil {
			break
		}
		if session.Usable() {
			return session, nil
		}
		p.discard(session)
	}
	session, err := p.e.cfg.Dial(ctx, s)
	if err != nil {
		<-p.slots
		return nil, err
	}
	return session, nil
}

// pop takes the session used last, nil if there is none of this configuration.
func (p *pool) pop(version int64) Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	if version != p.version {
		for _, i := range p.idle {
			delete(p.served, i.s)
			go func() { _ = i.s.Close() }() // QUIT may take seconds
		}
		p.idle, p.version = nil, version
	}
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	s := p.idle[n-1].s
	p.idle = p.idle[:n-1]
	return s
}

// put gives a session back.
func (p *pool) put(s Session) {
	p.mu.Lock()
	p.served[s]++
	keep := s.Usable() && p.served[s] < p.most && !p.e.isStopping()
	if keep {
		p.idle = append(p.idle, idleSession{s, time.Now()})
	}
	p.mu.Unlock()
	if !keep {
		p.discard(s)
	}
	<-p.slots
}

// discard closes a session without making anybody wait for its QUIT.
func (p *pool) discard(s Session) {
	p.mu.Lock()
	delete(p.served, s)
	p.mu.Unlock()
	go func() { _ = s.Close() }()
}

// sweep closes what has been idle since before t.
func (p *pool) sweep(t time.Time) {
	p.mu.Lock()
	var old []Session
	keep := p.idle[:0]
	for _, i := range p.idle {
		if i.since.Before(t) {
			old = append(old, i.s)
			delete(p.served, i.s)
		} else {
			keep = append(keep, i)
		}
	}
	p.idle = keep
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range old {
		wg.Go(func() { _ = s.Close() })
	}
	wg.Wait()
}

func (p *pool) close() { p.sweep(time.Now().Add(time.Hour)) }

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

func (fs *flights) closePools() {
	for _, p := range fs.all() {
		p.close()
	}
}
