package engine_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// fewRecipients is a relay that takes so many recipients a transaction and says words to the
// others. It hangs up behind the words where close is set. most is the longest transaction that
// it was asked for.
func fewRecipients(t *testing.T, takes int, words string, close bool, ext []string) (relay *smtpxtest.Server, most func() int) {
	t.Helper()
	var mu sync.Mutex
	asked, longest := map[int]int{}, 0
	relay = (&smtpxtest.Server{Extensions: ext, On: func(c smtpxtest.Command) *smtpxtest.Action {
		mu.Lock()
		defer mu.Unlock()
		switch c.Verb {
		case "MAIL":
			asked[c.Conn] = 0
		case "RCPT":
			asked[c.Conn]++
			longest = max(longest, asked[c.Conn])
			if asked[c.Conn] > takes {
				return &smtpxtest.Action{Reply: words + "\r\n", Refuse: true, Close: close && asked[c.Conn] > takes+3}
			}
		}
		return nil
	}}).Start(t)
	return relay, func() int { mu.Lock(); defer mu.Unlock(); return longest }
}

// TestFewRecipientsATransaction: a relay that takes two recipients at once gets a mail to a
// hundred two by two, at once and within one attempt, whether it says so politely or hangs up;
// the next mail is cut that way from the beginning, and so is every mail where the limit is
// configured.
func TestFewRecipientsATransaction(t *testing.T) {
	var to []string
	for i := range 100 {
		to = append(to, fmt.Sprintf("r%d@y.example", i))
	}
	for _, c := range []struct {
		name   string
		words  string
		close  bool
		limits store.Limits
		most   int // recipients that the relay is asked for at once, by the first mail
	}{
		{"452", "452 4.5.3 too many recipients", false, store.Limits{}, 100},
		{"552", "552 5.5.3 too many recipients", false, store.Limits{}, 100},
		{"421 behind it", "452 4.5.3 too many recipients", true, store.Limits{}, 100},
		{"configured", "554 5.5.3 too many recipients", false, store.Limits{MaxRecipientsPerMail: 2}, 2},
	} {
		for _, ext := range [][]string{{"PIPELINING", "ENHANCEDSTATUSCODES"}, {"ENHANCEDSTATUSCODES"}} {
			for _, mode := range []store.Mode{store.ModePHP, store.ModeDaemon} {
				// One after the other: each has a bar of its own.
				t.Run(fmt.Sprintf("%s %s pipelining=%v", c.name, mode, len(ext) == 2), func(t *testing.T) {
					relay, most := fewRecipients(t, 2, c.words, c.close, ext)
					r := newRig(t, storetest.SQLiteDSN(t), nil)
					s := r.server("few", mode, relay, c.limits)
					began := time.Now()
					for n := 1; n <= 2; n++ {
						m := newMail(s, store.KindInvoice, to...)
						if mode == store.ModePHP {
							if _, err := r.send(ctx(t), s, m); err != nil {
								t.Fatal(err)
							}
						} else {
							r.queue(s, m)
							r.batch("")
						}
						got := r.mail(m.ID)
						if got.Status != store.MailSent || got.Attempts != 1 {
							t.Fatalf("mail %d: %s after %d attempts: %s", n, got.Status, got.Attempts, got.LastError)
						}
						if want := 50 * n; len(relay.Mails()) != want {
							t.Errorf("mail %d: %d transactions, want %d", n, len(relay.Mails()), want)
						}
					}
					took := time.Since(began)
					if took > 10*time.Second {
						t.Errorf("took %v", took)
					}
					t.Logf("two mails to 100 recipients, two at a time: %v", took.Round(time.Millisecond))
					if !c.close && most() > c.most {
						t.Errorf("%d recipients were asked for at once, want %d", most(), c.most)
					}
					for _, x := range relay.Mails() {
						if len(x.To) > 2 {
							t.Errorf("a transaction to %d", len(x.To))
						}
					}
				})
			}
		}
	}
}
