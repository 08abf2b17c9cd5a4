package engine_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

var bothExtensions = map[string][]string{"pipelined": {"PIPELINING", "ENHANCEDSTATUSCODES"}, "lock step": {"ENHANCEDSTATUSCODES"}}

// failsAt is a relay that says words at verb until it is well.
func failsAt(t *testing.T, verb, words string, ext []string, close bool) (*smtpxtest.Server, *atomic.Bool) {
	t.Helper()
	var well atomic.Bool
	return (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == verb && !well.Load() {
			return &smtpxtest.Action{Reply: words + "\r\n", Refuse: true, Close: close}
		}
		return nil
	}}).Start(t), &well
}

// failed counts what is in the due-out journal as failed.
func (r *rig) failed(ms []*store.NewMail) (failed, attempts, sent int) {
	r.t.Helper()
	for _, m := range ms {
		got := r.mail(m.ID)
		attempts += got.Attempts
		switch got.Status {
		case store.MailFailed:
			failed++
		case store.MailSent:
			sent++
		}
	}
	return failed, attempts, sent
}

// TestRefusesEveryMail: a relay that refuses every mail of its mail server in the same way
// stops the queue, not the mails. What it said to the first few stands; the others wait, and
// leave when it is well again, those last that it was suspended for.
func TestRefusesEveryMail(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ verb, words string }{
		{"RCPT", "550 5.4.5 no"}, {"DOT", "554 5.7.0 no"}, {"DOT", "550 5.2.0 your allowance is used up"}, {"DATA", "550 5.7.26 DMARC"},
	} {
		for step, ext := range bothExtensions {
			t.Run(fmt.Sprintf("%s at %s %s", c.words, c.verb, step), func(t *testing.T) {
				t.Parallel()
				relay, well := failsAt(t, c.verb, c.words, ext, false)
				r := newRig(t, storetest.SQLiteDSN(t), nil)
				s := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
				ms := r.bulk(s, 100) // many more than are under way at once
				r.batch("")
				failed, attempts, _ := r.failed(ms)
				if failed > 4 || attempts > 4 {
					t.Errorf("%d mails failed, %d attempts, want 4 at most", failed, attempts)
				}
				bs, err := r.store.Breakers(ctx(t))
				_, text, _ := strings.Cut(c.words, " ")
				if err != nil || bs["bulk"] == nil || bs["bulk"].Failures == 0 || !strings.Contains(bs["bulk"].Reason, text) {
					t.Errorf("%+v %v", bs["bulk"], err)
				}
				back := 0 // who heard it and was not decided by it lets the next try pass
				for _, m := range ms {
					if got := r.mail(m.ID); got.DueTime != nil && got.DueTime.After(bs["bulk"].RetryAt.Add(2*time.Minute)) {
						back++
					}
				}
				if back == 0 || back > len(ms)/2 {
					t.Errorf("%d mails stand back, want those that the mail server was suspended for", back)
				}
				well.Store(true)
				until(t, "the others left", func() bool {
					r.batch("")
					_, _, sent := r.failed(ms)
					return sent == len(ms)-failed-back
				})
			})
		}
	}
	for step, ext := range bothExtensions {
		t.Run("php "+step, func(t *testing.T) {
			t.Parallel()
			relay, well := failsAt(t, "RCPT", "550 5.4.5 no", ext, false)
			r := newRig(t, storetest.SQLiteDSN(t), nil)
			s := r.server("now", store.ModePHP, relay, store.Limits{})
			for i := 1; i <= 6; i++ {
				done, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example"))
				want := "r"
				if i >= 5 {
					want = "d" // it can be sent again
				}
				if err != nil || done.Status != store.MailFailed || statuses(done) != want || !strings.Contains(done.LastError, "550") {
					t.Errorf("mail %d: %+v %v", i, done, err)
				}
			}
			well.Store(true)
			until(t, "it sends again", func() bool {
				done, err := r.send(ctx(t), s, newMail(s, store.KindOther, "a@y.example"))
				return err == nil && done.Status == store.MailSent
			})
		})
	}
}

// TestLoginGone: 530 to every MAIL fails none of 200 queued mails; they leave when the relay
// lets us in again.
func TestLoginGone(t *testing.T) {
	t.Parallel()
	for step, ext := range bothExtensions {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			relay, well := failsAt(t, "MAIL", "530 5.7.0 authentication required", ext, false)
			r := newRig(t, storetest.SQLiteDSN(t), nil)
			ms := r.bulk(r.server("bulk", store.ModeDaemon, relay, store.Limits{}), 200)
			r.batch("")
			if failed, attempts, _ := r.failed(ms); failed+attempts > 0 {
				t.Errorf("%d failed, %d attempts", failed, attempts)
			}
			well.Store(true)
			until(t, "all left", func() bool {
				r.batch("")
				_, _, sent := r.failed(ms)
				return sent == 200
			})
		})
	}
}

