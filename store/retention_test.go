package store_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

const day = 24 * time.Hour

// idOf is a new id of a mail that was made at that time.
func idOf(at time.Time) uuid.UUID {
	id, ms := uuid.Must(uuid.NewV7()), at.UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id
}

// aged makes the mail one of so long ago.
func aged(age time.Duration) func(m *store.NewMail) {
	return func(m *store.NewMail) {
		m.CreateTime = time.Now().Add(-age)
		m.ID = idOf(m.CreateTime)
		m.MessageID = m.ID.String() + "@x.example"
		m.Raw = []store.Piece{{Data: []byte("Message-ID: <" + m.MessageID + ">\r\n\r\nbody\r\n")}}
	}
}

// finish sends all mail that is due through "ss" and says that it was finished when it was
// made.
func finish(t testing.TB, s *store.Store) {
	t.Helper()
	r := register(t, s)
	for {
		cs, err := s.Claim(ctx, r, "ss", 100, store.AnyPriority)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cs {
			settle(t, s, &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1, Progress: everyone(len(c.Recipients))})
		}
		if len(cs) == 0 {
			break
		}
	}
	if err := s.Exec("update archive set done_at = (select create_time from mail m where m.id = archive.id)"); err != nil {
		t.Fatal(err)
	}
}

// everyone is what is known of so many recipients that have all got the mail.
func everyone(n int) *store.Progress {
	p := &store.Progress{}
	for range n {
		p.Results = append(p.Results, store.RecipientResult{Status: store.RecipientAccepted, Code: 250})
	}
	return p
}

// purge runs rules until each is through, and returns how many mails they removed or kept.
func purge(t testing.TB, s *store.Store, most int, rules ...store.KeepRule) (mails, held int) {
	t.Helper()
	for _, r := range rules {
		for {
			p, err := s.Purge(ctx, "me", r, most)
			if err != nil {
				t.Fatal(err)
			}
			if p.Mails > most {
				t.Fatalf("%d mails were removed at once, at most %d may be", p.Mails, most)
			}
			mails, held = mails+p.Mails, held+p.Held
			if p.Through {
				break
			}
		}
	}
	return mails, held
}

func serve(t testing.TB, s *store.Store) {
	t.Helper()
	if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
		t.Fatal(err)
	}
}

// sound fails where the database does not keep what it promises.
func sound(t testing.TB, dsn string) {
	t.Helper()
	in, err := store.OpenInspector(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r, err := in.Inspect(ctx, store.InspectOptions{Messages: -1, ContentBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range r.Invariants {
		for _, b := range i.Breaches {
			if strings.HasSuffix(b.Problem, "is not the message of its Message-ID") {
				continue // newMail gives it none
			}
			t.Errorf("%s: %s %s", i.Name, b.Subject, b.Problem)
		}
	}
}

// eachDSN runs f for each database, with its address.
func eachDSN(t *testing.T, f func(t *testing.T, s *store.Store, dsn string)) {
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) { f(t, storetest.Open(t, dsn), dsn) })
	}
}

