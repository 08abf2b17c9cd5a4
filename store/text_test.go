package store_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// claimAll claims everything that is due at ss.
func claimAll(t testing.TB, s *store.Store, r store.ReplicaID) map[uuid.UUID]*store.Claimed {
	t.Helper()
	out := map[uuid.UUID]*store.Claimed{}
	for {
		cs, err := s.Claim(ctx, r, "ss", 500, store.AnyPriority)
		if err != nil {
			t.Fatal(err)
		}
		if len(cs) == 0 {
			return out
		}
		for _, c := range cs {
			out[c.ID] = c
		}
	}
}

// hostile are texts that a relay, a certificate or a panic may bring.
var hostile = map[string]string{"a NUL": "a\x00b", "invalid UTF-8": "a\xff\xfe\xc3(b", "a lone surrogate": "a\xed\xa0\x80b", "nothing but NULs": "\x00\x00"}

// resultWith is a result with text in every field that a relay's words reach.
func resultWith(id uuid.UUID, r store.ReplicaID, kind store.SettleKind, text string) *store.Settlement {
	st := &store.Settlement{ID: id, Owner: r, Claim: store.BornClaim, Kind: kind, Attempts: 1, LastError: text, Progress: &store.Progress{
		Results:  []store.RecipientResult{{Status: store.RecipientRejected, Code: 550, Enhanced: text, Detail: text, RemoteID: text}, {Status: store.RecipientAccepted, Code: 250}},
		Attempts: []store.Attempt{{Number: 1, Server: "ss", Outcome: "partial", Detail: text, RemoteID: text}}}}
	switch kind {
	case store.SettleArchive:
		st.Status = store.MailSent
	case store.SettlePark:
		st.Status = store.MailPartiallySent
	case store.SettleRetry:
		st.Status, st.RunAt = store.MailPartiallySent, time.Now().Add(time.Hour)
	}
	return st
}

// TestHostileTexts: whatever text comes with a result, the result is written, with all that is
// handed over beside it, and can be read.
func TestHostileTexts(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		for name, text := range hostile {
			for _, kind := range []store.SettleKind{store.SettleArchive, store.SettlePark, store.SettleRetry, store.SettleProgress} {
				t.Run(name, func(t *testing.T) {
					r := register(t, s)
					var ms []*store.NewMail
					for range 20 {
						ms = append(ms, newMail("ss"))
					}
					enqueue(t, s, ms...)
					claimAll(t, s, r)
					var answers []<-chan store.Settled
					for i, m := range ms {
						words := "550 no such user"
						if i == 7 {
							words = text
						}
						answers = append(answers, s.Settle(resultWith(m.ID, r, kind, words)))
					}
					for i, a := range answers {
						if a := <-a; !a.Mine || a.Err != nil {
							t.Errorf("result %d: %+v", i, a)
						}
					}
					got, err := s.Mail(ctx, store.Everything, ms[7].ID)
					if err != nil {
						t.Fatal(err)
					}
					res := got.Progress.Results[0]
					for _, words := range []string{got.LastError, res.Enhanced, res.Detail, res.RemoteID, got.Progress.Attempts[0].Detail, got.Progress.Attempts[0].RemoteID} {
						if words == "" || !utf8.ValidString(words) || strings.Contains(words, "\x00") {
							t.Errorf("%q is stored as %q", text, words)
						}
					}
					if res.Code != 550 || got.Progress.Results[1].Status != store.RecipientAccepted {
						t.Errorf("%+v", got.Progress.Results)
					}
				})
			}
		}
	})
}

// TestRefusedData: a result that the database refuses for its numbers is written with plain
// words and is counted; those in its batch are written as they are.
func TestRefusedData(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	r := register(t, s)
	var ms []*store.NewMail
	for range 100 {
		ms = append(ms, newMail("ss"))
	}
	enqueue(t, s, ms...)
	claimAll(t, s, r)
	bad := map[int]bool{3: true, 4: true, 99: true}
	var answers []<-chan store.Settled
	for i, m := range ms {
		st := resultWith(m.ID, r, store.SettlePark, "550 no such user")
		if bad[i] {
			st.Attempts = 1 << 20 // more than the column holds
		}
		answers = append(answers, s.Settle(st))
	}
	for i, a := range answers {
		if a := <-a; !a.Mine || a.Err != nil {
			t.Fatalf("result %d: %+v", i, a)
		}
		got, err := s.Mail(ctx, store.Everything, ms[i].ID)
		if err != nil || got.Status != store.MailPartiallySent || got.Progress.Results[0].Code != 550 || (got.LastError == "550 no such user") == bad[i] {
			t.Errorf("%d: %+v %v", i, got, err)
		}
	}
	if n := s.RefusedResults(); n != 3 {
		t.Errorf("%d refused", n)
	}
}

// TestNeverStorable: a result that no words can save is answered with the fault, alone.
func TestNeverStorable(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		r := register(t, s)
		ms := []*store.NewMail{newMail("ss"), newMail("ss"), newMail("ss")}
		enqueue(t, s, ms...)
		claimAll(t, s, r)
		var answers []<-chan store.Settled
		for i, m := range ms {
			st := resultWith(m.ID, r, store.SettlePark, "no")
			if i == 1 {
				st.Status = "nonsense"
			}
			answers = append(answers, s.Settle(st))
		}
		for i, a := range answers {
			if a := <-a; (a.Err != nil) != (i == 1) || a.Mine == (i == 1) {
				t.Errorf("result %d: %+v", i, a)
			}
		}
	})
}

// FuzzResultText: any text is stored, readable, and the same on both databases.
func FuzzResultText(f *testing.F) {
	for _, text := range hostile {
		f.Add(text)
	}
	f.Add("550 5.1.1 \\u0000 \\ud800 \"'{}[]\r\n")
	stores := []*store.Store{storetest.Open(f, storetest.PostgresDSN(f)), storetest.Open(f, storetest.SQLiteDSN(f))}
	f.Fuzz(func(t *testing.T, text string) {
		var were []string
		for _, s := range stores {
			r := register(t, s)
			m := newMail("ss", func(m *store.NewMail) { m.Owner = r })
			enqueue(t, s, m)
			if !settle(t, s, resultWith(m.ID, r, store.SettlePark, text)) {
				t.Fatal("refused")
			}
			got, err := s.Mail(ctx, store.Everything, m.ID)
			if err != nil || !utf8.ValidString(got.LastError) || got.Progress.Results[0].Detail != got.LastError {
				t.Fatalf("%q: %q, %q, %v", text, got.LastError, got.Progress.Results[0].Detail, err)
			}
			were = append(were, got.LastError)
		}
		if were[0] != were[1] {
			t.Errorf("%q: %q and %q", text, were[0], were[1])
		}
	})
}
