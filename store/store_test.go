package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
	"github.com/maildispatch/maildispatch/store/storetest/memory"
)

var ctx = context.Background()

func newMail(server string, change ...func(*store.NewMail)) *store.NewMail {
	id := uuid.Must(uuid.NewV7())
	now := time.Now()
	m := &store.NewMail{ID: id, Team: "sales", MailServer: server, Mode: store.ModeDaemon, Kind: store.KindBulk, From: "a@x.example", Subject: "发票 " + id.String(),
		MessageID: id.String() + "@x.example", Recipients: []store.Recipient{{Mailbox: "To@x.example"}, {Mailbox: "cc@x.example", Kind: "cc"}},
		Route: "named", CreateTime: now, RunAt: now, Raw: []store.Piece{{Data: []byte("Subject: x\r\n\r\nbody " + id.String() + "\r\n")}}}
	for _, c := range change {
		c(m)
	}
	for _, p := range m.Raw {
		m.SizeBytes += int64(len(p.Data) + p.Length)
	}
	return m
}

func enqueue(t testing.TB, s storetest.Store, ms ...*store.NewMail) {
	t.Helper()
	res, err := s.EnqueueBatch(ctx, ms)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range res {
		if r.Err != nil || r.Duplicate {
			t.Fatalf("enqueue: %+v", r)
		}
	}
}

