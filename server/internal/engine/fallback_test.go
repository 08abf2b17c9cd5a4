package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// pair is a mail server, main, whose relay can be told to fail, and its fallback, spare.
type pair struct {
	*rig
	main, spare *store.MailServer
	mainRelay   *smtpxtest.Server
	spareRelay  *smtpxtest.Server
	// main closes every connection at once
	down atomic.Bool
	on   atomic.Pointer[func(smtpxtest.Command) *smtpxtest.Action] // what main does else
}

func newPair(t *testing.T, dsn string, mode store.Mode, limits store.Limits) *pair {
	p := &pair{rig: newRig(t, dsn, nil)}
	p.mainRelay = (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if on := p.on.Load(); on != nil && c.Verb != "CONNECT" {
			return (*on)(c)
		}
		if p.down.Load() && c.Verb == "CONNECT" {
			return &smtpxtest.Action{Close: true}
		}
		return nil
	}}).Start(t)
	p.spareRelay = (&smtpxtest.Server{}).Start(t)
	p.spare = p.server("spare", store.ModeDaemon, p.spareRelay, limits)
	p.main = p.server("main", mode, p.mainRelay, store.Limits{})
	p.change("main", true, func(s *store.MailServer) { s.Fallback = "spare" })
	p.main, _ = p.store.Server(ctx(t), store.Everything, "main")
	return p
}

// ways are the mail servers and outcomes of a mail's attempts.
func ways(m *store.Mail) string {
	var w []string
	for _, a := range m.Progress.Attempts {
		w = append(w, a.Server+" "+a.Outcome)
	}
	return strings.Join(w, ", ")
}

func (p *pair) arrived() string {
	return fmt.Sprintf("main %d, spare %d", len(p.mainRelay.Mails()), len(p.spareRelay.Mails()))
}

// TestFallbackTakesTheBatch: what is due at a mail server that cannot be reached goes through
// its fallback in the same pass. The mails stay those of their mail server, and each attempt
// says through which one it went.
func TestFallbackTakesTheBatch(t *testing.T) {
	t.Parallel()
	for database, dsn := range storetest.DSNs(t) {
		t.Run(database, func(t *testing.T) {
			p := newPair(t, dsn, store.ModeDaemon, store.Limits{})
			p.down.Store(true)
			ms := p.bulk(p.main, 60)
			p.batch("")
			if got := p.arrived(); got != "main 0, spare 60" {
				t.Errorf("arrived: %s, want all 60 through spare", got)
			}
			for _, m := range ms {
				if got := p.mail(m.ID); got.Status != store.MailSent || got.MailServer != "main" || got.Attempts != 1 || !strings.HasSuffix(ways(got), "spare sent") {
					t.Fatalf("got %s through %s after %d attempts: %s, want it sent through spare as main's", got.Status, got.MailServer, got.Attempts, ways(got))
				}
			}
		})
	}
}

// TestFallbackGivesBack: a mail server that can be used again is tried with one mail, and the
// rest goes through it and not through the fallback.
func TestFallbackGivesBack(t *testing.T) {
	t.Parallel()
	p := newPair(t, storetest.SQLiteDSN(t), store.ModeDaemon, store.Limits{})
	p.down.Store(true)
	p.bulk(p.main, 5)
	p.batch("")
	p.down.Store(false)
	until(t, "main is tried again and takes mail", func() bool {
		p.bulk(p.main, 1)
		p.batch("")
		return len(p.mainRelay.Mails()) > 0
	})
	before := len(p.spareRelay.Mails())
	p.bulk(p.main, 40)
	p.batch("")
	if after := len(p.spareRelay.Mails()); after != before {
		t.Errorf("%d mails went through the fallback although main is well", after-before)
	}
}

