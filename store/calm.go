package store

import (
	"context"
	"time"
)

// CalmItems is how many mails one statement of bulk takes while callers are about: a few milliseconds of a processor and of the disk. Who claims or hands over
// bulk cuts it so too, to give way in between.
const CalmItems = 100

// Calm says that for d from now somebody waits for each mail: bulk (EnqueueBatch, Claim, settlements that are not quick) goes one statement at a time and in
// small ones meanwhile, so that a quick write shares the database's processors and the log with one of them at most.
func (s *Store) Calm(d time.Duration) {
	until := time.Now().Add(d).UnixNano()
	if was := s.calmUntil.Load(); until > was {
		s.calmUntil.CompareAndSwap(was, until) // who is overtaken was as late
	}
}

func (s *Store) isCalm() bool { return time.Now().UnixNano() < s.calmUntil.Load() }

// bulkItems is how many mails a statement of bulk takes now.
func (s *Store) bulkItems() int {
	if s.isCalm() {
		return CalmItems
	}
	return batchItems
}

// bulkTurn waits for this statement's turn and returns what ends it. When ctx ends first there is none to wait for: the statement fails by itself.
func (s *Store) bulkTurn(ctx context.Context) (done func()) {
	if !s.isCalm() {
		return func() {}
	}
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }
	case <-ctx.Done():
		return func() {}
	}
}