func register(t testing.TB, s storetest.Store) store.ReplicaID {
	t.Helper()
	r, err := s.Register(ctx, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tokenOf is the claim token of an unfinished mail.
func tokenOf(t testing.TB, s storetest.Store, id uuid.UUID) (claim int64) {
	t.Helper()
	switch s := s.(type) {
	case *memory.Store:
		return s.Look(id).Claim
	case *store.Store:
		if err := s.Get(&claim, "select claim from due where id = ?", id); err != nil {
			t.Fatal(err)
		}
	}
	return claim
}

func settle(t testing.TB, s storetest.Store, st *store.Settlement) bool {
	t.Helper()
	a := <-s.Settle(st)
	if a.Err != nil {
		t.Fatal(a.Err)
	}
	return a.Mine
}

func TestClaimSettleJournals(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		for _, n := range []string{"ss"} {
			if _, _, err := s.CreateServer(ctx, newServer(n, ""), store.Audit{}); err != nil {
				t.Fatal(err)
			}
		}
		r := register(t, s)
		exp := time.Now().Add(time.Hour)
		ms := []*store.NewMail{
			newMail("ss", func(m *store.NewMail) {
				m.Reference, m.Labels, m.ExpireTime, m.Kind = "INV-1", map[string]string{"c": "x"}, &exp, store.KindInvoice
			}),
			newMail("ss", func(m *store.NewMail) { m.Priority = 5 }),
			newMail("ss", func(m *store.NewMail) { m.RunAt = time.Now().Add(time.Hour) }),
			newMail("other", func(m *store.NewMail) { m.Recipients = []store.Recipient{{Mailbox: "lone@x.example"}}; m.Team = "" }),
		}
		enqueue(t, s, ms...)
		due, err := s.DueServers(ctx)
		if err != nil || len(due) != 1 || due[0] != "ss" {
			t.Fatalf("due servers: %v %v", due, err)
		}
		cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority)
		if err != nil || len(cs) != 2 || cs[0].ID != ms[1].ID || cs[1].ID != ms[0].ID {
			t.Fatalf("claim: %v %v", cs, err)
		}
		c := cs[1]
		raw, err := s.LoadRaw(ctx, c)
		if err != nil || !bytes.Equal(raw, ms[0].Raw[0].Data) || c.From != "a@x.example" || len(c.Recipients) != 2 || c.Recipients[1].Kind != "cc" ||
			!c.ExpireTime.Equal(exp.Truncate(time.Microsecond)) || c.Kind != store.KindInvoice || c.Marked {
			t.Fatalf("claimed: %+v %v", c, err)
		}
		if again, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority); err != nil || len(again) != 0 {
			t.Fatalf("claimed twice: %v %v", again, err)
		}
		if m, err := s.Mail(ctx, store.Everything, c.ID); err != nil || m.Status != store.MailQueued || m.Owner != r || m.DueTime == nil {
			t.Fatalf("in its owner's memory: %+v %v", m, err)
		}
		// Stale owners change nothing.
		for _, k := range []store.SettleKind{store.SettleMark, store.SettleProgress, store.SettleArchive, store.SettlePark, store.SettleRetry} {
			if settle(t, s, &store.Settlement{ID: c.ID, Owner: r + 77, Claim: c.Claim, Kind: k, Status: store.MailSent, RunAt: time.Now(), Progress: &store.Progress{}}) {
				t.Fatalf("a stale write of kind %s was taken", k)
			}
		}
		if !settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleMark}) {
			t.Fatal("mark refused")
		}
		if m, err := s.Mail(ctx, store.Everything, c.ID); err != nil || m.Status != store.MailSending || m.Owner != r || m.DueTime != nil {
			t.Fatalf("on its way: %+v %v", m, err)
		}
		p := &store.Progress{Results: []store.RecipientResult{{Status: store.RecipientAccepted, Code: 250, RemoteID: "Q1", Time: time.Now().UTC().Truncate(time.Microsecond)}, {Status: store.RecipientPending}}}
		if !settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleProgress, Progress: p}) {
			t.Fatal("progress refused")
		}
		c.Claim++ // progress raises it
		p.Results[1].Status = store.RecipientDeferred
		at := time.Now().Add(-time.Second)
		if !settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleRetry, Status: store.MailPartiallySent, RunAt: at, Attempts: 1, Progress: p, LastError: "later"}) {
			t.Fatal("retry refused")
		}
		cs, err = s.Claim(ctx, r, "ss", 10, store.AnyPriority)
		if err != nil || len(cs) != 1 || cs[0].Attempts != 1 || cs[0].Progress.Results[0].RemoteID != "Q1" || !cs[0].Progress.Results[0].Time.Equal(p.Results[0].Time) {
			t.Fatalf("second claim: %+v %v", cs, err)
		}
		first := c.Claim
		c = cs[0]
		p.Results[1].Status = store.RecipientAccepted
		if !settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 2, Progress: p, PossibleDuplicate: true}) {
			t.Fatal("archive refused")
		}
		if settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: first, Kind: store.SettlePark, Status: store.MailFailed, Progress: p}) {
			t.Fatal("a finished mail was settled again")
		}
		if !settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 2, Progress: p}) {
			t.Fatal("a repeated write is not recognised")
		}
		m, err := s.Mail(ctx, store.Everything, c.ID)
		if err != nil || m.Status != store.MailSent || !m.Archived || m.FinishTime == nil || !m.PossibleDuplicate || m.Attempts != 2 || m.Progress.Results[1].Status != store.RecipientAccepted || m.Labels["c"] != "x" {
			t.Fatalf("archived: %+v %v", m, err)
		}
		if !settle(t, s, &store.Settlement{ID: ms[1].ID, Owner: r, Claim: tokenOf(t, s, ms[1].ID), Kind: store.SettlePark, Status: store.MailFailed, Attempts: 1, Progress: p, LastError: "550 no"}) {
			t.Fatal("park refused")
		}
		// Every field of the filter, on both journals.
		sales, system := "sales", ""
		for name, tc := range map[string]struct {
			f       store.MailFilter
			due     int
			archive int
		}{
			"none":          {store.MailFilter{}, 3, 1},
			"team":          {store.MailFilter{Team: &sales}, 2, 1},
			"system":        {store.MailFilter{Team: &system}, 1, 0},
			"server":        {store.MailFilter{MailServer: "ss"}, 2, 1},
			"failed":        {store.MailFilter{Statuses: []store.MailStatus{store.MailFailed, store.MailSent}}, 1, 1},
			"sending":       {store.MailFilter{Statuses: []store.MailStatus{store.MailSending}}, 0, 0},
			"kind":          {store.MailFilter{Kind: store.KindInvoice}, 0, 1},
			"reference":     {store.MailFilter{Reference: "INV-1"}, 0, 1},
			"recipient":     {store.MailFilter{Recipient: "tO@X.example"}, 2, 1},
			"lone":          {store.MailFilter{Recipient: "lone@x.example"}, 1, 0},
			"nobody":        {store.MailFilter{Recipient: "nobody@x.example"}, 0, 0},
			"message id":    {store.MailFilter{MessageID: "<" + ms[0].MessageID + ">"}, 0, 1},
			"no message id": {store.MailFilter{MessageID: "x"}, 0, 0},
			"label":         {store.MailFilter{Labels: map[string]string{"c": "x"}}, 0, 1},
			"wrong label":   {store.MailFilter{Labels: map[string]string{"c": "y"}}, 0, 0},
			"since":         {store.MailFilter{Since: time.Now().Add(-time.Hour)}, 3, 1},
			"until":         {store.MailFilter{Until: time.Now().Add(-time.Hour)}, 0, 0},
		} {
			d, err1 := s.ListDue(ctx, store.Everything, tc.f, store.Cursor{}, 10)
			a, err2 := s.ListArchive(ctx, store.Everything, tc.f, store.Cursor{}, 10)
			if err1 != nil || err2 != nil || len(d) != tc.due || len(a) != tc.archive {
				t.Errorf("filter %s: %d due, %d archived (%v %v), want %d and %d", name, len(d), len(a), err1, err2, tc.due, tc.archive)
			}
		}
		if d, err := s.ListDue(ctx, store.Scope{Teams: []string{"nobody"}}, store.MailFilter{}, store.Cursor{}, 10); err != nil || len(d) != 0 {
			t.Errorf("foreign scope sees %d mails (%v)", len(d), err)
		}
		var b bytes.Buffer
		if _, err := s.RawMail(ctx, store.Everything, c.ID, &b); err != nil || !bytes.Equal(b.Bytes(), ms[0].Raw[0].Data) {
			t.Errorf("raw: %q %v", b.Bytes(), err)
		}
		if _, err := s.RawMail(ctx, store.Scope{}, c.ID, &b); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("raw outside the scope: %v", err)
		}
		if n, err := s.CountDue(ctx, "ss"); err != nil || n != 2 {
			t.Errorf("count: %d %v", n, err)
		}
	})
}

