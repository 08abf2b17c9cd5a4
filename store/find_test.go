package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestFindMails: every field of the search, alone and with others, over both journals, page by
// page, finds what its meaning says, the newest first.
func TestFindMails(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		journals(t, s)
		var all []*store.Mail
		for _, list := range []func() ([]*store.Mail, error){
			func() ([]*store.Mail, error) {
				return s.ListDue(ctx, store.Everything, store.MailFilter{}, store.Cursor{}, 500)
			},
			func() ([]*store.Mail, error) {
				return s.ListArchive(ctx, store.Everything, store.MailFilter{}, store.Cursor{}, 500)
			},
		} {
			ms, err := list()
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, ms...)
		}
		slices.SortFunc(all, func(a, b *store.Mail) int { return -slices.Compare(a.ID[:], b.ID[:]) })
		team := "sales"
		m := all[40]
		fields := map[string]func(*store.FindFilter){
			"nothing":         func(f *store.FindFilter) {},
			"id":              func(f *store.FindFilter) { f.ID = m.ID },
			"team":            func(f *store.FindFilter) { f.Team = &team },
			"server":          func(f *store.FindFilter) { f.MailServer = "s1" },
			"failed, unknown": func(f *store.FindFilter) { f.Statuses = []store.MailStatus{store.MailFailed, store.MailUnknown} },
			"sending, sent":   func(f *store.FindFilter) { f.Statuses = []store.MailStatus{store.MailSending, store.MailSent} },
			"cancelled":       func(f *store.FindFilter) { f.Statuses = []store.MailStatus{store.MailCancelled} },
			"kind":            func(f *store.FindFilter) { f.Kind = store.KindInvoice },
			"reference":       func(f *store.FindFilter) { f.Reference = "R1" },
			"recipient":       func(f *store.FindFilter) { f.Recipient = "common@x.example" },
			"message id":      func(f *store.FindFilter) { f.MessageID = "<" + m.MessageID + ">" },
			"labels":          func(f *store.FindFilter) { f.Labels = map[string]string{"c": "1", "d": "0"} },
			"request id":      func(f *store.FindFilter) { f.RequestID = "q4" },
			"batch":           func(f *store.FindFilter) { f.BatchID = "b1" },
			"since":           func(f *store.FindFilter) { f.Since = m.CreateTime },
			"until":           func(f *store.FindFilter) { f.Until = m.CreateTime },
			"finished":        func(f *store.FindFilter) { f.FinishedSince = time.Now().Add(-time.Hour) },
			"finished before": func(f *store.FindFilter) { f.FinishedUntil = time.Now().Add(-time.Hour) },
			"domain":          func(f *store.FindFilter) { f.Domain = "X.Example" },
			"foreign domain":  func(f *store.FindFilter) { f.Domain = "example" },
			"subject":         func(f *store.FindFilter) { f.Subject = []string{"ÜBER", "rechnung"} },
			"no subject":      func(f *store.FindFilter) { f.Subject = []string{"%", "_"} },
			"failure":         func(f *store.FindFilter) { f.Failure = "mailbox_full" },
			"duplicates":      func(f *store.FindFilter) { f.PossibleDuplicate = true },
			"text: id":        func(f *store.FindFilter) { f.Text = m.ID.String() },
			"text: reference": func(f *store.FindFilter) { f.Text = "R2" },
			"text: recipient": func(f *store.FindFilter) { f.Text = "Common@x.example" },
			"text: message":   func(f *store.FindFilter) { f.Text = "<" + m.MessageID + ">" },
			"text: request":   func(f *store.FindFilter) { f.Text = "q4" },
			"text: nobody":    func(f *store.FindFilter) { f.Text = "nobody@x.example" },
		}
		scopes := map[string]store.Scope{"all": store.Everything, "two teams": {Teams: []string{"sales", ""}}}
		found := map[string]int{}
		for a, set := range fields {
			for _, b := range []string{a, "team", "domain"} { // of the database's, of Takes'
				more := fields[b]
				for sn, sc := range scopes {
					if b == "domain" && !sc.All {
						continue
					}
					var f store.FindFilter
					set(&f)
					more(&f)
					var want, got []uuid.UUID
					for _, m := range all {
						if f.Takes(m) && (sc.All || slices.Contains(sc.Teams, m.Team)) {
							want = append(want, m.ID)
						}
					}
					for after := uuid.Nil; ; {
						ms, next, err := s.FindMails(ctx, sc, f, after, 17)
						if err != nil {
							t.Fatalf("%s and %s: %v", a, b, err)
						}
						for _, m := range ms {
							got = append(got, m.ID)
						}
						if after = next; next == uuid.Nil {
							break
						}
					}
					if !slices.Equal(got, want) {
						t.Errorf("%s and %s, %s: got %d mails %v, want %d %v", a, b, sn, len(got), got, len(want), want)
					}
					if a == b && sn == "all" {
						found[a] = len(got)
					}
				}
			}
		}
		for name, n := range found {
			none := slices.Contains([]string{"finished before", "foreign domain", "no subject", "text: nobody"}, name)
			if (n == 0) != none {
				t.Errorf("%s: got %d mails", name, n)
			}
		}
	})
}

