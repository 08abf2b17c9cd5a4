package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

const (
	breakersEvery = 2 * time.Second  // how often the other replicas' news are read
	probeFor      = 90 * time.Second // a prober that has said nothing for so long is gone
	// after a recovery connections double in this time: 1, 2, 4...
	rampStep = 3 * time.Second
	// how often a healthy mail server's last success is written down
	successEvery = 30 * time.Second
)

// SuspendedError: the mail server could not be reached, secured or logged in to lately, or
// refused or slowed down everything alike (Judge), and is left alone until RetryAt.
type SuspendedError struct {
	Reason  string
	RetryAt time.Time
}

func (e *SuspendedError) Error() string {
	return fmt.Sprintf("the mail server is suspended until %s: %s", e.RetryAt.UTC().Format(time.RFC3339), e.Reason)
}

// FailureOf is the class of an error of Get, Connect or Report. Of a suspension that another
// replica began only the words are known.
func FailureOf(err error) smtpx.Failure {
	var suspended *SuspendedError
	var fault *smtpx.Error
	switch {
	case errors.As(err, &suspended):
		return smtpx.FailureIn(suspended.Reason)
	case errors.As(err, &fault):
		return smtpx.FailureOf(smtpx.Said{Phase: fault.Phase, Reply: fault.Reply})
	}
	return smtpx.FailUnclassified
}

// breakers is this process's view of the breakers that all replicas share through the database.
// A mail server is well until a session cannot be had, or none takes a mail; then it is
// suspended, one replica probes it when its time has come, and after a success connections ramp
// up.
type breakers struct {
	cfg *Config

	mu     sync.Mutex
	byName map[string]*breaker
}

type breaker struct {
	// held while the database changes it, so that known is never older than it was
	turn chan struct{}

	// Guarded by breakers.mu.
	known *store.Breaker // nil: there is none
	// begun and ended by this process; tells whether a reading is of before
	changes int64
	success time.Time // when a healthy mail server's success was last written
}

