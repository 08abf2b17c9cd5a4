package engine

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/maildispatch/maildispatch/server/internal/brake"
	"github.com/maildispatch/maildispatch/server/internal/fairmemory"
	"github.com/maildispatch/maildispatch/server/internal/lease"
	"github.com/maildispatch/maildispatch/server/internal/ledger"
	"github.com/maildispatch/maildispatch/server/internal/live"
	"github.com/maildispatch/maildispatch/server/internal/relay"
)

// Config is what an engine needs. Journal and Dial are required.
type Config struct {
	Journal       Journal
	Dial          Dial
	Logger        *slog.Logger
	Replica       string        // name of this process for people
	BatchInterval time.Duration // 0 = the batch never rests
	Now           func() time.Time
	Observer      Observer       // nil = nobody
	Connections   relay.Observer // the same for connections
	Tracer        Tracer         // makes spans of attempts; nil = nobody does

	// MaxConnections is how many connections one mail server gets in one process when its own
	// limits say nothing; default 10.
	MaxConnections int
	// MailsPerConnection is how many mails one connection carries when the mail server's own
	// limits say nothing; default 1000.
	MailsPerConnection int
	// MaxBytes bounds what large mails of the batch take in memory at once, and those of one
	// mail server get half of it at most; default 256 MiB.
	MaxBytes int64
}

// Engine sends mail. Run it once; Send and RunBatch may be called from any goroutine while it
// runs.
type Engine struct {
	cfg     Config
	journal Journal
	log     *slog.Logger
	lease   *lease.Lease
	ledger  *ledger.Ledger     // what this process has
	bodies  *fairmemory.Memory // for large mails of the batch
	// for what is handed over in memory: a budget of its own, so that what waits never keeps
	// what is being sent from being loaded
	direct *semaphore.Weighted
	drains drains
	passes passes
	live   *live.Sends
	brake  *brake.Brake // whether mail may leave through a mail server
	relays *relay.Relays

	// holds a value while somebody looks at what is still ours: see lookThrough
	looking chan struct{}

	ready    chan struct{} // closed when mail may be taken
	work     work          // what is under way
	skew     atomic.Int64  // the database's clock minus this machine's, nanoseconds
	lastPass atomic.Int64  // unix nanoseconds of the last batch pass
	nextPass atomic.Int64  // unix nanoseconds of the next one; 0 = the batch never rests
	wake     chan struct{} // a mail was queued; matters when the batch never rests

	workCtx    context.Context // ended when the grace of a stop is over
	workCancel context.CancelFunc
}

// New makes an engine; nothing runs before Run.
func New(cfg Config) *Engine {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observer == nil {
		cfg.Observer = deaf{}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 10
	}
	if cfg.MailsPerConnection == 0 {
		cfg.MailsPerConnection = 1000
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 256 << 20
	}
	e := &Engine{
		cfg: cfg, journal: cfg.Journal, log: cfg.Logger,
		lease: lease.New(cfg.Journal, cfg.Replica, cfg.Logger),
		live:  live.NewSends(), ledger: ledger.New(cfg.Journal, cfg.Logger),
		bodies: fairmemory.New(cfg.MaxBytes), direct: semaphore.NewWeighted(cfg.MaxBytes / 4),
		ready: make(chan struct{}), work: newWork(), wake: make(chan struct{}, 1), looking: make(chan struct{}, 1),
	}
	e.drains.running, e.drains.ending = map[brake.Key]*drain{}, map[*drain]bool{}
	e.brake = brake.New(brake.Config{Journal: cfg.Journal, Now: e.now, InUse: e.inUse, Changed: e.serverChanged})
	e.relays = relay.New(relay.Config{Journal: cfg.Journal, Dial: cfg.Dial, Logger: cfg.Logger, Now: e.now, Replica: e.lease.Replica, Stopping: e.work.stopped, Observer: cfg.Connections,
		MaxConnections: cfg.MaxConnections, MailsPerConnection: cfg.MailsPerConnection})
	e.workCtx, e.workCancel = context.WithCancel(context.Background())
	return e
}

