package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

func content(b []byte) *store.Content {
	return &store.Content{Sum: sha256.Sum256(b), Size: len(b), Data: b}
}

// TestRangesOfSharedContent: a body that is cut at variables is one copy for all, whatever
// stands between its runs.
func TestRangesOfSharedContent(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		body, pdf := content([]byte("Dear =\r\n, your parcel =\r\n is here.\r\n")), content(bytes.Repeat([]byte("pdf\r\n"), 1000))
		var ms []*store.NewMail
		want := map[uuid.UUID][]byte{}
		for i := range 3 {
			name, number := fmt.Appendf(nil, "Ada%d=\r\n", i), fmt.Appendf(nil, "%d=\r\n", 100*i)
			m := newMail("ss", func(m *store.NewMail) {
				m.Raw = []store.Piece{{Data: []byte("head\r\n\r\n")}, {Shared: body, Length: 8}, {Data: name}, {Shared: body, Offset: 8, Length: 16}, {Data: number},
					{Shared: body, Offset: 24, Length: 12}, {Shared: pdf, Length: pdf.Size}, {Shared: body, Length: 4}}
			})
			want[m.ID] = bytes.Join([][]byte{[]byte("head\r\n\r\n"), body.Data[:8], name, body.Data[8:24], number, body.Data[24:], pdf.Data, body.Data[:4]}, nil)
			ms = append(ms, m)
		}
		enqueue(t, s, ms...)
		cs, err := s.Claim(ctx, register(t, s), "ss", 10, store.AnyPriority)
		if err != nil || len(cs) != 3 {
			t.Fatal(len(cs), err)
		}
		for _, c := range cs {
			if raw, err := s.LoadRaw(ctx, c); err != nil || !bytes.Equal(raw, want[c.ID]) {
				t.Errorf("%q %v", raw, err)
			}
			var b bytes.Buffer
			if _, err := s.RawMail(ctx, store.Everything, c.ID, &b); err != nil || !bytes.Equal(b.Bytes(), want[c.ID]) {
				t.Errorf("%q %v", b.Bytes(), err)
			}
		}
		// A copy refers to the same content, and is whole although it brings no bytes.
		again, err := s.CopyMail(ctx, store.Everything, ms[1].ID)
		if err != nil {
			t.Fatal(err)
		}
		again.ID, again.CreateTime, again.RunAt, again.Route, again.Reason = uuid.Must(uuid.NewV7()), time.Now(), time.Now(), "named", "lost"
		enqueue(t, s, again)
		var b bytes.Buffer
		if _, err := s.RawMail(ctx, store.Everything, again.ID, &b); err != nil || !bytes.Equal(b.Bytes(), want[ms[1].ID]) {
			t.Errorf("%q %v", b.Bytes(), err)
		}
		if m, err := s.Mail(ctx, store.Everything, again.ID); err != nil || m.ResentFrom != ms[1].ID || m.ResendReason != "lost" {
			t.Errorf("%+v %v", m, err)
		}
		if _, err := s.CopyMail(ctx, store.Scope{Teams: []string{"other"}}, ms[1].ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a foreign team's copy: %v", err)
		}
		gone := newMail("ss", func(m *store.NewMail) {
			m.Raw = []store.Piece{{Data: []byte("head\r\n")}, {Shared: &store.Content{Sum: [32]byte{1}}, Length: 5}}
		})
		if _, err := s.Enqueue(ctx, gone); !errors.Is(err, store.ErrContentGone) {
			t.Errorf("content that is not there: %v", err)
		}
	})
}

