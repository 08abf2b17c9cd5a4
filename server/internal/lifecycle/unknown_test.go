package lifecycle

import (
	"io"
	"slices"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// TestUnknownRecipients: who is sent to again by policy, and what becomes of a mail that leaves
// somebody with a person.
func TestUnknownRecipients(t *testing.T) {
	unknown := store.RecipientResult{Status: store.RecipientUnknown, Attempt: 1, Detail: "no reply"}
	left := store.RecipientResult{Status: store.RecipientUnknown, Attempt: 1, Detail: "no reply", Held: true}
	resend := store.RecipientResult{Status: store.RecipientPending}
	for name, tc := range map[string]struct {
		kind    store.Kind
		hold    bool
		results []store.RecipientResult
		todo    []int
		kept    store.SettleKind // after everything in todo was accepted
		again   store.SettleKind // after everything in todo got no reply
	}{
		"bulk":                          {store.KindBulk, false, []store.RecipientResult{unknown, unknown}, []int{0, 1}, store.SettleArchive, store.SettleRetry},
		"invoice":                       {store.KindInvoice, false, []store.RecipientResult{unknown, resend}, []int{1}, store.SettlePark, store.SettlePark},
		"work order":                    {store.KindWorkOrder, false, []store.RecipientResult{resend, unknown}, []int{0}, store.SettlePark, store.SettlePark},
		"bulk, a server that holds all": {store.KindBulk, true, []store.RecipientResult{unknown, resend}, []int{1}, store.SettlePark, store.SettlePark},
		"bulk, one left by a person":    {store.KindBulk, false, []store.RecipientResult{left, resend}, []int{1}, store.SettlePark, store.SettleRetry},
	} {
		t.Run(name, func(t *testing.T) {
			for status, want := range map[smtpx.Status]store.SettleKind{smtpx.StatusAccepted: tc.kept, smtpx.StatusUnknown: tc.again} {
				now := time.Now()
				m := &store.Claimed{Kind: tc.kind, HoldUnknown: tc.hold, PossibleDuplicate: true, Attempts: 1, MailServer: "ss",
					Recipients: []store.Recipient{{Mailbox: "a@x.example"}, {Mailbox: "b@x.example"}}, Progress: store.Progress{Results: tc.results}}
				a := Begin(m, 1, now)
				if !slices.Equal(a.Next(), tc.todo) {
					t.Fatalf("tries %v, want %v", a.Next(), tc.todo)
				}
				o := smtpx.Outcome{DotSent: true}
				for range a.Next() {
					o.Recipients = append(o.Recipients, smtpx.RecipientOutcome{Status: status})
				}
				if status == smtpx.StatusUnknown {
					o.Err = &smtpx.Error{Phase: smtpx.PhaseDot, Err: io.EOF}
				}
				a.After(a.Next(), o, now)
				s := a.Finish(a.End(), "", store.Limits{}, now).Settlement
				if s.Kind != want || s.Kind == store.SettlePark && (s.Status != store.MailUnknown || s.LastError == "") || s.Kind == store.SettleRetry && !s.PossibleDuplicate {
					t.Errorf("after %v: %+v", status, s)
				}
				for i, r := range s.Progress.Results {
					if tc.results[i].Held && (r.Status != store.RecipientUnknown || !r.Held) {
						t.Errorf("after %v: %d is %+v", status, i, r)
					}
				}
			}
		})
	}
}
