package quota

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

// Config of a Quota.
type Config struct {
	Limits Limits
	Logger *slog.Logger
	// nil = time as it passes on this machine, whatever becomes of its clock
	Now func() time.Time
}

// Quota counts for one process. Any goroutine may use it; a nil one has no limits.
type Quota struct {
	limits Limits // only New sets it
	log    *slog.Logger
	now    func() time.Time

	calls sync.Map // of *bucket by caller
	tests sync.Map // of *bucket by caller

	holdMu sync.Mutex // guards held
	held   map[held]int64
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
	return &Quota{limits: c.Limits, log: c.Logger, now: c.Now, held: map[held]int64{}}
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
