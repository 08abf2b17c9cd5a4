package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestEnqueueBatchAnswersInOrder: whatever the order of the ids, with request_ids that come
// twice, in the batch and before it, and mails written again.
func TestEnqueueBatchAnswersInOrder(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		with := func(request string, print byte) func(*store.NewMail) {
			return func(m *store.NewMail) { m.RequestID, m.Fingerprint = request, []byte{print} }
		}
		old := newMail("ss", with("old", 1))
		enqueue(t, s, old)
		var ms []*store.NewMail
		for range 1200 { // three commits
			ms = append(ms, newMail("ss"))
		}
		slices.Reverse(ms)
		first, second, other := newMail("ss", with("twice", 1)), newMail("ss", with("twice", 1)), newMail("ss", with("twice", 2))
		late, reused := newMail("ss", with("old", 1)), newMail("ss", with("old", 2))
		ms[3], ms[4], ms[700], ms[10], ms[1100] = first, second, other, late, reused
		again := ms[20]
		ms = append(ms, again, old)
		res, err := s.EnqueueBatch(ctx, ms)
		if err != nil || len(res) != len(ms) {
			t.Fatal(len(res), err)
		}
		// Of two in one commit the one with the lower id is the first.
		for i, r := range res {
			want := store.Enqueued{ID: ms[i].ID}
			switch ms[i] {
			case second:
				want.ID, want.Duplicate = first.ID, true
			case other:
				want.ID, want.Err = first.ID, store.ErrRequestIDReused
			case late:
				want.ID, want.Duplicate = old.ID, true
			case reused:
				want.ID, want.Err = old.ID, store.ErrRequestIDReused
			}
			if r.ID != want.ID || r.Duplicate != want.Duplicate || !errors.Is(r.Err, want.Err) || want.Err == nil && r.Err != nil {
				t.Errorf("answer %d: %+v, want %+v", i, r, want)
			}
		}
		if n, err := s.CountDue(ctx, "ss"); err != nil || n != 1200-4+1 {
			t.Errorf("%d stored, %v", n, err)
		}
	})
}

// TestBadRowsFailAlone: several in one commit, each in another way; all others are stored, and
// each is told its own.
func TestBadRowsFailAlone(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		var ms []*store.NewMail
		for range 60 {
			ms = append(ms, newMail("ss"))
		}
		bad := map[int]func(*store.NewMail){
			0:  func(m *store.NewMail) { m.Kind = "nonsense" },
			17: func(m *store.NewMail) { m.Mode = "" },
			59: func(m *store.NewMail) { m.Kind = "" },
		}
		for i, change := range bad {
			change(ms[i])
		}
		res, err := s.EnqueueBatch(ctx, ms)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range res {
			if (r.Err != nil) != (bad[i] != nil) || r.ID != ms[i].ID {
				t.Errorf("answer %d: %+v", i, r)
			}
			_, err := s.Mail(ctx, store.Everything, ms[i].ID)
			if bad[i] != nil && !errors.Is(err, store.ErrNotFound) || bad[i] == nil && err != nil {
				t.Errorf("mail %d: %v", i, err)
			}
		}
	})
}

