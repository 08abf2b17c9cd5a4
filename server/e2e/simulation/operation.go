package simulation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// withOperations is the share of seeds in which people begin operations. The others are runs
// without one, to the last step.
const withOperations = 0.4

// saga is what is known of one operation beside what the database says. The driver alone uses
// it.
type saga struct {
	id      uuid.UUID
	tag     string // the reason, which each mail that it cancels carries
	cancels bool
	bound   time.Time // by the database's clock
	decided map[uuid.UUID]bool
	changed int64
	// as it was when somebody stopped it; nil = nobody has
	stopped *store.Operation
}

// operations are those of one world.
type operations struct {
	w     *world
	rng   *rand.Rand // its own, so that a seed without operations is what it was before them
	sagas []*saga
}

// plan plans what people do with operations in this seed.
func (p *operations) plan(length time.Duration) {
	if p.rng.Float64() >= withOperations {
		return
	}
	for range 1 + p.rng.IntN(4) {
		p.w.after(time.Duration(p.rng.Int64N(int64(length))), "operation", p.begin)
	}
}

// begin begins an operation: it cancels or holds all that waits, or what one team or one mail
// server has.
func (p *operations) begin() {
	w := p.w
	s := &saga{id: makeID(1<<20 + len(p.sagas)), tag: fmt.Sprintf("operation %d.", len(p.sagas)+1), cancels: p.rng.IntN(3) == 0, decided: map[uuid.UUID]bool{}}
	var f store.MailFilter
	switch p.rng.IntN(4) {
	case 0:
		f.MailServer = w.servers[p.rng.IntN(len(w.servers))]
	case 1:
		team := []string{"", "sales", "ops"}[p.rng.IntN(3)]
		f.Team = &team
	case 2:
		f.Statuses = []store.MailStatus{store.MailQueued, store.MailDeferred}
	}
	w.db.NextOperation(s.id)
	o := &store.Operation{Action: map[bool]string{true: "CancelMails", false: "HoldMails"}[s.cancels], Scope: store.Everything, Filter: f, Request: s.tag, Brakes: true}
	if err := w.db.BeginOperation(context.Background(), o); err != nil {
		w.wrong("an operation does not begin: %v", err)
		return
	}
	w.tell("   %s begins: %s of %+v", s.tag, o.Action, f)
	w.counts.Operations++
	if len(p.sagas) == 0 {
		for _, r := range w.replicas {
			if r != nil {
				go r.operate()
			}
		}
	}
	s.bound = o.Bound
	p.sagas = append(p.sagas, s)
	p.brake(f, o)
	if p.rng.Float64() < 0.3 {
		w.after(time.Duration(p.rng.Int64N(int64(5*time.Second))), "stop "+s.tag, func() { p.stop(s) })
	}
	if !s.cancels {
		w.after(time.Duration(p.rng.Int64N(int64(40*time.Second))), "release", func() { w.people.release(nil) })
	}
}

// brake: of what an operation selects no dot leaves from now on whose mark is not written.
func (p *operations) brake(f store.MailFilter, o *store.Operation) {
	for _, row := range p.w.db.Rows() {
		m := row.Mail

		if m.Archived || !row.Marked.IsZero() || m.DueTime == nil || !m.CreateTime.Before(o.Bound) || f.MailServer != "" && m.MailServer != f.MailServer ||
			f.Team != nil && m.Team != *f.Team || len(f.Statuses) > 0 && !slices.Contains(f.Statuses, m.Status) {
			continue
		}
		p.w.truth.stop(m.ID, selected)
	}
}

// selected is how a mail is stopped that an operation has not come to yet.
const selected = "selected by an operation"

// stop ends an operation before its end: what it has not come to may leave again.
func (p *operations) stop(s *saga) {
	w := p.w
	if err := w.db.StopOperation(context.Background(), s.id, store.Audit{}); err != nil {
		w.wrong("an operation is not stopped: %v", err)
	}
	o, err := w.db.Operation(context.Background(), s.id)
	if err != nil {
		w.wrong("an operation is gone: %v", err)
		return
	}
	w.tell("   %s is stopped: %+v", s.tag, o)
	if s.stopped = o; o.State == store.OperationDone {
		return
	}
	p.letGo()
}

// letGo ends the stops of what waits as before and is selected by no operation that runs.
func (p *operations) letGo() {
	running, err := p.w.db.Operations(context.Background(), true, uuid.Max, 100)
	if err != nil {
		p.w.wrong("operations are not listed: %v", err)
	}
	for _, row := range p.w.db.Rows() {
		p.w.truth.endStop(row.Mail.ID, selected)
	}
	for _, o := range running {
		p.brake(o.Filter, o)
	}
}

