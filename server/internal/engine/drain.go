package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/brake"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/fairqueue"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/store"
)

const (
	firstPage = 50  // mails of the first claim: it also shows how large they are
	fullPage  = 500 // mails of a claim from a backlog
	// what a page of claimed mails may weigh in memory, judged by the page before
	pageBytes  = 16 << 20
	perWorker  = 4 // claimed mails a connection should at least have to be worth opening
	claimRetry = time.Second
	// deepest is how many mails may wait in memory for a fast relay; a slower one gets what it
	// takes in two seconds, so that replicas and teams go on sharing.
	deepest = 5000
	// lingers is how long a drain that has nothing to do keeps its sessions, when the batch
	// never rests: the next mail is not far.
	lingers = 2 * time.Second
	// maxPace is how long a group of bulk may wait for a relay that takes twice as much in the
	// time; unjudged for how long a drain runs before that is known, and the relay is taken for
	// one that does; paceFor for how long groups wait for a backlog to go.
	maxPace  = time.Second
	unjudged = 2 * time.Second
	paceFor  = 30 * time.Second
)

// drain sends everything that is due at one mail server, through itself or through its
// fallback. The feeder claims pages and hands them to workers; each worker owns a session.
type drain struct {
	e *Engine
	brake.Way
	relay *relay.Relay // of Way.Via
	jobs  *fairqueue.Queue[*job]
	force bool          // try the mail server although it is suspended
	done  chan struct{} // closed when the drain is over
	ended chan struct{} // closed when no mail may leave any more
	left  chan struct{} // closed when followers are begun for what a broken drain left behind
	began time.Time
	rate  atomic.Int64 // recent mails a second
	// mails that came in memory, without a claim
	direct atomic.Int64
	// when the last claim found nothing more, or the drain began: unix nanoseconds
	fed atomic.Int64

	more bool // guarded by drains.mu: look once more before ending
	// guarded by drains.mu: the configuration has changed; a new drain begins
	stale bool

	mu      sync.Mutex
	counts  delivery.Counts
	workers int      // running; the scale loop alone starts them
	fault   error    // no session can be had: the drain ends
	next    []*drain // begun by this drain when it ended, for what it has left behind
	// those who wait for a look, in the order they asked; only the feeder takes them off
	waiting []chan (<-chan struct{})

	// holds a value while a mail that two owners died of is being sent: no other such mail is
	// sent concurrently
	isolate chan bool

	wake chan struct{} // holds a value when the scale loop has to look at the backlog

	probed  chan struct{} // closed when the first worker has opened a session, or failed
	probing sync.Once
}

func newDrain(e *Engine, w brake.Way) *drain {
	d := &drain{e: e, Way: w, relay: e.relays.Of(w.Via), jobs: fairqueue.New[*job](lineLength(e, w.Via)), done: make(chan struct{}), ended: make(chan struct{}), left: make(chan struct{}), probed: make(chan struct{}), isolate: make(chan bool, 1), wake: make(chan struct{}, 1)}
	d.began = time.Now()
	d.fed.Store(d.began.UnixNano())
	return d
}

// idleFor is how long a worker that has nothing to send keeps its connection. Where replicas
// share few connections it is short: one that waits here for the limit per minute must not keep
// a connection for which another waits that has what this one waits for.
func (d *drain) idleFor() time.Duration {
	if d.Via.Limits.MaxConnections > 0 {
		return lingers
	}
	return relay.IdleLimit
}

// lineLength is how many claimed jobs may wait for a worker. Where the mail server has limits
// they are few: what is claimed is taken out of the limits, and what a process holds when it
// dies is lost to them.
func lineLength(e *Engine, s *store.MailServer) int {
	if relay.Limited(s) {
		return min(fullPage, perWorker*e.relays.MaxConnections(s))
	}
	return fullPage
}

func (d *drain) total() delivery.Counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts
}

func (d *drain) broken() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fault != nil
}

func (d *drain) outdated() bool {
	d.e.drains.mu.Lock()
	defer d.e.drains.mu.Unlock()
	return d.stale
}