func TestClaimIsExclusive(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var ms []*store.NewMail
		for range 400 {
			ms = append(ms, newMail("ss"))
		}
		enqueue(t, s, ms...)
		r := register(t, s)
		var mu sync.Mutex
		seen := map[uuid.UUID]int{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					cs, err := s.Claim(ctx, r, "ss", 7, store.AnyPriority)
					if err != nil {
						t.Error(err)
						return
					}
					if len(cs) == 0 {
						return
					}
					mu.Lock()
					for _, c := range cs {
						seen[c.ID]++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if len(seen) != 400 {
			t.Fatalf("%d mails claimed", len(seen))
		}
		for id, n := range seen {
			if n != 1 {
				t.Fatalf("%s claimed %d times", id, n)
			}
		}
	})
}

func TestRecover(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		dead, err := s.Register(ctx, "dead", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		born := newMail("ss", func(m *store.NewMail) { m.Mode, m.Owner = store.ModePHP, dead })
		enqueue(t, s, newMail("ss"), newMail("ss"), born)
		cs, err := s.Claim(ctx, dead, "ss", 10, store.AnyPriority)
		if err != nil || len(cs) != 2 {
			t.Fatalf("claim: %v %v (a mail born owned must not be claimed)", cs, err)
		}
		settle(t, s, &store.Settlement{ID: cs[0].ID, Owner: dead, Claim: cs[0].Claim, Kind: store.SettleMark})
		me := register(t, s)
		if s.Dialect() == "postgres" {
			if n, ad, err := s.Recover(ctx, me, 10); err != nil || n+len(ad) != 0 {
				t.Fatalf("recovered from the living: %d %v %v", n, ad, err)
			}
			if err := s.Renew(ctx, dead, -time.Second); err != nil {
				t.Fatal(err)
			}
		}
		n, adopted, err := s.Recover(ctx, me, 10)
		if err != nil || n != 2 || len(adopted) != 1 || adopted[0].ID != cs[0].ID || !adopted[0].Marked || adopted[0].Crashes != 1 {
			t.Fatalf("recover: %d %+v %v", n, adopted, err)
		}
		if err := s.Renew(ctx, dead, time.Minute); !errors.Is(err, store.ErrStale) {
			t.Fatalf("the dead renew: %v", err)
		}
		if settle(t, s, &store.Settlement{ID: cs[0].ID, Owner: dead, Claim: cs[0].Claim, Kind: store.SettleArchive, Status: store.MailSent}) {
			t.Fatal("the dead settle")
		}
		if !settle(t, s, &store.Settlement{ID: cs[0].ID, Owner: me, Claim: adopted[0].Claim, Kind: store.SettlePark, Status: store.MailUnknown, Attempts: 1, Progress: &store.Progress{}}) {
			t.Fatal("the adopter cannot settle")
		}
		cs, err = s.Claim(ctx, me, "ss", 10, store.AnyPriority)
		if err != nil || len(cs) != 2 || cs[0].Crashes != 1 {
			t.Fatalf("requeued: %v %v", cs, err)
		}
		settle(t, s, &store.Settlement{ID: cs[0].ID, Owner: me, Claim: cs[0].Claim, Kind: store.SettleMark})
		if err := s.Unregister(ctx, me); err != nil {
			t.Fatal(err)
		}
		next := register(t, s)
		n, adopted, err = s.Recover(ctx, next, 10)
		if err != nil || n != 0 || len(adopted) != 1 {
			t.Fatalf("after an orderly end: %d %v %v", n, adopted, err)
		}
		if cs, err = s.Claim(ctx, next, "ss", 10, store.AnyPriority); err != nil || len(cs) != 1 || cs[0].Crashes != 1 {
			t.Fatalf("released: %+v %v", cs, err)
		}
	})
}

