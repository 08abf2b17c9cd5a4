package engine

import (
	"context"
	"log/slog"
	"sync"

	"github.com/maildispatch/maildispatch/store"
)

// results hands results over to the store, which does not give up while the database is away
// and keeps their order, and knows whether all of them are durable. Everybody may hand over.
type results struct {
	journal Journal
	log     *slog.Logger
	held    *held // hears of progress, and of mails whose result is durable, or refused
	// one for each of the store's lines
	bulk, quick answers
}

// answers waits for the answers of one of the store's lines. They come in the order in which
// results were handed over, so one goroutine waits for all of them; it ends when none is left.
type answers struct {
	// mu guards both: record appends, and the goroutine that waits takes all there is.
	mu      sync.Mutex
	next    []result
	waiting bool // that goroutine runs
}

// result is one that was handed over. One without a settlement waits for those before it.
type result struct {
	*store.Settlement
	answer <-chan store.Settled
	done   func(mine bool)
}

func newResults(j Journal, log *slog.Logger, h *held) *results {
	return &results{journal: j, log: log, held: h}
}

// record hands over a settlement. done, which may be nil and must not wait for anything, hears
// once it is durable whether the mail was still ours.
func (r *results) record(s *store.Settlement, done func(mine bool)) {
	if s.Kind == store.SettleProgress {
		r.held.advance(s.ID, s.Claim)
	}
	line := &r.bulk
	if s.Quick {
		line = &r.quick
	}
	r.add(line, result{s, r.journal.Settle(s), done})
}

// add lets a result wait for its answer behind those that were handed over before.
func (r *results) add(line *answers, handed result) {
	line.mu.Lock()
	defer line.mu.Unlock()
	line.next = append(line.next, handed)
	if !line.waiting {
		line.waiting = true
		go r.await(line)
	}
}

// await hears the answers of a line until there is none left to come.
func (r *results) await(line *answers) {
	for {
		line.mu.Lock()
		handed := line.next
		line.next = nil
		line.waiting = len(handed) > 0
		line.mu.Unlock()
		if len(handed) == 0 {
			return
		}
		for _, h := range handed {
			if h.Settlement == nil {
				h.done(true)
			} else {
				r.answered(h, <-h.answer)
			}
		}
	}
}

// answered tells whoever has to know that a result is durable, or refused.
func (r *results) answered(h result, a store.Settled) {
	switch {
	case a.Err != nil:
		r.log.Error("result not recorded", "mail_id", h.ID, "status", h.Status, "error", a.Err)
	case !a.Mine:
		r.log.Warn("result not recorded: the mail was taken from this replica before", "mail_id", h.ID, "status", h.Status)
	}
	switch h.Kind {
	case store.SettleArchive, store.SettlePark, store.SettleRetry:
		r.held.let(h.ID, h.Claim)
	}
	if h.done != nil {
		h.done(a.Err == nil && a.Mine)
	}
}

// reached waits until everything handed over so far is durable, or ctx ends. What is handed
// over meanwhile holds it up no longer.
func (r *results) reached(ctx context.Context) {
	for _, line := range []*answers{&r.bulk, &r.quick} {
		durable := make(chan struct{})
		r.add(line, result{done: func(bool) { close(durable) }})
		select {
		case <-durable:
		case <-ctx.Done():
			return
		}
	}
}
