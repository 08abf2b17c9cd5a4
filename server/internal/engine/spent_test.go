package engine_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// hungUp is a journal whose caller goes away while a mail is committed, or which fails before
// it has written anything.
type hungUp struct {
	engine.Journal
	leave atomic.Pointer[context.CancelFunc] // of the next Enqueue
	fail  atomic.Pointer[error]              // of the next Enqueue
}

func (h *hungUp) Enqueue(ctx context.Context, m *store.NewMail) (store.Enqueued, error) {
	if err := h.fail.Swap(nil); err != nil {
		return store.Enqueued{ID: m.ID}, *err
	}
	leave := h.leave.Swap(nil)
	if leave == nil {
		return h.Journal.Enqueue(ctx, m)
	}
	if res, err := h.Journal.Enqueue(context.WithoutCancel(ctx), m); err != nil || res.Err != nil {
		return res, err
	}
	(*leave)()
	return store.Enqueued{ID: m.ID}, ctx.Err()
}

// TestHangingUpIsNoWayOut: the error of a caller who hangs up at the commit does not claim that
// the mail was not written: it is, and whoever counts mails counts it. One whose error says so
// is not written later.
func TestHangingUpIsNoWayOut(t *testing.T) {
	t.Parallel()
	for mode, again := range map[store.Mode]bool{store.ModeDaemon: false, store.ModePHP: true} {
		t.Run(fmt.Sprint(mode), func(t *testing.T) {
			t.Parallel()
			h := &hungUp{}
			r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { h.Journal = s; return h })
			s := r.server("ss", mode, (&smtpxtest.Server{}).Start(t), store.Limits{})
			send := func(c context.Context, change ...func(*store.NewMail)) (*store.NewMail, error) {
				m := newMail(s, store.KindInvoice, "b@y.example")
				m.RetryInBatch = again
				for _, f := range change {
					f(m)
				}
				_, err := r.send(c, s, m)
				return m, err
			}
			c, leave := context.WithCancel(ctx(t))
			h.leave.Store(&leave)
			written, err := send(c)
			if !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnwritten) {
				t.Errorf("hung up at the commit: got %v, want it left open whether it was written", err)
			}
			if _, err := r.store.Mail(ctx(t), store.Everything, written.ID); err != nil {
				t.Errorf("the mail whose caller hung up: %v", err)
			}
			away := store.Unwritten(fmt.Errorf("%w: no connection", store.ErrUnavailable))
			h.fail.Store(&away)
			unwritten, err := send(ctx(t))
			if !errors.Is(err, away) {
				t.Errorf("not written: got %v", err)
			}
			named := func(m *store.NewMail) { m.RequestID, m.Fingerprint = "q1", []byte(m.ID.String()) }
			if _, err := send(ctx(t), named); err != nil {
				t.Error(err)
			}
			if _, err := send(ctx(t), named); !errors.Is(err, store.ErrRequestIDReused) || !errors.Is(err, store.ErrUnwritten) {
				t.Errorf("refused: got %v, want %v and %v", err, store.ErrRequestIDReused, store.ErrUnwritten)
			}
			r.stop() // which waits for what goes on behind the callers' back
			if _, err := r.store.Mail(ctx(t), store.Everything, unwritten.ID); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a mail whose caller heard that it was not written: got %v, want %v", err, store.ErrNotFound)
			}
			if _, err := r.send(ctx(t), s, newMail(s, store.KindInvoice, "b@y.example")); !errors.Is(err, engine.ErrStopping) || !errors.Is(err, store.ErrUnwritten) {
				t.Errorf("stopped: got %v, want %v and %v", err, engine.ErrStopping, store.ErrUnwritten)
			}
		})
	}
}
