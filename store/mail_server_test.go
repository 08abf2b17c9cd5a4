package store_test

import (
	"bytes"
	"errors"
	"reflect"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

func newServer(name, team string) *store.MailServer {
	return &store.MailServer{Name: name, Team: team, Type: store.TypeSMTP, From: "a@x.example", Mode: store.ModeDaemon, Status: store.ServerAvailable,
		SMTP: &store.SMTP{Host: "mx.example", Port: 587, Encryption: "starttls", Username: "u", SealedPassword: []byte{1, 0, 2}}, Annotations: map[string]string{"k": "v"}}
}

func TestServers(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		a := store.Audit{Actor: "me", Action: "test"}
		m := newServer("one", "sales")
		m.RequestID, m.Fingerprint, m.IsDefault = "r1", []byte{9}, true
		got, dup, err := s.CreateServer(ctx, m, a)
		if err != nil || dup || got.Version != 1 || got.SMTP.Host != "mx.example" || !bytes.Equal(got.SMTP.SealedPassword, []byte{1, 0, 2}) || got.Annotations["k"] != "v" || got.CreateTime.IsZero() {
			t.Fatalf("create: %+v %v %v", got, dup, err)
		}
		if _, dup, err = s.CreateServer(ctx, m, a); err != nil || !dup {
			t.Fatalf("same request_id: %v %v", dup, err)
		}
		m2 := *m
		m2.Fingerprint = []byte{8}
		if _, _, err = s.CreateServer(ctx, &m2, a); !errors.Is(err, store.ErrRequestIDReused) {
			t.Fatalf("reused request_id: %v", err)
		}
		if _, _, err = s.CreateServer(ctx, newServer("one", "other"), a); !errors.Is(err, store.ErrExists) {
			t.Fatalf("taken name: %v", err)
		}
		two := newServer("two", "sales")
		two.IsDefault = true
		var de *store.DefaultExistsError
		if _, _, err = s.CreateServer(ctx, two, a); !errors.As(err, &de) || de.Current != "one" {
			t.Fatalf("second default: %v", err)
		}
		two.IsDefault = false
		if _, _, err = s.CreateServer(ctx, two, a); err != nil {
			t.Fatal(err)
		}
		if _, err = s.UpdateServer(ctx, store.Everything, "two", 0, a, func(m *store.MailServer) error { m.IsDefault = true; return nil }); !errors.As(err, &de) || de.Current != "one" {
			t.Fatalf("update to second default: %v", err)
		}
		now, prev, err := s.SetDefault(ctx, store.Everything, "two", a)
		if err != nil || now.Name != "two" || !now.IsDefault || prev == nil || prev.Name != "one" || prev.IsDefault {
			t.Fatalf("swap: %+v %+v %v", now, prev, err)
		}
		if d, err := s.DefaultServer(ctx, "sales"); err != nil || d.Name != "two" {
			t.Fatalf("default: %+v %v", d, err)
		}
		if _, err := s.DefaultServer(ctx, ""); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("system default: %v", err)
		}
		if _, err := s.UpdateServer(ctx, store.Everything, "one", 99, a, func(*store.MailServer) error { return nil }); !errors.Is(err, store.ErrVersion) {
			t.Fatalf("old version: %v", err)
		}
		boom := errors.New("boom")
		if _, err := s.UpdateServer(ctx, store.Everything, "one", 0, a, func(m *store.MailServer) error { m.DisplayName = "x"; return boom }); !errors.Is(err, boom) {
			t.Fatalf("change's error: %v", err)
		}
		if m, _ := s.Server(ctx, store.Everything, "one"); m.DisplayName != "" {
			t.Fatal("a refused change was written")
		}
		if _, err := s.Server(ctx, store.Scope{Teams: []string{"other"}}, "one"); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("foreign team: %v", err)
		}
		list, err := s.Servers(ctx, store.Scope{Teams: []string{"sales"}}, store.ServerFilter{}, "one", 10)
		if err != nil || len(list) != 1 || list[0].Name != "two" {
			t.Fatalf("list: %v %v", list, err)
		}
		enqueue(t, s, newMail("one"), newMail("one"))
		var pe *store.PendingError
		if _, _, err := s.DeleteServer(ctx, store.Everything, "one", 0, false, a); !errors.As(err, &pe) || pe.Count != 2 {
			t.Fatalf("delete with mail: %v", err)
		}
		del, held, err := s.DeleteServer(ctx, store.Everything, "one", 0, true, a)
		if err != nil || held.Held != 2 || del.DeleteTime == nil {
			t.Fatalf("forced delete: %v %+v %v", del, held, err)
		}
		ms, err := s.ListDue(ctx, store.Everything, store.MailFilter{MailServer: "one"}, store.Cursor{}, 10)
		if err != nil || len(ms) != 2 || ms[0].Status != store.MailHeld || ms[0].DueTime != nil {
			t.Fatalf("held: %+v %v", ms, err)
		}
		if _, _, err := s.DeleteServer(ctx, store.Everything, "one", 0, true, a); !errors.Is(err, store.ErrDeleted) {
			t.Fatalf("twice deleted: %v", err)
		}
		if list, _ = s.Servers(ctx, store.Everything, store.ServerFilter{}, "", 10); len(list) != 1 {
			t.Fatalf("deleted ones are listed: %v", list)
		}
		if _, err := s.UndeleteServer(ctx, store.Everything, "one", a); err != nil {
			t.Fatal(err)
		}
		if _, err := s.UndeleteServer(ctx, store.Everything, "one", a); !errors.Is(err, store.ErrNotDeleted) {
			t.Fatalf("twice undeleted: %v", err)
		}
	})
}

