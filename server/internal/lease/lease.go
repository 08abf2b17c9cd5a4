// Package lease keeps this process's right to send: one row in the database per process, not
// one per mail. The row is renewed while the process lives; who does not renew it is taken for
// dead, and its mail is rescued. A process lets no dot leave before it is taken for dead, by
// its own monotonic clock, which nobody can set.
package lease

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// A replica is taken for dead ttl after its last renewal by the database's clock. It stops
// letting dots leave Fresh after it began that renewal by its own monotonic clock. The distance
// between them covers a write on its way and a clock that runs a little fast.
const (
	ttl   = 30 * time.Second
	Fresh = 15 * time.Second
	every = 5 * time.Second
	again = time.Second // after a renewal that failed
)

var (
	ErrLost  = errors.New("the lease of this replica is lost")
	errStale = errors.New("the lease of this replica is not renewed")
)

// Journal is where the lease stands.
type Journal interface {
	Register(ctx context.Context, name string, ttl time.Duration) (store.ReplicaID, error)
	Renew(ctx context.Context, r store.ReplicaID, ttl time.Duration) error
}

// Lease keeps this process's replica row alive. One goroutine renews; everybody may read.
type Lease struct {
	journal Journal
	name    string
	log     *slog.Logger

	id atomic.Int64 // store.ReplicaID; a new one after a lease was lost
	// monotonic nanoseconds since start at which the last good renewal was begun
	renewed atomic.Int64
	start   time.Time

	// failed is why the last renewal did not work, nil when it did. The renewing goroutine
	// writes it.
	failed atomic.Pointer[error]
}

// New makes a lease that is not held yet; name is that of the process for people.
func New(j Journal, name string, log *slog.Logger) *Lease {
	return &Lease{journal: j, name: name, log: log, start: time.Now()}
}

// Register takes a new replica id.
func (l *Lease) Register(ctx context.Context) error {
	began := time.Since(l.start)
	id, err := l.journal.Register(ctx, l.name, ttl)
	if err != nil {
		return err
	}
	l.id.Store(int64(id))
	l.renewed.Store(int64(began))
	l.failed.Store(nil)
	return nil
}

// Fault is why this replica cannot write: its last renewal failed, or was never answered.
func (l *Lease) Fault() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	if !l.Held(l.Replica()) {
		return errStale
	}
	return nil
}

// Replica is the current id. A mail claimed under an older id is lost to this process.
func (l *Lease) Replica() store.ReplicaID { return store.ReplicaID(l.id.Load()) }

// Held reports whether a dot may leave for a mail claimed under id.
func (l *Lease) Held(id store.ReplicaID) bool {
	return l.Replica() == id && time.Since(l.start)-time.Duration(l.renewed.Load()) < Fresh
}

// Run renews until ctx ends. A lease that was lost is replaced by a new one at once, so that
// the process goes on working; what it had claimed under the old one belongs to somebody else.
func (l *Lease) Run(ctx context.Context) {
	t := time.NewTimer(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		err := l.renew(ctx)
		if err != nil {
			l.failed.Store(&err)
			t.Reset(again)
			continue
		}
		l.failed.Store(nil)
		t.Reset(every)
	}
}

func (l *Lease) renew(ctx context.Context) error {
	began := time.Since(l.start)
	rctx, cancel := context.WithTimeout(ctx, every)
	defer cancel()
	err := l.journal.Renew(rctx, l.Replica(), ttl)
	switch {
	case err == nil:
		l.renewed.Store(int64(began))
	case errors.Is(err, store.ErrStale):
		l.log.Error("lease lost: this replica was taken for dead", "replica", l.Replica())
		if err = l.Register(rctx); err != nil {
			l.log.Error("cannot take a new lease", "error", err)
		}
	case ctx.Err() == nil:
		l.log.Warn("lease not renewed", "replica", l.Replica(), "error", err)
	}
	return err
}