// TestFallbackKeepsBack: what may have left, and what the fallback does not take, waits for its
// own mail server and says why. It costs no attempt.
func TestFallbackKeepsBack(t *testing.T) {
	t.Parallel()
	for database, dsn := range storetest.DSNs(t) {
		t.Run(database, func(t *testing.T) {
			p := newPair(t, dsn, store.ModeDaemon, store.Limits{MaxMailBytes: 1000})
			// The first mail's reply does not come: it is unknown, and flagged.
			silent := func(c smtpxtest.Command) *smtpxtest.Action {
				if c.Verb == "DOT" {
					return &smtpxtest.Action{Close: true}
				}
				return nil
			}
			p.on.Store(&silent)
			unknown := newMail(p.main, store.KindBulk, "u@y.example")
			p.queue(p.main, unknown)
			p.batch("")
			p.on.Store(nil)
			p.down.Store(true)
			if m := p.mail(unknown.ID); !m.PossibleDuplicate || statuses(m) != "u" {
				t.Fatalf("got %+v, want it unknown and flagged", m)
			}
			p.dueNow(unknown)
			large, small := newMail(p.main, store.KindBulk, "u@y.example"), newMail(p.main, store.KindInvoice, "u@y.example")
			large.Raw = []store.Piece{{Data: []byte("Message-ID: <" + large.MessageID + ">\r\n\r\n" + strings.Repeat("body\r\n", 300))}}
			large.SizeBytes = int64(len(large.Raw[0].Data))
			p.queue(p.main, large, small)
			p.batch("")
			if got := p.arrived(); got != "main 0, spare 1" {
				t.Errorf("arrived: %s, want the small one alone through spare", got)
			}
			if m := p.mail(small.ID); m.Status != store.MailSent {
				t.Errorf("the small one is %s, want it sent", m.Status)
			}
			for _, x := range []struct {
				mail     *store.NewMail
				attempts int
				why      string
			}{{unknown, 1, "its outcome is unknown"}, {large, 0, "mail server spare takes 1000"}} {
				m := p.mail(x.mail.ID)
				if m.DueTime == nil || m.Attempts != x.attempts || !strings.Contains(m.LastError, x.why) {
					t.Errorf("got %s, %d attempts, %q, want it to wait for main with %q", m.Status, m.Attempts, m.LastError, x.why)
				}
			}
		})
	}
}

