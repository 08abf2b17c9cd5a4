package engine

import (
	"context"
	"log/slog"
	"sync"

	"github.com/maildispatch/maildispatch/store"
)

// results hands results over to the store, which does not give up while the database is away
// and keeps their order, and knows which of them are not durable yet. Everybody may hand over.
type results struct {
	journal Journal
	log     *slog.Logger
	held    *held // hears of progress, and of mails whose result is durable, or refused

	// mu guards open: record adds what is handed over, and the goroutine that waits for its
	// answer takes it away. Each is closed when it is durable, refused, or the store is closed.
	mu   sync.Mutex
	open map[chan struct{}]struct{}
}

func newResults(j Journal, log *slog.Logger, h *held) *results {
	return &results{journal: j, log: log, held: h, open: map[chan struct{}]struct{}{}}
}

// record hands over a settlement. done, which may be nil, hears once it is durable whether the
// mail was still ours.
func (r *results) record(s *store.Settlement, done func(mine bool)) {
	over := make(chan struct{})
	r.mu.Lock()
	r.open[over] = struct{}{}
	r.mu.Unlock()
	if s.Kind == store.SettleProgress {
		r.held.advance(s.ID, s.Claim)
	}
	answer := r.journal.Settle(s)
	go func() {
		a := <-answer
		switch {
		case a.Err != nil:
			r.log.Error("result not recorded", "mail_id", s.ID, "status", s.Status, "error", a.Err)
		case !a.Mine:
			r.log.Warn("result not recorded: the mail was taken from this replica before", "mail_id", s.ID, "status", s.Status)
		}
		switch s.Kind {
		case store.SettleArchive, store.SettlePark, store.SettleRetry:
			r.held.let(s.ID, s.Claim)
		}
		if done != nil {
			done(a.Err == nil && a.Mine)
		}
		r.mu.Lock()
		delete(r.open, over)
		r.mu.Unlock()
		close(over)
	}()
}

// reached waits until everything handed over so far is durable, or ctx ends.
func (r *results) reached(ctx context.Context) {
	r.mu.Lock()
	open := make([]chan struct{}, 0, len(r.open))
	for over := range r.open {
		open = append(open, over)
	}
	r.mu.Unlock()
	for _, over := range open {
		select {
		case <-over:
		case <-ctx.Done():
			return
		}
	}
}
