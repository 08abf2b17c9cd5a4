package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// OperationState is how an operation stands.
type OperationState string

// An operation runs until it has come to its end, or somebody or something ends it before.
const (
	OperationRunning OperationState = "running"
	OperationDone    OperationState = "done"
	OperationStopped OperationState = "stopped"
	OperationFailed  OperationState = "failed"
)

// Operation is a person's word about more mails than one call can take. One replica at a time
// is at it. Each piece and what it says here are one transaction, so the counts are exact
// whenever a replica dies.
type Operation struct {
	ID      uuid.UUID
	Action  string // the rpc's name, for the audit rows
	Scope   Scope
	Filter  MailFilter
	Request string // the call, for whoever decides
	Audit   Audit
	Dry     bool      // only counts
	Bound   time.Time // takes mails that were created before; BoundSlack behind Create
	// no mark is taken for what it selects while it runs
	Brakes bool

	State    OperationState
	Total    int64 // 0 = not known
	Matched  int64
	Changed  int64
	Failed   int64
	Failures []FailureGroup
	Error    string
	Create   time.Time
	Update   time.Time
	End      time.Time // zero = it runs

	after   uuid.UUID
	pending []uuid.UUID
}

// FailureGroup is mails that were not changed for one reason.
type FailureGroup struct {
	Reason  string      `json:"reason"`
	Message string      `json:"message"`
	Count   int64       `json:"count"`
	IDs     []uuid.UUID `json:"ids"` // ten of them
}

// BoundSlack is how far behind its begin an operation still takes mails. The create_time of a
// mail is by the clock of the replica that accepted it, which may be half a second ahead of the
// database's without anybody correcting it. So all that was accepted before is taken, and what
// is accepted within the next second may be.
const BoundSlack = time.Second

const (
	maxFailureGroups   = 20
	maxFailureExamples = 10
	// mails that an operation leaves for later at most, before it waits for them
	maxPending = 20_000
)

// AddFailure counts a mail that was not changed: among the first 20 reasons.
func AddFailure(groups []FailureGroup, reason, message string, id uuid.UUID) []FailureGroup {
	i := slices.IndexFunc(groups, func(g FailureGroup) bool { return g.Reason == reason && g.Message == message })
	if i < 0 {
		if len(groups) == maxFailureGroups {
			return groups
		}
		i, groups = len(groups), append(groups, FailureGroup{Reason: reason, Message: message})
	}
	g := &groups[i]
	if g.Count++; len(g.IDs) < maxFailureExamples {
		g.IDs = append(g.IDs, id)
	}
	return groups
}

type operationRow struct {
	ID       uuid.UUID
	Action   string
	Scope    []byte
	Filter   []byte
	Request  string
	Actor    string
	Reason   string
	Dry      bool
	Bound    dbTime
	State    OperationState
	Owner    sql.NullInt64
	After    uuid.UUID
	Pending  []byte
	Total    int64
	Matched  int64
	Changed  int64
	Failed   int64
	Failures []byte
	Error    string
	Create   dbTime `db:"create_time"`
	Update   dbTime `db:"update_time"`
	End      dbTime `db:"end_time"`
}

func (r *operationRow) operation() (*Operation, error) {
	o := &Operation{ID: r.ID, Action: r.Action, Request: r.Request, Audit: Audit{Actor: r.Actor, Action: r.Action, Reason: r.Reason}, Dry: r.Dry, Bound: r.Bound.Time, State: r.State,
		Total: r.Total, Matched: r.Matched, Changed: r.Changed, Failed: r.Failed, Error: r.Error, Create: r.Create.Time, Update: r.Update.Time, End: r.End.Time, after: r.After}
	for _, j := range []struct {
		b []byte
		v any
	}{{r.Scope, &o.Scope}, {r.Filter, &o.Filter}, {r.Pending, &o.pending}, {r.Failures, &o.Failures}} {
		if err := json.Unmarshal(j.b, j.v); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// selects is its filter, of mails that were created before it began.
func (o *Operation) selects() *MailFilter {
	f := o.Filter
	if f.Until.IsZero() || o.Bound.Before(f.Until) {
		f.Until = o.Bound
	}
	return &f
}

func jsonText(v any) string {
	b, _ := json.Marshal(v) // strings, numbers and times of ours always can be
	return string(b)
}

// BeginOperation makes an operation, whose ID, Bound and State it sets. From then on no mark is
// taken for what it selects, if it Brakes. One audit row says that it began.
func (s *Store) BeginOperation(ctx context.Context, o *Operation) error {
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	o.ID, o.State = id, OperationRunning
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		now, err := s.dialect.clock(ctx, tx)
		if err != nil {
			return err
		}
		o.Bound, o.Create, o.Update = micro(now.Add(BoundSlack)), micro(now), micro(now)
		if _, err := s.q.in(ctx, tx, "operation_insert").ExecContext(ctx, o.ID, o.Action, jsonText(o.Scope), jsonText(o.Filter), o.Request, o.Audit.Actor, o.Audit.Reason, o.Dry,
			s.t(&o.Bound), o.Total, s.t(&o.Create)); err != nil {
			return err
		}
		if o.Brakes && !o.Dry {
			if err := s.insertBrake(ctx, tx, o); err != nil {
				return err
			}
		}
		var team string
		if o.Filter.Team != nil {
			team = *o.Filter.Team
		}
		if err := s.auditInsert(ctx, tx, s.ready, o.Audit, team, "operation "+o.ID.String(), map[string]any{"filter": o.Filter, "created_before": o.Bound, "validate_only": o.Dry}); err != nil {
			return err
		}
		_, err = s.linkAudit(ctx, tx, s.ready, false)
		return err
	})
	return err
}

