package engine

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/lease"
	"github.com/maildispatch/maildispatch/store"
)

// brakeEvery is how often the versions are read of the mail servers that are in use here: one
// statement for all. A change by another replica is obeyed within a second, one by this process
// at once.
const brakeEvery = 500 * time.Millisecond

// brakeTime is how old what the database says of a mail server may be when a dot leaves through
// it.
const brakeTime = time.Second

var (
	errVersionsLate = errors.New("the database does not say whether the mail server may still be used")
	errDeleted      = errors.New("the mail server is deleted")
	errUnavailable  = errors.New("the mail server is switched off")
	errPaused       = errors.New("the mail server is paused")
	errReconfigured = errors.New("the mail server's configuration has changed")
)

// newest is the newest configuration of each mail server that this process has heard of, and
// when it last heard that there is none newer.
type newest struct {
	ask chan struct{} // holds a value when somebody waits for a reading

	// mu guards all below: heard writes byName, the brake's loop read and news; all sends read
	// them.
	mu     sync.Mutex
	byName map[string]*store.MailServer
	// before the database was asked that knew of nothing newer than byName, with the monotonic
	// clock
	read map[string]time.Time
	news chan struct{} // closed and replaced at each reading
	// read next although no drain and no connection here is theirs: whose mail goes through a
	// fallback. Sends write it, the brake's loop takes it.
	wanted map[string]bool
}

// want has the next reading look at a mail server.
func (n *newest) want(name string) {
	n.mu.Lock()
	n.wanted[name] = true
	n.mu.Unlock()
	select {
	case n.ask <- struct{}{}:
	default:
	}
}

// takeWanted is what was wanted since it was last called.
func (n *newest) takeWanted() map[string]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	wanted := n.wanted
	n.wanted = map[string]bool{}
	return wanted
}

// reading is when it was last certain that nothing newer was known, and what tells of the next.
func (n *newest) reading(name string) (asked time.Time, news <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.read[name], n.news
}

// note takes note of the versions that the database had. A mail server whose newest
// configuration could not be read yet gets no reading: its dots wait for the next.
func (n *newest) note(asked time.Time, names []string, versions map[string]int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range names {
		if s := n.byName[name]; s != nil && versions[name] <= s.Version {
			n.read[name] = asked
		}
	}
	close(n.news)
	n.news = make(chan struct{})
}

func (n *newest) get(name string) *store.MailServer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byName[name]
}

// usable says why no mail may leave now through a mail server that is configured like this, nil
// if it may.
func (e *Engine) usable(s *store.MailServer) error {
	switch {
	case s.DeleteTime != nil:
		return errDeleted
	case s.Paused(e.now()):
		return errPaused
	case s.Status != store.ServerAvailable:
		return errUnavailable
	}
	return nil
}

// mayLeave says why no mail may leave now under the configuration that its attempt began with,
// nil if it may. Claims, sends of php mode and the gate ask it: what has no mark yet does not
// leave.
func (e *Engine) mayLeave(s *store.MailServer) error {
	now := e.newest.get(s.Name)
	if now == nil || now.Version <= s.Version {
		return e.usable(s)
	}
	if err := e.usable(now); err != nil {
		return err
	}
	return errReconfigured
}

// mayStillTake is mayTake for a dot that is about to leave: fresh only if the database was
// asked less than brakeTime ago and knew of no change. So a change is obeyed within that time
// although the database may fail, or not answer. news is closed at the next reading.
func (e *Engine) mayStillTake(w way) (fresh bool, news <-chan struct{}, err error) {
	// before the look at what was heard until then
	asked, news := e.newest.reading(w.server.Name)
	if w.diverts() {
		if via, _ := e.newest.reading(w.via.Name); via.Before(asked) {
			asked = via
		}
	}
	return time.Since(asked) < brakeTime, news, e.mayTake(w)
}

