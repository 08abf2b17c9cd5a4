package store_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// auditRows reads the audit log beside the store, newest last: action, target, reason and
// detail.
func auditRows(t *testing.T, dsn string) (rows [][4]string) {
	t.Helper()
	driver, name := "postgres", dsn
	if path, is := strings.CutPrefix(dsn, "sqlite:"); is {
		driver, name = "sqlite", path
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r, err := db.Query("select action, target, reason, coalesce(cast(detail as text), '') from audit order by id")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for r.Next() {
		var a [4]string
		if err := r.Scan(&a[0], &a[1], &a[2], &a[3]); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, a)
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestKindsHavePriorities(t *testing.T) {
	t.Parallel()
	for kind, want := range map[store.Kind]int16{store.KindAgentMessage: store.PriorityUrgent, store.KindInvoice: store.PriorityHigh, store.KindWorkOrder: store.PriorityHigh,
		store.KindOther: store.PriorityNormal, store.KindBulk: store.PriorityLow} {
		if got := kind.Priority(); got != want {
			t.Errorf("%s: %d, want %d", kind, got, want)
		}
	}
}

func TestClaimTakesTheHighestPriorityFirst(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		with := func(p int16, ago time.Duration) *store.NewMail {
			return newMail("ss", func(m *store.NewMail) { m.Priority, m.RunAt = p, time.Now().Add(-ago) })
		}
		low, lowest, urgent, normal, high := with(store.PriorityLow, 2*time.Hour), with(0, 3*time.Hour), with(store.PriorityUrgent, 0), with(store.PriorityNormal, time.Hour), with(store.PriorityHigh, 0)
		enqueue(t, s, low, lowest, urgent, normal, high)
		r := register(t, s)
		for i, want := range []*store.NewMail{urgent, high, normal, low, lowest} {
			cs, err := s.Claim(ctx, r, "ss", 1, store.AnyPriority)
			if err != nil || len(cs) != 1 || cs[0].ID != want.ID || cs[0].Priority != want.Priority {
				t.Fatalf("claim %d: %+v %v", i, cs, err)
			}
		}
	})
}

// TestHeldMail: held mail is out of reach and knows when it would be due, whoever held it.
func TestHeldMail(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
		born := newMail("ss", func(m *store.NewMail) { m.Held, m.RunAt = "held: by its sender", later })
		waiting := newMail("ss", func(m *store.NewMail) { m.RunAt = later })
		due := newMail("ss")
		enqueue(t, s, born, waiting, due)
		read := func(m *store.NewMail) *store.Mail {
			t.Helper()
			got, err := s.Mail(ctx, store.Everything, m.ID)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		m := read(born)
		if m.Status != store.MailHeld || m.DueTime != nil || m.ResumeTime == nil || !m.ResumeTime.Equal(later) || m.LastError != "held: by its sender" {
			t.Fatalf("born held: %+v", m)
		}
		if m = read(waiting); m.Status != store.MailQueued || m.ResumeTime != nil || !m.DueTime.Equal(later) || m.LastError != "" {
			t.Fatalf("not held: %+v", m)
		}
		hold := func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, ResumeAt: *m.DueTime, LastError: "held: why"}, nil
		}
		if _, n, _, err := s.Modify(ctx, store.Everything, []uuid.UUID{due.ID}, nil, false, store.Audit{}, hold); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		r := register(t, s)
		if cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority); err != nil || len(cs) != 0 {
			t.Fatalf("held mail was claimed: %v %v", cs, err)
		}
		if _, n, err := s.DeleteServer(ctx, store.Everything, "ss", 0, true, store.Audit{}); err != nil || n.Held != 1 {
			t.Fatalf("held by the forced delete: %d %v", n, err)
		}
		if m = read(waiting); m.Status != store.MailHeld || m.ResumeTime == nil || !m.ResumeTime.Equal(later) {
			t.Fatalf("held by the forced delete: %+v", m)
		}
		if m = read(due); m.ResumeTime == nil || !m.ResumeTime.Equal(due.RunAt.UTC().Truncate(time.Microsecond)) || m.LastError != "held: why" {
			t.Fatalf("held before the delete: %+v", m)
		}
		release := func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: *m.ResumeTime}, nil
		}
		if _, n, _, err := s.Modify(ctx, store.Everything, []uuid.UUID{born.ID, due.ID}, nil, false, store.Audit{}, release); err != nil || n != 2 {
			t.Fatal(n, err)
		}
		if m = read(born); m.Status != store.MailQueued || m.ResumeTime != nil || !m.DueTime.Equal(later) {
			t.Fatalf("released: %+v", m)
		}
		if cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority); err != nil || len(cs) != 1 || cs[0].ID != due.ID {
			t.Fatalf("released: %v %v", cs, err)
		}
	})
}