// TestRateExceeded: a relay that closes with 421 "rate exceeded" at every mail is left alone
// longer and longer: 1 s, 5 s, 30 s. So 30 mails make at most 12 connects until the third rest,
// which ends 36 s after the first answer, and none of them loses an attempt.
func TestRateExceeded(t *testing.T) {
	t.Parallel()
	for step, ext := range bothExtensions {
		for _, verb := range []string{"MAIL", "RCPT", "DATA", "DOT"} {
			t.Run(verb+" "+step, func(t *testing.T) {
				t.Parallel()
				relay, _ := failsAt(t, verb, "421 4.4.2 rate exceeded", ext, true)
				r := newRig(t, storetest.SQLiteDSN(t), nil)
				ms := r.bulk(r.server("bulk", store.ModeDaemon, relay, store.Limits{}), 30)
				until(t, "it is left alone for 30 s", func() bool {
					_, _ = r.RunBatch(ctx(t), "", true)
					time.Sleep(20 * time.Millisecond)
					bs, err := r.store.Breakers(ctx(t))
					return err == nil && bs["bulk"] != nil && bs["bulk"].Failures >= 3
				})
				n := relay.Conns()
				if n > 12 {
					t.Errorf("%d connects, want 12 at most", n)
				}
				t.Logf("30 mails, 421 at %s: %d connects until the third rest", verb, n)
				if failed, attempts, _ := r.failed(ms); failed+attempts > 0 {
					t.Errorf("%d failed, %d attempts", failed, attempts)
				}
			})
		}
	}
}

// TestGreylistingStopsNobody: a milter that greylists five of a hundred mails defers these, and
// nobody else: no php-mode mail fails beside them, the mail server is not suspended, and the
// five are tried once, then a minute later.
func TestGreylistingStopsNobody(t *testing.T) {
	t.Parallel()
	for step, ext := range bothExtensions {
		for _, verb := range []string{"MAIL", "RCPT", "DOT"} {
			t.Run(verb+" "+step, func(t *testing.T) {
				t.Parallel()
				var mu sync.Mutex
				grey, tries := map[int]bool{}, 0
				relay := (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
					mu.Lock()
					defer mu.Unlock()
					if c.Verb == "MAIL" {
						grey[c.Conn] = strings.Contains(c.Arg, "grey@")
					}
					if c.Verb != verb || !grey[c.Conn] {
						return nil
					}
					tries++
					return &smtpxtest.Action{Reply: "451 4.7.1 try again later\r\n", Refuse: true}
				}}).Start(t)
				r := newRig(t, storetest.SQLiteDSN(t), nil)
				bulk := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
				php := r.server("now", store.ModePHP, relay, store.Limits{})
				var ms []*store.NewMail
				for i := range 100 {
					m := newMail(bulk, store.KindBulk, "a@y.example")
					if i%20 == 0 {
						m.From = "grey@x.example"
					}
					ms = append(ms, m)
				}
				r.queue(bulk, ms...)
				began := time.Now()
				var wg sync.WaitGroup
				wg.Go(func() { r.batch("") })
				for range 20 {
					if done, err := r.send(ctx(t), php, newMail(php, store.KindOther, "a@y.example")); err != nil || done.Status != store.MailSent {
						t.Errorf("php mode: %+v %v", done, err)
					}
				}
				wg.Wait()
				for range 3 {
					r.batch("")
				}
				bs, err := r.store.Breakers(ctx(t))
				if err != nil || bs["bulk"] != nil && bs["bulk"].Failures > 0 {
					t.Errorf("%+v %v", bs["bulk"], err)
				}
				mu.Lock()
				defer mu.Unlock()
				// again after 30 s at the earliest, which is long gone on a machine that is
				// busy
				if most := 5 * (1 + int(time.Since(began)/(30*time.Second))); tries < 5 || tries > most {
					t.Errorf("the five were tried %d times, want 5 to %d", tries, most)
				}
				t.Logf("greylisted at %s: the five were tried %d times in %v, all 20 mails of php mode were sent", verb, tries, time.Since(began).Round(time.Millisecond))
				if _, attempts, sent := r.failed(ms); sent != 95 || attempts != 95+tries {
					t.Errorf("%d sent, %d attempts, %d tries of the five", sent, attempts, tries)
				}
			})
		}
	}
}

// TestConcurrentConnections: "432 concurrent connections" costs no mail an attempt, and takes
// connections away: of 200 mails only those that were on their way hear it, and the others
// leave over what the relay takes.
func TestConcurrentConnections(t *testing.T) {
	t.Parallel()
	for step, ext := range bothExtensions {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			var relay *smtpxtest.Server
			var told atomic.Int32
			relay = (&smtpxtest.Server{Extensions: ext, Delay: 2 * time.Millisecond, On: func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb == "DOT" && relay.Open() > 3 {
					told.Add(1)
					return &smtpxtest.Action{Reply: "432 4.3.2 concurrent connections limit exceeded\r\n", Refuse: true}
				}
				return nil
			}}).Start(t)
			r := newRig(t, storetest.SQLiteDSN(t), nil)
			s := r.server("bulk", store.ModeDaemon, relay, store.Limits{})
			ms := r.bulk(s, 200)
			// A pass may open so many connections at once that the relay takes from none.
			until(t, "most are sent", func() bool {
				r.batch("")
				failed, attempts, sent := r.failed(ms)
				if failed > 0 || attempts != sent {
					t.Fatalf("%d sent in %d attempts, %d failed", sent, attempts, failed)
				}
				return sent >= 120
			})
			if n := told.Load(); n == 0 || n > 80 {
				t.Errorf("%d were told that we are too many, want 1 to 80", n)
			}
			t.Logf("%d of 200 mails were told that we are too many", told.Load())
			php := r.server("now", store.ModePHP, relay, store.Limits{})
			if done, err := r.send(ctx(t), php, newMail(php, store.KindOther, "a@y.example")); err != nil || done.Status != store.MailSent {
				t.Errorf("mode php, when it is quiet: %+v %v", done, err)
			}
		})
	}
}
