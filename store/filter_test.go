package store_test

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// journalMail is a mail of the filter test and what it has become.
type journalMail struct {
	*store.NewMail
	status store.MailStatus
}

func (m journalMail) archived() bool {
	return m.status == store.MailSent || m.status == store.MailCancelled
}

// matches is the meaning of a filter, written down a second time.
func (m journalMail) matches(f store.MailFilter) bool {
	if f.Team != nil && *f.Team != m.Team || f.MailServer != "" && f.MailServer != m.MailServer || f.Kind != "" && f.Kind != m.Kind ||
		f.Reference != "" && f.Reference != m.Reference || f.RequestID != "" && f.RequestID != m.RequestID || f.BatchID != "" && f.BatchID != m.BatchID ||
		len(f.Statuses) > 0 && !slices.Contains(f.Statuses, m.status) || f.MessageID != "" && strings.Trim(f.MessageID, "<>") != m.MessageID ||
		!f.Since.IsZero() && m.CreateTime.Before(f.Since) || !f.Until.IsZero() && !m.CreateTime.Before(f.Until) {
		return false
	}
	for k, v := range f.Labels {
		if got, ok := m.Labels[k]; !ok || got != v {
			return false
		}
	}
	return f.Recipient == "" || slices.ContainsFunc(m.Recipients, func(r store.Recipient) bool { return strings.EqualFold(r.Mailbox, f.Recipient) })
}

// journals fills both journals with mails that differ in everything that can be searched for,
// in states of every kind.
func journals(t *testing.T, s storetest.Store) []journalMail {
	t.Helper()
	r := register(t, s)
	begin := time.Now().Add(-time.Hour).UTC().Truncate(time.Microsecond)
	states := []store.MailStatus{store.MailQueued, store.MailSent, store.MailDeferred, store.MailCancelled, store.MailHeld, store.MailSent, store.MailFailed, store.MailSent,
		store.MailUnknown, store.MailSent, store.MailPartiallySent, store.MailSent, store.MailSending, store.MailCancelled}
	var all []journalMail
	var ms []*store.NewMail
	for i := range 70 {
		m := newMail([]string{"s1", "s2"}[i%2], func(m *store.NewMail) {
			m.Team = []string{"sales", "", "ops"}[i%3]
			m.Kind = []store.Kind{store.KindBulk, store.KindInvoice, store.KindWorkOrder, store.KindAgentMessage, store.KindOther}[i%5]
			m.BatchID = []string{"b1", "", "b2", "b1"}[i%4]
			m.Reference = []string{"", "R1", "R2"}[i/2%3]
			m.Recipients = []store.Recipient{{Mailbox: fmt.Sprintf("r%d@x.example", i%4)}}
			if i%3 == 1 {
				m.Recipients = append(m.Recipients, store.Recipient{Mailbox: "Common@X.example", Kind: "bcc"})
			}
			if i%5 > 0 {
				m.Labels = map[string]string{"c": fmt.Sprint(i % 3), "d": fmt.Sprint(i % 2)}
			}
			if i%6 == 0 {
				m.Subject = "Rechnung Über 10"
			}
			if i%4 == 0 {
				m.RequestID, m.Fingerprint = fmt.Sprint("q", i%8), []byte{1}
				if i >= 24 { // unique per team
					m.RequestID = fmt.Sprint("q", i)
				}
			}
			m.CreateTime, m.Owner = begin.Add(time.Duration(i)*time.Minute), r
		})
		all, ms = append(all, journalMail{m, states[(i+i/14)%len(states)]}), append(ms, m)
	}
	enqueue(t, s, ms...)
	for i, m := range all {
		st := &store.Settlement{ID: m.ID, Owner: r, Claim: store.BornClaim, Status: m.status, RunAt: time.Now().Add(time.Hour), Progress: &store.Progress{}}
		if m.status == store.MailFailed {
			st.Progress.Results = []store.RecipientResult{{Status: store.RecipientRejected, Failure: "mailbox_full"}}
			st.PossibleDuplicate = true
		}
		switch {
		case m.status == store.MailQueued && i%2 == 0:
			continue // it waits in r's memory
		case m.status == store.MailSending:
			st.Kind = store.SettleMark
		case m.archived():
			st.Kind = store.SettleArchive
		case m.status == store.MailQueued || m.status == store.MailDeferred || m.status == store.MailPartiallySent:
			st.Kind = store.SettleRetry
		default:
			st.Kind = store.SettlePark
		}
		if !settle(t, s, st) {
			t.Fatalf("settle %+v", st)
		}
	}
	return all
}