// TestSettledAgain: a result is written once. Handed over again under its token it is answered
// like the first time; nothing else is taken for it, and nothing is written.
func TestSettledAgain(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		at := time.Now().Add(-time.Second)
		for name, first := range map[string]store.Settlement{
			"retry":   {Kind: store.SettleRetry, Status: store.MailDeferred, RunAt: at, Attempts: 2},
			"park":    {Kind: store.SettlePark, Status: store.MailUnknown, Attempts: 2},
			"archive": {Kind: store.SettleArchive, Status: store.MailSent, Attempts: 2},
		} {
			m := newMail(name, func(m *store.NewMail) { m.Owner = r })
			enqueue(t, s, m)
			st := first
			st.ID, st.Owner, st.Claim, st.Progress = m.ID, r, store.BornClaim, &store.Progress{}
			for range 3 {
				if !settle(t, s, &st) {
					t.Fatalf("%s refused", name)
				}
			}
			for what, change := range map[string]func(*store.Settlement){
				"mark":    func(st *store.Settlement) { st.Kind = store.SettleMark },
				"results": func(st *store.Settlement) { st.Kind = store.SettleProgress },
				"mail":    func(st *store.Settlement) { st.ID = uuid.New() },
				"claim":   func(st *store.Settlement) { st.Claim++ },
			} {
				x := st
				if change(&x); settle(t, s, &x) {
					t.Errorf("%s: another %s is taken for the same write", name, what)
				}
			}
			if got, err := s.Mail(ctx, store.Everything, m.ID); err != nil || got.Status != first.Status || got.Attempts != 2 || got.Owner != 0 {
				t.Errorf("%s: %+v %v", name, got, err)
			}
		}
		// Claimed by somebody else since: not ours, whatever it says.
		other := register(t, s)
		cs, err := s.Claim(ctx, other, "retry", 1, store.AnyPriority)
		if err != nil || len(cs) != 1 {
			t.Fatal(cs, err)
		}
		for _, claim := range []int64{store.BornClaim, cs[0].Claim} {
			if settle(t, s, &store.Settlement{ID: cs[0].ID, Owner: r, Claim: claim, Kind: store.SettleRetry, Status: store.MailDeferred, RunAt: at, Attempts: 2}) {
				t.Error("another owner's mail is taken for one's own")
			}
		}
	})
}

// TestLateProgress: what a connection that was given up delivers behind the next transaction's
// mark leaves that mark alone. Were it cleared, a crash would send that part of a large mail a
// second time, without a flag.
func TestLateProgress(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		r := register(t, s)
		m := newMail("ss", func(m *store.NewMail) { m.Owner = r })
		enqueue(t, s, m)
		write := func(kind store.SettleKind, claim int64) *store.Settlement {
			return &store.Settlement{ID: m.ID, Owner: r, Claim: claim, Kind: kind, Progress: &store.Progress{}, LastError: fmt.Sprint("under ", claim)}
		}
		mark, progress := write(store.SettleMark, store.BornClaim), write(store.SettleProgress, store.BornClaim)
		nextMark, nextProgress := write(store.SettleMark, store.BornClaim+1), write(store.SettleProgress, store.BornClaim+1)
		for _, x := range []struct {
			what string
			st   *store.Settlement
			mine bool
		}{
			{"the first mark", mark, true},
			{"the first progress", progress, true},
			{"the first progress, repeated because its answer was lost", progress, true},
			{"the first mark, late", mark, false},
			{"the second mark", nextMark, true},
		} {
			if got := settle(t, s, x.st); got != x.mine {
				t.Fatalf("%s: got mine %v, want %v", x.what, got, x.mine)
			}
		}
		if settle(t, s, progress) {
			t.Error("the first progress is taken behind the second mark")
		}
		other := register(t, s)
		stranger := *nextProgress
		if stranger.Owner = other; settle(t, s, &stranger) {
			t.Error("another owner's progress is taken")
		}
		if err := s.Unregister(ctx, r); err != nil {
			t.Fatal(err)
		}
		_, adopted, err := s.Recover(ctx, other, 10)
		if err != nil || len(adopted) != 1 || !adopted[0].Marked {
			t.Fatalf("after the late progress got %+v %v, want one mail with its mark", adopted, err)
		}
		if settle(t, s, nextProgress) {
			t.Error("the progress of an owner that has lost the mail is taken")
		}
	})
}