func (d *drain) run(ctx context.Context) {
	defer close(d.done)
	left := sync.OnceFunc(func() { close(d.left) })
	defer left()
	fed, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		d.scaleLoop(ctx, fed)
	}()
	// When the grace of a stop is over no worker is started for what still waits: it goes back.
	defer context.AfterFunc(ctx, d.jobs.Abort)()
	d.feed(ctx)
	d.e.drains.end(d)
	d.jobs.Close()
	d.jobs.Drained()
	if d.broken() {
		d.releaseAll() // what waits goes back now, also while a worker still waits for a reply
		d.e.ledger.Reached(context.Background())
		d.beginAnew(ctx)
		left()
	}
	close(fed)
	<-over
	d.releaseAll()
	// whoever waits for this drain reads results in the journal next
	d.e.ledger.Reached(context.Background())
	d.e.drains.over(d)
	d.beginAnew(ctx)
	if t := d.total(); t.Claimed > 0 {
		d.e.log.Info("batch", "mail_server", d.Server.Name, "through", d.Via.Name, "claimed", t.Claimed, "in_memory", d.direct.Load(), "sent", t.Sent, "partial", t.Partial, "deferred", t.Deferred,
			"failed", t.Failed, "unknown", t.Unknown, "expired", t.Expired, "released", t.Released, "took", time.Since(d.began).Round(time.Millisecond))
	}
}

// releaseAll gives back what waits in the line.
func (d *drain) releaseAll() {
	for j, any := d.jobs.Take(); any; j, any = d.jobs.Take() {
		d.release(j)
	}
}

// feed claims pages while the line is short, until nothing is due, the relay is down, or the
// engine stops. It alone claims.
func (d *drain) feed(ctx context.Context) {
	page := firstPage
	if d.Probe {
		page = 1
	}
	for ok := true; ok && !d.e.work.stopped() && !d.broken() && !d.outdated() && !d.goesBack(); {
		switch d.jobs.AwaitNeed(d.linger()) {
		case fairqueue.Look:
			page, ok = d.look(ctx, page)
		case fairqueue.Urgent:
			d.express(ctx)
		case fairqueue.Idle:
			ok = !d.e.drains.finish(d)
		case fairqueue.Aborted:
			return
		}
	}
}

// look claims a page. It returns how much to claim next, and false when the drain is to end.
func (d *drain) look(ctx context.Context, page int) (int, bool) {
	want, ok := d.takeRate(ctx, page)
	if !ok || want == 0 {
		return page, ok
	}
	d.e.drains.looks(d)
	asked := d.asked()
	claimed, next, err := d.claim(ctx, want, store.AnyPriority)
	if err != nil {
		d.e.log.Error("batch: cannot claim", "mail_server", d.Server.Name, "error", err)
		select {
		case <-time.After(claimRetry):
		case <-ctx.Done():
		}
		return page, false // the next pass tries again
	}
	all := claimed < want
	d.jobs.Looked(all)
	if all {
		d.fed.Store(time.Now().UnixNano())
		d.allIn(asked)
	}
	if d.Probe {
		return page, false // hasOtherWay says how it goes on
	}
	if claimed > 0 {
		page = min(next, d.e.journal.BulkItems())
	}
	return page, true
}

// claim claims up to want mails that are above a priority and puts them into the line. It tells
// how many, and how many to claim next.
func (d *drain) claim(ctx context.Context, want int, above int16) (n, next int, err error) {
	owner := d.e.lease.Replica()
	claimed, err := d.e.journal.Claim(ctx, owner, d.Server.Name, want, above)
	d.giveBack(want - len(claimed))
	if len(claimed) > 0 {
		next = nextPage(claimed) // before they are in the line, and with that the workers'
		d.accept(claimed, owner)
	}
	return len(claimed), next, err
}

func (d *drain) linger() time.Duration {
	if d.e.cfg.BatchInterval > 0 || d.e.work.stopped() {
		return 0
	}
	return lingers
}

