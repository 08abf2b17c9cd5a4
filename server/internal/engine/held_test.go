package engine_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// deaf is a journal whose claims are made, and not heard of, while it says so.
type deaf struct {
	engine.Journal
	lost atomic.Int32 // claims still to lose
}

func (d *deaf) Claim(ctx context.Context, r store.ReplicaID, server string, n int, above int16) ([]*store.Claimed, error) {
	cs, err := d.Journal.Claim(ctx, r, server, n, above)
	if err == nil && len(cs) > 0 && d.lost.Add(-1) >= 0 {
		return nil, store.ErrUnavailable
	}
	return cs, err
}

// TestClaimNotHeardOf: mail that was claimed by a statement whose answer was lost is found by
// its owner, given back and sent, each once.
func TestClaimNotHeardOf(t *testing.T) {
	t.Parallel()
	for _, dsn := range storetest.DSNs(t) {
		relay := (&smtpxtest.Server{}).Start(t)
		var j *deaf
		r := newRig(t, dsn, func(s *store.Store) engine.Journal { j = &deaf{Journal: s}; return j })
		s := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
		j.lost.Store(1)
		var ms []*store.NewMail
		for range 20 {
			ms = append(ms, newMail(s, store.KindInvoice, "u@y.example"))
		}
		r.queue(s, ms...)
		deadline := time.Now().Add(time.Minute)
		for len(relay.Mails()) < len(ms) && time.Now().Before(deadline) {
			r.batch("")
			<-time.After(50 * time.Millisecond)
		}
		for _, m := range ms {
			if got := r.mail(m.ID); got.Status != store.MailSent || got.PossibleDuplicate {
				t.Errorf("%s, possible duplicate %v, %s", got.Status, got.PossibleDuplicate, got.LastError)
			}
		}
		for id, n := range dup(relay) {
			if n != 1 {
				t.Errorf("%s arrived %d times", id, n)
			}
		}
		if j.lost.Load() >= 0 && len(relay.Mails()) != len(ms) {
			t.Errorf("%d of %d arrived", len(relay.Mails()), len(ms))
		}
	}
}