func newBreakers(cfg *Config) *breakers {
	return &breakers{cfg: cfg, byName: map[string]*breaker{}}
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

// refresh takes over what the database says, but for what was changed here since the reading
// began.
func (bs *breakers) refresh(ctx context.Context) {
	bs.mu.Lock()
	before := make(map[string]int64, len(bs.byName))
	for name, b := range bs.byName {
		before[name] = b.changes
	}
	bs.mu.Unlock()
	all, err := bs.cfg.Journal.Breakers(ctx)
	if err != nil {
		return // what is known stays; the claims of the batch tell about the database
	}
	bs.mu.Lock()
	defer bs.mu.Unlock()
	for name := range all {
		bs.of(name)
	}
	for name, b := range bs.byName {
		if b.changes == before[name] {
			b.known = all[name]
		}
	}
}

// of finds or makes a mail server's breaker. With mu held.
func (bs *breakers) of(name string) *breaker {
	b := bs.byName[name]
	if b == nil {
		b = &breaker{turn: make(chan struct{}, 1)}
		bs.byName[name] = b
	}
	return b
}

// get returns what is known of the mail server as it is configured now, nil if nothing is.
func (bs *breakers) get(s *store.MailServer) *store.Breaker {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if b := bs.of(s.Name).known; b != nil && b.Version == s.Version {
		return b
	}
	return nil
}

// change applies a rule in the database. When that is away the rule holds in this process
// alone.
func (bs *breakers) change(ctx context.Context, s *store.MailServer, rule func(now time.Time, b *store.Breaker) bool) (*store.Breaker, error) {
	bs.mu.Lock()
	b := bs.of(s.Name)
	bs.mu.Unlock()
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	bs.mu.Lock()
	b.changes++
	bs.mu.Unlock()
	next, err := bs.cfg.Journal.ChangeBreaker(ctx, s.Name, rule)
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b.changes++
	if err != nil {
		next = &store.Breaker{MailServer: s.Name, Version: s.Version}
		if b.known != nil {
			*next = *b.known
		}
		rule(bs.cfg.Now(), next)
	}
	b.known = next
	return next, err
}

// allow says whether a session may be opened now, and whether it is the probe of a suspended
// mail server: the one that all replicas together have when its time has come. force takes it
// before its time. The error is a *SuspendedError or the database's.
func (bs *breakers) allow(ctx context.Context, s *store.MailServer, force bool) (probe bool, err error) {
	b := bs.get(s)
	if b == nil || b.Failures == 0 {
		return false, nil
	}
	now := bs.cfg.Now()
	if !force && (now.Before(b.RetryAt) || now.Before(b.ProbeUntil)) {
		return false, &SuspendedError{b.Reason, Later(b.RetryAt, b.ProbeUntil)}
	}
	ok := false
	b, err = bs.change(ctx, s, func(now time.Time, b *store.Breaker) bool {
		ok = takeProbe(now, b, s.Version, force)
		return ok
	})
	if err != nil {
		return false, err
	}
	if !ok {
		return false, &SuspendedError{b.Reason, Later(b.RetryAt, b.ProbeUntil)}
	}
	return b.Version == s.Version && b.Failures > 0, nil
}

// endProbe gives the probe back undecided.
func (bs *breakers) endProbe(ctx context.Context, s *store.MailServer) {
	_, err := bs.change(ctx, s, func(_ time.Time, b *store.Breaker) bool {
		if b.Version != s.Version || b.Failures == 0 || b.ProbeUntil.IsZero() {
			return false
		}
		b.ProbeUntil = time.Time{}
		return true
	})
	if err != nil {
		bs.cfg.Logger.Warn("breaker not written", "mail_server", s.Name, "error", err)
	}
}

// failed notes that no session could be had, or that none takes a mail, and returns when the
// next try may be. This process leaves the mail server alone from now on, not only from when
// the database has taken it: until then its other workers would go on connecting.
func (bs *breakers) failed(ctx context.Context, s *store.MailServer, reason string) time.Time {
	rule := func(now time.Time, b *store.Breaker) bool { noteFailure(now, b, s.Version, reason); return true }
	bs.mu.Lock()
	at := bs.of(s.Name)
	here := &store.Breaker{MailServer: s.Name, Version: s.Version}
	if at.known != nil {
		*here = *at.known
	}
	rule(bs.cfg.Now(), here)
	at.known = here
	at.changes++
	bs.mu.Unlock()
	b, err := bs.change(ctx, s, rule)
	if err != nil {
		bs.cfg.Logger.Warn("breaker not written", "mail_server", s.Name, "error", err)
	}
	if b == nil {
		return bs.cfg.Now().Add(rest(1))
	}
	return b.RetryAt
}

// succeeded notes that a mail was answered, and reports whether that ended a suspension. A mail
// server that is well is written down now and then.
func (bs *breakers) succeeded(ctx context.Context, s *store.MailServer) bool {
	now := bs.cfg.Now()
	bs.mu.Lock()
	b := bs.of(s.Name)
	known := b.known != nil && b.known.Version == s.Version
	healed := known && b.known.Failures > 0
	if known && !healed && now.Sub(b.success) < successEvery {
		bs.mu.Unlock()
		return false
	}
	b.success = now
	bs.mu.Unlock()
	if _, err := bs.change(ctx, s, func(now time.Time, b *store.Breaker) bool { noteSuccess(now, b, s.Version); return true }); err != nil {
		bs.cfg.Logger.Warn("breaker not written", "mail_server", s.Name, "error", err)
	}
	return healed
}

// ramp is how many connections a mail server gets: one while it is suspended, then 1, 2, 4...
// up to limit.
func (bs *breakers) ramp(s *store.MailServer, limit int) int {
	b := bs.get(s)
	if b != nil && b.Failures > 0 {
		return 1
	}
	if b == nil || b.HealedAt.IsZero() {
		return limit
	}
	steps := int(bs.cfg.Now().Sub(b.HealedAt) / rampStep)
	if steps < 0 || steps > 16 {
		return limit
	}
	return min(limit, 1<<steps)
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

// noteFailure counts a failure, but not a second one of the same time: many connections, or
// many replicas, may fail at once.
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

// rest is how long a relay is left alone after n failures in a row to open a session: short at
// first, so that a hiccup costs php-mode callers little, and at most eight connects in five
// minutes.
func rest(n int) time.Duration { return rests[min(max(n, 1), len(rests))-1] }
