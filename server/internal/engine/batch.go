package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/brake"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/store"
)

// ErrStopping: the service is going down and begins nothing new.
var ErrStopping = store.Unwritten(errors.New("the service is stopping"))

// restlessPoll is how long an idle batch waits that is told never to rest; a mail queued in
// this process wakes it at once.
const restlessPoll = 500 * time.Millisecond

// restlessPause is the least time between two passes of a batch that never rests. A pass costs
// several statements, and under load every mail asks for one.
const restlessPause = 20 * time.Millisecond

// batchLoop starts the drains of whatever is due, every BatchInterval, until ctx ends. It does
// not wait for them: a slow mail server never holds up the next pass for the others.
//
// due is what was found before mail could be accepted: the first pass takes no more, so that it
// cannot meet what comes right after the start.
func (e *Engine) batchLoop(ctx context.Context, due []string) {
	for first := true; ; first = false {
		began := time.Now()
		if !first {
			var err error
			if due, err = e.journal.DueServers(ctx); err != nil && ctx.Err() == nil {
				e.log.Error("batch: cannot look for due mail", "error", err)
			}
		}
		if _, err := e.startDrains(ctx, due, false); err != nil && ctx.Err() == nil {
			e.log.Error("batch: cannot read a mail server", "error", err)
		}
		wait := e.cfg.BatchInterval
		var wake <-chan struct{}
		if wait <= 0 {
			wait = restlessPoll/2 + rand.N(restlessPoll/2)
			wake = e.wake
		} else {
			e.nextPass.Store(e.now().Add(wait).UnixNano())
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		case <-wake:
			t.Reset(restlessPause - time.Since(began))
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
		}
	}
}

// queued tells a batch that never rests that there is work.
func (e *Engine) queued() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// RunBatch is the minute's batch, now: of one mail server, or of all when server is "". Asked
// for by name, a suspended mail server is tried. With wait it returns when everything that was
// due is settled, with the counts of exactly that, as far as this process has settled it;
// without, at once.
func (e *Engine) RunBatch(ctx context.Context, server string, wait bool) (delivery.Counts, error) {
	if !e.begin() {
		return delivery.Counts{}, ErrStopping
	}
	defer e.work.done()
	if !wait {
		_, err := e.startPass(ctx, server)
		return delivery.Counts{}, err
	}
	p := e.passes.begin(server, e.now())
	err := e.runPass(ctx, server)
	return e.passes.end(p), err
}

// startPass starts a drain for each mail server that has mail, or makes the one that runs look
// once more.
func (e *Engine) startPass(ctx context.Context, server string) ([]*drain, error) {
	names := []string{server}
	if server == "" {
		var err error
		if names, err = e.journal.DueServers(ctx); err != nil {
			return nil, err
		}
	}
	return e.startDrains(ctx, names, server != "")
}

// runPass starts the drains and waits for what is due, also for what drains hold in memory:
// that is not due in the database any more.
func (e *Engine) runPass(ctx context.Context, server string) error {
	ds, err := e.startPass(ctx, server)
	if err != nil {
		return err
	}
	ds = e.drains.with(ds, server)
	for i := 0; i < len(ds); i++ {
		if err := ds[i].await(ctx); err != nil {
			return err
		}
		// One that ended because its configuration or its way changed has given back what it
		// had: that is its successors'.
		ds = append(ds, ds[i].followers(ctx)...)
	}
	return nil
}

// startDrains starts a drain for each mail server, or makes the one that runs look once more.
func (e *Engine) startDrains(ctx context.Context, names []string, force bool) ([]*drain, error) {
	e.lastPass.Store(e.now().UnixNano())
	var ds []*drain
	var failed error
	for _, name := range names {
		s, err := e.journal.Server(ctx, store.Everything, name)
		if errors.Is(err, store.ErrNotFound) && !force {
			continue
		}
		if err != nil {
			failed = errors.Join(failed, err) // the others do not wait for it
			continue
		}
		e.brake.Heard(s)
		if s.DeleteTime != nil {
			// It was being sent when its mail server was deleted, and would wait for ever.
			if _, err := e.journal.HoldDeleted(ctx, name); err != nil {
				failed = errors.Join(failed, err)
			}
			continue
		}
		for _, w := range e.ways(ctx, s, force) {
			if d := e.drains.start(e, w, force); d != nil {
				ds = append(ds, d)
			}
		}
	}
	return ds, failed
}

// drains holds the one running drain of each way of a mail server, and those that end.
type drains struct {
	mu      sync.Mutex
	running map[brake.Key]*drain
	// no mail is put in any more; not all of their results are durable yet
	ending map[*drain]bool
}

// start returns the way's drain, begun now or already running; nil when the engine is stopping.
// One that runs looks once more, and lets urgent mail in at once.
func (ds *drains) start(e *Engine, w brake.Way, force bool) *drain {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if d := ds.running[w.Key()]; d != nil {
		d.more = true
		d.jobs.Ask(true)
		return d
	}
	if !e.begin() {
		return nil
	}
	d := newDrain(e, w)
	d.force = force
	ds.running[w.Key()] = d
	go func() {
		defer e.work.done()
		d.run(e.workCtx)
	}()
	return d
}

// ask makes the feeders of all drains look.
func (ds *drains) ask() {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for _, d := range ds.running {
		d.jobs.Ask(false)
	}
}

// with adds the drains of the mail server that run or end to list, those of all when server is
// "".
func (ds *drains) with(list []*drain, server string) []*drain {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	add := func(d *drain) {
		if (server == "" || server == d.Server.Name) && !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	for _, d := range ds.running {
		add(d)
	}
	for d := range ds.ending {
		add(d)
	}
	return list
}

// looks notes that the drain is about to look for due mail: whoever has asked for that before
// is served by it.
func (ds *drains) looks(d *drain) {
	ds.mu.Lock()
	d.more = false
	ds.mu.Unlock()
	d.jobs.Looks()
}

// finish takes a drain off the list unless somebody asked it to look once more.
func (ds *drains) finish(d *drain) bool {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if d.more && !d.broken() && !d.stale {
		return false
	}
	ds.remove(d)
	return true
}

// end takes a drain off the list whatever was asked of it meanwhile.
func (ds *drains) end(d *drain) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.remove(d)
}

func (ds *drains) remove(d *drain) {
	if ds.running[d.Key()] == d {
		delete(ds.running, d.Key())
	}
	ds.ending[d] = true
}

// over takes a drain off the list of those that end: all that it did is durable.
func (ds *drains) over(d *drain) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	delete(ds.ending, d)
}