// TestPurge: a rule removes the finished mail of its kind and age, with all that it is found
// by, and nothing else: no younger mail, no other kind, and never a mail of the due-out
// journal, however old. Its request_id is free again.
func TestPurge(t *testing.T) {
	t.Parallel()
	eachDSN(t, func(t *testing.T, s *store.Store, dsn string) {
		serve(t, s)
		labels := func(m *store.NewMail) {
			m.Labels, m.Reference = map[string]string{"k": "v"}, "R-1"
			m.Recipients = []store.Recipient{{Mailbox: "Gone@x.example"}}
		}
		first := newMail("ss", aged(40*day), labels, func(m *store.NewMail) { m.RequestID, m.Fingerprint = "again", []byte("f") })
		old := []*store.NewMail{first, newMail("ss", aged(39*day), labels), newMail("ss", aged(31*day), labels)}
		other := newMail("ss", aged(40*day), func(m *store.NewMail) { m.Kind = store.KindInvoice })
		young := newMail("ss", aged(29*day))
		waits := newMail("ss", aged(50*day), func(m *store.NewMail) { m.RunAt = time.Now().Add(time.Hour) })
		enqueue(t, s, append([]*store.NewMail{other, young, waits}, old...)...)
		finish(t, s)
		rule := store.KeepRule{Kind: store.KindBulk, Part: store.PartMetadata, Age: 30 * day}
		if d, err := s.Overdue(ctx, rule); err != nil || d < 9*day || d > 11*day {
			t.Errorf("overdue by %v, it is about ten days: %v", d, err)
		}
		if n, _ := purge(t, s, 2, rule); n != len(old) {
			t.Fatalf("%d mails were removed, %d are old enough", n, len(old))
		}
		if d, err := s.Overdue(ctx, rule); err != nil || d != 0 {
			t.Errorf("overdue by %v behind the rule: %v", d, err)
		}
		for _, m := range old {
			if _, err := s.Mail(ctx, store.Everything, m.ID); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("an old mail is still there: %v", err)
			}
		}
		for _, m := range []*store.NewMail{other, young, waits} {
			if _, err := s.Mail(ctx, store.Everything, m.ID); err != nil {
				t.Errorf("a mail that is to be kept: %v", err)
			}
		}
		var left int
		if err := s.Get(&left, "select count(*) from term where mail_id not in (select id from mail)"); err != nil || left != 0 {
			t.Errorf("%d terms of mail that is gone are left: %v", left, err)
		}
		if err := s.PlaceHold(ctx, &store.LegalHold{ID: uuid.Must(uuid.NewV7()), Team: "sales", MailID: first.ID}, store.Audit{}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a legal hold of a mail that is gone: %v", err)
		}
		again := newMail("ss", aged(0), func(m *store.NewMail) { m.RequestID, m.Fingerprint = "again", []byte("other") })
		if res, err := s.Enqueue(ctx, again); err != nil || res.Err != nil || res.Duplicate {
			t.Errorf("the request_id of a mail that is gone: %+v %v", res, err)
		}
		done, err := s.RetentionProgress(ctx)
		if err != nil || len(done) != 1 || done[0].Name != "bulk/metadata" || done[0].Mails != 3 || done[0].RunTime.IsZero() {
			t.Errorf("progress: %+v %v", done, err)
		}
		sound(t, dsn)
	})
}

