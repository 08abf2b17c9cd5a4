package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// onCommit calls f at the first commit of accepted mail. Only the goroutine that writes them
// uses it.
type onCommit struct{ f func() }

func (c *onCommit) Committed(line string, _ int, _ time.Duration) {
	if f := c.f; line == store.LineAccept && f != nil {
		c.f = nil
		f()
	}
}

// TestSecondCommitFails: of mails whose second commit fails the answers of the first one are
// there, and nothing is said of the rest.
func TestSecondCommitFails(t *testing.T) {
	t.Parallel()
	first := &onCommit{}
	s, err := store.Open(ctx, storetest.SQLiteDSN(t), store.Options{Observer: first})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
		t.Fatal(err)
	}
	first.f = func() {
		if err := s.Exec("alter table mail rename to gone"); err != nil {
			t.Error(err)
		}
	}
	ms := make([]*store.NewMail, s.BulkItems()+7)
	for i := range ms {
		ms[i] = newMail("ss")
	}
	res, err := s.EnqueueBatch(ctx, ms)
	if err == nil || errors.Is(err, store.ErrUnwritten) || len(res) != len(ms)-7 {
		t.Fatalf("got %d answers and %v, want %d and an error that leaves the rest open", len(res), err, len(ms)-7)
	}
	for i, r := range res {
		if r.ID != ms[i].ID || r.Err != nil || r.Duplicate {
			t.Fatalf("mail %d: got %+v, want it written", i, r)
		}
	}
}

// TestUnwritten: a mail whose shared content cannot be stored was never handed over, by any way
// in, and the error says so beside its cause.
func TestUnwritten(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.SQLiteDSN(t))
	over, end := context.WithCancel(ctx)
	end()
	data := []byte("an attachment")
	m := newMail("ss", func(m *store.NewMail) { m.Raw = append(m.Raw, store.Piece{Shared: content(data), Length: len(data)}) })
	_, one := s.Enqueue(over, m)
	_, some := s.EnqueueBatch(over, []*store.NewMail{m})
	_, all := s.EnqueueAll(over, []*store.NewMail{m})
	for way, err := range map[string]error{"Enqueue": one, "EnqueueBatch": some, "EnqueueAll": all} {
		if !errors.Is(err, store.ErrUnwritten) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want %v for the reason %v", way, err, store.ErrUnwritten, context.Canceled)
		}
	}
	if err := store.Unwritten(nil); err != nil {
		t.Errorf("no error became %v", err)
	}
	if err := store.Unwritten(store.ErrServerChanged); err.Error() != store.ErrServerChanged.Error() {
		t.Errorf("the mark changes the text to %q", err)
	}
}
