package engine

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// The lease is one row per process, not one per mail. The three times are those of the design:
// a replica is taken for dead leaseTTL after its last renewal by the database's clock; it stops
// letting dots leave leaseFresh after it began that renewal by its own monotonic clock. The
// distance between them covers a write on its way and a clock that runs a little fast.
const (
	leaseTTL   = 30 * time.Second
	leaseFresh = 15 * time.Second
	leaseEvery = 5 * time.Second
	leaseAgain = time.Second // after a renewal that failed
)

var (
	errLeaseLost  = errors.New("the lease of this replica is lost")
	errLeaseStale = errors.New("the lease of this replica is not renewed")
)

// lease keeps this process's replica row alive. One goroutine renews; everybody may read.
type lease struct {
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

func newLease(j Journal, name string, log *slog.Logger) *lease {
	return &lease{journal: j, name: name, log: log, start: time.Now()}
}

// register takes a new replica id.
func (l *lease) register(ctx context.Context) error {
	began := time.Since(l.start)
	id, err := l.journal.Register(ctx, l.name, leaseTTL)
	if err != nil {
		return err
	}
	l.id.Store(int64(id))
	l.renewed.Store(int64(began))
	l.failed.Store(nil)
	return nil
}

// fault is why this replica cannot write: its last renewal failed, or was never answered.
func (l *lease) fault() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	if !l.held(l.replica()) {
		return errLeaseStale
	}
	return nil
}

// replica is the current id. A mail claimed under an older id is lost to this process.
func (l *lease) replica() store.ReplicaID { return store.ReplicaID(l.id.Load()) }

// held reports whether a dot may leave for a mail claimed under id.
func (l *lease) held(id store.ReplicaID) bool {
	return l.replica() == id && time.Since(l.start)-time.Duration(l.renewed.Load()) < leaseFresh
}

// run renews until ctx ends. A lease that was lost is replaced by a new one at once, so that
// the process goes on working; what it had claimed under the old one belongs to somebody else.
func (l *lease) run(ctx context.Context) {
	t := time.NewTimer(leaseEvery)
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
			t.Reset(leaseAgain)
			continue
		}
		l.failed.Store(nil)
		t.Reset(leaseEvery)
	}
}

func (l *lease) renew(ctx context.Context) error {
	began := time.Since(l.start)
	rctx, cancel := context.WithTimeout(ctx, leaseEvery)
	defer cancel()
	err := l.journal.Renew(rctx, l.replica(), leaseTTL)
	switch {
	case err == nil:
		l.renewed.Store(int64(began))
	case errors.Is(err, store.ErrStale):
		l.log.Error("lease lost: this replica was taken for dead", "replica", l.replica())
		if err = l.register(rctx); err != nil {
			l.log.Error("cannot take a new lease", "error", err)
		}
	case ctx.Err() == nil:
		l.log.Warn("lease not renewed", "replica", l.replica(), "error", err)
	}
	return err
}
