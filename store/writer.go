package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// writer commits settlements strictly in the order they were handed over, in groups, and
// answers each once: when it is durable, when its token refuses it, or when the store is
// closed. A group that fails stays at the head and is repeated as it is; nothing overtakes it.
// That every write may be made twice is the token's doing.
type writer struct {
	s       *Store
	line    string         // one of Lines
	in      chan *settleOp // bounded: when it is full, whoever hands over waits
	closing chan struct{}  // closed by close: a failing group is given up from now on
	done    sync.WaitGroup

	// mu is held for reading while something is handed over. close alone holds it for writing,
	// and sets closed under it.
	mu     sync.RWMutex
	closed bool
}

const (
	// writerLine is how many writes wait in memory for the database; far above the connections
	// of one process.
	writerLine = 16 * batchItems
	// A group that failed is repeated after a pause that doubles from the first of these to the
	// second: short, so that what waits is written soon after the database is back, and long
	// enough for a database that is away to be asked a few times in a second only.
	writerPause     = 20 * time.Millisecond
	writerPauseMost = 250 * time.Millisecond
	// writerDamage is how long a write that meets damage in the database is repeated by itself:
	// others wait for it meanwhile, and a fault of the server may pass.
	writerDamage = 10 * time.Second
	// writerTells is how often the log hears of a group that cannot be written.
	writerTells = 10 * time.Second
)

func (s *Store) newWriter(line string) *writer {
	w := &writer{s: s, line: line, in: make(chan *settleOp, writerLine), closing: make(chan struct{})}
	w.done.Go(w.run)
	return w
}

// hand puts an op into the line. A full line makes the caller wait.
func (w *writer) hand(op *settleOp) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		op.answer(Settled{Err: ErrClosed})
		return
	}
	w.in <- op
}

// close writes what was handed over and ends the writer. What the database does not take then
// is answered with an error.
func (w *writer) close() {
	close(w.closing) // before the lock: whoever waits for a full line holds it for reading
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	close(w.in)
	w.done.Wait()
}

func (w *writer) run() {
	for first := range w.in {
		batch := []*settleOp{first}
	more:
		for len(batch) < batchItems {
			select {
			case op, open := <-w.in:
				if !open {
					break more
				}
				batch = append(batch, op)
			default:
				break more
			}
		}
		w.write(batch)
	}
}

// write writes a batch, cut where the same mail comes a second time, so that its writes keep
// their order, and where another owner's begin.
func (w *writer) write(ops []*settleOp) {
	for len(ops) > 0 {
		seen := make(map[uuid.UUID]bool, len(ops))
		n, most := 0, len(ops)
		if !ops[0].s.Quick {
			most = min(most, w.s.BulkItems())
		}
		for n < most && ops[n].s.Owner == ops[0].s.Owner && !seen[ops[n].s.ID] {
			seen[ops[n].s.ID] = true
			n++
		}
		w.group(ops[:n])
		ops = ops[n:]
	}
}

// group writes ops, which are of different mails and of one owner, and repeats them until they
// are written.
func (w *writer) group(ops []*settleOp) {
	began, told := time.Now(), time.Time{}
	for pause := writerPause; ; pause = min(2*pause, writerPauseMost) {
		err := w.try(ops)
		if err == nil {
			if !told.IsZero() {
				w.s.log.Info("results written", "results", len(ops), "after", time.Since(began).Round(time.Millisecond))
			}
			return
		}
		switch {
		case dataFault(err), damaged(err) && len(ops) > 1:
			w.apart(ops, err)
			return
		case damaged(err) && time.Since(began) >= w.s.damageWait:
			w.giveUp(ops[0], err)
			return
		}
		select {
		case <-w.closing:
			for _, op := range ops {
				op.answer(Settled{Err: fmt.Errorf("%w before this was written: %w", ErrClosed, w.s.fault(err))})
			}
			return
		default:
		}
		if time.Since(told) >= writerTells {
			told = time.Now()
			w.s.log.Warn("results not written yet", "results", len(ops), "waiting", len(w.in), "error", err)
		}
		select {
		case <-time.After(pause):
		case <-w.closing:
		}
	}
}

// try is one transaction. It answers every op, or none with an error.
func (w *writer) try(ops []*settleOp) error {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if !ops[0].s.Quick {
		defer w.s.interactive.bulkTurn(ctx)()
	}
	began := time.Now()
	mine, err := w.s.dialect.writeResults(ctx, ops)
	if err != nil {
		return err
	}
	w.s.observe.Committed(w.line, len(ops), time.Since(began))
	if err := w.s.writtenBefore(ctx, ops, mine); err != nil {
		return err
	}
	for _, op := range ops {
		if mine[op.s.ID] {
			w.s.dialect.written(op.s)
		}
		op.answer(Settled{Mine: mine[op.s.ID]})
	}
	return nil
}

// apart writes a group that the database refused for one of its rows. Halves find that row, and
// the others are written as they are. A row whose data is refused is written with plain words
// in place of its own. What is refused even so is answered with the fault.
func (w *writer) apart(ops []*settleOp, err error) {
	if n := len(ops); n > 1 {
		w.group(ops[:n/2])
		w.group(ops[n/2:])
		return
	}
	op := ops[0]
	if op.plain {
		w.giveUp(op, err)
		return
	}
	w.s.log.Error("the database refused the data of a result: stored with plain words", "mail_id", op.s.ID, "status", op.s.Status,
		"last_error", op.s.LastError, "attempts", op.s.Attempts, "error", err, "refused", w.s.refused.Add(1))
	op.s, op.plain = plain(op.s), true
	w.group(ops)
}

// giveUp answers a write that the database takes in no way, so that the others go on.
func (w *writer) giveUp(op *settleOp, err error) {
	w.s.log.Error("a result cannot be stored", "mail_id", op.s.ID, "status", op.s.Status, "error", err)
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	w.s.foundDamage(ctx, op.s.ID, err)
	op.answer(Settled{Err: fmt.Errorf("store result: %w", err)})
}

// ErrClosed: the store is closed.
var ErrClosed = errors.New("the store is closed")
