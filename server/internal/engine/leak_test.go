package engine_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestHungAndCancelled (F24): after 1,000 hung sends and 1,000 cancelled ones goroutines and
// descriptors are where they were.
func TestHungAndCancelled(t *testing.T) {
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" && strings.Contains(c.Arg, "hang") {
			return &smtpxtest.Action{Hang: true}
		}
		return nil
	}}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	r.times.Rcpt = 100 * time.Millisecond
	s := r.server("now", store.ModePHP, relay, store.Limits{MaxConnections: 100})
	if _, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example")); err != nil {
		t.Fatal(err)
	}
	count := func() (int, int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(fds)
	}
	goroutines, fds := count()
	for _, hang := range []bool{true, false} {
		var wg sync.WaitGroup
		for w := range 50 {
			wg.Go(func() {
				for range 20 {
					c, cancel := context.WithCancel(ctx(t))
					to := "hang@y.example"
					if !hang {
						time.AfterFunc(time.Duration(w)*100*time.Microsecond, cancel)
						to = "a@y.example"
					}
					// ends in every possible way
					_, _ = r.send(c, s, newMail(s, store.KindOther, to))
					cancel()
				}
			})
		}
		wg.Wait()
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		g, f := count()
		if g <= goroutines+5 && f <= fds+5 {
			t.Logf("goroutines %d -> %d, descriptors %d -> %d", goroutines, g, fds, f)
			break
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("goroutines %d -> %d, descriptors %d -> %d\n%s", goroutines, g, fds, f, buf[:runtime.Stack(buf, true)])
		}
		<-time.After(200 * time.Millisecond)
	}
	for after := (store.Cursor{}); ; {
		due, err := r.store.ListDue(ctx(t), store.Everything, store.MailFilter{}, after, 500)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range due {
			if m.Owner != 0 {
				t.Errorf("%s is still a replica's, and %s", m.ID, m.Status)
			}
			after.ID = m.ID
		}
		if len(due) < 500 {
			break
		}
	}
}

// TestCancelledStreams (F25): whatever the point at which a caller goes away, each mail ends in
// exactly one journal with what became of it.
func TestCancelledStreams(t *testing.T) {
	relay := (&smtpxtest.Server{Delay: time.Millisecond}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	s := r.server("now", store.ModePHP, relay, store.Limits{MaxConnections: 8})
	var ms []*store.NewMail
	began := time.Now()
	for range 5 {
		if _, err := r.send(ctx(t), s, newMail(s, store.KindInvoice, "a@y.example", "b@y.example")); err != nil {
			t.Fatal(err)
		}
	}
	usual := time.Since(began) / 5
	var wg sync.WaitGroup
	slots := make(chan bool, 8)
	for i := range 300 {
		m := newMail(s, store.KindInvoice, "a@y.example", "b@y.example")
		ms = append(ms, m)
		slots <- true
		wg.Go(func() {
			defer func() { <-slots }()
			c, cancel := context.WithTimeout(context.Background(), time.Duration(i%60)*usual/6)
			defer cancel()
			_ = r.Send(c, &delivery.Submission{Mail: m, Server: s}, func(delivery.Event) error { return c.Err() })
		})
	}
	wg.Wait()
	r.stop() // everything is settled after it
	counts := dup(relay)
	sent, kept, never := 0, 0, 0
	for _, m := range ms {
		got, err := r.store.Mail(context.Background(), store.Everything, m.ID)
		switch n := counts[m.ID.String()]; {
		case errors.Is(err, store.ErrNotFound) && n == 0:
			never++ // the caller's time was over before it was accepted
		case err != nil:
			t.Error(err)
		case got.Status == store.MailSent && n == 1:
			sent++
		case got.Status != store.MailSent && got.Owner == 0 && n == 0:
			kept++
		default:
			t.Errorf("%s, arrived %d times: %s", got.Status, n, got.LastError)
		}
	}
	if sent == 0 || kept == 0 {
		t.Errorf("one-sided: %d sent, %d kept", sent, kept)
	}
	t.Logf("%d sent, %d kept in the due-out journal, %d never accepted", sent, kept, never)
}
