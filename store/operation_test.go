package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// cancelled is what a cancellation makes of a mail.
func cancelled(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
	return &store.Change{Kind: store.SettleArchive, Status: store.MailCancelled, Stops: true}, nil
}

func explained(err error) (reason, message string) { return "WRONG_STATE", err.Error() }

// TestOperation cancels mails while they are sent. The replica that is at it dies in the
// middle, somebody stops it, and the same call again does the rest: the counts are exact, and
// nothing of the selection that was not marked is marked any more.
func TestOperation(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		const mails = 300
		ms := make([]*store.NewMail, mails)
		for i := range ms {
			ms[i] = newMail("ss", func(m *store.NewMail) { m.BatchID, m.CreateTime = "b", m.CreateTime.Add(-time.Minute) })
		}
		enqueue(t, s, ms...)
		sender, first := register(t, s), register(t, s)
		if s.Dialect() == "sqlite" { // where one process is all there is
			sender = first
		}
		cs, err := s.Claim(ctx, sender, "ss", 40, store.AnyPriority)
		if err != nil {
			t.Fatal(err)
		}
		mark := func(c *store.Claimed) bool {
			a := <-s.Settle(&store.Settlement{ID: c.ID, Owner: sender, Claim: c.Claim, Kind: store.SettleMark})
			if a.Err != nil {
				t.Fatal(a.Err)
			}
			return a.Mine
		}
		for _, c := range cs[:10] {
			if !mark(c) {
				t.Fatal("a mark before the operation is refused")
			}
		}
		begin := func() *store.Operation {
			t.Helper()
			o := &store.Operation{Action: "CancelMails", Scope: store.Everything, Filter: store.MailFilter{BatchID: "b"}, Request: "{}", Audit: store.Audit{Actor: "me", Action: "CancelMails"}, Brakes: true}
			if err := s.BeginOperation(ctx, o); err != nil {
				t.Fatal(err)
			}
			return o
		}
		o := begin()
		late := newMail("ss", func(m *store.NewMail) { m.BatchID, m.CreateTime = "b", time.Now().Add(time.Minute) })
		other := newMail("ss")
		enqueue(t, s, late, other)
		for _, c := range cs[10:20] {
			if mark(c) {
				t.Fatal("a mail that is being cancelled is marked")
			}
		}
		piece := func(r store.ReplicaID) *store.Operation {
			t.Helper()
			got, err := s.TakeOperation(ctx, r)
			if err != nil || got == nil {
				t.Fatalf("nothing to do for replica %d: %v", r, err)
			}
			got, _, err = s.Operate(ctx, r, got.ID, 50, cancelled, explained)
			if err != nil || got == nil {
				t.Fatalf("a piece: %v, %v", got, err)
			}
			return got
		}
		if got := piece(first); got.Matched != 50 || got.Changed+got.Failed != 50 {
			t.Errorf("a piece of 50: %+v", got)
		}
		second := first
		if s.Dialect() != "sqlite" {
			second = register(t, s)
			if got, err := s.TakeOperation(ctx, second); err != nil || got != nil {
				t.Errorf("another replica takes what a living one is at: %v, %v", got, err)
			}
			if err := s.Renew(ctx, first, -time.Minute); err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.Recover(ctx, second, 1); err != nil {
				t.Fatal(err)
			}
			if got, _, err := s.Operate(ctx, first, o.ID, 50, cancelled, explained); err != nil || got != nil {
				t.Errorf("a dead replica goes on: %v, %v", got, err)
			}
		}
		if got := piece(second); got.Matched != 100 {
			t.Errorf("the other replica begins anew: %+v", got)
		}
		if err := s.StopOperation(ctx, o.ID, store.Audit{Actor: "me", Action: "StopOperation"}); err != nil {
			t.Fatal(err)
		}
		stopped, err := s.Operation(ctx, o.ID)
		if err != nil || stopped.State != store.OperationStopped || stopped.End.IsZero() {
			t.Fatalf("stopped: %+v, %v", stopped, err)
		}
		if got, err := s.TakeOperation(ctx, second); err != nil || got != nil {
			t.Errorf("what was stopped goes on: %v, %v", got, err)
		}
		o = begin()
		var got *store.Operation
		for got = piece(second); got.State == store.OperationRunning; got = piece(second) {
		}
		if got.State != store.OperationDone || stopped.Changed+got.Changed != mails-10 || got.Matched != int64(mails-stopped.Changed) {
			t.Errorf("at the end: %+v behind %+v", got, stopped)
		}
		if len(got.Failures) != 1 || got.Failed != 10 || got.Failures[0].Count != 10 || len(got.Failures[0].IDs) != 10 {
			t.Errorf("failures: got %+v, want those ten that are being sent, in one group", got.Failures)
		}
		b, err := s.CountBatch(ctx, store.Everything, "sales", "b")
		if err != nil || b.ByStatus[store.MailCancelled] != mails-10 || b.ByStatus[store.MailSending] != 10 || b.ByStatus[store.MailQueued] != 1 {
			t.Errorf("the batch: %+v, %v; want the late one queued", b, err)
		}
		for _, c := range cs[:10] {
			if a := <-s.Settle(&store.Settlement{ID: c.ID, Owner: sender, Claim: c.Claim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1}); a.Err != nil || !a.Mine {
				t.Fatalf("the result of what was marked before: %+v", a)
			}
		}
		list, err := s.Operations(ctx, false, uuid.Max, 10)
		if err != nil || len(list) != 2 || list[0].ID != o.ID {
			t.Errorf("the list: %v, %v", list, err)
		}
		if list, err = s.Operations(ctx, true, uuid.Max, 10); err != nil || len(list) != 0 {
			t.Errorf("of those that run: %v, %v", list, err)
		}
		if _, err := s.Operation(ctx, other.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("no such operation: %v", err)
		}
	})
}