func TestEnqueueAll(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		withID := func(id, sum string) *store.NewMail {
			return newMail("ss", func(m *store.NewMail) { m.Team, m.RequestID, m.Fingerprint, m.BatchID = "", id, []byte(sum), "b" })
		}
		before := withID("r1", "one")
		enqueue(t, s, before)
		count := func() int {
			c, err := s.CountBatch(ctx, store.Everything, "", "b")
			if err != nil {
				t.Fatal(err)
			}
			return c.Mails
		}
		var ms []*store.NewMail
		for i := range 1200 { // several statements
			ms = append(ms, withID(fmt.Sprint("n", i), "x"))
		}
		res, err := s.EnqueueAll(ctx, append(ms, withID("r1", "other")))
		if err != nil || !errors.Is(res[1200].Err, store.ErrRequestIDReused) || res[7].Err != nil || count() != 1 {
			t.Errorf("%v %v, %d are there", res[1200], err, count())
		}
		res, err = s.EnqueueAll(ctx, append(ms, withID("r1", "one"), withID("n3", "x")))
		if err != nil || !res[1200].Duplicate || res[1200].ID != before.ID || !res[1201].Duplicate || res[1201].ID != ms[3].ID || count() != 1201 {
			t.Errorf("%v %v %v, %d are there", res[1200], res[1201], err, count())
		}
		if res, err = s.EnqueueAll(ctx, ms); err != nil || res[0].Duplicate || count() != 1201 {
			t.Errorf("the same ids again: %v %v, %d are there", res[0], err, count())
		}
		if _, err = s.EnqueueAll(ctx, []*store.NewMail{newMail("ss"), newMail("ss", func(m *store.NewMail) { m.Kind = "nonsense" })}); err == nil {
			t.Error("a row that the database refuses")
		}
	})
}

// TestEnqueueAllIsBounded: a transaction of EnqueueAll that takes too long ends, writes
// nothing, and the same mails are taken later.
func TestEnqueueAllIsBounded(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	release, held := make(chan struct{}), make(chan error, 1)
	go func() { held <- s.Hold("lock table term in access exclusive mode", release) }()
	until(t, "term is locked", func() bool { return s.Locked("term") })
	s.AllTransaction(100 * time.Millisecond)
	ms := []*store.NewMail{newMail("ss"), newMail("ss")}
	if _, err := s.EnqueueAll(ctx, ms); !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, store.ErrUnwritten) {
		t.Errorf("got %v, want %v and %v", err, store.ErrUnavailable, store.ErrUnwritten)
	}
	close(release)
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	var n int
	if err := s.Get(&n, "select count(*) from mail"); err != nil || n > 0 {
		t.Errorf("got %d mails, %v, want none", n, err)
	}
	s.AllTransaction(time.Minute)
	if res, err := s.EnqueueAll(ctx, ms); err != nil || res[0].Err != nil || res[1].Err != nil {
		t.Errorf("the same again: got %v, %v", res, err)
	}
}

func TestCounts(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var ms []*store.NewMail
		for i := range 10 {
			ms = append(ms, newMail("ss", func(m *store.NewMail) {
				m.Team, m.BatchID, m.Priority = "red", "b", store.PriorityLow
				if i == 9 {
					m.RunAt = time.Now().Add(time.Hour)
				}
				if i == 8 {
					m.Held = "held"
				}
			}))
		}
		enqueue(t, s, append(ms, newMail("ss", func(m *store.NewMail) { m.BatchID = "b" }))...)
		r := register(t, s)
		cs, err := s.Claim(ctx, r, "ss", 6, store.AnyPriority)
		if err != nil {
			t.Fatal(err)
		}
		red := 0
		for _, c := range cs {
			if c.Team != "red" {
				continue
			}
			st := &store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1, PossibleDuplicate: red == 0}
			switch red++; red {
			case 3:
				st.Kind, st.Status = store.SettlePark, store.MailFailed
			case 4:
				st.Kind = store.SettleMark // its dot is on its way
			case 5, 6:
				continue // waits in its owner's memory
			}
			if a := <-s.Settle(st); a.Err != nil || !a.Mine {
				t.Fatal(a)
			}
		}
		c, err := s.CountBatch(ctx, store.Everything, "red", "b")
		if err != nil {
			t.Fatal(err)
		}
		sending := min(1, max(0, red-3))
		if c.Mails != 10 || c.ByStatus[store.MailSent] != 2 || c.ByStatus[store.MailFailed] != 1 || c.ByStatus[store.MailHeld] != 1 || c.ByStatus[store.MailSending] != sending ||
			c.ByStatus[store.MailQueued] != 10-4-sending || c.Waiting != 6 || c.Doubtful != 1 || c.First.IsZero() || c.Last.IsZero() {
			t.Errorf("%+v, %d red ones claimed", c, red)
		}
		for _, id := range []string{"", "x"} {
			if _, err := s.CountBatch(ctx, store.Everything, "red", id); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("batch %q: %v", id, err)
			}
		}
		if _, err := s.CountBatch(ctx, store.Scope{Teams: []string{"blue"}}, "red", "b"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a foreign team's batch: %v", err)
		}
		team := "red"
		q, err := s.CountQueue(ctx, store.Everything, &team, "ss")
		if err != nil {
			t.Fatal(err)
		}
		low := q.Lanes[store.PriorityLow]
		if q.ByStatus[store.MailSending] != sending || q.ByStatus[store.MailHeld] != 1 || q.Scheduled != 1 || low.Waiting != 5-sending || q.Sent != 2 || (low.Waiting > 0) == low.Oldest.IsZero() {
			t.Errorf("%+v", q)
		}
		if q, err = s.CountQueue(ctx, store.Scope{Teams: []string{"blue"}}, nil, ""); err != nil || len(q.ByStatus) != 0 || q.Sent != 0 {
			t.Errorf("what a foreign team sees: %+v %v", q, err)
		}
	})
}