func TestDefaultSwapRace(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		for _, n := range []string{"aa", "bb"} {
			if _, _, err := s.CreateServer(ctx, newServer(n, ""), store.Audit{}); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for _, n := range []string{"aa", "bb"} {
			wg.Go(func() {
				for range 50 {
					if _, _, err := s.SetDefault(ctx, store.Everything, n, store.Audit{}); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		list, err := s.Servers(ctx, store.Everything, store.ServerFilter{}, "", 10)
		if err != nil || len(list) != 2 || list[0].IsDefault == list[1].IsDefault {
			t.Fatalf("not exactly one default: %v %v", list, err)
		}
	})
}

func TestRequestIDRace(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var wg sync.WaitGroup
		ids := make([]uuid.UUID, 50)
		firsts := make([]bool, 50)
		for i := range 50 {
			wg.Go(func() {
				m := newMail("ss", func(m *store.NewMail) { m.RequestID, m.Fingerprint = "same", []byte{1} })
				r, err := s.Enqueue(ctx, m)
				if err != nil || r.Err != nil {
					t.Error(err, r.Err)
				}
				ids[i], firsts[i] = r.ID, !r.Duplicate
			})
		}
		wg.Wait()
		n := 0
		for i := range ids {
			if ids[i] != ids[0] {
				t.Fatalf("two mails for one request_id: %v %v", ids[0], ids[i])
			}
			if firsts[i] {
				n++
			}
		}
		if n != 1 {
			t.Fatalf("%d callers were told they were first", n)
		}
		r, err := s.Enqueue(ctx, newMail("ss", func(m *store.NewMail) { m.RequestID, m.Fingerprint = "same", []byte{2} }))
		if err != nil || !errors.Is(r.Err, store.ErrRequestIDReused) {
			t.Fatalf("other content: %+v %v", r, err)
		}
		r, err = s.Enqueue(ctx, newMail("ss", func(m *store.NewMail) { m.RequestID, m.Fingerprint, m.Team = "same", []byte{2}, "other" }))
		if err != nil || r.Err != nil || r.Duplicate {
			t.Fatalf("other team: %+v %v", r, err)
		}
	})
}

// TestServerKeepsItsKey: how mail is signed is stored with its mail server, and taken away with
// one write.
func TestServerKeepsItsKey(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		key := &store.DKIM{Domain: "x.example", Selector: "s1", PublicKey: "QUJD", SealedKey: []byte{1, 0, 0xff}}
		m := newServer("signs", "")
		m.DKIM = key
		for _, name := range []string{"signs", "does-not"} {
			m.Name = name
			if _, _, err := s.CreateServer(ctx, m, store.Audit{}); err != nil {
				t.Fatal(err)
			}
			m.DKIM = nil
		}
		is := func(name string, want *store.DKIM) {
			t.Helper()
			got, err := s.Server(ctx, store.Everything, name)
			if err != nil || !reflect.DeepEqual(got.DKIM, want) {
				t.Errorf("%s: got %+v, %v, want %+v", name, got.DKIM, err, want)
			}
		}
		is("signs", key)
		is("does-not", nil)
		update := func(change func(*store.MailServer)) {
			t.Helper()
			if _, err := s.UpdateServer(ctx, store.Everything, "signs", 0, store.Audit{}, func(m *store.MailServer) error { change(m); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		update(func(m *store.MailServer) { m.DisplayName = "other" })
		is("signs", key)
		update(func(m *store.MailServer) { m.DKIM = nil })
		is("signs", nil)
	})
}