// TestOperationOfOtherClock: a mail that was accepted before an operation began is held and
// cancelled also where the clock of the replica that accepted it is ahead. One that only counts
// waits for it, though it is older.
func TestOperationOfOtherClock(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		begin := func(dry bool) *store.Operation {
			t.Helper()
			o := &store.Operation{Action: "CancelMails", Scope: store.Everything, Filter: store.MailFilter{MailServer: "ss"}, Request: "{}", Audit: store.Audit{Actor: "me"}, Brakes: true, Dry: dry}
			if err := s.BeginOperation(ctx, o); err != nil {
				t.Fatal(err)
			}
			return o
		}
		dry := begin(true)
		enqueue(t, s, newMail("ss", func(m *store.NewMail) {
			m.CreateTime = time.Now().Add(400 * time.Millisecond)
			m.RunAt = m.CreateTime.Add(-time.Minute)
		}))
		cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority)
		if err != nil || len(cs) != 1 {
			t.Fatal(len(cs), err)
		}
		o := begin(false)
		if slack := o.Bound.Sub(o.Create); slack < 600*time.Millisecond {
			t.Errorf("a mail whose replica is 400 ms ahead is not taken: the bound is %v behind the begin", slack)
		}
		if a := <-s.Settle(&store.Settlement{ID: cs[0].ID, Owner: r, Claim: cs[0].Claim, Kind: store.SettleMark}); a.Err != nil || a.Mine {
			t.Errorf("a mail that is being cancelled is marked: %+v", a)
		}
		for _, want := range []*store.Operation{o, dry} {
			got, err := s.TakeOperation(ctx, r)
			if err != nil || got == nil || got.ID != want.ID || !got.Bound.Equal(want.Bound) || !got.Create.Equal(want.Create) {
				t.Fatalf("took %+v, %v; want %+v", got, err, want)
			}
			if got, _, err = s.Operate(ctx, r, got.ID, 10, cancelled, explained); err != nil || got == nil || got.State != store.OperationDone || !want.Dry && got.Changed != 1 {
				t.Fatalf("%+v, %v", got, err)
			}
		}
	})
}

// TestOperationPassesBy: mails that somebody writes to for long hold up none behind them, and
// the operation comes back to them.
func TestOperationPassesBy(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	const mails, locked, n = 200, 60, 50
	ms := make([]*store.NewMail, mails)
	for i := range ms {
		ms[i] = newMail("ss", func(m *store.NewMail) { m.BatchID, m.CreateTime = "b", m.CreateTime.Add(-time.Minute) })
	}
	enqueue(t, s, ms...)
	r := register(t, s)
	o := &store.Operation{Action: "CancelMails", Scope: store.Everything, Filter: store.MailFilter{BatchID: "b"}, Request: "{}", Audit: store.Audit{Actor: "me"}, Brakes: true}
	if err := s.BeginOperation(ctx, o); err != nil {
		t.Fatal(err)
	}
	release, held := make(chan struct{}), make(chan error, 1)
	go func() {
		held <- s.Hold(fmt.Sprintf("select 1 from (select id from due order by id limit %d for update) x", locked), release)
	}()
	for end, free := time.Now().Add(10*time.Second), 0; free != mails-locked; {
		if err := s.Get(&free, "select count(*) from (select id from due for update skip locked) x"); err != nil || time.Now().After(end) {
			t.Fatalf("%d mails are free, %v", free, err)
		}
	}
	if _, err := s.TakeOperation(ctx, r); err != nil {
		t.Fatal(err)
	}
	piece := func() *store.Operation {
		t.Helper()
		got, _, err := s.Operate(ctx, r, o.ID, n, cancelled, explained)
		if err != nil || got == nil {
			t.Fatal(got, err)
		}
		return got
	}
	for range 3 {
		o = piece()
	}
	if o.Matched != 3*n || o.Changed != 3*n-locked {
		t.Errorf("after three pieces it has come to %d mails and changed %d, want %d and all but %d", o.Matched, o.Changed, 3*n, locked)
	}
	close(release)
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); o.State == store.OperationRunning && time.Now().Before(end); {
		o = piece()
	}
	if o.State != store.OperationDone || o.Changed != mails || o.Failed != 0 {
		t.Errorf("at the end: %+v", o)
	}
}

