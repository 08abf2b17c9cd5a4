package store_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// BenchmarkTerms is what search by recipient costs: mails of 5 KB, each to a recipient of its
// own, enqueued, claimed, marked and finished in batches of 500, with the rows of the search
// table and without. Both ways take turns on one database, so that its growth and the machine's
// moods meet both alike; the figures are mails/s of each, and the cost in per cent.
//
//	go test -run '^$' -bench Terms -benchtime 40x ./store
func BenchmarkTerms(b *testing.B) {
	body := bytes.Repeat([]byte("A line of sixty-four characters, as they stand in many letters.\r\n"), 76)
	for name, dsn := range storetest.DSNs(b) {
		b.Run(name, func(b *testing.B) {
			s := storetest.Open(b, dsn)
			var took [2]time.Duration
			for i := range b.N {
				for j := range 2 {
					way := (i + j) % 2 // which goes first changes
					s.WriteTerms(way == 0)
					took[way] += cycle(b, s, body)
				}
			}
			rate := func(d time.Duration) float64 { return float64(b.N*cycleMails) / d.Seconds() }
			b.ReportMetric(rate(took[0]), "with/s")
			b.ReportMetric(rate(took[1]), "without/s")
			b.ReportMetric(100*(took[0].Seconds()/took[1].Seconds()-1), "cost-%")
		})
	}
}

const cycleMails = 2000

// cycle is the life of cycleMails mails.
func cycle(b *testing.B, s *store.Store, body []byte) time.Duration {
	r := register(b, s)
	ms := make([]*store.NewMail, cycleMails)
	for i := range ms {
		ms[i] = newMail("ss", func(m *store.NewMail) {
			m.Recipients = []store.Recipient{{Mailbox: fmt.Sprintf("customer.%d@example.com", rand.Int64())}}
			m.Raw[0].Data = append(m.Raw[0].Data, body...)
		})
	}
	begin := time.Now()
	enqueue(b, s, ms...)
	for done := 0; done < len(ms); {
		cs, err := s.Claim(ctx, r, "ss", 500, store.AnyPriority)
		if err != nil || len(cs) == 0 {
			b.Fatal(len(cs), err)
		}
		var answers []<-chan store.Settled
		for _, c := range cs {
			answers = append(answers, s.Settle(&store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleMark}))
		}
		for _, c := range cs {
			answers = append(answers, s.Settle(&store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1,
				Progress: &store.Progress{Results: []store.RecipientResult{{Status: store.RecipientAccepted, Code: 250, Attempt: 1, Time: begin}}}}))
		}
		for _, a := range answers {
			if got := <-a; got.Err != nil || !got.Mine {
				b.Fatalf("%+v", got)
			}
		}
		done += len(cs)
	}
	took := time.Since(begin)
	if err := s.Unregister(ctx, r); err != nil {
		b.Fatal(err)
	}
	return took
}

// BenchmarkFindRecipient asks both journals for the mails to one recipient, who has four to
// eight, among 100,000 and 1,000,000 mails in each.
//
//	go test -run '^$' -bench FindRecipient ./store
func BenchmarkFindRecipient(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		for name, open := range map[string]func(testing.TB) string{"sqlite": storetest.SQLiteDSN, "postgres": storetest.PostgresDSN} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				s := storetest.Open(b, open(b))
				seed(b, s, n)
				// The terms of seed are small numbers, each with a mail in every 50,000.
				if err := s.Exec("insert into term (term, mail_id) select " + store.RecipientTerm("wanted@example.com") + ", mail_id from term where term = 7 limit 8"); err != nil {
					b.Fatal(err)
				}
				var want int
				if err := s.Get(&want, "select count(*) from term where term = "+store.RecipientTerm("wanted@example.com")); err != nil || want != min(8, 2*n/50000) {
					b.Fatal(want, err)
				}
				for b.Loop() {
					found := 0
					for _, list := range []func() ([]*store.Mail, error){
						func() ([]*store.Mail, error) {
							return s.ListDue(ctx, store.Everything, store.MailFilter{Recipient: "Wanted@example.com"}, store.Cursor{}, 50)
						},
						func() ([]*store.Mail, error) {
							return s.ListArchive(ctx, store.Everything, store.MailFilter{Recipient: "Wanted@example.com"}, store.Cursor{}, 50)
						},
					} {
						ms, err := list()
						if err != nil {
							b.Fatal(err)
						}
						found += len(ms)
					}
					if found != want {
						b.Fatalf("%d found, want %d", found, want)
					}
				}
			})
		}
	}
}
