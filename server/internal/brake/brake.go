// Package brake says whether mail may leave by a way just now. It knows the newest
// configuration of each mail server that this process has heard of, and when the database last
// said that there is none newer. So a mail server that was switched off, deleted, paused or
// changed is obeyed by every process within a second: no dot leaves behind an older reading.
package brake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/lease"
	"github.com/maildispatch/maildispatch/store"
)

// Every is how often the versions are read of the mail servers that are in use here: one
// statement for all. A change by another replica is obeyed within a second, one by this process
// at once.
const Every = 500 * time.Millisecond

// freshFor is how old what the database says of a mail server may be when a dot leaves through
// it.
const freshFor = time.Second

// Why no mail may leave.
var (
	errVersionsLate = errors.New("the database does not say whether the mail server may still be used")
	errDeleted      = errors.New("the mail server is deleted")
	ErrUnavailable  = errors.New("the mail server is switched off")
	errPaused       = errors.New("the mail server is paused")
	ErrReconfigured = errors.New("the mail server's configuration has changed")
)

// Config is what a brake needs.
type Config struct {
	Journal interface {
		ServerVersions(ctx context.Context, names []string) (map[string]int64, error)
		Server(ctx context.Context, sc store.Scope, name string) (*store.MailServer, error)
	}
	Now func() time.Time
	// InUse adds the names of the mail servers that are in use here.
	InUse func(names map[string]bool)
	// Changed hears of a configuration that is newer than what was known until then.
	Changed func(s *store.MailServer)
}

// Brake knows the mail servers. Any goroutine may call any method.
type Brake struct {
	cfg    Config
	newest newest
}

// New makes a brake that knows nothing.
func New(cfg Config) *Brake {
	return &Brake{cfg: cfg, newest: newest{
		byName: map[string]*store.MailServer{}, read: map[string]time.Time{}, wanted: map[string]bool{},
		ask: make(chan struct{}, 1), news: make(chan struct{}),
	}}
}

// MayDivert says why no mail may leave now by a way through a fallback, nil if it may. A pause
// is a person's wish to wait; a mail server that is switched off only says that it is not to
// be used itself.
func (b *Brake) MayDivert(w Way) error {
	newer, now := false, w.Server
	if n := b.newest.get(w.Server.Name); n != nil && n.Version > w.Server.Version {
		newer, now = true, n
	}
	if err := b.usable(now); err != nil && !errors.Is(err, ErrUnavailable) {
		return err
	}
	if newer {
		return ErrReconfigured
	}
	err := b.MayLeave(w.Via)
	if err != nil && !errors.Is(err, ErrReconfigured) {
		return fmt.Errorf("fallback %s: %w", w.Via.Name, err)
	}
	return err
}

// MayTake says why no mail may leave now by a way, nil if it may.
func (b *Brake) MayTake(w Way) error {
	if w.Diverts() {
		return b.MayDivert(w)
	}
	return b.MayLeave(w.Server)
}

// Keep is a way for the next transaction of the same mail, with the configuration of now.
func (b *Brake) Keep(w Way) (Way, error) {
	if w.Diverts() {
		return w, b.MayDivert(w)
	}
	s, err := b.Current(w.Server)
	return Direct(s), err
}

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
func (b *Brake) usable(s *store.MailServer) error {
	switch {
	case s.DeleteTime != nil:
		return errDeleted
	case s.Paused(b.cfg.Now()):
		return errPaused
	case s.Status != store.ServerAvailable:
		return ErrUnavailable
	}
	return nil
}

// MayLeave says why no mail may leave now under the configuration that its attempt began with,
// nil if it may. Claims, sends of php mode and the gate ask it: what has no mark yet does not
// leave.
func (b *Brake) MayLeave(s *store.MailServer) error {
	now := b.newest.get(s.Name)
	if now == nil || now.Version <= s.Version {
		return b.usable(s)
	}
	if err := b.usable(now); err != nil {
		return err
	}
	return ErrReconfigured
}

// MayStillTake is MayTake for a dot that is about to leave: fresh only if the database was
// asked less than freshFor ago and knew of no change. So a change is obeyed within that time
// although the database may fail, or not answer. news is closed at the next reading.
func (b *Brake) MayStillTake(w Way) (fresh bool, news <-chan struct{}, err error) {
	// before the look at what was heard until then
	asked, news := b.newest.reading(w.Server.Name)
	if w.Diverts() {
		if via, _ := b.newest.reading(w.Via.Name); via.Before(asked) {
			asked = via
		}
	}
	return time.Since(asked) < freshFor, news, b.MayTake(w)
}

// Await waits until MayStillTake says that its reading is fresh, most often for nothing.
func (b *Brake) Await(ctx context.Context, w Way) error {
	var late <-chan time.Time // most dots need none
	for {
		fresh, news, err := b.MayStillTake(w)
		if fresh || err != nil {
			return err
		}
		if late == nil {
			t := time.NewTimer(lease.Fresh)
			defer t.Stop()
			late = t.C
		}
		b.newest.want(w.Server.Name)
		b.newest.want(w.Via.Name)
		select {
		case <-news:
		case <-late:
			return errVersionsLate
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Current is the configuration to send with now: s, or a newer one.
func (b *Brake) Current(s *store.MailServer) (*store.MailServer, error) {
	err := b.MayLeave(s)
	if errors.Is(err, ErrReconfigured) {
		return b.newest.get(s.Name), nil
	}
	return s, err
}

// Heard takes note of a mail server's configuration. Everybody who has read one calls it before
// mail is sent with it: a dot leaves under the newest that was heard.
func (b *Brake) Heard(s *store.MailServer) {
	if b.newest.heard(s) {
		b.cfg.Changed(s)
	}
}

// heard is false when what is known is as new.
func (n *newest) heard(s *store.MailServer) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if was := n.byName[s.Name]; was != nil && was.Version >= s.Version {
		return false
	}
	n.byName[s.Name] = s
	return true
}

// Read reads a mail server that was changed by this process.
func (b *Brake) Read(ctx context.Context, name string) {
	s, err := b.cfg.Journal.Server(ctx, store.Everything, name)
	if err != nil {
		return // the next look finds it
	}
	b.Heard(s)
}

// Run looks for changed mail servers until ctx ends.
func (b *Brake) Run(ctx context.Context) {
	t := time.NewTicker(Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-b.newest.ask:
		}
		b.look(ctx)
	}
}

// look reads the versions of the mail servers in use and whatever is newer than what
// was heard. It compares with what was heard alone, because a dot does: what a drain or a
// connection knows beside that may be newer and stop no dot.
func (b *Brake) look(ctx context.Context) {
	used := b.newest.takeWanted()
	b.cfg.InUse(used)
	if len(used) == 0 {
		return
	}
	names := slices.Collect(maps.Keys(used))
	ctx, cancel := context.WithTimeout(ctx, freshFor) // an answer that comes later is too old
	defer cancel()
	asked := time.Now()
	versions, err := b.cfg.Journal.ServerVersions(ctx, names)
	if err != nil {
		return // the claims of the batch tell about the database
	}
	for _, name := range names {
		if s := b.newest.get(name); s == nil || versions[name] > s.Version {
			b.Read(ctx, name)
		}
	}
	b.newest.note(asked, names, versions)
}