// fields set one field of a filter each, so that the mail is let through.
var fields = map[string]func(f *store.MailFilter, m journalMail){
	"team":      func(f *store.MailFilter, m journalMail) { f.Team = &m.Team },
	"server":    func(f *store.MailFilter, m journalMail) { f.MailServer = m.MailServer },
	"statuses":  func(f *store.MailFilter, m journalMail) { f.Statuses = []store.MailStatus{m.status, store.MailQueued} },
	"kind":      func(f *store.MailFilter, m journalMail) { f.Kind = m.Kind },
	"reference": func(f *store.MailFilter, m journalMail) { f.Reference = m.Reference },
	"recipient": func(f *store.MailFilter, m journalMail) {
		f.Recipient = strings.ToUpper(m.Recipients[len(m.Recipients)-1].Mailbox)
	},
	"message id": func(f *store.MailFilter, m journalMail) { f.MessageID = "<" + m.MessageID + ">" },
	"labels":     func(f *store.MailFilter, m journalMail) { f.Labels = m.Labels },
	"request id": func(f *store.MailFilter, m journalMail) { f.RequestID = m.RequestID },
	"batch id":   func(f *store.MailFilter, m journalMail) { f.BatchID = m.BatchID },
	"since":      func(f *store.MailFilter, m journalMail) { f.Since = m.CreateTime },
	"until":      func(f *store.MailFilter, m journalMail) { f.Until = m.CreateTime.Add(time.Microsecond) },
}

// page reads a journal to its end in pages of n.
func pages(t *testing.T, s storetest.Store, archive bool, sc store.Scope, f store.MailFilter, n int) (ids []uuid.UUID) {
	t.Helper()
	var after store.Cursor
	var last *store.Mail
	for {
		list := s.ListDue
		if archive {
			list = s.ListArchive
		}
		ms, err := list(ctx, sc, f, after, n)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms {
			if m.Archived != archive {
				t.Fatalf("mail %s is in the other journal", m.ID)
			}
			if last != nil && (!archive && bytes.Compare(last.ID[:], m.ID[:]) >= 0 || archive && cmp.Or(m.FinishTime.Compare(*last.FinishTime), bytes.Compare(m.ID[:], last.ID[:])) >= 0) {
				t.Fatalf("order: %s after %s", m.ID, last.ID)
			}
			last, ids = m, append(ids, m.ID)
		}
		if len(ms) < n {
			return ids
		}
		after.ID = last.ID
		if archive {
			after.Time = *last.FinishTime
		}
	}
}

// TestEveryFilter: every field alone, every two and all together, on both journals, page by
// page, find what the filter's meaning says.
func TestEveryFilter(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		all := journals(t, s)
		var names []string
		for n := range fields {
			names = append(names, n)
		}
		slices.Sort(names)
		found, tried := 0, 0
		check := func(set ...string) {
			t.Helper()
			tried++
			m := all[tried*31%len(all)]
			var f store.MailFilter
			for _, n := range set {
				fields[n](&f, m)
			}
			for _, archive := range []bool{false, true} {
				want := map[uuid.UUID]bool{}
				for _, m := range all {
					if m.archived() == archive && m.matches(f) {
						want[m.ID] = true
					}
				}
				got := pages(t, s, archive, store.Everything, f, 4)
				found += len(got)
				if len(got) != len(want) || slices.ContainsFunc(got, func(id uuid.UUID) bool { return !want[id] }) {
					t.Errorf("%v, archive %v: %d mails, want %d (%+v)", set, archive, len(got), len(want), f)
				}
			}
		}
		check()
		for i, a := range names {
			check(a)
			for _, b := range names[:i] {
				check(a, b)
			}
		}
		check(names...)
		if found < 5*tried {
			t.Errorf("%d filters found only %d mails: the test shows little", tried, found)
		}
	})
}