func TestModify(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var ms []*store.NewMail
		for range 5 {
			ms = append(ms, newMail("ss"))
		}
		enqueue(t, s, ms...)
		r := register(t, s)
		cs, err := s.Claim(ctx, r, "ss", 1, store.AnyPriority)
		if err != nil || len(cs) != 1 {
			t.Fatal(cs, err)
		}
		cancel := func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettleArchive, Status: store.MailCancelled, LastError: "by a person"}, nil
		}
		f := &store.MailFilter{MailServer: "ss"}
		matched, changed, fails, err := s.Modify(ctx, store.Everything, nil, f, true, store.Audit{}, cancel)
		if err != nil || matched != 5 || changed != 4 || len(fails) != 1 || !errors.Is(fails[0].Err, store.ErrSending) {
			t.Fatalf("dry run: %d %d %v %v", matched, changed, fails, err)
		}
		if d, _ := s.ListDue(ctx, store.Everything, *f, store.Cursor{}, 10); len(d) != 5 {
			t.Fatal("a dry run changed something")
		}
		unknown := uuid.New()
		matched, changed, fails, err = s.Modify(ctx, store.Everything, []uuid.UUID{ms[1].ID, ms[1].ID, ms[2].ID, unknown}, nil, false, store.Audit{Actor: "me"}, cancel)
		if err != nil || matched != 2 || changed != 2 || len(fails) != 1 || !errors.Is(fails[0].Err, store.ErrNotFound) {
			t.Fatalf("by id: %d %d %v %v", matched, changed, fails, err)
		}
		m, err := s.Mail(ctx, store.Everything, ms[1].ID)
		if err != nil || m.Status != store.MailCancelled || !m.Archived {
			t.Fatalf("cancelled: %+v %v", m, err)
		}
		_, _, fails, err = s.Modify(ctx, store.Everything, []uuid.UUID{ms[1].ID}, nil, false, store.Audit{}, cancel)
		if err != nil || len(fails) != 1 || !errors.Is(fails[0].Err, store.ErrFinished) {
			t.Fatalf("finished: %v %v", fails, err)
		}
		no := errors.New("no")
		_, changed, fails, err = s.Modify(ctx, store.Everything, nil, f, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			if m.ID == ms[3].ID {
				return nil, no
			}
			return &store.Change{Kind: store.SettleRetry, Status: store.MailDeferred, RunAt: time.Now().Add(time.Hour), Attempts: 3}, nil
		})
		if err != nil || changed != 1 || len(fails) != 2 {
			t.Fatalf("mixed: %d %v %v", changed, fails, err)
		}
		if m, err := s.Mail(ctx, store.Everything, ms[4].ID); err != nil || m.Status != store.MailDeferred || m.Attempts != 3 {
			t.Fatalf("retried: %+v %v", m, err)
		}
	})
}

