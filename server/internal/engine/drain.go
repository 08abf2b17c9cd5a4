package engine

import (
	"context"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/store"
)

const (
	firstPage  = 50       // mails of the first claim: it also shows how large they are
	fullPage   = 500      // mails of a claim from a backlog
	pageBytes  = 16 << 20 // what a page of claimed mails may weigh in memory, judged by the page before
	perWorker  = 4        // claimed mails a connection should at least have to be worth opening
	claimRetry = time.Second
)

// drain sends everything that is due at one mail server. The feeder claims pages and hands them to workers; each worker owns a session.
type drain struct {
	e      *Engine
	server *store.MailServer
	jobs   *queue
	done   chan struct{} // closed when the drain is over
	more   bool          // guarded by drains.mu: look once more before ending

	mu      sync.Mutex
	counts  delivery.Counts
	live    int // workers with an open session
	workers int
	fault   error // no session can be had: the drain ends

	recording sync.WaitGroup // results handed over and not durable yet

	probed  chan struct{} // closed when the first worker has opened a session, or failed
	probing sync.Once
}

func newDrain(e *Engine, s *store.MailServer) *drain {
	return &drain{e: e, server: s, jobs: newQueue(fullPage), done: make(chan struct{}), probed: make(chan struct{})}
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

func (d *drain) run(ctx context.Context) {
	defer close(d.done)
	var ws sync.WaitGroup
	began := time.Now()
	for page := firstPage; ; {
		if d.e.isStopping() || d.broken() {
			break
		}
		owner := d.e.lease.replica()
		claimed, err := d.e.journal.Claim(ctx, owner, d.server.Name, page)
		if err != nil {
			d.e.log.Error("batch: cannot claim", "mail_server", d.server.Name, "error", err)
			select {
			case <-time.After(claimRetry):
			case <-ctx.Done():
			}
			break // the next pass tries again
		}
		if len(claimed) == 0 {
			// Nothing is due. A connection may still hang for minutes: until it is over, the next pass joins this drain and makes it look again.
			if !d.jobs.waitIdle() || d.e.drains.finish(d) {
				break
			}
			continue
		}
		page = d.nextPage(claimed)
		d.note(delivery.Counts{Claimed: len(claimed)})
		now := d.e.cfg.Now()
		for _, c := range claimed {
			j := newJob(c, owner, now)
			if d.setAside(j, now) {
				continue
			}
			d.hire(ctx, &ws, 1)
			if !d.jobs.put(j) {
				d.release(j)
				continue
			}
			if backlog := d.jobs.len(); backlog >= perWorker {
				select {
				case <-d.probed: // one connection first: a dead relay is asked once, not MaxConnections times
					d.hire(ctx, &ws, 1+backlog/perWorker)
				default:
				}
			}
		}
	}
	d.jobs.close()
	ws.Wait()
	for j := d.jobs.take(false); j != nil; j = d.jobs.take(false) {
		d.release(j)
	}
	d.recording.Wait() // whoever waits for this drain reads results in the journal next
	d.e.drains.finish(d)
	if t := d.total(); t.Claimed > 0 {
		d.e.log.Info("batch", "mail_server", d.server.Name, "claimed", t.Claimed, "sent", t.Sent, "partial", t.Partial, "deferred", t.Deferred,
			"failed", t.Failed, "unknown", t.Unknown, "expired", t.Expired, "released", t.Released, "took", time.Since(began).Round(time.Millisecond))
	}
}

// nextPage sizes the next claim so that a page of large mails does not fill the memory.
func (d *drain) nextPage(last []*store.Claimed) int {
	var sum int64
	for _, c := range last {
		sum += int64(len(c.Raw)) + 256
	}
	return max(1, min(fullPage, int(pageBytes*int64(len(last))/max(sum, 1))))
}

// setAside settles what must not be sent.
func (d *drain) setAside(j *job, now time.Time) bool {
	reason := ""
	switch {
	case j.mail.ExpireTime != nil && !now.Before(*j.mail.ExpireTime):
		reason = "expired: its expire_time had passed before it could be sent"
		d.note(delivery.Counts{Expired: 1})
	case j.mail.Crashes >= poisonCrashes:
		reason = "quarantined: the service died several times while it held this mail"
		d.note(delivery.Counts{Failed: 1})
	case len(j.todo) == 0:
		s, outcome := j.verdict(now, d.server.Limits, "", true)
		d.count(s, outcome)
		d.record(s)
		return true
	default:
		return false
	}
	s, _ := j.verdict(now, d.server.Limits, reason, true)
	d.record(s)
	return true
}

// hire brings the number of workers up to n, within the mail server's limit.
func (d *drain) hire(ctx context.Context, ws *sync.WaitGroup, n int) {
	n = min(n, d.e.maxConnections(d.server))
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.workers < n && d.fault == nil {
		d.workers++
		w := &worker{d: d, e: d.e}
		ws.Go(func() { w.run(ctx) })
	}
}

// release gives a job back to the journal untouched, with the reason.
func (d *drain) release(j *job) {
	d.mu.Lock()
	if d.fault != nil {
		j.fault = d.fault.Error()
	}
	d.mu.Unlock()
	s, _ := j.verdict(d.e.cfg.Now(), d.server.Limits, "", false)
	d.note(delivery.Counts{Released: 1})
	d.record(s)
	d.e.unload(j)
	d.jobs.settled()
}

// record hands a result over.
func (d *drain) record(s *store.Settlement) {
	d.recording.Add(1)
	d.e.rec.record(s, func(bool) { d.recording.Done() })
}

func (d *drain) note(c delivery.Counts) {
	d.mu.Lock()
	d.counts.Add(c)
	d.mu.Unlock()
}

// count notes a verdict.
func (d *drain) count(s *store.Settlement, outcome string) {
	var c delivery.Counts
	switch outcome {
	case "sent":
		c.Sent = 1
	case "partial":
		c.Partial = 1
	case "deferred":
		c.Deferred = 1
	case "unknown":
		c.Unknown = 1
	case "server":
		c.Released = 1
	default:
		c.Failed = 1
	}
	d.note(c)
}