func TestUploads(t *testing.T) {
	t.Parallel()
	clock := time.Now()
	var mu sync.Mutex
	now := func() time.Time { mu.Lock(); defer mu.Unlock(); return clock }
	later := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); clock = clock.Add(d) }
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			s, err := store.Open(context.Background(), dsn, store.Options{Now: now})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			put := func(team, request string, b []byte) (*store.Upload, bool, error) {
				sum := sha256.Sum256(b)
				u := &store.Upload{ID: uuid.Must(uuid.NewV7()), Team: team, Filename: "a.pdf", ContentType: "application/pdf", SHA256: sum[:], SizeBytes: int64(len(b)),
					Content: store.Content{Sum: sum, Size: len(b)}, RequestID: request}
				return s.PutUpload(ctx, u, bytes.NewReader(b))
			}
			used, unused := bytes.Repeat([]byte("used\r\n"), 200_000), []byte("unused\r\n")
			u, dup, err := put("red", "r1", used)
			if err != nil || dup || u.ExpireTime.Before(now().Add(6*24*time.Hour)) {
				t.Fatal(u, dup, err)
			}
			if again, dup, err := put("red", "r1", used); err != nil || !dup || again.ID != u.ID {
				t.Errorf("the same request again: %v %v %v", again, dup, err)
			}
			if _, _, err := put("red", "r1", unused); !errors.Is(err, store.ErrRequestIDReused) {
				t.Errorf("the same request with another file: %v", err)
			}
			lone, _, err := put("blue", "", unused)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Upload(ctx, "blue", u.ID); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a foreign team's upload: %v", err)
			}
			later(2 * time.Hour)
			got, err := s.Upload(ctx, "red", u.ID)
			if err != nil || got.Content.Sum != u.Content.Sum || !got.ExpireTime.After(u.ExpireTime) || got.Filename != "a.pdf" {
				t.Fatalf("%+v %v", got, err)
			}
			m := newMail("ss", func(m *store.NewMail) {
				m.Raw = []store.Piece{{Data: []byte("head\r\n\r\n")}, {Shared: &got.Content, Length: got.Content.Size}}
			})
			enqueue(t, s, m)
			later(7*24*time.Hour + time.Minute)
			if us, cs, err := s.ForgetUploads(ctx); err != nil || us != 2 || cs != 1 {
				t.Errorf("forgot %d uploads and %d contents: %v", us, cs, err)
			}
			for team, id := range map[string]uuid.UUID{"red": u.ID, "blue": lone.ID} {
				if _, err := s.Upload(ctx, team, id); !errors.Is(err, store.ErrNotFound) {
					t.Errorf("an expired upload of %s: %v", team, err)
				}
			}
			if n, err := s.RawMail(ctx, store.Everything, m.ID, io.Discard); err != nil || n != m.SizeBytes {
				t.Errorf("the mail that uses it: %d bytes, %v", n, err)
			}
			fresh, _, err := put("blue", "", unused) // what was removed comes again
			if err != nil {
				t.Fatal(err)
			}
			if _, cs, err := s.ForgetUploads(ctx); err != nil || cs != 0 {
				t.Errorf("forgot %d contents that an upload needs: %v", cs, err)
			}
			if _, err := s.Upload(ctx, "blue", fresh.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUploadAskedForAgain: an upload that has expired and is asked for again by its request_id
// lives again, so that the id in the answer is found.
func TestUploadAskedForAgain(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			clock := time.Now()
			s, err := store.Open(ctx, dsn, store.Options{Now: func() time.Time { return clock }})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			put := func() (*store.Upload, bool) {
				b := []byte("file\r\n")
				sum := sha256.Sum256(b)
				u := &store.Upload{ID: uuid.Must(uuid.NewV7()), Team: "red", Filename: "a.pdf", ContentType: "application/pdf", SHA256: sum[:], SizeBytes: int64(len(b)),
					Content: store.Content{Sum: sum, Size: len(b)}, RequestID: "r1"}
				got, duplicate, err := s.PutUpload(ctx, u, bytes.NewReader(b))
				if err != nil {
					t.Fatal(err)
				}
				return got, duplicate
			}
			first, _ := put()
			clock = first.ExpireTime.Add(time.Minute)
			again, duplicate := put()
			if again.ID != first.ID || !duplicate || !again.ExpireTime.After(clock.Add(6*24*time.Hour)) {
				t.Errorf("after it expired: got %+v (duplicate %v), want the first one, renewed", again, duplicate)
			}
			if uploads, _, err := s.ForgetUploads(ctx); err != nil || uploads != 0 {
				t.Errorf("forgot %d uploads, %v", uploads, err)
			}
			if got, err := s.Upload(ctx, "red", again.ID); err != nil || got.Content.Sum != again.Content.Sum {
				t.Errorf("the id of the answer: got %v", err)
			}
			clock = clock.Add(8 * 24 * time.Hour)
			if uploads, _, err := s.ForgetUploads(ctx); err != nil || uploads != 1 {
				t.Errorf("forgot %d uploads, %v, want 1", uploads, err)
			}
			if got, duplicate := put(); duplicate || got.ID == first.ID {
				t.Errorf("after it was forgotten: got the first one")
			}
		})
	}
}