// asked is how many wait for a look at what is due.
func (d *drain) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.waiting)
}

// allIn: whatever was due at the last claim is in the workers' hands. Those who had asked
// before it began, the first n, wait for that and not for what comes later.
func (d *drain) allIn(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.waiting[:n] {
		w <- d.jobs.Barrier()
	}
	d.waiting = d.waiting[n:]
}

// allDue makes the feeder look for due mail. It returns a channel on which comes what to wait
// for: the settling of everything that was due when it was asked. done ends that wait as well.
func (d *drain) allDue() <-chan (<-chan struct{}) {
	c := make(chan (<-chan struct{}), 1)
	d.mu.Lock()
	d.waiting = append(d.waiting, c)
	d.mu.Unlock()
	d.jobs.Ask(false)
	return c
}

// accept puts claimed mails into the line. All are known to be here before the first can be
// settled: what is owned and not known is taken back.
func (d *drain) accept(claimed []*store.Claimed, owner store.ReplicaID) {
	d.note(delivery.Counts{Claimed: len(claimed)})
	for _, c := range claimed {
		d.e.ledger.Take(c.ID, c.Claim)
	}
	now := d.e.now()
	for _, c := range claimed {
		j := newJob(c, owner, now)
		if d.limited() {
			j.charge = reserved
		}
		if d.settleUnsendable(j, now) {
			continue
		}
		j.take(d.Way, "", now)
		if !d.jobs.Put(j) {
			d.release(j)
		}
	}
	d.wakeScale()
}

// express claims what is more urgent than what the workers are busy with: it goes before that,
// so that a backlog of bulk mail delays nothing urgent.
func (d *drain) express(ctx context.Context) {
	lowest, any := d.jobs.MinPriority()
	if !any || d.Probe {
		return
	}
	if want, ok := d.takeRate(ctx, firstPage); ok && want > 0 {
		_, _, _ = d.claim(ctx, want, lowest) // the next look meets the same fault and tells
	}
}

// overtakenBy says whether mail of this priority should go before what the workers are busy
// with.
func (d *drain) overtakenBy(priority int16) bool {
	lowest, any := d.jobs.MinPriority()
	return any && priority > lowest
}

const (
	scaleEvery = 250 * time.Millisecond
	// rounds without a worker after which claimed mail goes back: others hold all connections
	maxIdleRounds = 20
)

var errNoneFree = errors.New("no connection came free: other replicas or php-mode mail hold all that the mail server allows")

// scaleLoop starts workers while there is a backlog for them, as connections ramp up or come
// free, and gives the mails back when for long nobody can send them. After fed it waits for the
// workers, and starts no more.
func (d *drain) scaleLoop(ctx context.Context, fed <-chan struct{}) {
	var workers sync.WaitGroup
	defer workers.Wait()
	t := time.NewTicker(scaleEvery)
	defer t.Stop()
	var before delivery.Counts
	for idleRounds := 0; ; {
		select {
		case <-fed:
			return
		case <-ctx.Done():
			return
		case <-d.wake:
			d.scale(&workers)
			continue
		case <-t.C:
		}
		now := d.total()
		rate := now.Since(before).Claimed * int(time.Second/scaleEvery)
		d.rate.Store(int64(rate))
		d.jobs.SetDirectRoom(min(deepest, max(fullPage, 2*rate)))
		before = now
		if d.jobs.Len() == 0 {
			continue
		}
		d.scale(&workers)
		d.mu.Lock()
		idleRounds++
		if d.workers > 0 {
			idleRounds = 0
		}
		d.mu.Unlock()
		if idleRounds >= maxIdleRounds && d.abort(errNoneFree) {
			// Where replicas share few connections that is an ordinary day.
			d.e.log.Info("batch: no mail may leave", "mail_server", d.Server.Name, "reason", errNoneFree)
		}
	}
}

