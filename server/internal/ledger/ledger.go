// Package ledger is what this process has: each mail from before it can be the process's own by
// a write, to the durable result. It hands results over to the store, which does not give up
// while the database is away and keeps their order, and knows when they are durable. What the
// database says the process owns besides came by a write whose answer was lost.
package ledger

import (
	"context"
	"log/slog"
	"sync"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

// Journal is where results go.
type Journal interface {
	Settle(s *store.Settlement) <-chan store.Settled
}

// Ledger knows what this process has. Any goroutine may call any method; one calls Unknown.
type Ledger struct {
	journal Journal
	log     *slog.Logger
	held    *held
	// one for each of the store's lines
	bulk, interactive answers
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

// New makes a ledger of a process that has nothing.
func New(j Journal, log *slog.Logger) *Ledger {
	return &Ledger{journal: j, log: log, held: newHeld()}
}

// Take notes a mail before it can be this process's own under a token.
func (l *Ledger) Take(id uuid.UUID, claim int64) { l.held.take(id, claim) }

// Let ends what was taken under this token or one before it, and leaves a later claim alone. A
// result does the same once it is durable.
func (l *Ledger) Let(id uuid.UUID, claim int64) { l.held.let(id, claim) }

// Unknown is what is owned by this process and was known neither now nor at the last call.
func (l *Ledger) Unknown(owned []store.Ownership) []store.Ownership { return l.held.unknown(owned) }

// Record hands over a settlement. done, which may be nil and must not wait for anything, hears
// once it is durable whether the mail was still ours.
func (l *Ledger) Record(s *store.Settlement, done func(mine bool)) {
	if s.Kind == store.SettleProgress {
		l.held.advance(s.ID, s.Claim)
	}
	line := &l.bulk
	if s.Quick {
		line = &l.interactive
	}
	l.add(line, result{s, l.journal.Settle(s), done})
}

// add lets a result wait for its answer behind those that were handed over before.
func (l *Ledger) add(line *answers, handed result) {
	line.mu.Lock()
	defer line.mu.Unlock()
	line.next = append(line.next, handed)
	if !line.waiting {
		line.waiting = true
		go l.await(line)
	}
}

// await hears the answers of a line until there is none left to come.
func (l *Ledger) await(line *answers) {
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
				l.answered(h, <-h.answer)
			}
		}
	}
}

// answered tells whoever has to know that a result is durable, or refused.
func (l *Ledger) answered(h result, a store.Settled) {
	switch {
	case a.Err != nil:
		l.log.Error("result not recorded", "mail_id", h.ID, "status", h.Status, "error", a.Err)
	case !a.Mine:
		l.log.Warn("result not recorded: the mail was taken from this replica before", "mail_id", h.ID, "status", h.Status)
	}
	switch h.Kind {
	case store.SettleArchive, store.SettlePark, store.SettleRetry:
		l.held.let(h.ID, h.Claim)
	}
	if h.done != nil {
		h.done(a.Err == nil && a.Mine)
	}
}

// Reached waits until everything handed over so far is durable, or ctx ends. What is handed
// over meanwhile holds it up no longer.
func (l *Ledger) Reached(ctx context.Context) {
	for _, line := range []*answers{&l.bulk, &l.interactive} {
		durable := make(chan struct{})
		l.add(line, result{done: func(bool) { close(durable) }})
		select {
		case <-durable:
		case <-ctx.Done():
			return
		}
	}
}