// TestServerChanged: a mail that was routed by what a mail server was before is not stored, but
// the repetition of one that was is told so.
func TestServerChanged(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		routed := func(version int64, id string) *store.NewMail {
			return newMail("ss", func(m *store.NewMail) { m.ServerVersion, m.RequestID, m.Fingerprint = version, id, []byte("x") })
		}
		first := routed(1, "r1")
		enqueue(t, s, first)
		if _, err := s.UpdateServer(ctx, store.Everything, "ss", 0, store.Audit{}, func(m *store.MailServer) error { m.Status = store.ServerUnavailable; return nil }); err != nil {
			t.Fatal(err)
		}
		late, lone := routed(1, "r2"), routed(1, "")
		res, err := s.EnqueueBatch(ctx, []*store.NewMail{late, routed(1, "r1"), lone, routed(2, "r3"), routed(0, "r4")})
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(res[0].Err, store.ErrServerChanged) || !errors.Is(res[2].Err, store.ErrServerChanged) || !res[1].Duplicate || res[1].ID != first.ID || res[3].Err != nil || res[4].Err != nil {
			t.Errorf("%+v", res)
		}
		for _, m := range []*store.NewMail{late, lone} {
			if _, err := s.Mail(ctx, store.Everything, m.ID); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%v", err)
			}
		}
		if again, err := s.Enqueue(ctx, first); err != nil || again.Duplicate || again.Err != nil {
			t.Errorf("the same id again: %+v %v", again, err)
		}
	})
}