// wakeScale has the scale loop look at the backlog.
func (d *drain) wakeScale() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// scale brings the number of workers up to what the backlog is worth, as far as the relay has
// permits. The scale loop alone calls it.
func (d *drain) scale(workers *sync.WaitGroup) {
	backlog := d.jobs.Len()
	want := min(1, backlog)
	select {
	case <-d.probed:
		want += backlog / perWorker
	default: // one connection first: a dead relay is asked once, not MaxConnections times
	}
	for want = min(want, d.e.relays.MaxConnections(d.Via)); d.addWorker(want); {
		pm, ok := d.relay.TryBatch(d.e.workCtx, d.Via)
		if !ok {
			d.removeWorker()
			return
		}
		w := &worker{d: d, e: d.e, permit: pm}
		workers.Go(func() { w.run(d.e.workCtx) })
	}
}

// addWorker counts one more in, false when there are as many as wanted or the drain ends.
func (d *drain) addWorker(want int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.workers >= want || d.fault != nil {
		return false
	}
	d.workers++
	return true
}

func (d *drain) removeWorker() {
	d.mu.Lock()
	d.workers--
	d.mu.Unlock()
}

// hasProbed: the first worker has a session, or could have none. More may be started from the
// next round on: where replicas share few connections, each gets its first before any gets its
// second.
func (d *drain) hasProbed() { d.probing.Do(func() { close(d.probed) }) }

// takeRate asks the mail server's limits per minute and per day for up to page mails. It waits
// for a minute's limit; false ends the drain.
func (d *drain) takeRate(ctx context.Context, page int) (int, bool) {
	if !d.limited() {
		return page, true
	}
	n, next, err := d.relay.TakeRate(ctx, d.Via, min(page, lineLength(d.e, d.Via)))
	if err != nil {
		d.e.log.Error("batch: cannot read the limits", "mail_server", d.Server.Name, "error", err)
		return 0, false
	}
	if n > 0 {
		return n, true
	}
	wait := next.Sub(d.e.now())
	if wait > time.Minute {
		d.e.log.Info("batch: the day's limit is reached", "mail_server", d.Via.Name, "next", next.UTC().Format(time.RFC3339))
		return 0, false
	}
	t := time.NewTimer(max(wait, 20*time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
		return 0, true
	case <-d.e.work.stopping:
	case <-d.ended:
	case <-ctx.Done():
	}
	return 0, false
}

func (d *drain) limited() bool { return relay.Limited(d.Via) }

// giveBack gives back what was taken out of the limits and found no mail.
func (d *drain) giveBack(n int) {
	if n > 0 && d.limited() {
		d.relay.GiveBack(n)
	}
}

// nextPage sizes the next claim so that a page of large mails does not fill the memory.
func nextPage(last []*store.Claimed) int {
	var sum int64
	for _, c := range last {
		sum += int64(len(c.Raw)) + 256
	}
	return max(1, min(fullPage, int(pageBytes*int64(len(last))/max(sum, 1))))
}

// release gives a job back to the journal untouched, with the reason.
func (d *drain) release(j *job) {
	end, why := lifecycle.Stopped, ""
	d.mu.Lock()
	if d.fault != nil && !errors.Is(d.fault, brake.ErrReconfigured) {
		end, why = lifecycle.NoSession, d.fault.Error()
	}
	d.mu.Unlock()
	d.finish(j, end, why)
}

// finish records what became of a job whose attempt has ended, and lets go of what it holds.
// The job is settled when that is durable.
func (d *drain) finish(j *job, end lifecycle.End, why string) {
	j.over = true
	j.settleRate(d.relay)
	v := j.Finish(end, why, d.Server.Limits, d.e.now())
	d.note(counts(v))
	d.e.attempted(j.Mail, v)
	j.span.over(v.Outcome, v.Failure)
	d.e.releaseMemory(j)
	d.e.ledger.Record(v.Settlement, func(mine bool) {
		if mine {
			d.e.ended(j.Mail, v)
			d.e.passes.settled(j, v)
		}
		d.jobs.Settled(j)
	})
}

func (d *drain) note(c delivery.Counts) {
	d.mu.Lock()
	d.counts.Add(c)
	d.mu.Unlock()
}
