package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestMove: a change can let a mail go on through another mail server, which has to be there
// and available when the change is written. The mail is claimed from there then.
func TestMove(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		off := newServer("off", "")
		off.Status = store.ServerUnavailable
		for _, m := range []*store.MailServer{newServer("ss", ""), newServer("spare", ""), off} {
			if _, _, err := s.CreateServer(ctx, m, store.Audit{}); err != nil {
				t.Fatal(err)
			}
		}
		a, b := newMail("ss"), newMail("ss")
		enqueue(t, s, a, b)
		to := func(name string) store.Decide {
			return func(m *store.Mail, its *store.MailServer) (*store.Change, error) {
				if its == nil || its.Name != "ss" {
					t.Errorf("decided with mail server %v, want its own", its)
				}
				return &store.Change{Kind: store.SettleRetry, Status: m.Status, RunAt: time.Now().Add(-time.Minute), MailServer: name}, nil
			}
		}
		for _, name := range []string{"off", "nothing"} {
			if _, _, _, err := s.Modify(ctx, store.Everything, []uuid.UUID{a.ID}, nil, false, store.Audit{}, to(name)); !errors.Is(err, store.ErrServerUnavailable) {
				t.Errorf("to %s: got %v, want ErrServerUnavailable", name, err)
			}
		}
		if _, n, _, err := s.Modify(ctx, store.Everything, []uuid.UUID{a.ID}, nil, false, store.Audit{}, to("spare")); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		r := register(t, s)
		cs, err := s.Claim(ctx, r, "spare", 10, store.AnyPriority)
		if err != nil || len(cs) != 1 || cs[0].ID != a.ID {
			t.Errorf("claimed %v, %v, want the moved mail", cs, err)
		}
		for id, want := range map[uuid.UUID]string{a.ID: "spare", b.ID: "ss"} {
			if m, err := s.Mail(ctx, store.Everything, id); err != nil || m.MailServer != want {
				t.Errorf("got %+v, %v, want it through %s", m, err, want)
			}
		}
	})
}

// TestRecord: a call that changes nothing leaves a row of the audit all the same.
func TestRecord(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		if err := s.Record(ctx, store.Audit{Action: "TestMailServer"}, "", "ss", newServer("ss", "")); err != nil {
			t.Fatal(err)
		}
	})
}