// insertBrake says what no mark is taken for. MessageID and RequestID need no term: the mail's
// own columns have them.
func (s *Store) insertBrake(ctx context.Context, tx *sqlx.Tx, o *Operation) error {
	f := o.selects()
	var team, statuses any
	if f.Team != nil {
		team = *f.Team
	}
	if len(f.Statuses) > 0 {
		statuses = jsonText(f.Statuses)
	}
	terms := []string{}
	if f.Recipient != "" {
		terms = append(terms, recipientTerm(f.Recipient))
	}
	for k, v := range f.Labels {
		terms = append(terms, labelTerm(k, v))
	}
	teams := o.Scope.Teams
	if teams == nil {
		teams = []string{}
	}
	_, err := s.q.in(ctx, tx, "brake_insert").ExecContext(ctx, o.ID, o.Scope.All, jsonText(teams), nullString(o.Scope.Caller), team, nullString(f.MailServer), nullString(string(f.Kind)),
		nullString(f.BatchID), nullString(f.Reference), nullString(strings.Trim(f.MessageID, "<>")), nullString(f.RequestID), statuses, jsonText(terms), s.t(&f.Since), s.t(&f.Until))
	return err
}

// Operation reads one. ErrNotFound.
func (s *Store) Operation(ctx context.Context, id uuid.UUID) (*Operation, error) {
	var r operationRow
	err := s.q.get("operation_get").GetContext(ctx, &r, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, s.fault(err)
	}
	return r.operation()
}

// Operations lists up to n, the last one first, before an id; uuid.Max = from the last one on.
func (s *Store) Operations(ctx context.Context, running bool, before uuid.UUID, n int) ([]*Operation, error) {
	var rows []operationRow
	only := 0
	if running {
		only = 1
	}
	if err := s.q.get("operation_list").SelectContext(ctx, &rows, before, only, n); err != nil {
		return nil, s.fault(err)
	}
	out := make([]*Operation, len(rows))
	for i := range rows {
		var err error
		if out[i], err = rows[i].operation(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// StopOperation lets no further piece of an operation begin, and ends its brake. One that has
// ended stays as it is.
func (s *Store) StopOperation(ctx context.Context, id uuid.UUID, a Audit) error {
	return s.tx(ctx, func(tx *sqlx.Tx) error {
		now := s.nowArg()
		var stopped []uuid.UUID
		if err := s.q.in(ctx, tx, "operation_stop").SelectContext(ctx, &stopped, now, id); err != nil || len(stopped) == 0 {
			return err
		}
		if _, err := s.q.in(ctx, tx, "brake_delete").ExecContext(ctx, id); err != nil {
			return err
		}
		if err := s.auditInsert(ctx, tx, s.ready, a, "", "operation "+id.String(), nil); err != nil {
			return err
		}
		_, err := s.linkAudit(ctx, tx, s.ready, false)
		return err
	})
}

// TakeOperation makes r the one that is at the oldest running operation which no living replica
// is at; nil = there is none. Behind all others come those that only count, and those that have
// met a fault, which are as old as that.
func (s *Store) TakeOperation(ctx context.Context, r ReplicaID) (*Operation, error) {
	var rows []operationRow
	err := s.repeated(func() error {
		rows = nil
		return s.q.get("operation_take").SelectContext(ctx, &rows, int64(r))
	})
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	return rows[0].operation()
}

// DelayOperation says why an operation that r is at does not come further, until its next piece
// is done. Those that wait go before it. One that has ended, or is another's, stays as it is.
func (s *Store) DelayOperation(ctx context.Context, r ReplicaID, id uuid.UUID, why string) error {
	_, err := s.pieceOf(ctx, r, id, func(p *piece) error {
		p.o.Error = storable(why)
		return nil
	})
	return err
}

func (s *Store) writeOperation(ctx context.Context, tx *sqlx.Tx, o *Operation) error {
	now, err := s.dialect.clock(ctx, tx)
	if err != nil {
		return err
	}
	o.Update = micro(now)
	if o.State != OperationRunning {
		o.End = o.Update
		if _, err := s.q.in(ctx, tx, "brake_delete").ExecContext(ctx, o.ID); err != nil {
			return err
		}
	}
	if o.pending == nil {
		o.pending = []uuid.UUID{}
	}
	if o.Failures == nil {
		o.Failures = []FailureGroup{}
	}
	_, err = s.q.in(ctx, tx, "operation_write").ExecContext(ctx, o.State, o.after, jsonText(o.pending), o.Matched, o.Changed, o.Failed, jsonText(o.Failures), o.Error, s.t(&o.Update),
		s.t(&o.End), o.ID)
	return err
}