// plansOfFind: what FindMails asks reads no large table from end to end, also where a condition
// seems to let so few mails through that PostgreSQL would rather begin with it.
func plansOfFind(t *testing.T, s *store.Store) {
	team := "t4"
	at := time.Unix(1700000000+seeded, 0)
	filters := map[string]store.FindFilter{
		"nothing": {}, "id": {ID: seededID(4)}, "text": {Text: "R4"}, "text, an id": {Text: seededID(4).String()}, "domain": {Domain: "x.example"},
		"subject": {Subject: []string{"subject"}}, "failure": {Failure: "mailbox_full"}, "duplicates": {PossibleDuplicate: true}, "finished": {FinishedSince: at},
		"team": {MailFilter: store.MailFilter{Team: &team}}, "server": {MailFilter: store.MailFilter{MailServer: "s4"}},
		"failed":    {MailFilter: store.MailFilter{Statuses: []store.MailStatus{store.MailFailed}}},
		"sent":      {MailFilter: store.MailFilter{Statuses: []store.MailStatus{store.MailSent}}},
		"recipient": {MailFilter: store.MailFilter{Recipient: "r@x.example"}}, "reference": {MailFilter: store.MailFilter{Reference: "R4"}},
		"message id": {MailFilter: store.MailFilter{MessageID: seededID(4).String() + "@x.example"}}, "labels": {MailFilter: store.MailFilter{Labels: map[string]string{"a": "b"}}},
		"request id": {MailFilter: store.MailFilter{RequestID: "q4"}}, "batch": {MailFilter: store.MailFilter{BatchID: "b4"}}, "since": {MailFilter: store.MailFilter{Since: at}},
	}
	for scope, sc := range map[string]store.Scope{"all": store.Everything, "two teams": {Teams: []string{"t4", "t5"}}} {
		for name, f := range filters {
			for page, after := range map[string]uuid.UUID{"first": {}, "next": seededID(seeded / 2)} {
				texts, args, err := s.FindQueries(ctx, sc, f, after, seededID(seeded/2-store.MaxCompared), 51)
				if err != nil {
					t.Fatal(err)
				}
				for i := range texts {
					plan, err := s.Plan(ctx, texts[i], args[i], false)
					if err != nil {
						t.Fatal(err)
					}
					// the second reads between two ids, whatever its limit
					if scan := fullScan(s.Dialect(), texts[i], plan, i == 0); scan != "" {
						t.Errorf("%s, filter %s, %s page: %s\n%s\n%s", scope, name, page, scan, texts[i], plan)
					}
				}
			}
		}
	}
}

// BenchmarkFindMails is one call of FindMails with what an index serves and with what is
// compared mail by mail, among 200,000 and 2,000,000 mails.
//
//	go test -run '^$' -bench FindMails -benchtime 20x ./store
func BenchmarkFindMails(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		for name, open := range map[string]func(testing.TB) string{"sqlite": storetest.SQLiteDSN, "postgres": storetest.PostgresDSN} {
			b.Run(fmt.Sprintf("%s/%d", name, 2*n), func(b *testing.B) { findBench(b, open, n) })
		}
	}
}

func findBench(b *testing.B, open func(testing.TB) string, n int) {
	s := storetest.Open(b, open(b))
	seed(b, s, n)
	for what, f := range map[string]store.FindFilter{"id": {ID: seededID(n)}, "newest": {}, "subject of no mail": {Subject: []string{"nothing"}},
		"subject of all": {Subject: []string{"subject"}}, "foreign domain": {Domain: "nowhere.example"}, "failed": {MailFilter: store.MailFilter{Statuses: []store.MailStatus{store.MailFailed}}}} {
		b.Run(what, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := s.FindMails(ctx, store.Everything, f, uuid.Nil, 50); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