// TestLateWrite: a write that is repeated when its owner has the mail once more does nothing to
// that later claim: its mark stands, and its result counts. So does one of a person, or of a
// rescue, in between.
func TestLateWrite(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		r := register(t, s)
		claim := func() *store.Claimed {
			t.Helper()
			cs, err := s.Claim(ctx, r, "ss", 10, store.AnyPriority)
			if err != nil || len(cs) != 1 {
				t.Fatal(cs, err)
			}
			return cs[0]
		}
		for _, late := range []store.Settlement{
			{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now().Add(-time.Second)},
			{Kind: store.SettlePark, Status: store.MailFailed, LastError: "550 no"},
			{Kind: store.SettleArchive, Status: store.MailSent},
			{Kind: store.SettleProgress, Status: store.MailPartiallySent},
			{Kind: store.SettleBegin, Crashes: 9},
			{Kind: store.SettleMark},
		} {
			m := newMail("ss")
			enqueue(t, s, m)
			one := claim()
			back := store.Settlement{ID: m.ID, Owner: r, Claim: one.Claim, Kind: store.SettleRetry, Status: store.MailQueued, RunAt: time.Now().Add(-time.Second)}
			if !settle(t, s, &back) {
				t.Fatal("not given back")
			}
			two := claim()
			if two.Claim <= one.Claim {
				t.Fatalf("claim %d after %d", two.Claim, one.Claim)
			}
			mark := &store.Settlement{ID: m.ID, Owner: r, Claim: two.Claim, Kind: store.SettleMark}
			if late.Kind != store.SettleMark && !settle(t, s, mark) {
				t.Fatal("mark refused")
			}
			late.ID, late.Owner, late.Claim, late.Progress = m.ID, r, one.Claim, &store.Progress{}
			if settle(t, s, &late) {
				t.Errorf("kind %s: a late write is taken for one of the claim that stands", late.Kind)
			}
			var row struct {
				Owner   int64
				Marked  bool
				Crashes int
			}
			for what, out := range map[string]any{"coalesce(owner, 0)": &row.Owner, "data_at is not null": &row.Marked, "crashes": &row.Crashes} {
				if err := s.Get(out, "select "+what+" from due where id = ?", m.ID); err != nil {
					t.Fatal(err)
				}
			}
			if row.Owner != int64(r) || row.Marked != (late.Kind != store.SettleMark) || row.Crashes != 0 {
				t.Errorf("kind %s: a late write changed the claim that stands: %+v", late.Kind, row)
			}
			if !settle(t, s, &store.Settlement{ID: m.ID, Owner: r, Claim: two.Claim, Kind: store.SettleArchive, Status: store.MailSent}) {
				t.Errorf("kind %s: the result is refused", late.Kind)
			}
		}
	})
}

// TestLostOwnershipIsTold: whoever lost a mail to a rescue, or to an orderly end, is never told
// that its result was written.
func TestLostOwnershipIsTold(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		for _, end := range []string{"rescued", "unregistered"} {
			r := register(t, s)
			m := newMail(end, func(m *store.NewMail) { m.Owner = r })
			enqueue(t, s, m)
			if end == "rescued" {
				if err := s.Renew(ctx, r, -time.Second); err != nil {
					t.Fatal(err)
				}
				if n, _, err := s.Recover(ctx, register(t, s), 10); err != nil || n != 1 {
					t.Fatal(n, err)
				}
			} else if err := s.Unregister(ctx, r); err != nil {
				t.Fatal(err)
			}
			for _, kind := range []store.SettleKind{store.SettleArchive, store.SettlePark, store.SettleRetry} {
				st := resultWith(m.ID, r, kind, "late")
				if settle(t, s, st) {
					t.Errorf("%s: kind %s is taken for written", end, kind)
				}
			}
		}
	})
}

