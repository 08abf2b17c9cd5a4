package engine_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest/memory"
)

// quickRelay takes every mail at once and remembers when.
type quickRelay struct {
	mu   sync.Mutex // guards came: the sessions write, the test reads
	came []time.Time
}

// taking is a session with it.
type taking struct{ r *quickRelay }

func (s taking) Submit(ctx context.Context, t *smtpx.Transaction) error {
	o := smtpx.Outcome{Recipients: make([]smtpx.RecipientOutcome, len(t.To))}
	if err := t.Gate(ctx); err != nil {
		for i := range o.Recipients {
			o.Recipients[i].Status = smtpx.StatusNotTried
		}
		o.Err = &smtpx.Error{Phase: smtpx.PhaseGate, Err: err}
		t.Done(o)
		return nil
	}
	s.r.mu.Lock()
	s.r.came = append(s.r.came, time.Now())
	s.r.mu.Unlock()
	o.DotSent, o.DotTime = true, time.Now()
	for i := range o.Recipients {
		o.Recipients[i] = smtpx.RecipientOutcome{Status: smtpx.StatusAccepted, Phase: smtpx.PhaseDot, Reply: smtpx.Reply{Code: 250}}
	}
	t.Done(o)
	return nil
}

func (taking) Flush(context.Context) error { return nil }
func (taking) Usable() bool                { return true }
func (taking) Close() error                { return nil }

// TestTeamsShareAMinute: 200 teams have mail for one mail server that may take 60 a minute.
// However many want a share, on one replica or two, no minute has more than 66, and each has
// about 60 until all has left. Time is false here.
func TestTeamsShareAMinute(t *testing.T) {
	const teams, each, perMinute = 200, 2, 60
	for _, replicas := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d replicas", replicas), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db, relay := memory.New(nil), &quickRelay{}
				s, _, err := db.CreateServer(t.Context(), &store.MailServer{Name: "shared", Type: store.TypeSMTP, From: "a@x.example", Mode: store.ModeDaemon, Status: store.ServerAvailable,
					Limits: store.Limits{MailsPerMinute: perMinute}, SMTP: &store.SMTP{Host: "127.0.0.1", Port: 25, Encryption: "none"}}, store.Audit{})
				if err != nil {
					t.Fatal(err)
				}
				var ms []*store.NewMail
				for i := range teams * each {
					m := newMail(s, store.KindBulk, "u@y.example")
					m.Team = fmt.Sprintf("t%d", i%teams)
					ms = append(ms, m)
				}
				if _, err := db.EnqueueBatch(t.Context(), ms); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				var runs sync.WaitGroup
				for i := range replicas {
					e := engine.New(engine.Config{Journal: db, Replica: fmt.Sprint(i), BatchInterval: 10 * time.Second, Logger: slog.New(slog.DiscardHandler),
						Dial: func(context.Context, *store.MailServer) (engine.Session, error) { return taking{relay}, nil }})
					runs.Go(func() {
						if err := e.Run(ctx, 5*time.Second); err != nil {
							t.Error(err)
						}
					})
				}
				began := time.Now()
				left := func() []time.Time {
					relay.mu.Lock()
					defer relay.mu.Unlock()
					return slices.Clone(relay.came)
				}
				for len(left()) < teams*each && time.Since(began) < 15*time.Minute {
					time.Sleep(time.Second)
				}
				cancel()
				runs.Wait()
				came := left()
				if len(came) != teams*each {
					t.Fatalf("%d of %d have left", len(came), teams*each)
				}
				worst := 0
				for i, at := range came {
					n := 0
					for _, x := range came[i:] {
						if x.Sub(at) < time.Minute {
							n++
						}
					}
					worst = max(worst, n)
				}
				took := came[len(came)-1].Sub(came[0])
				t.Logf("%d mails of %d teams in %v, %d in the worst minute", len(came), teams, took.Round(time.Second), worst)
				if most := perMinute * 11 / 10; worst > most {
					t.Errorf("%d in the worst minute, want %d at most", worst, most)
				}
				if most := teams * each * time.Minute / perMinute * 11 / 10; took > most {
					t.Errorf("it took %v, want %v at most", took, most)
				}
			})
		})
	}
}