// dueNow makes a mail due that waits for its next attempt.
func (p *pair) dueNow(m *store.NewMail) {
	p.t.Helper()
	_, err := p.store.ModifyMail(ctx(p.t), store.Everything, m.ID, store.Audit{}, func(x *store.Mail, _ *store.MailServer) (*store.Change, error) {
		return &store.Change{Kind: store.SettleRetry, Status: x.Status, RunAt: time.Now(), Attempts: x.Attempts, PossibleDuplicate: x.PossibleDuplicate, LastError: x.LastError}, nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// TestFallbackSparesWhoHasIt: a mail of many recipients whose mail server breaks off after the
// first hundred goes on through the fallback, and nobody gets it twice.
func TestFallbackSparesWhoHasIt(t *testing.T) {
	t.Parallel()
	for _, mode := range []store.Mode{store.ModeDaemon, store.ModePHP} {
		t.Run(string(mode), func(t *testing.T) {
			p := newPair(t, storetest.SQLiteDSN(t), mode, store.Limits{})
			breaks := func(c smtpxtest.Command) *smtpxtest.Action {
				if len(p.mainRelay.Mails()) == 1 && c.Verb == "MAIL" {
					p.down.Store(true)
					return &smtpxtest.Action{Close: true}
				}
				return nil
			}
			p.on.Store(&breaks)
			var to []string
			for i := range 150 {
				to = append(to, fmt.Sprintf("u%d@y.example", i))
			}
			m := newMail(p.main, store.KindInvoice, to...)
			if mode == store.ModePHP {
				if _, err := p.send(ctx(t), p.main, m); err != nil {
					t.Fatal(err)
				}
			} else {
				p.queue(p.main, m)
				until(t, "it is sent", func() bool { p.dueNowIfWaiting(m); p.batch(""); return p.mail(m.ID).Archived })
			}
			var got []string
			for _, r := range []*smtpxtest.Server{p.mainRelay, p.spareRelay} {
				for _, x := range r.Mails() {
					got = append(got, x.To...)
				}
			}
			slices.Sort(got)
			slices.Sort(to)
			if !slices.Equal(got, to) {
				t.Errorf("%d recipients have it (%s), want each of the 150 once", len(got), p.arrived())
			}
			if done := p.mail(m.ID); done.Status != store.MailSent || done.PossibleDuplicate {
				t.Errorf("got %s, possible_duplicate %v: %s", done.Status, done.PossibleDuplicate, ways(done))
			}
		})
	}
}

func (p *pair) dueNowIfWaiting(m *store.NewMail) {
	if x := p.mail(m.ID); x.DueTime != nil && x.Status == store.MailPartiallySent {
		p.dueNow(m)
	}
}

// TestFallbackAnswersTheCaller: a php-mode mail whose mail server cannot be reached, or is
// known to be suspended, goes through the fallback in the same call, and the caller hears
// through which it went.
func TestFallbackAnswersTheCaller(t *testing.T) {
	t.Parallel()
	for database, dsn := range storetest.DSNs(t) {
		t.Run(database, func(t *testing.T) {
			p := newPair(t, dsn, store.ModePHP, store.Limits{})
			p.down.Store(true)
			send := func() (attempts string, completed, journal string) {
				m := newMail(p.main, store.KindInvoice, "u@y.example")
				var servers []string
				var done *store.Mail
				err := p.Send(ctx(t), &delivery.Submission{Mail: m, Server: p.main}, func(ev delivery.Event) error {
					if ev.Attempt != nil {
						servers = append(servers, ev.Attempt.Server)
					}
					if ev.Completed != nil {
						done = ev.Completed
					}
					return nil
				})
				if err != nil || done == nil || done.Status != store.MailSent {
					t.Fatalf("got %+v, %v, want it sent", done, err)
				}
				return strings.Join(servers, " "), ways(done), ways(p.mail(m.ID))
			}
			const first = "main server, spare sent"
			if attempts, completed, journal := send(); attempts != "main spare" || completed != first || journal != first {
				t.Errorf("the first: attempts %q, completed %q, journal %q", attempts, completed, journal)
			}
			// Each mail that tries the main one anew, because its time has come on a slow
			// machine, suspends it for longer.
			for try := 0; ; try++ {
				bs, err := p.store.Breakers(ctx(t))
				if err != nil || bs[p.main.Name] == nil {
					t.Fatal(bs, err)
				}
				attempts, completed, journal := send()
				if attempts == "main spare" && time.Now().After(bs[p.main.Name].RetryAt) && try < 10 {
					continue
				}
				if attempts != "spare" || completed != "spare sent" || journal != "spare sent" {
					t.Errorf("while the main one is suspended: attempts %q, completed %q, journal %q", attempts, completed, journal)
				}
				break
			}
		})
	}
}

// TestFallbackOfWhatIsSwitchedOff: mail of a mail server that is switched off goes through the
// fallback; that of one that is paused waits, because that is what a pause is for. So does mail
// whose fallback cannot be used.
func TestFallbackOfWhatIsSwitchedOff(t *testing.T) {
	t.Parallel()
	until := time.Now().Add(time.Hour)
	off := func(s *store.MailServer) { s.Status = store.ServerUnavailable }
	pause := func(s *store.MailServer) { s.PauseUntil = &until }
	for name, x := range map[string]struct {
		main, spare func(*store.MailServer)
		want        string
	}{
		"switched off":                {off, nil, "main 0, spare 3"},
		"paused":                      {pause, nil, "main 0, spare 0"},
		"switched off and paused":     {func(s *store.MailServer) { off(s); pause(s) }, nil, "main 0, spare 0"},
		"both switched off":           {off, off, "main 0, spare 0"},
		"fallback paused":             {off, pause, "main 0, spare 0"},
		"well, fallback or not":       {nil, nil, "main 3, spare 0"},
		"well, fallback switched off": {nil, off, "main 3, spare 0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, storetest.SQLiteDSN(t), store.ModeDaemon, store.Limits{})
			p.bulk(p.main, 3)
			if x.spare != nil {
				p.change("spare", false, x.spare)
			}
			if x.main != nil {
				p.change("main", false, x.main)
			}
			p.batch("")
			if got := p.arrived(); got != x.want {
				t.Errorf("arrived: %s, want %s", got, x.want)
			}
		})
	}
}