// TestSharedContentOverDays: content used again on a later day is marked as used then, by
// whoever has not yet marked it, and every store reads the same bytes.
func TestSharedContentOverDays(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			var day atomic.Int64
			begin := time.Now().UTC().Truncate(24 * time.Hour).Add(12 * time.Hour)
			now := func() time.Time { return begin.AddDate(0, 0, int(day.Load())) }
			// 1.4 MB: three chunks
			shared := bytes.Repeat([]byte("a body for all of them\r\n"), 60_000)
			var want []byte
			mail := func() *store.NewMail {
				return newMail("ss", func(m *store.NewMail) {
					m.Raw = []store.Piece{{Data: []byte("Subject: x\r\n\r\n")}, {Shared: content(shared), Length: len(shared)}, {Data: []byte("between")},
						{Shared: content(shared[:9]), Length: 9}, {Data: []byte("\r\n")}}
					want = bytes.Join([][]byte{m.Raw[0].Data, shared, m.Raw[2].Data, shared[:9], m.Raw[4].Data}, nil)
				})
			}
			var ids []uuid.UUID
			for d := range 3 {
				day.Store(int64(d))
				s, err := store.Open(ctx, dsn, store.Options{Now: now})
				if err != nil {
					t.Fatal(err)
				}
				m := mail()
				enqueue(t, s, m, mail())
				ids = append(ids, m.ID)
				var n, touched, chunks int
				q := "select count(*) from content where touched = ?"
				// the database's, which on SQLite is that of the process
				today, err := s.Now(ctx)
				if err != nil {
					t.Fatal(err)
				}
				arg := any(today.Unix() / 86400)
				if s.Dialect() == "postgres" {
					arg = today.UTC().Format(time.DateOnly)
				}
				if err := errors.Join(s.Get(&n, "select count(*) from content"), s.Get(&touched, q, arg), s.Get(&chunks, "select count(*) from content_chunk")); err != nil || n != 2 || touched != 2 || chunks != 4 {
					t.Errorf("day %d: %d contents, %d touched, %d chunks, %v", d, n, touched, chunks, err)
				}
				for _, id := range ids {
					var b bytes.Buffer
					if k, err := s.RawMail(ctx, store.Everything, id, &b); err != nil || k != int64(b.Len()) || !bytes.Equal(b.Bytes(), want) {
						t.Errorf("day %d: %d bytes, want %d, %v", d, b.Len(), len(want), err)
					}
				}
				if d == 2 { // damage is never sent or shown as if it were the mail
					if err := s.Exec("delete from content_chunk where n = 1"); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			s := storetest.Open(t, dsn)
			if _, err := s.RawMail(ctx, store.Everything, ids[0], io.Discard); err == nil {
				t.Error("damaged content is read without an error")
			}
		})
	}
}

// TestFullSQLite: a database that cannot grow refuses new mail as full, loses nothing, and
// takes mail again when it can.
func TestFullSQLite(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.SQLiteDSN(t))
	kept := newMail("ss")
	enqueue(t, s, kept)
	var pages int
	if err := errors.Join(s.Get(&pages, "pragma page_count"), s.Exec(fmt.Sprintf("pragma max_page_count = %d", pages+4))); err != nil {
		t.Fatal(err)
	}
	big := newMail("ss", func(m *store.NewMail) { m.Raw = []store.Piece{{Data: make([]byte, 1<<20)}} })
	if res, err := s.Enqueue(ctx, big); !errors.Is(err, store.ErrFull) {
		t.Fatalf("%+v %v", res, err)
	}
	if _, err := s.Mail(ctx, store.Everything, big.ID); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("refused and stored: %v", err)
	}
	if _, err := s.Mail(ctx, store.Everything, kept.ID); err != nil {
		t.Errorf("the mail before: %v", err)
	}
	if err := s.Exec("pragma max_page_count = 1000000"); err != nil {
		t.Fatal(err)
	}
	enqueue(t, s, big)
}

// TestTrace: a mail keeps the trace of the call that brought it until it is sent, whoever sends
// it, and one that has none gets none.
func TestTrace(t *testing.T) {
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		traced, plain := newMail("ss", func(m *store.NewMail) { m.Trace = []byte("\x00\xff trace") }), newMail("ss")
		if _, err := s.EnqueueBatch(ctx, []*store.NewMail{traced, plain}); err != nil {
			t.Fatal(err)
		}
		got, err := s.Claim(ctx, register(t, s), "ss", 10, store.AnyPriority)
		if err != nil || len(got) != 2 {
			t.Fatal(len(got), err)
		}
		for _, c := range got {
			if want := map[uuid.UUID][]byte{traced.ID: traced.Trace}[c.ID]; !bytes.Equal(c.Trace, want) {
				t.Errorf("got trace %x, want %x", c.Trace, want)
			}
		}
		if c := traced.Claimed(false); !bytes.Equal(c.Trace, traced.Trace) {
			t.Errorf("born claimed: got trace %x", c.Trace)
		}
	})
}