// decide is what an operation makes of one mail, and notes it.
func (s *saga) decide(w *world) store.Decide {
	return func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		if s.decided[m.ID] {
			w.wrong("%s: %s comes to it twice", short(m.ID), s.tag)
		}
		s.decided[m.ID] = true
		if !m.CreateTime.Before(s.bound) {
			w.wrong("%s: %s takes what was created after it began", short(m.ID), s.tag)
		}
		if s.stopped != nil && s.stopped.State != store.OperationDone {
			w.wrong("%s: %s goes on after it was stopped", short(m.ID), s.tag)
		}
		if s.cancels {
			s.changed++
			w.truth.stop(m.ID, "cancelled")
			return lifecycle.Cancel(m, s.tag), nil
		}
		c, err := lifecycle.Hold(m, s.tag)
		if err == nil {
			s.changed++
			w.truth.stop(m.ID, "held")
		}
		return c, err
	}
}

// operate carries out operations in a replica, as the service does: a piece is one statement,
// which may fail, or be carried out and not be heard of.
func (r *replica) operate() {
	w, ctx := r.w, r.ctx
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.done: // it has ended by itself
			return
		case <-t.C:
		}
		if !r.up() || ctx.Err() != nil {
			continue
		}
		me := store.ReplicaID(r.id.Load())
		o, err := call(ctx, r.journal, "take operation", plain, func() (*store.Operation, error) { return w.db.TakeOperation(context.Background(), me) })
		var id uuid.UUID
		for n := 1; err == nil && o != nil && o.State == store.OperationRunning; n = min(2*n, 8) {
			id = o.ID
			o, err = call(ctx, r.journal, "operate "+short(id), plain, func() (*store.Operation, error) { return w.operations.piece(me, id, n) })
			if err != nil { // the others go on before it is tried again
				_, _ = call(ctx, r.journal, "delay operation "+short(id), plain, func() (struct{}, error) {
					return struct{}{}, w.db.DelayOperation(context.Background(), me, id, err.Error())
				})
			}
		}
	}
}

// piece is one piece of an operation. The driver calls it.
func (p *operations) piece(me store.ReplicaID, id uuid.UUID, n int) (*store.Operation, error) {
	i := slices.IndexFunc(p.sagas, func(s *saga) bool { return s.id == id })
	if i < 0 {
		return nil, store.ErrNotFound
	}
	s := p.sagas[i]
	o, _, err := p.w.db.Operate(context.Background(), me, id, n, s.decide(p.w), func(err error) (string, string) { return "X", err.Error() })
	if o != nil && o.State != store.OperationRunning {
		p.w.tell("   %s is over: matched %d, changed %d, failed %d", s.tag, o.Matched, o.Changed, o.Failed)
		p.letGo()
	}
	return o, err
}

// run says whether any is not over.
func (p *operations) run() bool {
	running, err := p.w.db.Operations(context.Background(), true, uuid.Max, 1)
	return err != nil || len(running) > 0
}

// audit holds what operations say at the end against what has become of the mails.
func (p *operations) audit() {
	w := p.w
	for _, s := range p.sagas {
		o, err := w.db.Operation(context.Background(), s.id)
		switch {
		case err != nil:
			w.wrong("%s is gone: %v", s.tag, err)
			continue
		case o.State == store.OperationRunning:
			w.wrong("%s never ends", s.tag)
		case o.Matched != o.Changed+o.Failed:
			w.wrong("%s matched %d, changed %d and names %d failures", s.tag, o.Matched, o.Changed, o.Failed)
		case o.Changed != s.changed:
			w.wrong("%s says that it changed %d mails, and it was %d", s.tag, o.Changed, s.changed)
		case s.stopped != nil && o.Changed != s.stopped.Changed:
			w.wrong("%s changed %d mails until it was stopped, and %d in the end", s.tag, s.stopped.Changed, o.Changed)
		}
		if !s.cancels {
			continue
		}
		cancelled := int64(0)
		for _, row := range w.db.Rows() {
			if row.Mail.Status == store.MailCancelled && strings.Contains(row.Mail.LastError, s.tag) {
				cancelled++
			}
		}
		if cancelled != o.Changed {
			w.wrong("%s says that it cancelled %d mails, and %d are", s.tag, o.Changed, cancelled)
		}
	}
}
