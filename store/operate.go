package store

import (
	"context"
	"database/sql"
	"slices"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// piece is one transaction of an operation.
type piece struct {
	s       *Store
	tx      *sqlx.Tx
	o       *Operation
	decide  Decide
	explain func(error) (reason, message string)
	done    int // mails that were decided about
}

func (p *piece) run(ctx context.Context, n int) error {
	s, o := p.s, p.o
	// Mails that somebody writes to hold up none behind them: as many new ones come with them.
	ids := slices.Clone(o.pending[:min(n, len(o.pending))])
	later := slices.Clone(o.pending[len(ids):])
	last := false
	if len(o.pending) < maxPending {
		q, args := s.dueSelect("d.id", o.Scope, o.selects(), Cursor{ID: o.after}, n)
		var next []uuid.UUID
		if err := p.tx.SelectContext(ctx, &next, p.tx.Rebind(q), args...); err != nil {
			return err
		}
		if len(next) > 0 {
			o.after = next[len(next)-1]
		}
		o.Matched += int64(len(next))
		last = len(next) < n
		ids = append(ids, next...)
	}
	ms, err := p.lock(ctx, ids)
	if err != nil {
		return err
	}
	o.pending = append(later, o.pending...)
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
	if len(changes) > 0 && !o.Dry {
		if err := s.applyChanges(ctx, p.tx, changes); err != nil {
			return err
		}
		if err := s.auditTeams(ctx, p.tx, o.Audit, changes); err != nil {
			return err
		}
	}
	if last && len(o.pending) == 0 {
		o.State = OperationDone
	}
	return nil
}

func (p *piece) fail(id uuid.UUID, err error) {
	reason, message := p.explain(err)
	p.o.Failed++
	p.o.Failures = AddFailure(p.o.Failures, reason, message, id)
}

// lock locks mails, of which it reads only what decides. Those that are marked or finished have
// failed; what a replica writes to just now, or a younger transaction has changed, is pending.
func (p *piece) lock(ctx context.Context, ids []uuid.UUID) ([]*Mail, error) {
	p.o.pending = nil
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
