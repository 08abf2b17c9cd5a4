package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Operate carries out the next piece of an operation that r is at: up to n mails, and up to n
// of those that could not be locked before. A mail that the database cannot read or write has
// failed with ErrDamaged, and holds up no other. explain puts a failure into a reason and
// words. nil = it is r's no more, or has ended. With State running there is more to do; idle
// says that all of it waits for replicas that write to the mails.
func (s *Store) Operate(ctx context.Context, r ReplicaID, id uuid.UUID, n int, decide Decide, explain func(error) (reason, message string)) (o *Operation, idle bool, err error) {
	transaction := func(do func(p *piece) error) (*piece, error) {
		return s.pieceOf(ctx, r, id, func(p *piece) error {
			p.decide, p.explain, p.o.Error = decide, explain, ""
			return do(p)
		})
	}
	p, err := transaction(func(p *piece) error { return p.run(ctx, n) })
	if rowFault(err) {
		p, err = s.operatePast(ctx, n, transaction)
	}
	switch {
	case errors.Is(err, ErrServerUnavailable): // that mails were to go on through
		return s.failOperation(ctx, r, id, err)
	case err != nil, p == nil:
		return nil, false, err
	}
	return p.o, p.done == 0, nil
}

// operatePast carries out a piece that has met damage. All of it is pending first, and its
// parts are transactions of their own: the counts are exact at each end.
func (s *Store) operatePast(ctx context.Context, n int, transaction func(do func(p *piece) error) (*piece, error)) (*piece, error) {
	var ids []uuid.UUID
	p, err := transaction(func(p *piece) error {
		next, _, err := p.next(ctx, n)
		ids = slices.Concat(p.o.pending[:min(n, len(p.o.pending))], next)
		p.o.pending = append(p.o.pending, next...)
		return err
	})
	if err != nil || p == nil {
		return nil, err
	}
	done := 0
	var tried []change
	bad, err := s.pastWith(ctx, ids, func() error { return s.tryChanges(ctx, p.o.Audit, tried) }, func(ids []uuid.UUID) error {
		part, err := transaction(func(p *piece) error {
			p.o.pending = without(p.o.pending, ids)
			err := p.carryOut(ctx, ids)
			tried = p.changes
			return err
		})
		if err == nil && part != nil {
			done += part.done
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return transaction(func(p *piece) error {
		p.o.pending = without(p.o.pending, bad)
		for _, id := range bad {
			p.fail(id, ErrDamaged)
		}
		p.done = done + len(bad)
		return nil
	})
}

func without(ids, gone []uuid.UUID) []uuid.UUID {
	is := set(gone)
	return slices.DeleteFunc(slices.Clone(ids), func(id uuid.UUID) bool { return is[id] })
}

// failOperation ends an operation that cannot go on.
func (s *Store) failOperation(ctx context.Context, r ReplicaID, id uuid.UUID, why error) (*Operation, bool, error) {
	p, err := s.pieceOf(ctx, r, id, func(p *piece) error {
		p.o.State, p.o.Error = OperationFailed, why.Error()
		return nil
	})
	if err != nil || p == nil {
		return nil, false, err
	}
	return p.o, false, nil
}

// pieceOf is one transaction of an operation that r is at, and writes what do makes of it. nil
// = it is r's no more, or has ended.
func (s *Store) pieceOf(ctx context.Context, r ReplicaID, id uuid.UUID, do func(p *piece) error) (p *piece, err error) {
	err = s.workTx(ctx, func(tx *sqlx.Tx) error {
		p = nil
		var rows []operationRow
		if err := s.q.in(ctx, tx, "operation_lock").SelectContext(ctx, &rows, id, int64(r)); err != nil || len(rows) == 0 {
			return err
		}
		o, err := rows[0].operation()
		if err != nil {
			return err
		}
		p = &piece{s: s, tx: tx, o: o}
		if err := do(p); err != nil {
			return err
		}
		return s.writeOperation(ctx, tx, o)
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// piece is one transaction of an operation.
type piece struct {
	s       *Store
	tx      *sqlx.Tx
	o       *Operation
	decide  Decide
	explain func(error) (reason, message string)
	done    int      // mails that were decided about
	changes []change // that were written, or tried
}

func (p *piece) run(ctx context.Context, n int) error {
	o := p.o
	// Mails that somebody writes to hold up none behind them: as many new ones come with them.
	ids := slices.Clone(o.pending[:min(n, len(o.pending))])
	next, last, err := p.next(ctx, n)
	if err != nil {
		return err
	}
	o.pending = slices.Clone(o.pending[len(ids):])
	if err := p.carryOut(ctx, append(ids, next...)); err != nil {
		return err
	}
	if last && len(o.pending) == 0 {
		o.State = OperationDone
	}
	return nil
}

// next comes to up to n mails more, unless too many are pending; last says that there are no
// others.
func (p *piece) next(ctx context.Context, n int) (ids []uuid.UUID, last bool, err error) {
	o := p.o
	if len(o.pending) >= maxPending {
		return nil, false, nil
	}
	q, args := p.s.dueSelect("d.id", o.Scope, o.selects(), Cursor{ID: o.after}, n)
	if err := p.tx.SelectContext(ctx, &ids, p.tx.Rebind(q), args...); err != nil {
		return nil, false, err
	}
	if len(ids) > 0 {
		o.after = ids[len(ids)-1]
	}
	o.Matched += int64(len(ids))
	return ids, len(ids) < n, nil
}

// carryOut decides about mails and writes what becomes of them. Those that cannot be had just
// now are pending.
func (p *piece) carryOut(ctx context.Context, ids []uuid.UUID) error {
	s, o := p.s, p.o
	well := s.damage.without(ids, s.now())
	for _, id := range without(ids, well) {
		p.fail(id, ErrDamaged)
		p.done++
	}
	ms, err := p.lock(ctx, well)
	if err != nil {
		return err
	}
	servers, err := s.serversOf(ctx, p.tx, ms)
	if err != nil {
		return err
	}
	changes, failures := decideAll(ms, servers, p.decide)
	for _, f := range failures {
		p.fail(f.ID, f.Err)
	}
	p.done += len(ms)
	o.Changed += int64(len(changes))
	if len(changes) == 0 || o.Dry {
		return nil
	}
	p.changes = changes
	if err := s.applyChanges(ctx, p.tx, changes); err != nil {
		return err
	}
	return s.auditTeams(ctx, p.tx, o.Audit, changes)
}

func (p *piece) fail(id uuid.UUID, err error) {
	reason, message := p.explain(err)
	p.o.Failed++
	p.o.Failures = AddFailure(p.o.Failures, reason, message, id)
}

// lock locks mails, of which it reads only what decides. Those that are marked or finished have
// failed; what a replica writes to just now, or a younger transaction has changed, is pending.
func (p *piece) lock(ctx context.Context, ids []uuid.UUID) ([]*Mail, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	var rows []struct {
		mailViewRow
		Lead int64
	}
	if err := p.s.q.in(ctx, p.tx, "operate_lock").SelectContext(ctx, &rows, jsonText(ids)); err != nil {
		return nil, err
	}
	locked := make(map[uuid.UUID]bool, len(rows))
	ms := make([]*Mail, 0, len(rows))
	for i := range rows {
		if rows[i].Lead < 0 {
			continue
		}
		owner := rows[i].Owner.Int64
		rows[i].Owner = sql.NullInt64{}
		m, err := rows[i].mail()
		if err != nil {
			return nil, err
		}
		m.Owner = ReplicaID(owner)
		locked[m.ID] = true
		ms = append(ms, m)
	}
	left := slices.DeleteFunc(slices.Clone(ids), func(id uuid.UUID) bool { return locked[id] })
	if len(left) == 0 {
		return ms, nil
	}
	var there []struct {
		ID     uuid.UUID
		Marked bool
	}
	if err := p.s.q.in(ctx, p.tx, "operate_left").SelectContext(ctx, &there, jsonText(left)); err != nil {
		return nil, err
	}
	marked := make(map[uuid.UUID]bool, len(there))
	for _, r := range there {
		marked[r.ID] = r.Marked
	}
	for _, id := range left {
		switch is, due := marked[id]; {
		case !due:
			p.fail(id, ErrFinished)
		case is:
			p.fail(id, ErrSending)
		default:
			p.o.pending = append(p.o.pending, id)
			continue
		}
		p.done++
	}
	return ms, nil
}
