package quota

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/store"
)

// Store is what is shared by all replicas.
type Store interface {
	TakeAllowances(ctx context.Context, takes []store.AllowanceTake) ([]store.AllowanceGrant, error)
	ForgetAllowances(ctx context.Context) error
	KnownRequests(ctx context.Context, team string, ids []string) (map[string]bool, error)
	QueueDepths(ctx context.Context) (map[string]int64, error)
}

// Config of a Quota.
type Config struct {
	Limits Limits
	Store  Store  // nil: only calls, and what is held open, have limits
	Secret []byte // makes the keys of allowances; the same in all replicas
	Logger *slog.Logger
	// how many bytes are free where the database lies, and how many there are; nil = not known
	Disk func() (free, size int64, ok bool)
	// closed when the service goes down: what waits is refused then
	Stopping <-chan struct{}
	// nil = time as it passes on this machine, whatever becomes of its clock
	Now func() time.Time
}

// Quota counts for one process. Any goroutine may use it; a nil one has no limits.
type Quota struct {
	// only New sets these
	limits   Limits
	store    Store
	secret   []byte
	log      *slog.Logger
	disk     func() (free, size int64, ok bool)
	stopping <-chan struct{}
	now      func() time.Time
	seed     maphash.Seed

	calls sync.Map // of *bucket by caller
	tests sync.Map // of *bucket by caller

	holdMu sync.Mutex // guards held
	held   map[held]int64

	mu     sync.Mutex // guards meters, and what is in them
	meters map[meterKey]*meter

	sketchMu sync.Mutex // guards sketch
	sketch   *sketch

	alarmMu sync.Mutex // guards alarms
	alarms  map[alarmKey]*alarm

	roomMu   sync.Mutex       // guards what follows; calls read it, Sample writes it
	depths   map[string]int64 // of the last sample, by team
	since    map[string]int64 // accepted after it
	diskFull bool
}

// New makes a Quota.
func New(c Config) *Quota {
	if c.Now == nil {
		begun := time.Now()
		c.Now = func() time.Time { return begun.Add(time.Since(begun)) }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	q := &Quota{limits: c.Limits, store: c.Store, secret: c.Secret, log: c.Logger, disk: c.Disk, stopping: c.Stopping, now: c.Now, seed: maphash.MakeSeed(),
		held: map[held]int64{}, meters: map[meterKey]*meter{}, alarms: map[alarmKey]*alarm{}, depths: map[string]int64{}, since: map[string]int64{}}
	q.sketch = newSketch(q.now())
	return q
}

// Limits are those in force.
func (q *Quota) Limits() Limits {
	if q == nil {
		return Limits{}
	}
	return q.limits
}

// exceeded is the error of a call that is over a limit. after is when it may be made again; 0 =
// never as it is.
func (q *Quota) exceeded(name string, limit int64, after time.Duration, format string, args ...any) *apierr.Error {
	e := apierr.New(codes.ResourceExhausted, pb.ReasonQuotaExceeded, format, args...)
	e.Metadata = map[string]string{"limit": name, "value": fmt.Sprint(limit)}
	e.RetryAfter = after
	return e
}
