package relay

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

const (
	breakersEvery = 2 * time.Second  // how often the other replicas' news are read
	probeFor      = 90 * time.Second // a prober that has said nothing for so long is gone
	rampStep      = 3 * time.Second  // after a recovery connections double in this time: 1, 2, 4...
	successEvery  = 30 * time.Second // how often a healthy mail server's last success is written down
)

// SuspendedError: the mail server could not be reached, secured or logged in to lately and is left alone until RetryAt.
type SuspendedError struct {
	Reason  string
	RetryAt time.Time
}

func (e *SuspendedError) Error() string {
	return fmt.Sprintf("the mail server is suspended until %s: %s", e.RetryAt.UTC().Format(time.RFC3339), e.Reason)
}

// breakers is this process's view of the breakers that all replicas share through the database. A mail server is well until a session cannot be had; then it
// is suspended, one replica probes it when its time has come, and after a success connections ramp up.
type breakers struct {
	cfg *Config

	mu      sync.Mutex
	known   map[string]*store.Breaker
	success map[string]time.Time // when a healthy mail server's success was last written
}

func newBreakers(cfg *Config) *breakers {
	return &breakers{cfg: cfg, known: map[string]*store.Breaker{}, success: map[string]time.Time{}}
}

// run reads what other replicas have found out, until ctx ends.
func (bs *breakers) run(ctx context.Context) {
	t := time.NewTicker(breakersEvery)
	defer t.Stop()
	for {
		bs.refresh(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (bs *breakers) refresh(ctx context.Context) {
	all, err := bs.cfg.Journal.Breakers(ctx)
	if err != nil {
		return // what is known stays; the claims of the batch tell about the database
	}
	bs.mu.Lock()
	bs.known = all
	bs.mu.Unlock()
}

func (bs *breakers) get(s *store.MailServer) *store.Breaker {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if b := bs.known[s.Name]; b != nil && b.Version == s.Version {
		return b
	}
	return nil
}

func (bs *breakers) change(ctx context.Context, s *store.MailServer, rule func(now time.Time, b *store.Breaker) bool) (*store.Breaker, error) {
	b, err := bs.cfg.Journal.ChangeBreaker(ctx, s.Name, rule)
	if err != nil {
		return nil, err
	}
	bs.mu.Lock()
	bs.known[s.Name] = b
	bs.mu.Unlock()
	return b, nil
}

// allow says whether a session may be opened now. For a suspended mail server whose time has come it takes the one probe there is over all replicas; force
// takes it before its time. The error is a *SuspendedError or the database's.
func (bs *breakers) allow(ctx context.Context, s *store.MailServer, force bool) error {
	b := bs.get(s)
	if b == nil || b.Failures == 0 {
		return nil
	}
	now := bs.cfg.Now()
	if !force && (now.Before(b.RetryAt) || now.Before(b.ProbeUntil)) {
		return &SuspendedError{b.Reason, Later(b.RetryAt, b.ProbeUntil)}
	}
	ok := false
	b, err := bs.change(ctx, s, func(now time.Time, b *store.Breaker) bool {
		ok = takeProbe(now, b, s.Version, force)
		return ok
	})
	if err != nil {
		return err
	}
	if !ok {
		return &SuspendedError{b.Reason, Later(b.RetryAt, b.ProbeUntil)}
	}
	return nil
}

// failed notes that no session could be had, and returns when the next try may be.
func (bs *breakers) failed(ctx context.Context, s *store.MailServer, reason string) time.Time {
	b, err := bs.change(ctx, s, func(now time.Time, b *store.Breaker) bool { noteFailure(now, b, s.Version, reason); return true })
	if err != nil {
		bs.cfg.Logger.Warn("breaker not written", "mail_server", s.Name, "error", err)
		return bs.cfg.Now().Add(rest(1))
	}
	return b.RetryAt
}

// opened notes a session.
func (bs *breakers) opened(ctx context.Context, s *store.MailServer) {
	now := bs.cfg.Now()
	bs.mu.Lock()
	b := bs.known[s.Name]
	fresh := b != nil && b.Version == s.Version && b.Failures == 0 && now.Sub(bs.success[s.Name]) < successEvery
	if !fresh {
		bs.success[s.Name] = now
	}
	bs.mu.Unlock()
	if fresh {
		return
	}
	if _, err := bs.change(ctx, s, func(now time.Time, b *store.Breaker) bool { noteSuccess(now, b, s.Version); return true }); err != nil {
		bs.cfg.Logger.Warn("breaker not written", "mail_server", s.Name, "error", err)
	}
}

// ramp is how many connections a mail server that has just recovered gets, most if it is past that.
func (bs *breakers) ramp(s *store.MailServer, most int) int {
	b := bs.get(s)
	if b == nil || b.HealedAt.IsZero() {
		return most
	}
	steps := int(bs.cfg.Now().Sub(b.HealedAt) / rampStep)
	if steps < 0 || steps > 16 {
		return most
	}
	return min(most, 1<<steps)
}

// takeProbe reserves the next try, false if it is not time or somebody else has it.
func takeProbe(now time.Time, b *store.Breaker, version int64, force bool) bool {
	if b.Version != version || b.Failures == 0 {
		return true
	}
	if !force && (now.Before(b.RetryAt) || now.Before(b.ProbeUntil)) {
		return false
	}
	b.ProbeUntil = now.Add(probeFor)
	return true
}

// noteFailure counts a failure, but not a second one of the same time: many connections, or many replicas, may fail at once.
func noteFailure(now time.Time, b *store.Breaker, version int64, reason string) {
	if b.Version != version {
		*b = store.Breaker{MailServer: b.MailServer, Version: version, SuccessAt: b.SuccessAt}
	}
	b.FailureAt, b.LastFailure, b.Reason = now, reason, reason
	b.ProbeUntil, b.HealedAt = time.Time{}, time.Time{}
	if b.Failures > 0 && now.Before(b.RetryAt) {
		return
	}
	b.Failures++
	b.RetryAt = now.Add(rest(b.Failures))
}

func noteSuccess(now time.Time, b *store.Breaker, version int64) {
	if b.Version != version {
		*b = store.Breaker{MailServer: b.MailServer, Version: version, FailureAt: b.FailureAt, LastFailure: b.LastFailure}
	}
	if b.Failures > 0 {
		b.HealedAt = now
	}
	b.Failures, b.Reason, b.RetryAt, b.ProbeUntil, b.SuccessAt = 0, "", time.Time{}, time.Time{}, now
}

// Later is the later of two times.
func Later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

var rests = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute}

// rest is how long a relay is left alone after n failures in a row to open a session: short at first, so that a hiccup costs php-mode callers little, and
// at most eight connects in five minutes.
func rest(n int) time.Duration { return rests[min(max(n, 1), len(rests))-1] }
