// Package relay holds everything about this process's connections to mail servers: the pool of
// sessions, the permits and the slots over all replicas, the breaker and its probe, the ramp after
// a recovery, the slowing down when a relay throttles, and the rate limits. It does not know which
// mail is sent, nor why; the engine does.
package relay

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Journal is what this package needs of the store.
type Journal interface {
	Breakers(ctx context.Context) (map[string]*store.Breaker, error)
	ChangeBreaker(ctx context.Context, server string, change func(now time.Time, b *store.Breaker) bool) (*store.Breaker, error)
	TakeSlot(ctx context.Context, r store.ReplicaID, server string, limit int) (n int, ok bool, err error)
	GiveSlot(ctx context.Context, r store.ReplicaID, server string, n int) error
	TakeQuota(ctx context.Context, server string, want, perMinute, perDay int) (granted int, next time.Time, err error)
}

// Session is one logged-in connection to a relay; *smtpx.Session is the real one.
type Session interface {
	Submit(ctx context.Context, t *smtpx.Transaction) error
	Flush(ctx context.Context) error
	Usable() bool
	Close() error
}

// Dial opens a session with a mail server: the one path for php mode, daemon mode and the demo.
// Errors are *smtpx.Error where the wire said them.
type Dial func(ctx context.Context, s *store.MailServer) (Session, error)

// Config is what Relays need. All of it is required.
type Config struct {
	Journal  Journal
	Dial     Dial
	Logger   *slog.Logger
	Now      func() time.Time       // the database's clock, as well as this process knows it
	Replica  func() store.ReplicaID // this process's id; it changes when a lease was lost
	Stopping func() bool            // nothing new may begin

	// MaxConnections and MailsPerConnection hold where a mail server's own limits say nothing.
	MaxConnections     int
	MailsPerConnection int
}

// Relays is the mail servers that this process has connections to, one Relay each.
type Relays struct {
	cfg      Config
	breakers *breakers

	mu     sync.Mutex
	byName map[string]*Relay
}

// New makes the relays; nothing runs before Run.
func New(cfg Config) *Relays {
	rs := &Relays{cfg: cfg, byName: map[string]*Relay{}}
	rs.breakers = newBreakers(&rs.cfg)
	return rs
}

// Of returns the relay of a mail server, told about the newest configuration.
func (rs *Relays) Of(s *store.MailServer) *Relay {
	rs.mu.Lock()
	r := rs.byName[s.Name]
	if r == nil {
		r = &Relay{rs: rs, name: s.Name, server: s, carried: map[Session]*carried{}}
		rs.byName[s.Name] = r
	}
	rs.mu.Unlock()
	r.configure(s)
	return r
}

// Run reads what other replicas have found out and closes idle sessions, until ctx ends.
func (rs *Relays) Run(ctx context.Context) {
	var own sync.WaitGroup
	own.Go(func() { rs.breakers.run(ctx) })
	t := time.NewTicker(poolSweep)
	defer t.Stop()
	defer own.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			for _, r := range rs.all() {
				r.sweep(now.Add(-idleLimit))
				r.slots.Lock()
				r.payOwed()
				r.slots.Unlock()
			}
		}
	}
}

// Refresh reads now what other replicas have found out.
func (rs *Relays) Refresh(ctx context.Context) { rs.breakers.refresh(ctx) }

// Close says QUIT on every idle session and waits for that.
func (rs *Relays) Close() {
	var wg sync.WaitGroup
	for _, r := range rs.all() {
		r.mu.Lock()
		idle := r.idle
		r.idle = nil
		r.mu.Unlock()
		for _, i := range idle {
			wg.Go(func() { _ = i.s.Close() })
		}
	}
	wg.Wait()
}

func (rs *Relays) all() []*Relay {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	all := make([]*Relay, 0, len(rs.byName))
	for _, r := range rs.byName {
		all = append(all, r)
	}
	return all
}

// MaxConnections is how many connections a mail server gets in this process.
func (rs *Relays) MaxConnections(s *store.MailServer) int {
	if n := int(s.Limits.MaxConnections); n > 0 {
		return n
	}
	return rs.cfg.MaxConnections
}

// MailsPerConnection is how many mails one connection carries.
func (rs *Relays) MailsPerConnection(s *store.MailServer) int {
	if n := int(s.Limits.MailsPerConnection); n > 0 {
		return n
	}
	return rs.cfg.MailsPerConnection
}

// Suspended returns the breaker of a mail server that is left alone now, nil if it is not.
func (rs *Relays) Suspended(s *store.MailServer) *store.Breaker {
	b := rs.breakers.get(s)
	if b == nil || b.Failures == 0 || !rs.cfg.Now().Before(Later(b.RetryAt, b.ProbeUntil)) {
		return nil
	}
	return b
}

// Failed suspends the mail server for a reason that is not about opening a session, and returns
// when the next try may be.
func (r *Relay) Failed(ctx context.Context, s *store.MailServer, reason string) time.Time {
	return r.rs.breakers.failed(ctx, s, reason)
}

// Down reports whether no session stands.
func (r *Relay) Down() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live == 0
}
