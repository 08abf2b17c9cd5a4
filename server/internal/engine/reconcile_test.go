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

// watched is a journal that counts the looks at what a replica owns, and what it takes back.
type watched struct {
	engine.Journal
	looks, back atomic.Int32
}

func (w *watched) Owned(ctx context.Context, r store.ReplicaID) ([]store.Ownership, error) {
	w.looks.Add(1)
	return w.Journal.Owned(ctx, r)
}

func (w *watched) TakeBack(ctx context.Context, r store.ReplicaID, lost []store.Ownership) (int, []*store.Claimed, error) {
	w.back.Add(int32(len(lost)))
	return w.Journal.TakeBack(ctx, r, lost)
}

// TestClaimedAndNotInTheLine: a page of claimed mails has more than the line has room for, and
// the relay is slow for as long as four looks at what this replica owns last. Nothing of it is
// taken for unknown.
func TestClaimedAndNotInTheLine(t *testing.T) {
	t.Parallel()
	var w *watched
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "MAIL" && w.looks.Load() < 4 {
			time.Sleep(500 * time.Millisecond) // a slow relay, until it was looked often enough
		}
		return nil
	}}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { w = &watched{Journal: s}; return w })
	s := r.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 1})
	ms := r.bulk(s, 1000) // the line holds 500
	r.batch("")
	if n := w.back.Load(); n > 0 || w.looks.Load() < 4 {
		t.Errorf("%d mails were taken back in %d looks, want none in at least 4", n, w.looks.Load())
	}
	if n := len(relay.Mails()); n != len(ms) {
		t.Errorf("%d of %d arrived", n, len(ms))
	}
}
