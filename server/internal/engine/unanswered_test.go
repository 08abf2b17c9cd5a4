package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// heard is what a php-mode caller was told.
type heard struct {
	completed  *store.Mail
	recipients map[string]string // the results of its recipient events, in order
}

// hears sends a mail and keeps what its caller is told.
func hears(ctx context.Context, r *rig, s *store.MailServer, m *store.NewMail) (heard, error) {
	h := heard{recipients: map[string]string{}}
	err := r.Send(ctx, &delivery.Submission{Mail: m, Server: s}, func(ev delivery.Event) error {
		if e := ev.Recipient; e != nil {
			h.recipients[e.Recipient.Mailbox] += string(e.Result.Status) + " "
		}
		if ev.Completed != nil {
			h.completed = ev.Completed
		}
		return nil
	})
	return h, err
}

// agrees checks that the completed mail says of every recipient what its event said, want in
// short.
func (h heard) agrees(t *testing.T, status store.MailStatus, want string) {
	t.Helper()
	m := h.completed
	if m == nil {
		t.Fatal("the caller never heard completed")
	}
	if m.Status != status || statuses(m) != want || m.LastError == "" {
		t.Errorf("completed is %s %s %q, want %s %s", m.Status, statuses(m), m.LastError, status, want)
	}
	for i, rcpt := range m.Recipients {
		if i >= len(m.Progress.Results) {
			break
		}
		result := m.Progress.Results[i]
		if got := h.recipients[rcpt.Mailbox]; got != string(result.Status)+" " {
			t.Errorf("%s: events %q, completed %q", rcpt.Mailbox, got, result.Status)
		}
		if result.Status == store.RecipientUnknown && (result.Detail == "" || result.Time.IsZero()) {
			t.Errorf("%s: nothing says why it is unknown: %+v", rcpt.Mailbox, result)
		}
	}
}

// recipients makes n addresses.
func recipients(n int) []string {
	to := make([]string, n)
	for i := range to {
		to[i] = fmt.Sprintf("r%d@y.example", i)
	}
	return to
}

// silentAfterDot is a relay that answers the first dots and then says nothing behind one.
func silentAfterDot(t *testing.T, answered int64) *smtpxtest.Server {
	var dots atomic.Int64
	return (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "DOT" && dots.Add(1) > answered {
			return &smtpxtest.Action{Hang: true}
		}
		return nil
	}}).Start(t)
}