// TestModifyMail: one mail, its audit row in the same transaction, and what is left of it.
func TestModifyMail(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			s := storetest.Open(t, dsn)
			a, b, c := newMail("ss"), newMail("ss"), newMail("ss")
			enqueue(t, s, a, b, c)
			audit := store.Audit{Actor: "me", Action: "ResolveMail", Reason: "seen it"}
			park := func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
				return &store.Change{Kind: store.SettlePark, Status: store.MailFailed, Attempts: 3, LastError: "no", Detail: map[string]any{"resolution": "not_delivered"},
					Progress: &store.Progress{Results: []store.RecipientResult{{Status: store.RecipientRejected}, {Status: store.RecipientUnknown, Held: true}}}}, nil
			}
			boom := errors.New("boom")
			for want, call := range map[error]func() error{
				store.ErrNotFound: func() error { _, err := s.ModifyMail(ctx, store.Everything, uuid.New(), audit, park); return err },
				boom: func() error {
					_, err := s.ModifyMail(ctx, store.Everything, a.ID, audit, func(*store.Mail, *store.MailServer) (*store.Change, error) { return nil, boom })
					return err
				},
			} {
				if err := call(); !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
			}
			if _, err := s.ModifyMail(ctx, store.Scope{Teams: []string{"other"}}, a.ID, audit, park); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a foreign team's mail: %v", err)
			}
			if rows := auditRows(t, dsn); len(rows) != 0 {
				t.Fatalf("refused changes were audited: %v", rows)
			}
			m, err := s.ModifyMail(ctx, store.Everything, a.ID, audit, park)
			if err != nil || m.Status != store.MailFailed || m.Attempts != 3 || m.LastError != "no" || m.DueTime != nil || m.Progress.Results[0].Status != store.RecipientRejected || !m.Progress.Results[1].Held {
				t.Fatalf("parked: %+v %v", m, err)
			}
			m, err = s.ModifyMail(ctx, store.Everything, b.ID, audit, func(*store.Mail, *store.MailServer) (*store.Change, error) {
				return &store.Change{Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1}, nil
			})
			if err != nil || m.Status != store.MailSent || !m.Archived || m.FinishTime == nil {
				t.Fatalf("finished: %+v %v", m, err)
			}
			if _, err := s.ModifyMail(ctx, store.Everything, b.ID, audit, park); !errors.Is(err, store.ErrFinished) {
				t.Errorf("a finished one: %v", err)
			}
			if cs, err := s.Claim(ctx, register(t, s), "ss", 10, store.AnyPriority); err != nil || len(cs) != 1 {
				t.Fatal(cs, err)
			}
			if _, err := s.ModifyMail(ctx, store.Everything, c.ID, audit, park); !errors.Is(err, store.ErrSending) {
				t.Errorf("one that is being sent: %v", err)
			}
			rows := auditRows(t, dsn)
			if len(rows) != 2 || rows[0] != [4]string{"ResolveMail", a.ID.String(), "seen it", `{"resolution":"not_delivered"}`} || rows[1][1] != b.ID.String() {
				t.Errorf("audit: %v", rows)
			}
		})
	}
}

// TestAPersonsWordEndsAQuarantine: else a mail that was put aside for its owners' deaths could
// never be sent again.
func TestAPersonsWordEndsAQuarantine(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		m := newMail("ss")
		enqueue(t, s, m)
		dead := register(t, s)
		if cs, err := s.Claim(ctx, dead, "ss", 1, store.AnyPriority); err != nil || len(cs) != 1 {
			t.Fatal(cs, err)
		}
		if err := s.Renew(ctx, dead, -time.Second); err != nil {
			t.Fatal(err)
		}
		me := register(t, s)
		if n, _, err := s.Recover(ctx, me, 10); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		retry := func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now().Add(-time.Second)}, nil
		}
		if _, err := s.ModifyMail(ctx, store.Everything, m.ID, store.Audit{}, retry); err != nil {
			t.Fatal(err)
		}
		if cs, err := s.Claim(ctx, me, "ss", 1, store.AnyPriority); err != nil || len(cs) != 1 || cs[0].Crashes != 0 {
			t.Fatalf("%+v %v", cs, err)
		}
	})
}

// TestHoldUnknown: what a mail server says of unknown outcomes reaches whoever claims or
// rescues its mail.
func TestHoldUnknown(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		holding := newServer("holding", "")
		holding.HoldUnknown = true
		for _, m := range []*store.MailServer{holding, newServer("plain", "")} {
			got, _, err := s.CreateServer(ctx, m, store.Audit{})
			if err != nil || got.HoldUnknown != m.HoldUnknown {
				t.Fatalf("%+v %v", got, err)
			}
		}
		enqueue(t, s, newMail("holding"), newMail("plain"), newMail("nobody"))
		dead := register(t, s)
		for server, want := range map[string]bool{"holding": true, "plain": false, "nobody": false} {
			cs, err := s.Claim(ctx, dead, server, 10, store.AnyPriority)
			if err != nil || len(cs) != 1 || cs[0].HoldUnknown != want {
				t.Fatalf("claim of %s: %+v %v", server, cs, err)
			}
			settle(t, s, &store.Settlement{ID: cs[0].ID, Owner: dead, Claim: cs[0].Claim, Kind: store.SettleMark})
		}
		if _, err := s.UpdateServer(ctx, store.Everything, "plain", 0, store.Audit{}, func(m *store.MailServer) error { m.HoldUnknown = true; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := s.Unregister(ctx, dead); err != nil {
			t.Fatal(err)
		}
		_, adopted, err := s.Recover(ctx, register(t, s), 10)
		if err != nil || len(adopted) != 3 {
			t.Fatalf("adopted: %v %v", adopted, err)
		}
		for _, c := range adopted {
			if c.HoldUnknown != (c.MailServer != "nobody") {
				t.Errorf("rescued mail of %s: %v", c.MailServer, c.HoldUnknown)
			}
		}
	})
}
