package quota

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/store"
)

// scripted answers as it is told.
type scripted struct {
	Sender
	send  func(observe func(delivery.Event) error) error
	queue func(ms []*store.NewMail) ([]store.Enqueued, error)
}

func (s *scripted) Send(_ context.Context, _ *delivery.Submission, observe func(delivery.Event) error) error {
	return s.send(observe)
}

func (s *scripted) Queue(_ context.Context, ms []*store.NewMail, _ bool) ([]store.Enqueued, error) {
	return s.queue(ms)
}

// spent are what the mails have cost that the ledger granted.
func (l *ledger) spent(q *Quota) int64 {
	n := l.used
	for _, m := range q.meters {
		n -= m.left
	}
	return n
}

// everyBudget runs f once for each kind of budget that counts mails.
func everyBudget(t *testing.T, f func(t *testing.T, q *Quota, l *ledger, ms func(n int) []*store.NewMail)) {
	for name, c := range map[string]struct {
		limits Limits
		budget *store.Budget
	}{"limit": {limits: Limits{TeamMails: 200}}, "token": {budget: &store.Budget{Token: "a", Mails: 200}}, "guard": {limits: Limits{Guard: Guard{Team: 200}}}} {
		t.Run(name, func(t *testing.T) {
			l := &ledger{has: 200}
			f(t, New(Config{Limits: c.limits, Store: l, Secret: []byte("s")}), l, func(n int) []*store.NewMail {
				ms := many(n)
				for _, m := range ms {
					m.Budget = c.budget
				}
				return ms
			})
		})
	}
}

// TestSendSpends: a mail whose commit was not heard of has spent its charge, or hanging up in
// time would pass every budget. What is known not to be new gets it back.
func TestSendSpends(t *testing.T) {
	t.Parallel()
	away := fmt.Errorf("%w: connection reset", store.ErrUnavailable)
	accepted := func(duplicate bool, err error) func(func(delivery.Event) error) error {
		return func(observe func(delivery.Event) error) error {
			return errors.Join(observe(delivery.Event{Accepted: &delivery.Accepted{Duplicate: duplicate}}), err)
		}
	}
	fails := func(err error) func(func(delivery.Event) error) error {
		return func(func(delivery.Event) error) error { return err }
	}
	everyBudget(t, func(t *testing.T, q *Quota, l *ledger, ms func(int) []*store.NewMail) {
		for what, c := range map[string]struct {
			send func(func(delivery.Event) error) error
			want int64
		}{
			"accepted":                        {accepted(false, nil), 1},
			"accepted, then the caller left":  {accepted(false, context.Canceled), 1},
			"hung up at the commit":           {fails(context.Canceled), 1},
			"time over at the commit":         {fails(context.DeadlineExceeded), 1},
			"database away at the commit":     {fails(away), 1},
			"known":                           {accepted(true, nil), 0},
			"known, then the caller left":     {accepted(true, context.Canceled), 0},
			"not written, database away":      {fails(store.Unwritten(away)), 0},
			"not written, hung up before":     {fails(store.Unwritten(context.Canceled)), 0},
			"refused":                         {fails(store.Unwritten(store.ErrRequestIDReused)), 0},
			"refused, with words around that": {fails(fmt.Errorf("item 7: %w", store.Unwritten(store.ErrServerChanged))), 0},
		} {
			before := l.spent(q)
			_ = q.Sender(&scripted{send: c.send}).Send(t.Context(), &delivery.Submission{Mail: ms(1)[0]}, func(delivery.Event) error { return nil })
			if got := l.spent(q) - before; got != c.want {
				t.Errorf("%s: got a charge of %d, want %d", what, got, c.want)
			}
		}
	})
}

// TestQueueSpends: of mails that failed together each has spent its charge, but for those whose
// answer says that they are not new; and the answers that there are reach the caller.
func TestQueueSpends(t *testing.T) {
	t.Parallel()
	away := fmt.Errorf("%w: connection reset", store.ErrUnavailable)
	fresh, known, refused := store.Enqueued{}, store.Enqueued{Duplicate: true}, store.Enqueued{Err: store.ErrServerChanged}
	everyBudget(t, func(t *testing.T, q *Quota, l *ledger, ms func(int) []*store.NewMail) {
		for what, c := range map[string]struct {
			all  bool
			res  []store.Enqueued
			err  error
			want int64
		}{
			"written":                        {false, []store.Enqueued{fresh, fresh, fresh, fresh}, nil, 4},
			"known and refused":              {false, []store.Enqueued{fresh, known, refused, fresh}, nil, 2},
			"hung up at the commit":          {false, nil, context.Canceled, 4},
			"second commit fails":            {false, []store.Enqueued{fresh, fresh}, away, 4},
			"second commit fails, one known": {false, []store.Enqueued{fresh, known}, away, 3},
			"one refused, then it fails":     {false, []store.Enqueued{refused}, away, 3},
			"not written":                    {false, nil, store.Unwritten(away), 0},
			"all written":                    {true, []store.Enqueued{fresh, known, fresh, fresh}, nil, 3},
			"all, hung up at the commit":     {true, nil, away, 4},
			"all, not written":               {true, nil, store.Unwritten(away), 0},
			"all, one refused":               {true, []store.Enqueued{fresh, fresh, refused, fresh}, nil, 0},
		} {
			before := l.spent(q)
			res, err := q.Sender(&scripted{queue: func([]*store.NewMail) ([]store.Enqueued, error) { return c.res, c.err }}).Queue(t.Context(), ms(4), c.all)
			if !errors.Is(err, c.err) || len(res) != len(c.res) {
				t.Errorf("%s: got %d answers and %v, want %d and %v", what, len(res), err, len(c.res), c.err)
			}
			if got := l.spent(q) - before; got != c.want {
				t.Errorf("%s: got a charge of %d, want %d", what, got, c.want)
			}
		}
	})
}
