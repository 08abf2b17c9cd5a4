package engine_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// outage is a relay that can be away.
func outage(t *testing.T, dsn string) (r *rig, relay *smtpxtest.Server, down *atomic.Bool) {
	relay, down = (&smtpxtest.Server{}).Start(t), &atomic.Bool{}
	r = newRig(t, dsn, nil, func(c *engine.Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, s *store.MailServer) (engine.Session, error) {
			if down.Load() {
				return nil, errors.New("connection refused")
			}
			return dial(ctx, s)
		}
	})
	return r, relay, down
}

// TestOutageUsesNothing: mail that did not leave is not charged to the day's limit, however
// often it was claimed or a caller came; what is left of the day is then there, and no more.
func TestOutageUsesNothing(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		for _, mode := range []store.Mode{store.ModeDaemon, store.ModePHP} {
			t.Run(name+" "+string(mode), func(t *testing.T) {
				r, relay, down := outage(t, dsn)
				s := r.server("limited-"+string(mode), mode, relay, store.Limits{MailsPerDay: 40})
				down.Store(true)
				if mode == store.ModeDaemon {
					r.bulk(s, 60)
				}
				for range 5 {
					if mode == store.ModeDaemon {
						if c := r.batch(s.Name); c.Sent != 0 {
							t.Fatalf("%+v", c)
						}
						continue
					}
					for range 20 {
						if done, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example")); err != nil || done.Status == store.MailSent {
							t.Fatal(done, err)
						}
					}
				}
				down.Store(false)
				if mode == store.ModeDaemon {
					r.batch(s.Name)
				} else {
					until(t, "the relay is not suspended any more", func() bool {
						done, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example"))
						return err == nil && done.Status == store.MailSent
					})
					for range 50 {
						done, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example"))
						if err != nil || done.Status != store.MailSent && !strings.Contains(done.LastError, "limit") {
							t.Fatal(done, err)
						}
					}
				}
				if n := len(relay.Mails()); n != 40 {
					t.Errorf("%d mails left, want the day's 40", n)
				}
			})
		}
	}
}

// TestMinuteHoldsWhenTheRelayIsSlow: mail that was granted and waits for a slow relay does not
// leave on top of what a minute allows.
func TestMinuteHoldsWhenTheRelayIsSlow(t *testing.T) {
	t.Parallel()
	const perMinute = 600 // 60 at once, 10 a second
	var slow atomic.Bool
	slow.Store(true)
	release := make(chan struct{})
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "MAIL" && slow.Load() {
			<-release
		}
		return nil
	}}).Start(t)
	r := newRig(t, storetest.SQLiteDSN(t), nil)
	s := r.server("limited", store.ModeDaemon, relay, store.Limits{MailsPerMinute: perMinute, MaxConnections: 10})
	r.bulk(s, 300)
	if _, err := r.RunBatch(ctx(t), "limited", false); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	until(t, "four seconds are over, in which 40 more might be granted", func() bool { return time.Since(began) > 4*time.Second })
	slow.Store(false)
	began = time.Now()
	close(release)
	until(t, "mail leaves", func() bool { return len(relay.Mails()) >= 60 })
	until(t, "two seconds are over", func() bool { return time.Since(began) > 2*time.Second })
	n, took := len(relay.Mails()), time.Since(began)
	if most := perMinute/10 + int(took.Seconds()*perMinute/60) + 2; n > most {
		t.Errorf("%d mails left within %v, want %d at most", n, took.Round(time.Millisecond), most)
	}
}