// TestBrakeSelects: for each field of a filter, no mark is taken for a mail that it selects,
// and one is for a mail that it does not.
func TestBrakeSelects(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		team := "sales"
		now := time.Now()
		for name, f := range map[string]store.MailFilter{
			"team": {Team: &team}, "mail server": {MailServer: "ss"}, "status": {Statuses: []store.MailStatus{store.MailQueued}}, "kind": {Kind: store.KindInvoice},
			"reference": {Reference: "R1"}, "recipient": {Recipient: "to@x.example"}, "message id": {MessageID: "<m1@x.example>"}, "label": {Labels: map[string]string{"a": "b"}},
			"batch": {BatchID: "b1"}, "since": {Since: now.Add(-time.Hour)}, "until": {Until: now.Add(-time.Minute)},
		} {
			in := newMail("ss", func(m *store.NewMail) {
				m.Kind, m.Reference, m.MessageID, m.Labels, m.BatchID = store.KindInvoice, "R1", "m1@x.example", map[string]string{"a": "b"}, "b1"
				m.CreateTime = now.Add(-2 * time.Minute)
			})
			out := newMail("other", func(m *store.NewMail) {
				m.Team, m.Kind, m.Reference, m.MessageID, m.Labels, m.BatchID = "stock", store.KindBulk, "R2", "m2@x.example", map[string]string{"a": "c"}, "b2"
				m.Recipients[0].Mailbox, m.CreateTime = "you@x.example", now.Add(-2*time.Hour)
				if name == "until" {
					m.CreateTime = now
				}
			})
			enqueue(t, s, in, out)
			if name == "status" { // its row says what it would be without its owner
				if _, n, _, err := s.Modify(ctx, store.Everything, []uuid.UUID{out.ID}, nil, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
					return &store.Change{Kind: store.SettleRetry, Status: store.MailDeferred, RunAt: now.Add(-time.Second), Attempts: 1}, nil
				}); err != nil || n != 1 {
					t.Fatal(n, err)
				}
			}
			o := &store.Operation{Action: "HoldMails", Scope: store.Everything, Filter: f, Request: "{}", Brakes: true}
			if err := s.BeginOperation(ctx, o); err != nil {
				t.Fatal(err)
			}
			for _, x := range []struct {
				server string
				want   bool
			}{{"ss", false}, {"other", true}} {
				cs, err := s.Claim(ctx, r, x.server, 10, store.AnyPriority)
				if err != nil || len(cs) != 1 {
					t.Fatalf("%s: claimed %d, %v", name, len(cs), err)
				}
				if a := <-s.Settle(&store.Settlement{ID: cs[0].ID, Owner: r, Claim: cs[0].Claim, Kind: store.SettleMark}); a.Err != nil || a.Mine != x.want {
					t.Errorf("a brake by %s, mail through %s: marked %v, %v; want %v", name, x.server, a.Mine, a.Err, x.want)
				}
				settle(t, s, &store.Settlement{ID: cs[0].ID, Owner: r, Claim: cs[0].Claim, Kind: store.SettleArchive, Status: store.MailSent})
			}
			if err := s.StopOperation(ctx, o.ID, store.Audit{}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestOperationDelayed: an operation that meets a fault says which while it runs, lets those
// that wait go before it, and is tried again in its turn.
func TestOperationDelayed(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		var ids []uuid.UUID
		for range 2 {
			o := &store.Operation{Action: "CancelMails", Scope: store.Everything, Filter: store.MailFilter{BatchID: "b"}, Request: "{}", Audit: store.Audit{Actor: "me"}}
			if err := s.BeginOperation(ctx, o); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, o.ID)
		}
		for i, want := range []uuid.UUID{ids[0], ids[1], ids[0]} {
			o, err := s.TakeOperation(ctx, r)
			if err != nil || o == nil || o.ID != want {
				t.Fatalf("%d: took %v, %v; want %s", i, o, err, want)
			}
			if i == 2 {
				break
			}
			if err := s.DelayOperation(ctx, r, o.ID, "the database is away"); err != nil {
				t.Fatal(err)
			}
			if o, err = s.Operation(ctx, o.ID); err != nil || o.State != store.OperationRunning || o.Error != "the database is away" {
				t.Errorf("delayed: %+v, %v", o, err)
			}
		}
		o, _, err := s.Operate(ctx, r, ids[0], 10, cancelled, explained)
		if err != nil || o == nil || o.State != store.OperationDone || o.Error != "" {
			t.Errorf("tried again: %+v, %v", o, err)
		}
		if err := s.DelayOperation(ctx, r, ids[0], "too late"); err != nil {
			t.Fatal(err)
		}
		if o, err = s.Operation(ctx, ids[0]); err != nil || o.State != store.OperationDone || o.Error != "" {
			t.Errorf("delayed behind its end: %+v, %v", o, err)
		}
	})
}
