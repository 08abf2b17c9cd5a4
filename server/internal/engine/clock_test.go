package engine_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestWrongClocks (F18): of two replicas one has a clock that is hours or days off and jumps.
// They share the work without a duplicate, neither takes the other for dead while it hangs in a
// mail, retries come when they should, and the time that the service gives mails is the
// database's.
func TestWrongClocks(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{time.Hour, -time.Hour, 48 * time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			dsn := storetest.PostgresDSN(t)
			release := make(chan struct{})
			var hung atomic.Int64
			relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
				switch {
				case c.Verb == "RCPT" && strings.Contains(c.Arg, "later"):
					return &smtpxtest.Action{Reply: "450 4.2.1 busy\r\n"}
				case c.Verb == "DOT" && strings.Contains(c.Arg, "hangs"):
					hung.Add(1)
					<-release
				}
				return nil
			}}).Start(t)
			letGo := sync.OnceFunc(func() { close(release) })
			t.Cleanup(letGo) // before the relay's end, which waits for those that hang
			var wrong atomic.Int64
			wrong.Store(int64(off))
			skewed := func() time.Time { return time.Now().Add(time.Duration(wrong.Load())) }
			right := newRig(t, dsn, nil)
			right.times.Dot = 10 * time.Minute
			bad := newRig(t, dsn, func(*store.Store) engine.Journal {
				st, err := store.Open(context.Background(), dsn, store.Options{Now: skewed})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = st.Close() }) // its engine has stopped
				return st
			}, func(c *engine.Config) { c.Now = skewed })
			bad.times.Dot = 10 * time.Minute
			s := right.server("bulk", store.ModeDaemon, relay, store.Limits{MaxConnections: 4})
			mail := func(r *rig, to string) *store.NewMail {
				m := newMail(s, store.KindBulk, to)
				m.CreateTime = r.Now()
				m.RunAt = m.CreateTime
				return m
			}
			for _, r := range []*rig{right, bad} {
				db, err := right.store.Now(ctx(t))
				if d := r.Now().Sub(db); err != nil || d.Abs() > 2*time.Second {
					t.Errorf("the time that mails are given is %v off: %v", d, err)
				}
			}
			// Each replica hangs in a mail of its own for longer than the other needs to look
			// for dead ones.
			now := right.server("now", store.ModePHP, relay, store.Limits{})
			var sends sync.WaitGroup
			var hanging []*store.NewMail
			for _, r := range []*rig{right, bad} {
				m := mail(r, "a@y.example")
				m.MailServer, m.Mode = now.Name, now.Mode
				m.Raw = []store.Piece{{Data: []byte("Message-ID: <" + m.MessageID + ">\r\n\r\nhangs\r\n")}}
				m.SizeBytes = int64(len(m.Raw[0].Data))
				hanging = append(hanging, m)
				sends.Go(func() {
					if done, err := r.send(ctx(t), now, m); err != nil || done.Status != store.MailSent || done.PossibleDuplicate {
						t.Errorf("hung: %+v %v", done, err)
					}
				})
			}
			var ms []*store.NewMail
			for i := range 400 {
				to := "u@y.example"
				if i%4 == 0 {
					to = "later@y.example"
				}
				ms = append(ms, mail([]*rig{right, bad}[i%2], to))
			}
			right.queue(s, ms...)
			began, err := right.store.Now(ctx(t))
			if err != nil {
				t.Fatal(err)
			}
			var batches sync.WaitGroup
			for _, r := range []*rig{right, bad} {
				batches.Go(func() { r.batch("") })
			}
			batches.Wait()
			ended, err := right.store.Now(ctx(t))
			if err != nil {
				t.Fatal(err)
			}
			worst := time.Duration(0)
			for i, m := range ms {
				got := right.mail(m.ID)
				if i%4 != 0 {
					if got.Status != store.MailSent {
						t.Errorf("%s %q", got.Status, got.LastError)
					}
					continue
				}
				if got.DueTime == nil { // tried within a minute: half of that is chance
					t.Errorf("%s %q", got.Status, got.LastError)
					continue
				}
				if early := began.Add(29 * time.Second).Sub(*got.DueTime); early > 0 {
					worst = max(worst, early)
				}
				if late := got.DueTime.Sub(ended.Add(61 * time.Second)); late > 0 {
					worst = max(worst, late)
				}
			}
			wrong.Store(int64(-off)) // it jumps
			deadline := time.Now().Add(30 * time.Second)
			for d := time.Hour; d.Abs() > 2*time.Second; <-time.After(100 * time.Millisecond) {
				db, err := right.store.Now(ctx(t))
				if err != nil || time.Now().After(deadline) {
					t.Fatalf("after the jump the time is %v off: %v", d, err)
				}
				d = bad.Now().Sub(db)
			}
			bad.batch("")
			if d := bad.Now().Sub(bad.LastPass()); d.Abs() > 10*time.Second {
				t.Errorf("the last batch seems to be %v ago", d)
			}
			// Both replicas have looked for dead ones at least twice while the mails hung.
			for end := time.Now().Add(11 * time.Second); time.Now().Before(end); <-time.After(100 * time.Millisecond) {
				for _, m := range hanging {
					if got := right.mail(m.ID); got.Status != store.MailSending {
						t.Fatalf("taken over while it is being sent: %s, possible duplicate %v", got.Status, got.PossibleDuplicate)
					}
				}
			}
			if hung.Load() != 2 {
				t.Errorf("%d mails hung", hung.Load())
			}
			letGo()
			sends.Wait()
			doubled := 0
			for id, n := range dup(relay) {
				if n != 1 {
					doubled++
					t.Errorf("%s arrived %d times", id, n)
				}
			}
			t.Logf("F18 clock %v then %v: duplicates=%d retry_off=%v", off, -off, doubled, fmt.Sprint(worst))
			if worst > 0 {
				t.Errorf("a retry is %v off", worst)
			}
			in, err := store.OpenInspector(ctx(t), dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if found, err := in.Inspect(ctx(t), store.InspectOptions{Messages: -1, ContentBytes: -1}); err != nil || found.Broken() {
				t.Errorf("%+v %v", found, err)
			}
		})
	}
}
