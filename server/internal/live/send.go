// Package live is a php-mode mail on its way whose callers wait for it: what they are told, in
// order, and whether anybody still waits.
//
// A send outlives its caller: once the dot may have left, the reply is waited for alone. Before
// that the last caller who goes cuts it. Callers with the same request_id watch the same send,
// each from the beginning.
//
// Sends.mu is taken before Send.mu. The lock of the callers is a leaf, and cut, which is called
// under it, takes none of these.
package live

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// Send is one mail. The goroutine that delivers it tells; callers watch.
type Send struct {
	Mail   *store.NewMail // nobody changes it once it is durable
	now    func() time.Time
	ending <-chan struct{} // closed when the service waits for no reply any more
	callers

	// mu guards what follows. What delivers the mail writes; who watches reads.
	mu      sync.Mutex
	events  []delivery.Event
	changed chan struct{} // closed and replaced at each change
	done    bool
	known   []store.RecipientResult // what the callers were told, by position
	// since then the mail is durable and this replica's; zero = not yet
	began time.Time
}

// New makes a send that one caller waits for. ending is closed when the service waits for no
// reply any more.
func New(m *store.NewMail, now func() time.Time, ending <-chan struct{}) *Send {
	return &Send{Mail: m, now: now, ending: ending, changed: make(chan struct{}), known: make([]store.RecipientResult, len(m.Recipients)),
		callers: callers{waiting: 1, cut: func() {}}}
}

// Begin says that the mail is durable and on its way, and how that is cut.
func (s *Send) Begin(cut context.CancelFunc) {
	s.mu.Lock()
	s.began = time.Now()
	s.mu.Unlock()
	s.cutBy(cut)
}

// beganBy says whether the mail was on its way at a time.
func (s *Send) beganBy(t time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.began.IsZero() && !s.began.After(t)
}

// GoesThrough tells of an attempt and the mail server that it goes through.
func (s *Send) GoesThrough(attempt int, start time.Time, server string) {
	s.add(delivery.Event{MailID: s.Mail.ID, Time: start, Attempt: &store.Attempt{Number: attempt, Start: start, Server: server}})
}

func (s *Send) add(ev delivery.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, ev)
	s.done = ev.Completed != nil
	close(s.changed)
	s.changed = make(chan struct{})
}

// Accepted tells that the mail is durable.
func (s *Send) Accepted() {
	m := s.Mail
	s.add(delivery.Event{MailID: m.ID, Time: s.now(), Accepted: &delivery.Accepted{Server: m.MailServer, Mode: m.Mode, Route: m.Route}})
}

// Watch tells observe everything from the beginning until completed.
func (s *Send) Watch(ctx context.Context, duplicate bool, observe func(delivery.Event) error) error {
	if duplicate {
		s.join()
	}
	tell := func(events []delivery.Event) error {
		for _, ev := range events {
			if ev.Accepted != nil && duplicate {
				a := *ev.Accepted
				a.Duplicate = true
				ev.Accepted = &a
			}
			if err := observe(ev); err != nil {
				s.Gone("cancelled: the caller went away before the mail left")
				return err
			}
		}
		return nil
	}
	over, ending, began := ctx.Done(), s.ending, time.Now()
	var late <-chan time.Time
	for i := 0; ; {
		s.mu.Lock()
		events, changed, done := s.events[i:], s.changed, s.done
		s.mu.Unlock()
		if err := tell(events); err != nil || done {
			return err
		}
		i += len(events)
		select {
		case <-changed:
		case <-over:
			over = nil
			s.Gone(WhyGone(ctx))
			if s.PastDot() {
				return tell(s.unanswered(i, "the mail has left and the relay had not answered when the caller's time ran out; the journal will be completed by the reply"))
			}
			// Cut before the dot: the end is a moment away, and the caller should hear it.
			t := time.NewTimer(cutWait(time.Since(began)))
			defer t.Stop()
			late = t.C
		case <-ending:
			ending = nil // before the dot the send is being cut, and its end is a moment away
			if s.PastDot() {
				return tell(s.unanswered(i, "the mail has left and the relay had not answered when the service stopped; the journal will say what becomes of it"))
			}
		case <-late:
			return ctx.Err()
		}
	}
}

// cutWait is how long a caller whose time is over after so long waits for the end of a send
// that was cut: what the deadline interceptor keeps back for it, a fifth of the whole, 50 ms at
// least and a second at most.
func cutWait(waited time.Duration) time.Duration {
	return min(900*time.Millisecond, max(40*time.Millisecond, waited/5))
}

// unanswered is what a caller hears last who has heard seen events and cannot wait any longer:
// what has happened since, unknown for every recipient of which nothing is known, and the mail
// as it is known now. The journal will say more.
func (s *Send) unanswered(seen int, why string) []delivery.Event {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	events := slices.Clone(s.events[seen:])
	if s.done {
		return events
	}
	m := lifecycle.Unanswered(s.Mail, s.known, why, now)
	for p, r := range m.Progress.Results {
		if s.known[p].Status == "" {
			events = append(events, delivery.Event{MailID: m.ID, Time: now, Recipient: &delivery.Recipient{Recipient: m.Recipients[p], Result: r}})
		}
	}
	return append(events, delivery.Event{MailID: m.ID, Time: now, Completed: m})
}

// Tell tells the callers of one recipient, once.
func (s *Send) Tell(position int, r store.RecipientResult) {
	s.mu.Lock()
	told := s.known[position].Status != ""
	s.known[position] = r
	s.mu.Unlock()
	if !told {
		m := s.Mail
		s.add(delivery.Event{MailID: m.ID, Time: r.Time, Recipient: &delivery.Recipient{Recipient: m.Recipients[position], Result: r}})
	}
}

// Complete tells of all recipients that are decided and ends with the mail as it is recorded.
func (s *Send) Complete(m *store.Mail) {
	now := s.now()
	for p, r := range m.Progress.Results {
		if r.Status != store.RecipientPending && r.Status != "" {
			s.Tell(p, r)
		}
	}
	s.add(delivery.Event{MailID: m.ID, Time: now, Completed: m})
}

// Unanswered ends with what is known now and why there is no more.
func (s *Send) Unanswered(why string) {
	s.mu.Lock()
	seen := len(s.events)
	s.mu.Unlock()
	for _, ev := range s.unanswered(seen, why) {
		s.add(ev)
	}
}