// TestRefusalIsToldWhenDurable: a caller hears of an accepted recipient at once, and of one who
// is refused for now when that is recorded. Should another replica have taken the mail over by
// then, its word counts.
func TestRefusalIsToldWhenDurable(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" && strings.Contains(c.Arg, "r1@") {
			return &smtpxtest.Action{Reply: "450 4.2.1 busy\r\n", Refuse: true}
		}
		return nil
	}}).Start(t)
	var j *faulty
	r := newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
	s := r.server("live", store.ModePHP, relay, store.Limits{})
	recorded := make(chan struct{})
	hold := func(st *store.Settlement) error {
		if st.Kind == store.SettlePark {
			<-recorded
		}
		return nil
	}
	j.settle.Store(&hold)
	events := make(chan string, 10)
	go func() {
		defer close(events)
		err := r.Send(ctx(t), &delivery.Submission{Mail: newMail(s, store.KindInvoice, "r0@y.example", "r1@y.example"), Server: s}, func(ev delivery.Event) error {
			switch {
			case ev.Recipient != nil:
				events <- string(ev.Recipient.Result.Status)
			case ev.Completed != nil:
				events <- "completed"
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}()
	if got := <-events; got != string(store.RecipientAccepted) {
		t.Fatalf("got %s first, want %s", got, store.RecipientAccepted)
	}
	select {
	case got := <-events:
		t.Errorf("got %s before the result was recorded", got)
	case <-time.After(200 * time.Millisecond): // in which the flight reaches the write
	}
	close(recorded)
	for _, want := range []string{string(store.RecipientDeferred), "completed"} {
		if got := <-events; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestDeadlineBehindTheDot: a caller whose time runs out behind the dot hears what is known of
// every recipient: those that are accepted, and unknown for all others, never pending.
func TestDeadlineBehindTheDot(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		recipients, answered int
		want                 string
	}{
		"one transaction":                 {3, 0, "uuu"},
		"the second of two":               {150, 1, strings.Repeat("a", 100) + strings.Repeat("u", 50)},
		"the second of three":             {250, 1, strings.Repeat("a", 100) + strings.Repeat("u", 150)},
		"the first of two, nobody has it": {101, 0, strings.Repeat("u", 101)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			relay := silentAfterDot(t, int64(tc.answered))
			r := newRig(t, storetest.SQLiteDSN(t), nil)
			s := r.server("php", store.ModePHP, relay, store.Limits{})
			// Long enough to come behind the dot on a busy machine; nobody waits for less.
			c, cancel := context.WithTimeout(ctx(t), 6*time.Second)
			defer cancel()
			h, err := hears(c, r, s, newMail(s, store.KindInvoice, recipients(tc.recipients)...))
			if err != nil {
				t.Fatal(err)
			}
			h.agrees(t, store.MailUnknown, tc.want)
		})
	}
}

// resultsAway is a journal that takes marks, and nothing else until back is closed.
type resultsAway struct {
	engine.Journal
	once  sync.Once
	tried chan struct{} // closed when the first result is handed over
	back  chan struct{}
}

func (j *resultsAway) Settle(s *store.Settlement) <-chan store.Settled {
	if s.Kind == store.SettleMark {
		return j.Journal.Settle(s)
	}
	j.once.Do(func() { close(j.tried) })
	answer := make(chan store.Settled, 1)
	go func() {
		<-j.back
		answer <- <-j.Journal.Settle(s)
	}()
	return answer
}

// TestStopBeforeTheResultIsRecorded: the relay has answered, the database is away and the
// service stops: the caller hears what the relay said, and that the journal does not have it
// yet.
func TestStopBeforeTheResultIsRecorded(t *testing.T) {
	t.Parallel()
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" && strings.Contains(c.Arg, "r1@") {
			return &smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n", Refuse: true}
		}
		return nil
	}}).Start(t)
	away := &resultsAway{tried: make(chan struct{}), back: make(chan struct{})}
	r := newRig(t, storetest.SQLiteDSN(t), func(st *store.Store) engine.Journal {
		away.Journal = st
		return away
	})
	s := r.server("php", store.ModePHP, relay, store.Limits{})
	type answer struct {
		heard
		err error
	}
	told := make(chan answer, 1)
	go func() {
		h, err := hears(context.Background(), r, s, newMail(s, store.KindInvoice, recipients(3)...))
		told <- answer{h, err}
	}()
	select {
	case <-away.tried:
	case <-time.After(patience):
		t.Fatal("the result was never handed over")
	}
	go r.stop()
	defer r.stop()
	defer close(away.back)
	select {
	case a := <-told:
		if a.err != nil {
			t.Fatal(a.err)
		}
		a.agrees(t, store.MailUnknown, "ara")
	case <-time.After(patience):
		t.Fatal("the caller hears nothing")
	}
}

// TestUnheardMarkIsTakenBack: a mail whose mail server is changed at its mark begins anew, also
// where nobody has heard whether the mark was written. It is taken back before the mail waits
// for anything else, so that it is not unknown should the process die now.
func TestUnheardMarkIsTakenBack(t *testing.T) {
	t.Parallel()
	first := (&smtpxtest.Server{}).Start(t)
	var j *faulty
	var r *rig
	m := store.NewMail{}
	marked := func() bool {
		now, err := r.store.Mail(context.Background(), store.Everything, m.ID)
		return err != nil || now.Marked
	}
	second := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		for end := time.Now().Add(5 * time.Second); c.Verb == "MAIL" && marked(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Error("the mark is still there when the mail begins anew")
				break
			}
		}
		return nil
	}}).Start(t)
	r = newRig(t, storetest.SQLiteDSN(t), func(s *store.Store) engine.Journal { j = &faulty{Journal: s}; return j })
	s := r.server("live", store.ModePHP, first, store.Limits{})
	var lost atomic.Int32
	lose := func(st *store.Settlement) error {
		if st.Kind != store.SettleMark || lost.Add(1) > 1 {
			return nil
		}
		if a := <-r.store.Settle(st); !a.Mine {
			t.Errorf("the mark is not written: %+v", a)
		}
		r.change("live", true, func(s *store.MailServer) { s.SMTP.Port = second.Port() })
		return errors.New("the answer is lost")
	}
	j.settle.Store(&lose)
	m = *newMail(s, store.KindInvoice, "r@y.example")
	h, err := hears(ctx(t), r, s, &m)
	if err != nil || h.completed == nil || h.completed.Status != store.MailSent {
		t.Fatalf("%+v, %v, want it sent", h.completed, err)
	}
	if lost.Load() < 2 || len(second.Mails()) != 1 || len(first.Mails()) != 0 {
		t.Errorf("%d marks, %d mails at the new relay and %d at the old one", lost.Load(), len(second.Mails()), len(first.Mails()))
	}
}