// awaitReading waits until mayStillTake says that its reading is fresh, most often for nothing.
func (e *Engine) awaitReading(ctx context.Context, w way) error {
	var late <-chan time.Time // most dots need none
	for {
		fresh, news, err := e.mayStillTake(w)
		if fresh || err != nil {
			return err
		}
		if late == nil {
			t := time.NewTimer(lease.Fresh)
			defer t.Stop()
			late = t.C
		}
		e.newest.want(w.server.Name)
		e.newest.want(w.via.Name)
		select {
		case <-news:
		case <-late:
			return errVersionsLate
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// current is the configuration to send with now: s, or a newer one.
func (e *Engine) current(s *store.MailServer) (*store.MailServer, error) {
	err := e.mayLeave(s)
	if errors.Is(err, errReconfigured) {
		return e.newest.get(s.Name), nil
	}
	return s, err
}

// heard takes note of a mail server's configuration. Everybody who has read one calls it before
// mail is sent with it: a dot leaves under the newest that was heard. A newer one ends the
// drain that runs under an older one: what that has claimed goes back, and a new drain begins
// if mail may leave.
func (e *Engine) heard(s *store.MailServer) {
	e.newest.mu.Lock()
	was := e.newest.byName[s.Name]
	if was == nil || was.Version < s.Version {
		e.newest.byName[s.Name] = s
	}
	e.newest.mu.Unlock()
	if was != nil && was.Version >= s.Version {
		return
	}
	e.relays.Of(s)
	e.drains.brake(e, s)
}

// brake ends the drains that run under an older configuration than s, also those of mail that
// goes through s as a fallback.
func (ds *drains) brake(e *Engine, s *store.MailServer) {
	older := func(x *store.MailServer) bool { return x.Name == s.Name && x.Version < s.Version }
	var stale []*drain
	ds.mu.Lock()
	for _, d := range ds.running {
		if older(d.server) || older(d.via) {
			d.stale = true
			stale = append(stale, d)
		}
	}
	ds.mu.Unlock()
	for _, d := range stale {
		err := e.mayTake(d.way)
		if err == nil {
			err = errReconfigured
		}
		if d.stop(err) {
			e.log.Info("batch: begins anew", "mail_server", d.server.Name, "reason", err)
		}
	}
}

// ServerChanged says that a mail server was changed by this process.
func (e *Engine) ServerChanged(ctx context.Context, name string) {
	s, err := e.journal.Server(ctx, store.Everything, name)
	if err != nil {
		return // the next look finds it
	}
	e.heard(s)
}

// brakeLoop looks for changed mail servers until ctx ends.
func (e *Engine) brakeLoop(ctx context.Context) {
	t := time.NewTicker(brakeEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-e.newest.ask:
		}
		e.lookAtServers(ctx)
	}
}

// lookAtServers reads the versions of the mail servers in use and whatever is newer than what
// was heard. It compares with what was heard alone, because a dot does: what a drain or a
// connection knows beside that may be newer and stop no dot.
func (e *Engine) lookAtServers(ctx context.Context) {
	used := e.newest.takeWanted()
	for _, s := range e.relays.InUse() {
		used[s.Name] = true
	}
	e.drains.mu.Lock()
	for _, d := range e.drains.running {
		used[d.server.Name], used[d.via.Name] = true, true
	}
	e.drains.mu.Unlock()
	if len(used) == 0 {
		return
	}
	names := slices.Collect(maps.Keys(used))
	ctx, cancel := context.WithTimeout(ctx, brakeTime) // an answer that comes later is too old
	defer cancel()
	asked := time.Now()
	versions, err := e.journal.ServerVersions(ctx, names)
	if err != nil {
		return // the claims of the batch tell about the database
	}
	for _, name := range names {
		if s := e.newest.get(name); s == nil || versions[name] > s.Version {
			e.ServerChanged(ctx, name)
		}
	}
	e.newest.note(asked, names, versions)
}
