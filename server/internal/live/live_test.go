package live

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/store"
)

// caller watches a send and keeps what it is told, in short.
type caller struct {
	heard []string
	err   error
	done  chan struct{}
}

func (c *caller) String() string { return strings.Join(c.heard, " ") }

// watch begins to watch s for at most patience.
func watch(s *Send, patience time.Duration, duplicate bool) *caller {
	c := &caller{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c.err = s.Watch(ctx, duplicate, func(ev delivery.Event) error {
			switch {
			case ev.Accepted != nil && ev.Accepted.Duplicate:
				c.heard = append(c.heard, "duplicate")
			case ev.Accepted != nil:
				c.heard = append(c.heard, "accepted")
			case ev.Attempt != nil:
				c.heard = append(c.heard, "through:"+ev.Attempt.Server)
			case ev.Recipient != nil:
				c.heard = append(c.heard, ev.Recipient.Recipient.Mailbox+":"+string(ev.Recipient.Result.Status))
			case ev.Completed != nil:
				c.heard = append(c.heard, "completed:"+string(ev.Completed.Status))
			}
			return nil
		})
	}()
	return c
}

// bench runs test with a send to two recipients whose delivery is under way. cut says whether
// that was cut.
func bench(t *testing.T, test func(t *testing.T, s *Send, cut func() bool, end func())) {
	synctest.Test(t, func(t *testing.T) {
		m := &store.NewMail{ID: uuid.New(), MailServer: "ss", Recipients: []store.Recipient{{Mailbox: "a"}, {Mailbox: "b"}}}
		ending := make(chan struct{})
		s := New(m, time.Now, ending)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s.Begin(cancel)
		test(t, s, func() bool { return ctx.Err() != nil }, func() { close(ending) })
	})
}

func result(st store.RecipientStatus) store.RecipientResult {
	return store.RecipientResult{Status: st}
}

// finished is the mail as it is recorded in the end.
func finished(s *Send, status store.MailStatus, rs ...store.RecipientStatus) *store.Mail {
	m := &store.Mail{ID: s.Mail.ID, Status: status, Recipients: s.Mail.Recipients}
	for _, st := range rs {
		m.Progress.Results = append(m.Progress.Results, result(st))
	}
	return m
}

// TestToldInOrder: every caller hears everything from the beginning, each recipient once.
func TestToldInOrder(t *testing.T) {
	bench(t, func(t *testing.T, s *Send, _ func() bool, _ func()) {
		first := watch(s, time.Minute, false)
		s.Accepted()
		s.GoesThrough(1, time.Now(), "ss")
		s.Tell(0, result(store.RecipientAccepted))
		synctest.Wait()
		second := watch(s, time.Minute, true)
		s.Tell(0, result(store.RecipientAccepted)) // once more changes nothing
		s.Complete(finished(s, store.MailPartiallySent, store.RecipientAccepted, store.RecipientRejected))
		<-first.done
		<-second.done
		want := "accepted through:ss a:accepted b:rejected completed:partially_sent"
		if first.err != nil || first.String() != want {
			t.Errorf("the first heard %s, %v", first, first.err)
		}
		if second.err != nil || second.String() != strings.Replace(want, "accepted", "duplicate", 1) {
			t.Errorf("the second heard %s, %v", second, second.err)
		}
	})
}

