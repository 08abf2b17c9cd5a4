package memory

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

// operation is one as its row has it. Nobody else writes to a mail meanwhile, so none is ever
// left for later.
type operation struct {
	o     store.Operation
	owner store.ReplicaID
	after uuid.UUID
}

// selects is its filter, of mails that were created before it began.
func (op *operation) selects(faults Faults) *store.MailFilter {
	f := op.o.Filter
	if !faults.OperationUnbound && (f.Until.IsZero() || op.o.Bound.Before(f.Until)) {
		f.Until = op.o.Bound
	}
	return &f
}

func (op *operation) view() *store.Operation {
	o := op.o
	o.Failures = slices.Clone(o.Failures)
	return &o
}

// braked says whether no mark is taken for a mail: an operation that runs holds or cancels it.
func (s *Store) braked(r *row) bool {
	for _, op := range s.operations {
		f := op.selects(s.Faults)
		if op.o.State == store.OperationRunning && op.o.Brakes && !op.o.Dry && r.matches(op.o.Scope, f) && (len(f.Statuses) == 0 || slices.Contains(f.Statuses, r.status)) {
			return !s.Faults.OperationNoBrake
		}
	}
	return false
}

// BeginOperation makes an operation, whose ID, Bound and State it sets.
func (s *Store) BeginOperation(_ context.Context, o *store.Operation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock()
	if o.ID = s.nextOperation; o.ID == uuid.Nil {
		id, err := uuid.NewV7()
		if err != nil {
			return err
		}
		o.ID = id
	}
	s.nextOperation = uuid.Nil
	o.State, o.Bound, o.Create, o.Update = store.OperationRunning, now.Add(store.BoundSlack), now, now
	s.operations = append(s.operations, &operation{o: *o})
	slices.SortFunc(s.operations, func(a, b *operation) int { return bytes.Compare(a.o.ID[:], b.o.ID[:]) })
	s.audits = append(s.audits, AuditRow{o.Audit, "", "operation " + o.ID.String(), nil})
	return nil
}

// NextOperation is the ID of the next operation, where it is not to be drawn.
func (s *Store) NextOperation(id uuid.UUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextOperation = id
}

func (s *Store) operation(id uuid.UUID) *operation {
	for _, op := range s.operations {
		if op.o.ID == id {
			return op
		}
	}
	return nil
}

// Operation reads one. ErrNotFound.
func (s *Store) Operation(_ context.Context, id uuid.UUID) (*store.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op := s.operation(id); op != nil {
		return op.view(), nil
	}
	return nil, store.ErrNotFound
}

// Operations lists up to n, the last one first, before an id.
func (s *Store) Operations(_ context.Context, running bool, before uuid.UUID, n int) ([]*store.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*store.Operation
	for _, op := range slices.Backward(s.operations) {
		if len(out) < n && bytes.Compare(op.o.ID[:], before[:]) < 0 && (!running || op.o.State == store.OperationRunning) {
			out = append(out, op.view())
		}
	}
	return out, nil
}

// StopOperation lets no further piece of an operation begin, and ends its brake.
func (s *Store) StopOperation(_ context.Context, id uuid.UUID, a store.Audit) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := s.operation(id)
	if op == nil || op.o.State != store.OperationRunning || s.Faults.OperationUnstopped {
		return nil
	}
	op.end(store.OperationStopped, s.clock())
	s.audits = append(s.audits, AuditRow{a, "", "operation " + id.String(), nil})
	return nil
}

func (op *operation) end(st store.OperationState, now time.Time) {
	op.o.State, op.o.Update, op.o.End, op.o.Request = st, now, now, "{}"
}

// TakeOperation makes me the one that is at the oldest running operation which no living
// replica is at; nil = there is none. Behind all others come those that only count, and those
// that have met a fault, which are as old as that.
func (s *Store) TakeOperation(_ context.Context, me store.ReplicaID) (*store.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.lives(me) {
		return nil, nil
	}
	age := func(op *operation) (last int, since time.Time) {
		if op.o.Error != "" {
			return 1, op.o.Update
		}
		if op.o.Dry {
			last = 1
		}
		return last, op.o.Create
	}
	byAge := slices.SortedStableFunc(slices.Values(s.operations), func(a, b *operation) int {
		aLast, aSince := age(a)
		bLast, bSince := age(b)
		return cmp.Or(aLast-bLast, aSince.Compare(bSince))
	})
	for _, op := range byAge {
		if op.o.State != store.OperationRunning || op.owner != 0 && op.owner != me && s.lives(op.owner) {
			continue
		}
		if op.owner != me && s.Faults.OperationAnew {
			op.after = uuid.Nil
		}
		op.owner = me
		return op.view(), nil
	}
	return nil, nil
}

// DelayOperation says why an operation that me is at does not come further. Those that wait go
// before it.
func (s *Store) DelayOperation(_ context.Context, me store.ReplicaID, id uuid.UUID, why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op := s.at(me, id); op != nil {
		op.o.Error, op.o.Update = why, s.clock()
	}
	return nil
}

// at is an operation that me is at; nil = it is me's no more, or has ended.
func (s *Store) at(me store.ReplicaID, id uuid.UUID) *operation {
	op := s.operation(id)
	if op == nil || op.o.State != store.OperationRunning || op.owner != me || !s.lives(me) {
		return nil
	}
	return op
}

// Operate carries out the next piece of an operation that me is at: up to n mails. nil = it is
// me's no more, or has ended.
func (s *Store) Operate(_ context.Context, me store.ReplicaID, id uuid.UUID, n int, decide store.Decide, explain func(error) (reason, message string)) (o *store.Operation, idle bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := s.at(me, id)
	if op == nil {
		return nil, false, nil
	}
	op.o.Error = ""
	fail := func(r *row, err error) {
		reason, message := explain(err)
		op.o.Failed++
		op.o.Failures = store.AddFailure(op.o.Failures, reason, message, r.m.ID)
	}
	f, found := op.selects(s.Faults), 0
	for _, r := range s.order {
		if r.archived() || bytes.Compare(r.m.ID[:], op.after[:]) <= 0 || !r.selected(op.o.Scope, f) {
			continue
		}
		if found == n {
			break
		}
		found++
		op.after = r.m.ID
		if r.owner != 0 && !r.dataAt.IsZero() {
			fail(r, store.ErrSending)
			continue
		}
		c, err := s.decided(r, decide)
		switch {
		case err != nil:
			fail(r, err)
		case c != nil:
			if op.o.Changed++; !op.o.Dry {
				s.apply(r, c)
			}
		}
	}
	op.o.Matched += int64(found)
	op.o.Update = s.clock()
	if found < n {
		op.end(store.OperationDone, s.clock())
	}
	return op.view(), found == 0, nil
}

// decided is what a person's word makes of a mail whose dot has no mark.
func (s *Store) decided(r *row, decide store.Decide) (*store.Change, error) {
	free := *r
	free.owner = 0
	m := free.view()
	m.Owner = r.owner
	c, err := decide(m, clone(s.servers[r.m.MailServer]))
	if r.owner != 0 && (c == nil || !c.Stops) {
		return nil, store.ErrSending
	}
	return c, err
}
