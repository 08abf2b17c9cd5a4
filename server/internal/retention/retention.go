// Package retention removes finished mail, or its content, when its time is over.
//
// It never touches the due-out journal, and a legal hold wins: both are conditions of the
// store's statements, not of this package. One process at a time removes, the others look
// whether it still does.
//
// Removing is work that can wait. It goes in small transactions, each short enough that nobody
// who waits for the database behind it notices: 50 ms on PostgreSQL, 10 ms on SQLite, where it
// holds the only writer. Between two of them it rests for as long as the last one took, and
// nine times as long while callers of php mode are at work or most connections are in use, but
// never longer than 100 ms: on a machine that has no time for anything it goes on all the same.
package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

// Store is what retention needs of the store.
type Store interface {
	Purge(ctx context.Context, me string, r store.KeepRule, most int) (store.Purged, error)
	Overdue(ctx context.Context, r store.KeepRule) (time.Duration, error)
	WalkContents(ctx context.Context, me string) (through bool, err error)
	CollectContents(ctx context.Context, me string, most int) (looked, contents int, bytes int64, err error)
	DatabaseBytes(ctx context.Context) (int64, error)
	Yield(ctx context.Context)
	Pressed() bool
	Dialect() string
}

// Observer hears what is removed. It must not wait for anything.
type Observer interface {
	// Removed: so many mails, or parts of them, have gone by a rule.
	Removed(kind store.Kind, part store.Part, mails int)
	// Overdue: the first mail that a rule has to remove should have gone so long ago.
	Overdue(kind store.Kind, part store.Part, by time.Duration)
	// RemovedContents: so many files that no mail needed any more.
	RemovedContents(files int, bytes int64)
	// Through: all rules have been through at that time.
	Through(at time.Time)
}

// Config of a Remover. Store and Logger are required.
type Config struct {
	Store    Store
	Rules    Rules
	Logger   *slog.Logger
	Observer Observer      // nil = nobody hears
	Every    time.Duration // between two passes; 0 = five minutes
}

const (
	every = 5 * time.Minute
	// tellEvery is how often the log says that nothing is removed, while there is much to keep.
	tellEvery = 24 * time.Hour
	// much is from which size on it does.
	much = 10 << 30

	firstPage = 50  // mails that the first transaction removes
	mostPage  = 500 // and the largest
	// leastPage is a millisecond of work: a transaction of so few that takes longer waits for a
	// processor or the disk, and would do so with fewer mails too.
	leastPage = 10

	// rests says how much longer than a transaction the rest behind it is.
	restUsual   = 1
	restPressed = 9
	mostRest    = 100 * time.Millisecond
	contentPage = 10
)

// Remover is the loop. One goroutine runs it.
type Remover struct {
	Config
	me     string
	page   int           // how many mails the next transaction removes
	target time.Duration // how long one may take
	told   time.Time     // when the log last heard that everything is kept
}

// New makes a Remover.
func New(c Config) *Remover {
	if c.Observer == nil {
		c.Observer = deaf{}
	}
	if c.Every == 0 {
		c.Every = every
	}
	r := &Remover{Config: c, me: uuid.NewString(), page: firstPage, target: 50 * time.Millisecond}
	if c.Store.Dialect() == "sqlite" {
		r.target = 10 * time.Millisecond
	}
	return r
}

// deaf is the Observer where none is given.
type deaf struct{}

func (deaf) Removed(store.Kind, store.Part, int)           {}
func (deaf) Overdue(store.Kind, store.Part, time.Duration) {}
func (deaf) RemovedContents(int, int64)                    {}
func (deaf) Through(time.Time)                             {}

