package simulation

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// replica is one run of one process.
type replica struct {
	w       *world
	name    string // a1, a2...: the second run of the first place
	place   int
	journal *journal
	engine  *engine.Engine
	ctx     context.Context // of its run
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // of Run, once done is closed
	id      atomic.Int64
	lapsed  atomic.Int64 // when its lease last began anew, since the world's begin
	lives   atomic.Int32 // how many ids it has had
	dead    atomic.Bool  // killed: nothing of it reaches anybody any more
	stopped bool         // told to stop
	frozen  time.Time    // nothing of it moves until then
	offset  atomic.Int64
	conns   []*conn
}

// grace is long enough for a drain without a connection to give up by itself.
const grace = 14 * time.Second

var timeouts = smtpx.Timeouts{Connect: 10 * time.Second, Command: 10 * time.Second, Rcpt: 10 * time.Second, Data: 10 * time.Second, Block: 10 * time.Second, Dot: 25 * time.Second}

// start runs a new process in a place.
func (w *world) start(place int) *replica {
	run := 1
	if old := w.replicas[place]; old != nil {
		_, _ = fmt.Sscanf(old.name[1:], "%d", &run)
		run++
	}
	r := &replica{w: w, place: place, name: fmt.Sprintf("%c%d", 'a'+place, run), done: make(chan struct{})}
	if old := w.replicas[place]; old != nil {
		r.offset.Store(old.offset.Load())
		w.old = append(w.old, old)
	}
	r.journal = newJournal(w, r)
	r.engine = engine.New(engine.Config{
		Journal: r.journal, Replica: r.name, Logger: w.log, BatchInterval: w.interval, MaxConnections: 3, MailsPerConnection: 6,
		Now: func() time.Time { return time.Now().Add(time.Duration(r.offset.Load())) },
		Dial: func(ctx context.Context, s *store.MailServer) (engine.Session, error) {
			d := smtpx.Dialer{Connect: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) { return r.connect(ctx, to, s.Name) }}
			session, err := d.Dial(ctx, smtpx.Relay{Host: s.SMTP.Host, Port: s.SMTP.Port, Encryption: smtpx.EncryptionNone, HeloName: "sim.example", Timeouts: timeouts})
			if err != nil {
				return nil, err
			}
			return &faulty{session, w}, nil
		}})
	ctx, cancel := context.WithCancel(context.Background())
	r.ctx, r.cancel = ctx, cancel
	w.replicas[place] = r
	w.supervise(r)
	if len(w.operations.sagas) > 0 {
		go r.operate()
	}
	go func() {
		defer close(r.done)
		r.err = r.engine.Run(ctx, grace)
	}()
	return r
}

// supervise starts a process again that ended by itself: one that finds no database at its
// start.
func (w *world) supervise(r *replica) {
	w.after(2*time.Second, "supervise", func() {
		switch {
		case r.dead.Load() || r.stopped || w.replicas[r.place] != r:
		case r.over():
			w.tell("   %s ended: %v", r.name, r.err)
			w.start(r.place)
		case !r.up():
			w.supervise(r)
		}
	})
}

// up says whether a replica takes mail.
func (r *replica) up() bool {
	if r == nil || r.dead.Load() || r.stopped {
		return false
	}
	select {
	case <-r.engine.Ready():
		return true
	default:
		return false
	}
}

// over says whether its process has ended by itself.
func (r *replica) over() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// kill ends a process at once. What it had asked the database may still be carried out, now or
// much later.
func (r *replica) kill() {
	w := r.w
	w.counts.Crashes++
	r.dead.Store(true)
	var keep []*op
	for _, o := range w.ops {
		if o.who != r {
			keep = append(keep, o)
			continue
		}
		w.mu.Lock()
		reply := o.reply
		o.reply = nil
		w.mu.Unlock()
		if !o.local && !o.calm && w.chance(0.4) { // the statement runs on in the database
			o.who, o.calm = nil, true
			if w.chance(0.5) {
				o.due = time.Now().Add(time.Duration(w.rng.Int64N(int64(60 * time.Second))))
			}
			keep = append(keep, o)
		}
		if reply != nil {
			reply(fateFailed)
		}
	}
	w.ops = keep
	for _, l := range []*line{&r.journal.bulk, &r.journal.fast} {
		for _, h := range l.queue {
			h.done <- store.Settled{}
		}
	}
	for _, c := range r.conns {
		c.kill()
	}
	r.cancel()
}
