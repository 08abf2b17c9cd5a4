package engine

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// recorder writes results in the order they were handed over and does not give up while the database is away: a result that is known must not
// turn into an unknown one. One goroutine waits for the answers; everybody may hand over.
type recorder struct {
	journal Journal
	log     *slog.Logger
	queue   chan recording
	idle    sync.WaitGroup
}

type recording struct {
	s      *store.Settlement
	answer <-chan store.Settled
	done   func(mine bool) // may be nil
}

// recordQueue bounds the results that wait for the database. It is far above the connections of one process, each of which stops at its next gate
// when the database is away, so a full queue only means "wait a moment".
const recordQueue = 4096

func newRecorder(j Journal, log *slog.Logger) *recorder {
	return &recorder{journal: j, log: log, queue: make(chan recording, recordQueue)}
}

// record hands over a settlement; done is told whether it was still ours once it is durable.
func (r *recorder) record(s *store.Settlement, done func(mine bool)) {
	r.idle.Add(1)
	r.queue <- recording{s, r.journal.Settle(s), done}
}

// reached waits until everything handed over so far is durable, or ctx ends.
func (r *recorder) reached(ctx context.Context) {
	done := make(chan struct{})
	answer := make(chan store.Settled, 1)
	answer <- store.Settled{Mine: true}
	r.idle.Add(1)
	r.queue <- recording{&store.Settlement{}, answer, func(bool) { close(done) }}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// run answers until ctx ends; what is not written by then is left to the rescue of the mark.
func (r *recorder) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case rec := <-r.queue:
			r.finish(ctx, rec)
			r.idle.Done()
		}
	}
}

func (r *recorder) finish(ctx context.Context, rec recording) {
	wait := 50 * time.Millisecond
	for {
		var a store.Settled
		select {
		case a = <-rec.answer:
		case <-ctx.Done():
			return
		}
		if a.Err == nil {
			if !a.Mine {
				r.log.Error("result not recorded: the mail belongs to another replica by now", "mail_id", rec.s.ID, "status", rec.s.Status)
			}
			if rec.done != nil {
				rec.done(a.Mine)
			}
			return
		}
		r.log.Warn("result not recorded yet", "mail_id", rec.s.ID, "error", a.Err, "retry_in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(wait*2, 2*time.Second)
		rec.answer = r.journal.Settle(rec.s)
	}
}

// flush waits until everything handed over so far is written, or ctx ends.
func (r *recorder) flush(ctx context.Context) {
	done := make(chan struct{})
	go func() { r.idle.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