func TestSharedContentIsStoredOnce(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		pdf := bytes.Repeat([]byte("0123456789abcdef"), 100_000) // 1.6 MB, several chunks
		var ms []*store.NewMail
		for i := range 5 {
			ms = append(ms, newMail("ss", func(m *store.NewMail) {
				m.Raw = []store.Piece{{Data: fmt.Appendf(nil, "head %d\r\n", i)}, {Shared: &store.Content{Sum: sha256.Sum256(pdf), Size: len(pdf), Data: pdf}, Length: len(pdf)}, {Data: []byte("tail\r\n")}}
			}))
		}
		enqueue(t, s, ms...)
		r := register(t, s)
		cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority)
		if err != nil || len(cs) != 5 {
			t.Fatal(err)
		}
		for _, c := range cs {
			raw, err := s.LoadRaw(ctx, c)
			if err != nil || int64(len(raw)) != c.SizeBytes || !bytes.Contains(raw, pdf[:1000]) || !bytes.HasSuffix(raw, []byte("tail\r\n")) {
				t.Fatalf("raw of %d bytes: %v", len(raw), err)
			}
			if len(c.Raw) > 100 {
				t.Fatalf("the claim carries %d bytes", len(c.Raw))
			}
		}
	})
}

func TestBadRowFailsAlone(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		bad := newMail("ss", func(m *store.NewMail) { m.Kind = "nonsense" })
		res, err := s.EnqueueBatch(ctx, []*store.NewMail{newMail("ss"), bad, newMail("ss")})
		if err != nil || res[0].Err != nil || res[1].Err == nil || res[2].Err != nil {
			t.Fatalf("%+v %v", res, err)
		}
	})
}

func TestPagesWithInserts(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var ms []*store.NewMail
		for range 25 {
			ms = append(ms, newMail("ss"))
		}
		enqueue(t, s, ms[:20]...)
		seen := map[uuid.UUID]int{}
		var after store.Cursor
		for page := 0; ; page++ {
			l, err := s.ListDue(ctx, store.Everything, store.MailFilter{}, after, 7)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range l {
				seen[m.ID]++
				after.ID = m.ID
			}
			if page == 0 {
				enqueue(t, s, ms[20:]...)
			}
			if len(l) < 7 {
				break
			}
		}
		if len(seen) != 25 {
			t.Fatalf("%d mails seen", len(seen))
		}
		r := register(t, s)
		cs, _ := s.Claim(ctx, r, "ss", 25, store.AnyPriority)
		for _, c := range cs {
			settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleArchive, Status: store.MailSent})
		}
		clear(seen)
		after = store.Cursor{}
		for {
			l, err := s.ListArchive(ctx, store.Everything, store.MailFilter{}, after, 7)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range l {
				seen[m.ID]++
				after = store.Cursor{Time: *m.FinishTime, ID: m.ID}
			}
			if len(l) < 7 {
				break
			}
		}
		for id, n := range seen {
			if n != 1 {
				t.Fatalf("%s seen %d times", id, n)
			}
		}
		if len(seen) != 25 {
			t.Fatalf("%d archived mails seen", len(seen))
		}
	})
}

func TestSecondProcessIsRefused(t *testing.T) {
	t.Parallel()
	dsn := storetest.SQLiteDSN(t)
	storetest.Open(t, dsn)
	if _, err := store.Open(ctx, dsn, store.Options{}); !errors.Is(err, store.ErrLocked) {
		t.Fatalf("second open: %v", err)
	}
}

// TestLongTextIsReadInPieces: the part of a message that lies in its row is read in pieces,
// none of them twice and none left out.
func TestLongTextIsReadInPieces(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		long := make([]byte, 300<<10)
		for i := range long {
			long[i] = byte('a' + i*i%23)
		}
		m := newMail("ss", func(m *store.NewMail) { m.Raw[0].Data = long })
		enqueue(t, s, m)
		var b bytes.Buffer
		if n, err := s.RawMail(ctx, store.Everything, m.ID, &b); err != nil || n != int64(len(long)) || !bytes.Equal(b.Bytes(), long) {
			t.Errorf("got %d bytes, %v, want %d", n, err, len(long))
		}
	})
}
