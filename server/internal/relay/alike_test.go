package relay_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// said is an outcome whose recipients were all told the same.
func said(status smtpx.Status, at smtpx.Phase, code int, enhanced, text string) smtpx.Outcome {
	x := smtpx.RecipientOutcome{Status: status, Phase: at, Reply: smtpx.Reply{Code: code, Enhanced: enhanced, Text: text}}
	x.Means = smtpx.Means(smtpx.Said{Phase: at, Reply: x.Reply})
	return smtpx.Outcome{Recipients: []smtpx.RecipientOutcome{x, x}, DotSent: at == smtpx.PhaseDot}
}

// TestRefusesEverything: five mails in a row that are refused for good for the same reason of
// the sender's suspend the mail server with the words, and the fifth is not decided by them.
// Refusals of recipients and of messages are no such row, nor are other words to each
// recipient, and an accepted mail ends one.
func TestRefusesEverything(t *testing.T) {
	quota := said(smtpx.StatusRejected, smtpx.PhaseRcpt, 550, "5.4.5", "no")
	accepted := said(smtpx.StatusAccepted, smtpx.PhaseDot, 250, "", "ok")
	rcpt := func(enhanced string, words ...string) (all []smtpx.Outcome) {
		for _, text := range words {
			all = append(all, said(smtpx.StatusRejected, smtpx.PhaseRcpt, 550, enhanced, text))
		}
		return all
	}
	for name, c := range map[string]struct {
		said      []smtpx.Outcome
		suspended bool
	}{
		"a quota told as 550 5.4.5": {[]smtpx.Outcome{quota, quota, quota, quota, quota}, true},
		"four":                      {[]smtpx.Outcome{quota, quota, quota, quota}, false},
		"an accepted one between":   {[]smtpx.Outcome{quota, quota, quota, quota, accepted, quota, quota, quota, quota}, false},
		"554 5.7.0 at the dot":      {repeat(said(smtpx.StatusRejected, smtpx.PhaseDot, 554, "5.7.0", "rejected, id 17"), 5), true},
		"5.2.0 submission quota":    {repeat(said(smtpx.StatusRejected, smtpx.PhaseDot, 554, "5.2.0", "your allowance for today is used up"), 5), true},
		"a block list":              {repeat(said(smtpx.StatusRejected, smtpx.PhaseRcpt, 554, "5.7.1", "blocked using zen.spamhaus.org"), 5), true},
		"DMARC":                     {repeat(said(smtpx.StatusRejected, smtpx.PhaseDot, 550, "5.7.26", "fails DMARC"), 5), true},
		"unknown users":             {repeat(said(smtpx.StatusRejected, smtpx.PhaseRcpt, 550, "5.1.1", "no such user"), 20), false},
		"spam":                      {repeat(said(smtpx.StatusRejected, smtpx.PhaseDot, 554, "5.7.1", "this is spam"), 20), false},
		"for now, however often":    {repeat(said(smtpx.StatusDeferred, smtpx.PhaseDot, 450, "4.4.5", "quota"), 20), false},
		"block lists of recipients": {rcpt("5.7.1", "blocked using Spamhaus by outlook", "blocked using Spamhaus by a.example", "blocked using Spamhaus by b.example",
			"blocked using Spamhaus by outlook", "blocked using Spamhaus by c.example", "blocked using Spamhaus by d.example"), false},
		"DMARC of recipients": {rcpt("5.7.26", "fails DMARC at a.example", "fails DMARC at b.example", "fails DMARC at c.example",
			"fails DMARC at d.example", "fails DMARC at e.example"), false},
		"limits of recipients": {rcpt("5.7.1", "recipient rate limit of a@y.example", "recipient rate limit of b@y.example", "recipient rate limit of c@y.example",
			"recipient rate limit of d@y.example", "recipient rate limit of e@y.example"), false},
		"one limit, but for numbers":  {rcpt("5.4.5", "sent 100 of 100", "sent 101 of 100", "sent 102 of 100", "sent 103 of 100", "sent 104 of 100"), true},
		"unclear words to recipients": {repeat(said(smtpx.StatusRejected, smtpx.PhaseRcpt, 550, "5.0.0", "no"), 20), false},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
				for i, o := range c.said {
					got, err := r.Judge(context.Background(), b.server, o)
					last := c.suspended && i == len(c.said)-1
					if (err != nil) != last {
						t.Fatalf("mail %d: %v", i+1, err)
					}
					if about := got.Recipients[0].Means.About; last != (about == smtpx.AboutServer) {
						t.Errorf("mail %d: the refusal is about the %s", i+1, about)
					}
				}
				got := b.breaker()
				if (got.Failures > 0) != c.suspended || c.suspended && !strings.Contains(got.Reason, c.said[len(c.said)-1].Recipients[0].Reply.Text) {
					t.Errorf("%+v", got)
				}
			})
		})
	}
	// Each probe hears the same, and the waits grow; a mail that is taken ends it.
	run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
		for range 4 {
			_, _ = r.Judge(context.Background(), b.server, quota)
		}
		for i, wait := range waits[:4] {
			if _, err := r.Judge(context.Background(), b.server, quota); err == nil {
				t.Fatal("not suspended")
			}
			if got := b.breaker(); got.Failures != i+1 || time.Until(got.RetryAt) != wait {
				t.Errorf("failure %d: %+v, want a wait of %v", i+1, got, wait)
			}
			time.Sleep(wait)
		}
		if _, err := r.Judge(context.Background(), b.server, accepted); err != nil {
			t.Fatal(err)
		}
		if err := b.send(r, time.Minute, relay.Answered); err != nil || b.breaker().Failures != 0 {
			t.Errorf("%v, %+v", err, b.breaker())
		}
	})
}

func repeat(o smtpx.Outcome, n int) []smtpx.Outcome {
	var all []smtpx.Outcome
	for range n {
		c := o
		c.Recipients = append([]smtpx.RecipientOutcome(nil), o.Recipients...)
		all = append(all, c)
	}
	return all
}

// TestTakesRecipients: how many recipients a mail server takes at once is what is configured,
// or fewer for an hour after it said so.
func TestTakesRecipients(t *testing.T) {
	run(t, store.Limits{MaxRecipientsPerMail: 50}, func(b *bench, r *relay.Relay) {
		want := func(n int) {
			t.Helper()
			if got := r.MaxRecipients(); got != n {
				t.Errorf("%d recipients, want %d", got, n)
			}
		}
		want(50)
		r.Took(3)
		want(3)
		time.Sleep(time.Hour - time.Second)
		want(3)
		time.Sleep(time.Second)
		want(50)
		r.Took(80)
		want(50)
	})
}

// TestCrowded: answers that ask for fewer connections lower them one by one, and never suspend.
func TestCrowded(t *testing.T) {
	run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
		b.server.Mode = store.ModeDaemon
		s, err := r.Get(context.Background(), b.server)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := r.Report(context.Background(), s, b.server, time.Now(), relay.Crowded, ""); err != nil {
				t.Fatal(err)
			}
		}
		if got := b.workers(r); got != 6 || b.breaker().Failures > 0 {
			t.Errorf("%d more connections, want 6: %+v", got, b.breaker())
		}
		for range 100 {
			_ = r.Report(context.Background(), s, b.server, time.Now(), relay.Crowded, "")
		}
		if err := b.send(r, time.Minute, relay.Answered); err == nil || b.breaker().Failures > 0 {
			t.Errorf("beside the one in use: %v, %+v", err, b.breaker())
		}
		r.Put(s)
	})
}