// TestPurgeParts: of a mail whose body is gone only the metadata is told, and one whose files
// are gone still has its text. Shared content goes when the last mail has ceased to need it.
func TestPurgeParts(t *testing.T) {
	t.Parallel()
	eachDSN(t, func(t *testing.T, s *store.Store, dsn string) {
		serve(t, s)
		file := content(bytes.Repeat([]byte("file"), 300<<10)) // in three chunks
		file.File = true
		text := content([]byte("a text that many mails have\r\n"))
		with := func(m *store.NewMail) {
			m.Raw = []store.Piece{{Data: []byte("Message-ID: <" + m.MessageID + ">\r\n\r\n")}, {Shared: text, Length: text.Size}, {Shared: file, Length: file.Size}, {Data: []byte("end\r\n")}}
		}
		a, b := newMail("ss", aged(20*day), with), newMail("ss", aged(20*day), with, func(m *store.NewMail) { m.Kind = store.KindInvoice })
		enqueue(t, s, a, b)
		finish(t, s)
		if err := s.Exec("update content set touched = " + map[string]string{"sqlite": "1", "postgres": "'2020-01-01'"}[s.Dialect()]); err != nil {
			t.Fatal(err)
		}
		collect := func() int {
			t.Helper()
			for {
				through, err := s.WalkContents(ctx, "me")
				if err != nil {
					t.Fatal(err)
				}
				if through {
					break
				}
			}
			_, n, _, err := s.CollectContents(ctx, "me", 10)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		files := store.KeepRule{Kind: store.KindBulk, Part: store.PartAttachments}
		if n, _ := purge(t, s, 10, files); n != 1 {
			t.Fatalf("files of %d mails were removed", n)
		}
		if n := collect(); n != 0 {
			t.Fatalf("%d contents were removed that a mail needs", n)
		}
		m, err := s.Mail(ctx, store.Everything, a.ID)
		if err != nil || m.Removed != store.RemovedAttachments || m.SizeBytes != a.SizeBytes {
			t.Fatalf("%+v %v", m, err)
		}
		var out bytes.Buffer
		var told int64
		if _, err := s.RawMail(ctx, store.Everything, a.ID, &out); !errors.Is(err, store.ErrContentRemoved) || out.Len() > 0 {
			t.Errorf("a message without its files as if it had them: %v", err)
		}
		if _, err := s.CopyMail(ctx, store.Everything, a.ID); !errors.Is(err, store.ErrContentRemoved) {
			t.Errorf("a copy without its files: %v", err)
		}
		if _, err := s.RemainingRaw(ctx, store.Everything, a.ID, func(n int64) { told = n }, &out); err != nil || told != int64(out.Len()) || !bytes.HasSuffix(out.Bytes(), []byte("\r\n\r\na text that many mails have\r\nend\r\n")) {
			t.Errorf("what is left: %q %v", out.Bytes(), err)
		}
		out.Reset()
		if _, err := s.RawMail(ctx, store.Everything, b.ID, &out); err != nil || int64(out.Len()) != b.SizeBytes {
			t.Errorf("a mail of another kind has lost its files too: %v", err)
		}
		sound(t, dsn)
		if n, _ := purge(t, s, 10, store.KeepRule{Kind: store.KindInvoice, Part: store.PartBody, Age: 10 * day}); n != 1 {
			t.Fatalf("%d bodies were removed", n)
		}
		if n := collect(); n != 1 {
			t.Fatalf("%d contents were removed, of two one is still needed", n)
		}
		if _, err := s.RemainingRaw(ctx, store.Everything, b.ID, func(int64) {}, &out); !errors.Is(err, store.ErrContentRemoved) {
			t.Errorf("a message without a body: %v", err)
		}
		if n, _ := purge(t, s, 10, store.KeepRule{Kind: store.KindBulk, Part: store.PartMetadata, Age: 10 * day}); n != 1 {
			t.Fatalf("%d mails were removed", n)
		}
		if n := collect(); n != 1 {
			t.Fatalf("%d contents were removed, nobody needs the last one", n)
		}
		var chunks int
		if err := s.Get(&chunks, "select count(*) from content_chunk"); err != nil || chunks != 0 {
			t.Errorf("%d chunks of content are left: %v", chunks, err)
		}
		sound(t, dsn)
	})
}

// TestContentIsKept: content that is let go stays while a mail needs it.
func TestContentIsKept(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		serve(t, s)
		file := content([]byte("file"))
		file.File = true
		with := func(m *store.NewMail) { m.Raw = append(m.Raw, store.Piece{Shared: file, Length: file.Size}) }
		enqueue(t, s, newMail("ss", aged(20*day), with), newMail("ss", aged(time.Hour), with))
		finish(t, s)
		if n, _ := purge(t, s, 10, store.KeepRule{Kind: store.KindBulk, Part: store.PartMetadata, Age: 10 * day}); n != 1 {
			t.Fatalf("%d mails were removed", n)
		}
		for range 3 {
			if _, err := s.WalkContents(ctx, "me"); err != nil {
				t.Fatal(err)
			}
		}
		if _, n, _, err := s.CollectContents(ctx, "me", 10); n != 0 || err != nil {
			t.Fatalf("%d contents were removed that were touched today: %v", n, err)
		}
	})
}