// TestScopeIsOnEveryRead: for a caller of another team nothing of this one exists, whatever it
// asks by.
func TestScopeIsOnEveryRead(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		begin, err := s.LastChange(ctx)
		if err != nil {
			t.Fatal(err)
		}
		all := journals(t, s)
		if _, _, err := s.CreateServer(ctx, newServer("s1", "sales"), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		cancel := func(*store.Mail, *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettleArchive, Status: store.MailCancelled}, nil
		}
		for _, sc := range []store.Scope{{}, {Teams: []string{"other"}}, {Teams: []string{"ops"}}, {Teams: []string{"ops", ""}}} {
			sees := func(m journalMail) bool { return slices.Contains(sc.Teams, m.Team) }
			for _, archive := range []bool{false, true} {
				want := 0
				for _, m := range all {
					if m.archived() == archive && sees(m) {
						want++
					}
				}
				if got := pages(t, s, archive, sc, store.MailFilter{}, 10); len(got) != want {
					t.Errorf("%v, archive %v: %d mails, want %d", sc, archive, len(got), want)
				}
				for name, set := range fields {
					for i := 0; i < len(all); i += 5 { // teams come by threes
						m := all[i]
						var f store.MailFilter
						if set(&f, m); !sees(m) && slices.Contains(pages(t, s, archive, sc, f, 100), m.ID) {
							t.Errorf("%v finds a foreign mail by %s", sc, name)
						}
					}
				}
			}
			cs, _, _, err := s.Changes(ctx, sc, store.MailFilter{}, begin, 1000)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range cs {
				if !slices.Contains(sc.Teams, c.Mail.Team) {
					t.Errorf("%v is told of a foreign mail", sc)
				}
			}
			for _, m := range all {
				if sees(m) {
					continue
				}
				if _, err := s.Mail(ctx, sc, m.ID); err != store.ErrNotFound {
					t.Errorf("%v reads a foreign mail: %v", sc, err)
				}
				var b bytes.Buffer
				if _, err := s.RawMail(ctx, sc, m.ID, &b); err != store.ErrNotFound || b.Len() > 0 {
					t.Errorf("%v reads a foreign mail's text: %v", sc, err)
				}
				if matched, n, fs, err := s.Modify(ctx, sc, []uuid.UUID{m.ID}, nil, false, store.Audit{}, cancel); err != nil || matched+n != 0 || len(fs) != 1 || fs[0].Err != store.ErrNotFound {
					t.Errorf("%v changes a foreign mail: %d %d %v %v", sc, matched, n, fs, err)
				}
				if _, err := s.ModifyMail(ctx, sc, m.ID, store.Audit{}, cancel); err != store.ErrNotFound {
					t.Errorf("%v changes a foreign mail: %v", sc, err)
				}
			}
			team := "sales"
			if matched, n, fs, err := s.Modify(ctx, sc, nil, &store.MailFilter{Team: &team}, false, store.Audit{}, cancel); err != nil || matched+n+len(fs) != 0 {
				t.Errorf("%v changes a foreign team's mails: %d %d %v %v", sc, matched, n, fs, err)
			}
			for name, call := range map[string]func() error{
				"read": func() error { _, err := s.Server(ctx, sc, "s1"); return err },
				"update": func() error {
					_, err := s.UpdateServer(ctx, sc, "s1", 0, store.Audit{}, func(*store.MailServer) error { return nil })
					return err
				},
				"delete":   func() error { _, _, err := s.DeleteServer(ctx, sc, "s1", 0, true, store.Audit{}); return err },
				"undelete": func() error { _, err := s.UndeleteServer(ctx, sc, "s1", store.Audit{}); return err },
				"default":  func() error { _, _, err := s.SetDefault(ctx, sc, "s1", store.Audit{}); return err },
			} {
				if err := call(); err != store.ErrNotFound {
					t.Errorf("%v can %s a foreign mail server: %v", sc, name, err)
				}
			}
			if l, err := s.Servers(ctx, sc, store.ServerFilter{ShowDeleted: true}, "", 10); err != nil || len(l) != 0 {
				t.Errorf("%v lists foreign mail servers: %v %v", sc, l, err)
			}
		}
	})
}

// TestPagesInAnyOrderOfInsertion: the order of the journals is that of ids and of finishing,
// whatever the order of the rows.
func TestPagesInAnyOrderOfInsertion(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var ms []*store.NewMail
		r := register(t, s)
		for range 60 {
			ms = append(ms, newMail("ss", func(m *store.NewMail) { m.Owner = r }))
		}
		for _, m := range ms[:30] {
			enqueue(t, s, m)
		}
		for _, m := range slices.Backward(ms[30:]) {
			enqueue(t, s, m)
		}
		if got := pages(t, s, false, store.Everything, store.MailFilter{}, 7); len(got) != 60 {
			t.Fatalf("%d due", len(got))
		}
		// handed over together: many finish at the very same time
		done := make([]<-chan store.Settled, len(ms))
		for i, j := range []int{1, 0} {
			for k := j; k < len(ms); k += 2 {
				at := k
				if i == 1 {
					at = len(ms) - 2 - k
				}
				done[at] = s.Settle(&store.Settlement{ID: ms[at].ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleArchive, Status: store.MailSent})
			}
		}
		for i, d := range done {
			if a := <-d; a.Err != nil || !a.Mine {
				t.Fatalf("%d: %+v", i, a)
			}
		}
		got := pages(t, s, true, store.Everything, store.MailFilter{}, 7)
		if whole := pages(t, s, true, store.Everything, store.MailFilter{}, 100); len(got) != 60 || !slices.Equal(got, whole) {
			t.Fatalf("%d in pages, %d at once", len(got), len(whole))
		}
	})
}
