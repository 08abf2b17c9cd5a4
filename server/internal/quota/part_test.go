package quota

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// ledger grants what there is, and afterwards nothing for long, or an error. Its fields are set
// before anybody asks; mu guards used.
type ledger struct {
	Store
	has  int64
	fail error
	gate chan struct{} // not nil: each question waits for it

	mu   sync.Mutex
	used int64
}

func (l *ledger) TakeAllowances(_ context.Context, takes []store.AllowanceTake) ([]store.AllowanceGrant, error) {
	if l.gate != nil {
		<-l.gate
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	gs := make([]store.AllowanceGrant, len(takes))
	for i, t := range takes {
		l.used -= t.Back
		if l.used+t.Need > l.has && l.fail != nil {
			return nil, l.fail
		}
		gs[i] = store.AllowanceGrant{Granted: min(t.Want, l.has-l.used), Next: 2 * patience}
		l.used += gs[i].Granted
	}
	return gs, nil
}

func many(n int) (ms []*store.NewMail) {
	for range n {
		ms = append(ms, mail("a@y.example"))
	}
	return ms
}

// TestPartIsAnswered: a limit that is reached in the middle refuses the mails after it, and
// those before are answered; also where it is not the limit that ends it.
func TestPartIsAnswered(t *testing.T) {
	t.Parallel()
	away := errors.New("away")
	for name, l := range map[string]*ledger{"limit": {has: 200}, "database": {has: 200, fail: away}} {
		b := &book{}
		to := New(Config{Limits: Limits{TeamMails: 1000}, Store: l, Secret: []byte("s")}).Sender(b)
		res, err := to.Queue(t.Context(), many(500), false)
		taken, refused := 0, 0
		for i, r := range res {
			switch {
			case r.Err == nil && i == taken:
				taken++
			case Refused(r.Err):
				refused++
			}
		}
		if !errors.Is(err, l.fail) || taken != 200 || len(b.mail) != 200 || l.fail == nil && refused != 300 {
			t.Errorf("%s: got %d answers of mail taken and %d of mail refused, %d mails, %v; want 200 taken", name, taken, refused, len(b.mail), err)
		}
	}
}

// TestPartsKeepToRecipients: mails of which each keeps to a limit of recipients pass it one
// after the other.
func TestPartsKeepToRecipients(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		to := New(Config{Limits: Limits{TeamRecipients: 100}, Store: &minutes{}, Secret: []byte("s")}).Sender(b)
		ms := many(5)
		for _, m := range ms {
			for len(m.Recipients) < 30 {
				m.Recipients = append(m.Recipients, m.Recipients[0])
			}
		}
		res, err := to.Queue(t.Context(), ms, false)
		for _, r := range res {
			err = errors.Join(err, r.Err)
		}
		if err != nil || len(b.mail) != 5 {
			t.Errorf("got %d mails, %v; want all five in the second minute", len(b.mail), err)
		}
	})
}

// TestHandedOver: what is on its way back to the database is nobody's here, and what comes back
// while the database is asked is kept: what is taken and what is left are what was granted.
func TestHandedOver(t *testing.T) {
	t.Parallel()
	for name, question := range map[string]func(q *Quota, w want) error{
		"given back": func(q *Quota, _ want) error { return q.giveBack(true) },
		"asked": func(q *Quota, w want) error {
			w.n = 50
			_, _, err := q.take(context.Background(), []want{w})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &ledger{has: 100, used: 40, gate: make(chan struct{})}
				q := New(Config{Limits: Limits{TeamMails: 100}, Store: l, Secret: []byte("s")})
				w := q.quotas(mail(), 1, 1)[0]
				m := q.meterOf(&w, q.now())
				m.left = 10 // and 30 are taken
				taken := int64(30)
				if name == "asked" {
					taken += 50
				}
				done := make(chan error, 2)
				go func() { done <- question(q, w) }()
				synctest.Wait() // it stands before the database
				one := false
				go func() {
					short, _, err := q.take(context.Background(), []want{w})
					one = short == nil && err == nil
					done <- err
				}()
				synctest.Wait()
				if one {
					t.Error("what was handed over was taken as well")
				}
				w.n = 3
				q.back([]want{w})
				taken -= 3
				close(l.gate)
				if err := errors.Join(<-done, <-done); err != nil {
					t.Fatal(err)
				}
				if one {
					taken++
				}
				if m.left+taken != l.used || l.used > l.has || !one {
					t.Errorf("got %d left and %d taken (one more: %v) of %d granted", m.left, taken, one, l.used)
				}
			})
		})
	}
}

// TestWhatComesBackIsNoHaste: more mails that come back than were taken since the last question
// do not make the next question ask for too little.
func TestWhatComesBackIsNoHaste(t *testing.T) {
	t.Parallel()
	now := time.Now()
	q := New(Config{Limits: Limits{TeamMails: 100}, Secret: []byte("s")})
	w := q.quotas(mail(), 1, 1)[0]
	m := q.meterOf(&w, now)
	m.answer, m.taken = now.Add(-time.Millisecond), -20
	if a := q.ask(m, &w, now); a.Want < a.Need {
		t.Errorf("asks for %d where %d are needed", a.Want, a.Need)
	}
}