// TestLastCallerCuts: the last caller who goes cuts a send, before its dot and only then.
func TestLastCallerCuts(t *testing.T) {
	bench(t, func(t *testing.T, s *Send, cut func() bool, _ func()) {
		first, second := watch(s, time.Second, false), watch(s, 2*time.Second, true)
		<-first.done
		if cut() || !errors.Is(first.err, context.DeadlineExceeded) {
			t.Errorf("cut %v while somebody waits, %v", cut(), first.err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !cut() || s.PassDot() || !strings.HasPrefix(s.CutReason(), "deadline") {
			t.Errorf("cut %v, %q", cut(), s.CutReason())
		}
		s.Complete(finished(s, store.MailFailed)) // its end is a moment away, and it is heard
		<-second.done
		if second.err != nil || second.String() != "completed:failed" {
			t.Errorf("the second heard %s, %v", second, second.err)
		}
	})
}

// TestImpatientBehindTheDot: behind the dot nothing cuts. A caller whose time is over hears
// what is known, and unknown for the rest; the send goes on.
func TestImpatientBehindTheDot(t *testing.T) {
	bench(t, func(t *testing.T, s *Send, cut func() bool, _ func()) {
		c := watch(s, time.Second, false)
		s.Accepted()
		s.Tell(0, result(store.RecipientAccepted))
		if !s.PassDot() {
			t.Fatal("the dot may not leave")
		}
		<-c.done
		if want := "accepted a:accepted b:unknown completed:"; c.err != nil || !strings.HasPrefix(c.String(), want) || cut() {
			t.Errorf("heard %s, %v, cut %v", c, c.err, cut())
		}
		s.Drop() // too late as well
		if cut() || s.Dropped() {
			t.Error("what has left is taken away")
		}
		late := watch(s, time.Minute, true)
		s.Complete(finished(s, store.MailSent, store.RecipientAccepted, store.RecipientAccepted))
		<-late.done
		if late.err != nil || late.String() != "duplicate a:accepted b:accepted completed:sent" {
			t.Errorf("who comes later heard %s, %v", late, late.err)
		}
	})
}

// TestServiceEnds: a caller whose mail has left hears at once what is known when the service
// waits for no reply any more.
func TestServiceEnds(t *testing.T) {
	for _, past := range []bool{true, false} {
		bench(t, func(t *testing.T, s *Send, _ func() bool, end func()) {
			c := watch(s, time.Minute, false)
			if past {
				s.PassDot()
			}
			end()
			synctest.Wait()
			if heard := len(c.heard) > 0; heard != past {
				t.Errorf("past the dot %v: heard %s", past, c)
			}
			if !past {
				s.Complete(finished(s, store.MailQueued))
			}
			<-c.done
			if c.err != nil {
				t.Error(c.err)
			}
		})
	}
}

// TestDrop: a mail that is not this replica's any more is cut before its dot, and nothing is
// written for it.
func TestDrop(t *testing.T) {
	bench(t, func(t *testing.T, s *Send, cut func() bool, _ func()) {
		s.Drop()
		if !cut() || !s.Dropped() || s.PassDot() {
			t.Errorf("cut %v, dropped %v", cut(), s.Dropped())
		}
	})
}

// TestCutBeforeItBegins: who goes before the mail is durable cuts it as soon as it begins.
func TestCutBeforeItBegins(t *testing.T) {
	s := New(&store.NewMail{ID: uuid.New()}, time.Now, nil)
	s.Gone("away")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if s.Begin(cancel); ctx.Err() == nil {
		t.Error("it goes on")
	}
}

// TestSends: what is under way is found until it is over, and nothing begins behind a stop.
func TestSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ss := NewSends()
		made := func() *Send { return New(&store.NewMail{ID: uuid.New()}, time.Now, nil) }
		a, b := made(), made()
		if !ss.Add(a) || !ss.Add(b) || ss.Get(a.Mail.ID) != a {
			t.Fatal("what was added is not there")
		}
		a.Begin(func() {})
		time.Sleep(time.Second)
		if got := ss.Before(time.Now()); len(got) != 1 || got[0] != a {
			t.Errorf("%v are durable, want the first", got)
		}
		if got := fmt.Sprint(ss.Waits(time.Second), ss.Waits(2*time.Second)); got != "true false" {
			t.Errorf("waits: %s", got)
		}
		a.PassDot()
		if ss.Waits(time.Second) {
			t.Error("what has left waits")
		}
		ss.Remove(a)
		ss.Stop()
		if ss.Get(a.Mail.ID) != nil || ss.Get(b.Mail.ID) != b || ss.Add(made()) {
			t.Error("a stop takes something away, or lets something begin")
		}
	})
}