// TestLegalHold: what a hold is about is neither removed nor loses a part, whatever the rule
// says; when the hold is lifted it goes.
func TestLegalHold(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		serve(t, s)
		ref := "INV-7"
		one := newMail("ss", aged(20*day))
		byReference := newMail("ss", aged(20*day), func(m *store.NewMail) { m.Reference = ref })
		elsewhere := newMail("ss", aged(20*day), func(m *store.NewMail) { m.Reference, m.Team = ref, "support" })
		ofTeam := newMail("ss", aged(20*day), func(m *store.NewMail) { m.Team = "legal" })
		enqueue(t, s, one, byReference, elsewhere, ofTeam)
		finish(t, s)
		holds := []*store.LegalHold{{Team: "sales", MailID: one.ID}, {Team: "sales", Reference: &ref}, {Team: "legal"}}
		for _, h := range holds {
			h.ID = uuid.Must(uuid.NewV7())
			if err := s.PlaceHold(ctx, h, store.Audit{Actor: "counsel", Action: "PlaceLegalHold", Reason: "case 4"}); err != nil {
				t.Fatal(err)
			}
		}
		body := store.KeepRule{Kind: store.KindBulk, Part: store.PartBody}
		all := store.KeepRule{Kind: store.KindBulk, Part: store.PartMetadata}
		if n, held := purge(t, s, 10, body); n != 1 || held != 3 {
			t.Errorf("%d bodies were removed and %d kept, 1 and 3 wanted", n, held)
		}
		if n, held := purge(t, s, 10, all); n != 1 || held != 3 {
			t.Errorf("%d mails were removed and %d kept, 1 and 3 wanted", n, held)
		}
		if _, err := s.Mail(ctx, store.Everything, elsewhere.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the reference of another team is held: %v", err)
		}
		got, err := s.LegalHolds(ctx, store.Scope{Teams: []string{"sales"}}, nil, false, uuid.Nil, 10)
		if err != nil || len(got) != 2 || got[0].MailID != one.ID || *got[1].Reference != ref || got[0].PlacedBy != "counsel" || got[0].Reason != "case 4" {
			t.Fatalf("holds: %+v %v", got, err)
		}
		if _, err := s.LiftHold(ctx, store.Scope{Teams: []string{"sales"}}, holds[2].ID, store.Audit{}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a hold of another team was lifted: %v", err)
		}
		for _, h := range holds[:2] {
			lifted, err := s.LiftHold(ctx, store.Everything, h.ID, store.Audit{Actor: "counsel", Action: "LiftLegalHold", Reason: "over"})
			if err != nil || lifted.LiftTime.IsZero() || lifted.LiftReason != "over" {
				t.Fatalf("%+v %v", lifted, err)
			}
		}
		if n, held := purge(t, s, 10, all); n != 2 || held != 1 {
			t.Errorf("%d mails were removed and %d kept behind the lift, 2 and 1 wanted", n, held)
		}
		rows, err := s.AuditRows(ctx, store.Everything, store.AuditFilter{Actor: "counsel"}, 0, 10)
		if err != nil || len(rows) != 5 {
			t.Errorf("%d rows in the audit log: %v", len(rows), err)
		}
	})
}

// TestOneProcessPurges: while one process removes, another one is told so, until it has not
// been heard of for a while.
func TestOneProcessPurges(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		rule := store.KeepRule{Kind: store.KindBulk, Part: store.PartMetadata}
		if _, err := s.Purge(ctx, "one", rule, 10); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Purge(ctx, "two", rule, 10); !errors.Is(err, store.ErrNotHolder) {
			t.Fatalf("two at once: %v", err)
		}
		if err := s.Exec("update retention set until = " + map[string]string{"sqlite": "1", "postgres": "'epoch'"}[s.Dialect()]); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Purge(ctx, "two", rule, 10); err != nil {
			t.Fatal(err)
		}
	})
}

// TestErasedStaysErased: a purge that has read a mail before it was erased does not take that
// back.
func TestErasedStaysErased(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		serve(t, s)
		m := newMail("ss", aged(20*day))
		enqueue(t, s, m)
		finish(t, s)
		if err := s.Exec("update mail set removed = 'erased'"); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveBody(ctx, m.ID); err != nil {
			t.Fatal(err)
		}
		if m, err := s.Mail(ctx, store.Everything, m.ID); err != nil || m.Removed != store.RemovedErased {
			t.Errorf("it has become %q: %v", m.Removed, err)
		}
	})
}

// TestPurgePastDamage: a finished mail that the database cannot remove keeps no other from
// being removed.
func TestPurgePastDamage(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		serve(t, s)
		bad := newMail("ss", aged(20*day))
		enqueue(t, s, bad, newMail("ss", aged(20*day)), newMail("ss", aged(19*day)))
		finish(t, s)
		qs := []string{`create trigger damaged before delete on mail when old.id = '` + bad.ID.String() + `' begin select raise(abort, 'damaged'); end`}
		if s.Dialect() == "postgres" {
			qs = []string{
				`create function damaged() returns trigger language plpgsql as $$ begin raise exception 'invalid page in block 7' using errcode = 'XX001'; end $$`,
				`create trigger damaged before delete on mail for each row when (old.id = '` + bad.ID.String() + `') execute function damaged()`,
			}
		}
		for _, q := range qs {
			if err := s.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		if n, held := purge(t, s, 50, allOfBulk); n != 2 || held != 0 {
			t.Errorf("%d of 2 well mails were removed, %d held", n, held)
		}
		if n := s.DamagedMails(); n != 1 {
			t.Errorf("%d mails are known to be damaged", n)
		}
		done, err := s.RetentionProgress(ctx)
		if err != nil || len(done) != 1 || done[0].Mails != 2 {
			t.Errorf("progress: %+v %v", done, err)
		}
	})
}
