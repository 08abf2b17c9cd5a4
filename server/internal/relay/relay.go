// Package relay holds everything about this process's connections to mail servers: the pool of
// sessions, the permits and the slots over all replicas, the breaker and its probe, the ramp
// after a recovery, the slowing down when a relay throttles, and the rate limits. It does not
// know which mail is sent, nor why; the engine does.
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
	TakeSlot(ctx context.Context, r store.ReplicaID, t store.SlotTake) (n int, ok bool, err error)
	GiveSlot(ctx context.Context, r store.ReplicaID, s store.Slot) error
	HoldSlots(ctx context.Context, r store.ReplicaID, held []store.Slot, settled int64) (lost []store.Slot, err error)
	TakeRate(ctx context.Context, r store.ReplicaID, server string, use store.RateUse, want, perMinute, perDay int) (granted int, next time.Time, err error)
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

// Config is what Relays need. All of it but the Observer is required.
type Config struct {
	Journal  Journal
	Dial     Dial
	Logger   *slog.Logger
	Now      func() time.Time       // the database's clock, as well as this process knows it
	Replica  func() store.ReplicaID // this process's id; it changes when a lease was lost
	Stopping func() bool            // nothing new may begin
	Observer Observer               // nil = nobody

	// MaxConnections and MailsPerConnection hold where a mail server's own limits say nothing.
	MaxConnections     int
	MailsPerConnection int
}

// Relays is the mail servers that this process has connections to, one Relay each.
type Relays struct {
	cfg      Config
	breakers *breakers
	slots    *slots
	base     context.Context // of everything that no caller bounds; ends with Close
	end      context.CancelFunc

	mu      sync.Mutex // guards the rest; before the locks of a Relay
	byName  map[string]*Relay
	closed  bool
	dialing sync.WaitGroup // goroutines that open or close a session; grows while not closed
}

// spawn runs f on a goroutine that Close waits for.
func (rs *Relays) spawn(f func()) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.closed {
		go f() // the grace is over
		return
	}
	rs.dialing.Go(f)
}

// New makes the relays; nothing runs before Run.
func New(cfg Config) *Relays {
	if cfg.Observer == nil {
		cfg.Observer = deaf{}
	}
	rs := &Relays{cfg: cfg, byName: map[string]*Relay{}}
	rs.breakers, rs.slots = newBreakers(&rs.cfg), newSlots(&rs.cfg)
	rs.base, rs.end = context.WithCancel(context.Background())
	return rs
}

// Of returns the relay of a mail server, told about the newest configuration.
func (rs *Relays) Of(s *store.MailServer) *Relay {
	rs.mu.Lock()
	r := rs.byName[s.Name]
	if r == nil {
		r = &Relay{rs: rs, name: s.Name, server: s, standing: map[Session]*standing{}, rate: rate{turn: make(chan struct{}, 1)}}
		rs.byName[s.Name] = r
	}
	rs.mu.Unlock()
	r.configure(s)
	return r
}

// Run reads what other replicas have found out, tells them what this one holds, and closes idle
// sessions, until ctx ends.
func (rs *Relays) Run(ctx context.Context) {
	var own sync.WaitGroup
	own.Go(func() { rs.breakers.run(ctx) })
	own.Go(func() { rs.tell(ctx) })
	t := time.NewTicker(poolSweep)
	defer t.Stop()
	defer own.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			for _, r := range rs.all() {
				r.sweep(now.Add(-IdleLimit))
			}
		}
	}
}

// tell writes down what this process holds of slots and rates, until ctx ends.
func (rs *Relays) tell(ctx context.Context) {
	t := time.NewTicker(tellEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		rs.slots.tell(ctx)
		for _, r := range rs.all() {
			r.tellRate(ctx, tellEvery)
		}
	}
}

// tellEvery is how soon the other replicas hear of what was given back.
const tellEvery = time.Second

// Refresh reads now what other replicas have found out.
func (rs *Relays) Refresh(ctx context.Context) { rs.breakers.refresh(ctx) }

// Close ends what is being opened, says QUIT on every idle session, waits for that, and tells
// what was not used of the rates. Nothing may use the relays any more.
func (rs *Relays) Close() {
	rs.end()
	rs.mu.Lock()
	rs.closed = true
	rs.mu.Unlock()
	rs.dialing.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), writeTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, r := range rs.all() {
		r.mu.Lock()
		idle := r.idle
		r.idle = nil
		r.mu.Unlock()
		for _, i := range idle {
			wg.Go(func() { _ = i.Close() })
		}
		r.tellRate(ctx, 0)
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

// InUse returns the mail servers that have permits in use here, as they are configured.
func (rs *Relays) InUse() []*store.MailServer {
	var used []*store.MailServer
	for _, r := range rs.all() {
		r.mu.Lock()
		if r.open > 0 || len(r.waiters) > 0 {
			used = append(used, r.server)
		}
		r.mu.Unlock()
	}
	return used
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

// Failing says that a mail server has been suspended and has taken no mail since, whether its
// next try has come or not.
func (rs *Relays) Failing(s *store.MailServer) bool {
	b := rs.breakers.get(s)
	return b != nil && b.Failures > 0
}
