package quota

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/store"
)

// TestReplayLeavesNoTrace: a mail that is known already raises no alarm, and counts neither for
// its address nor in the queue.
func TestReplayLeavesNoTrace(t *testing.T) {
	t.Parallel()
	o := newOffice(t, Limits{Queue: 100, Guard: Guard{Address: 40, Team: 1}})
	for range 10 {
		m := mail("a@y.example")
		m.RequestID, m.Mode = "q1", store.ModeDaemon
		if err := o.send(m); err != nil {
			t.Fatal(err)
		}
		if res, err := o.to.Queue(t.Context(), []*store.NewMail{m}, true); err != nil || !res[0].Duplicate {
			t.Fatalf("got %v, %v", res, err)
		}
	}
	if n := strings.Count(o.log.String(), "the guard holds mail"); n != 0 || len(o.book.mail) != 1 {
		t.Errorf("got %d mails, and the log has %s", len(o.book.mail), o.log)
	}
	if o.since["t1"] != 1 {
		t.Errorf("got %d mails in the queue, want one", o.since["t1"])
	}
	for k := range o.meters {
		if k.name == BudgetAddress {
			t.Error("one mail to an address was counted as many")
		}
	}
	// held for the first time, it is told with its own id
	m := mail("a@y.example")
	if err := o.to.Send(t.Context(), &delivery.Submission{Mail: m}, func(delivery.Event) error { return nil }); err != nil || !strings.Contains(o.log.String(), m.ID.String()) {
		t.Errorf("got %v, and the log has %s", err, o.log)
	}
}

// halves can count no queue. Only Run's goroutine asks it.
type halves struct {
	Store
	back   int64
	forgot int
}

func (h *halves) QueueDepths(context.Context) (map[string]int64, error) {
	return nil, errors.New("too slow")
}

func (h *halves) ForgetAllowances(context.Context) error {
	h.forgot++
	return nil
}

func (h *halves) TakeAllowances(_ context.Context, takes []store.AllowanceTake) ([]store.AllowanceGrant, error) {
	h.back += takes[0].Back
	return make([]store.AllowanceGrant, len(takes)), nil
}

// TestRunGoesOn: where queues cannot be counted, what lies unused is given back all the same,
// and what is over is forgotten.
func TestRunGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &halves{}
		q := New(Config{Limits: Limits{Queue: 10, TeamMails: 100}, Store: h, Secret: []byte("s")})
		w := q.quotas(mail(), 1, 1)[0]
		q.meterOf(&w, q.now()).left = 7
		ctx, end := context.WithCancel(t.Context())
		go q.Run(ctx)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if h.back != 7 || h.forgot != 1 {
			t.Errorf("got %d given back and %d times forgotten, want 7 and once", h.back, h.forgot)
		}
		end()
		synctest.Wait()
	})
}