// Run removes until ctx ends.
func (r *Remover) Run(ctx context.Context) {
	t := time.NewTicker(r.Every)
	defer t.Stop()
	for {
		if err := r.Pass(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrNotHolder) {
			r.Logger.Warn("retention: what is kept no longer could not be removed; tried again later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Pass removes all that is kept no longer, with its rests.
func (r *Remover) Pass(ctx context.Context) error {
	if len(r.Rules) == 0 {
		return r.tellKept(ctx)
	}
	// Every process says how far behind the rules are, also where another one removes.
	defer r.tellOverdue(ctx)
	var failed error // one rule's fault stops no other
	for _, rule := range r.Rules {
		err := r.rule(ctx, rule)
		if errors.Is(err, store.ErrNotHolder) || ctx.Err() != nil {
			return err
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s of %s: %w", rule.Part, rule.Kind, err))
		}
	}
	if err := r.contents(ctx); err != nil {
		failed = errors.Join(failed, fmt.Errorf("files: %w", err))
	}
	if failed != nil {
		return failed
	}
	r.Observer.Through(time.Now())
	return nil
}

// rule removes what one rule is about.
func (r *Remover) rule(ctx context.Context, rule store.KeepRule) error {
	mails, bytes, held := 0, int64(0), 0
	defer func() {
		if mails > 0 {
			r.Logger.Info("retention", "kind", rule.Kind, "part", rule.Part, "mails", mails, "bytes", bytes, "held", held)
		}
	}()
	for {
		most := r.page
		if r.Store.Pressed() {
			most = min(most, firstPage)
		}
		p, err := r.Store.Purge(ctx, r.me, rule, most)
		if err != nil {
			return err
		}
		mails, bytes, held = mails+p.Mails, bytes+p.Bytes, held+p.Held
		if p.Mails > 0 {
			r.Observer.Removed(rule.Kind, rule.Part, p.Mails)
			r.size(p.Mails, most, p.Took)
		}
		r.Observer.Overdue(rule.Kind, rule.Part, p.Behind)
		if p.Through {
			return nil
		}
		if err := r.rest(ctx, p.Took); err != nil {
			return err
		}
	}
}

// size makes the next transaction as large as it may be by what the last one took.
func (r *Remover) size(mails, most int, took time.Duration) {
	switch {
	case took > r.target:
		r.page = max(leastPage, most/2)
	case took < r.target/2 && mails == most && most == r.page:
		r.page = min(mostPage, r.page*2)
	}
}

// rest waits between two transactions.
func (r *Remover) rest(ctx context.Context, took time.Duration) error {
	times := restUsual
	if r.Store.Pressed() {
		times = restPressed
	}
	t := time.NewTimer(min(mostRest, max(time.Millisecond, time.Duration(times)*took)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.Store.Yield(ctx)
	return ctx.Err()
}

// contents removes files that no mail needs any more.
func (r *Remover) contents(ctx context.Context) error {
	for {
		began := time.Now()
		through, err := r.Store.WalkContents(ctx, r.me)
		if err != nil {
			return err
		}
		if through {
			break
		}
		if err := r.rest(ctx, time.Since(began)); err != nil {
			return err
		}
	}
	for {
		began := time.Now()
		looked, n, bytes, err := r.Store.CollectContents(ctx, r.me, contentPage)
		if n > 0 {
			r.Observer.RemovedContents(n, bytes)
		}
		if err != nil || looked == 0 {
			return err
		}
		if err := r.rest(ctx, time.Since(began)); err != nil {
			return err
		}
	}
}

func (r *Remover) tellOverdue(ctx context.Context) {
	for _, rule := range r.Rules {
		if by, err := r.Store.Overdue(ctx, rule); err == nil {
			r.Observer.Overdue(rule.Kind, rule.Part, by)
		}
	}
}

// tellKept says once a day that everything is kept, when that is much.
func (r *Remover) tellKept(ctx context.Context) error {
	if time.Since(r.told) < tellEvery {
		return nil
	}
	n, err := r.Store.DatabaseBytes(ctx)
	if err != nil || n < much {
		return err
	}
	r.told = time.Now()
	r.Logger.Warn("retention: all finished mail is kept for ever, because --keep says nothing else", "database_bytes", n, "example", "--keep=invoice:10y/2y/2y,bulk:90d/7d/0")
	return nil
}