// Run takes a lease, rescues what dead replicas left, and works until ctx ends. Then it begins
// nothing new, lets what has begun its body finish, cuts the rest before the dot, records
// everything and gives its lease back. grace bounds that; after it, what is still waiting for a
// relay's reply stays marked and is reported unknown by the next replica.
func (e *Engine) Run(ctx context.Context, grace time.Duration) error {
	if err := e.lease.Register(ctx); err != nil {
		return fmt.Errorf("take a lease: %w", err)
	}
	// outlives ctx: lease and results must go on while work ends
	base, cancelBase := context.WithCancel(context.Background())
	defer cancelBase()
	var own sync.WaitGroup
	own.Go(func() { e.lease.Run(base) })
	e.setClock(ctx)
	e.relays.Refresh(ctx)
	e.rescue(ctx)
	due, err := e.journal.DueServers(ctx)
	if err != nil {
		e.log.Error("batch: cannot look for due mail", "error", err)
	}
	close(e.ready)
	own.Go(func() { e.relays.Run(ctx) })
	own.Go(func() { e.clockLoop(ctx) })
	own.Go(func() { e.brake.Run(base) }) // what leaves during the grace obeys as well
	own.Go(func() { e.stopLoop(ctx) })
	own.Go(func() { e.rescueLoop(ctx) })
	own.Go(func() { e.countLoop(ctx) })
	e.batchLoop(ctx, due)

	e.work.stop()
	e.drains.ask()
	e.live.Stop()
	// The end of the grace is kept for what the cut leaves to do: whoever stops us counts from
	// the signal, and kills at the end.
	closing := min(grace/2, 5*time.Second)
	gctx, cancel := context.WithTimeout(context.Background(), grace-closing)
	defer cancel()
	if !e.work.wait(gctx) {
		e.log.Warn("grace is nearly over: cutting what is still under way")
		e.workCancel()
		last, cancelLast := context.WithTimeout(context.Background(), max(closing, 200*time.Millisecond))
		e.work.wait(last)
		cancelLast()
	}
	e.workCancel()
	e.relays.Close()
	fctx, cancelFlush := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancelFlush()
	e.ledger.Reached(fctx)
	err = e.journal.Unregister(fctx, e.lease.Replica())
	cancelBase()
	own.Wait()
	if err != nil {
		return fmt.Errorf("give the lease back: %w", err)
	}
	return nil
}

// Ready is closed when the engine takes mail.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Stopping is closed when nothing new may begin.
func (e *Engine) Stopping() <-chan struct{} { return e.work.stopping }

// LeaseFault is why this process cannot send now: the database did not take the last renewal of
// its lease, which is a write. nil when it did.
func (e *Engine) LeaseFault() error { return e.lease.Fault() }

// Connections is what this process has with each mail server now.
func (e *Engine) Connections() []relay.Use { return e.relays.Uses() }

// LastPass is when the batch last looked for due mail; zero before the first pass.
func (e *Engine) LastPass() time.Time {
	n := e.lastPass.Load()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// Yield is a step of bulk: it waits a moment, 20 ms at most, while the journal works for a mail
// that its caller waits for. Who composes bulk asks now and then, so that this keeps no
// processor from a caller.
func (e *Engine) Yield(ctx context.Context) { e.journal.Yield(ctx) }

// NextPass is when the batch looks for due mail next; zero when it never rests, and before the
// first pass.
func (e *Engine) NextPass() time.Time {
	n := e.nextPass.Load()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// Now is the time that decides, as well as this process knows it: the database's clock, so that
// replicas whose own clocks are wrong agree.
func (e *Engine) Now() time.Time { return e.now() }

func (e *Engine) now() time.Time { return e.cfg.Now().Add(time.Duration(e.skew.Load())) }

// clockNoise is less than what the way to the database may account for.
const clockNoise = 500 * time.Millisecond

const clockEvery = 2 * time.Second

// setClock looks how far this machine's clock is off.
func (e *Engine) setClock(ctx context.Context) {
	before := e.cfg.Now()
	now, err := e.journal.Now(ctx)
	if err != nil {
		return
	}
	way := e.cfg.Now().Sub(before) / 2
	off, was := now.Sub(before.Add(way)), time.Duration(e.skew.Load())
	switch {
	case way > clockNoise && (off-was).Abs() <= way+clockNoise:
		// A slow answer may have been on its way in one direction all the time. What was known
		// explains it, and a mail that is due in a few seconds must not become due by it.
		return
	case off.Abs() < clockNoise:
		off = 0
	}
	e.skew.Store(int64(off))
	if (off - was).Abs() > time.Minute {
		e.log.Warn("this machine's clock differs from the database's, which is taken", "by", off.Round(time.Second))
	}
}

// clockLoop looks at the clocks until ctx ends.
func (e *Engine) clockLoop(ctx context.Context) {
	t := time.NewTicker(clockEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			e.setClock(ctx)
		}
	}
}

// begin counts a piece of work in, false when the engine does not take mail yet or is stopping.
func (e *Engine) begin() bool {
	select {
	case <-e.ready:
		return e.work.begin()
	default:
		return false
	}
}
