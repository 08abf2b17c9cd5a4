package api

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// tail reads the log of changes once for all watchers of the process, and wakes those whom a
// change may concern. A watcher that is woken reads for itself, with its own filter and its own
// rights: the tail only spares it the looks that find nothing. It runs while there are
// watchers.
type tail struct {
	store Store
	poll  time.Duration

	mu      sync.Mutex // guards what follows
	waiting map[*waiter]bool
	stop    context.CancelFunc // of the goroutine that reads; nil = none
	ended   chan struct{}      // closed when that goroutine is over

	lagMu sync.Mutex // guards what follows; held while the database is asked
	lag   time.Duration
	asked time.Time
}

// waiter is one watcher at the tail.
type waiter struct {
	wanted func(*store.MailChange) bool
	// Its buffer holds one: something may be there.
	wake chan struct{}

	mu sync.Mutex // guards what follows
	// Everything up to here does not concern the watcher, but for what it was woken for.
	seen store.Position
	woke bool
}

// watch adds a watcher to the tail until leave. It hears of every change behind the position
// that is returned; what came before is read by itself.
func (t *tail) watch(ctx context.Context, wanted func(*store.MailChange) bool) (w *waiter, at store.Position, err error) {
	w = &waiter{wanted: wanted, wake: make(chan struct{}, 1)}
	t.mu.Lock()
	t.waiting[w] = true
	for t.stop == nil {
		if ended := t.ended; ended != nil {
			t.mu.Unlock()
			<-ended // the one before; it does not wait for the database
			t.mu.Lock()
			if t.ended == ended {
				t.ended = nil
			}
			continue
		}
		run, stop := context.WithCancel(context.Background())
		t.stop, t.ended = stop, make(chan struct{})
		go t.run(run, t.ended)
	}
	t.mu.Unlock()
	at, err = t.store.LastChange(ctx)
	if err != nil {
		t.leave(w)
	}
	return w, at, err
}

func (t *tail) leave(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, w)
	if len(t.waiting) == 0 && t.stop != nil {
		t.stop()
		t.stop = nil
	}
}

// run reads until nobody watches.
func (t *tail) run(ctx context.Context, ended chan struct{}) {
	defer close(ended)
	var at store.Position
	known := false
	for tick := time.NewTicker(t.poll); ; {
		if !known {
			// Whoever watches already may have missed what lies before.
			if last, err := t.store.LastChange(ctx); err == nil {
				at, known = last, true
			}
			t.tell(nil, nil)
		}
		for more := known; more; {
			var changes []store.MailChange
			next, err := at, error(nil)
			if changes, next, more, err = t.store.Changes(ctx, store.Everything, store.MailFilter{}, at, watchPage); err != nil {
				known, more = false, false // the watchers hear it from their own looks
				continue
			}
			if at = next; len(changes) > 0 {
				t.tell(changes, &next)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// tell wakes whom the changes up to a position may concern; nil = everybody.
func (t *tail) tell(changes []store.MailChange, upTo *store.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for w := range t.waiting {
		wanted := upTo == nil
		for i := range changes {
			wanted = wanted || w.wanted(&changes[i])
		}
		w.hear(wanted, upTo)
	}
}

func (w *waiter) hear(wanted bool, upTo *store.Position) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case wanted:
		w.woke = true
		select {
		case w.wake <- struct{}{}:
		default: // it will look anyway
		}
	case !w.woke:
		w.seen = *upTo
	}
}

// begin says that the watcher looks now: what it was woken for so far is there to be read. The
// position is that up to which it has nothing to read, if it had read everything before.
func (w *waiter) begin() store.Position {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.woke = false
	return w.seen
}

// quiet is that position, while the watcher was not woken.
func (w *waiter) quiet() (store.Position, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, !w.woke
}

// watchLag is how far watchers are behind. All of them ask for it, the database once a second.
func (t *tail) watchLag(ctx context.Context) (time.Duration, error) {
	t.lagMu.Lock()
	defer t.lagMu.Unlock()
	if time.Since(t.asked) < time.Second {
		return t.lag, nil
	}
	lag, err := t.store.WatchLag(ctx)
	if err == nil {
		t.lag, t.asked = lag, time.Now()
	}
	return lag, err
}

// mayConcern says of a change, from what is quickly compared, whether a watcher may be let hear
// it. What is not compared here the database compares when the watcher looks.
func mayConcern(sc store.Scope, f store.MailFilter) func(*store.MailChange) bool {
	return func(ch *store.MailChange) bool {
		m := ch.Mail
		return (sc.All || slices.Contains(sc.Teams, m.Team)) && (f.Team == nil || *f.Team == m.Team) &&
			(f.BatchID == "" || f.BatchID == m.BatchID) && (f.RequestID == "" || f.RequestID == m.RequestID) &&
			(f.Reference == "" || f.Reference == m.Reference) && (f.Kind == "" || f.Kind == m.Kind) &&
			(len(f.Statuses) == 0 || slices.Contains(f.Statuses, ch.Status))
	}
}
