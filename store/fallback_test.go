package store_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestFallbackIsChecked: a fallback is another living mail server of the same team or of the
// system that has none itself, whichever of the two is saved first.
func TestFallbackIsChecked(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		named := func(name, team, fallback string) *store.MailServer {
			m := newServer(name, team)
			m.Fallback = fallback
			return m
		}
		for _, m := range []*store.MailServer{newServer("spare", ""), newServer("gone", "red"), newServer("blue", "blue"), named("red", "red", "spare")} {
			if _, _, err := s.CreateServer(ctx, m, store.Audit{}); err != nil {
				t.Fatalf("create %s: %v", m.Name, err)
			}
		}
		if _, _, err := s.DeleteServer(ctx, store.Everything, "gone", 0, false, store.Audit{}); err != nil {
			t.Fatal(err)
		}
		update := func(name, fallback string) error {
			_, err := s.UpdateServer(ctx, store.Everything, name, 0, store.Audit{}, func(m *store.MailServer) error { m.Fallback = fallback; return nil })
			return err
		}
		create := func(m *store.MailServer) error { _, _, err := s.CreateServer(ctx, m, store.Audit{}); return err }
		for name, c := range map[string]struct {
			save func() error
			want string
		}{
			"itself":                {func() error { return update("blue", "blue") }, "itself"},
			"unknown":               {func() error { return create(named("new", "red", "nobody")) }, `no mail server "nobody"`},
			"another team's":        {func() error { return update("red", "blue") }, `no mail server "blue"`},
			"the system's to team":  {func() error { return update("spare", "red") }, `no mail server "red"`},
			"deleted":               {func() error { return update("red", "gone") }, "is deleted"},
			"has a fallback itself": {func() error { return create(named("new", "red", "red")) }, `has the fallback "spare"`},
			"is a fallback": {func() error {
				_ = create(newServer("third", ""))
				return update("spare", "third")
			}, "itself the fallback"},
		} {
			err := c.save()
			var refused *store.FallbackError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, want it refused with %q", name, err, c.want)
			}
		}
		if err := s.CheckFallback(ctx, named("new", "red", "red")); err == nil {
			t.Error("CheckFallback lets a chain through")
		}
		m, err := s.Server(ctx, store.Everything, "red")
		if err != nil || m.Fallback != "spare" || m.Version != 1 {
			t.Errorf("got %+v, %v, want it as it was saved first", m, err)
		}
		if err := update("red", ""); err != nil {
			t.Errorf("clear: %v", err)
		}
	})
}

// TestFallbackIsDeleted: a mail server that is the fallback of others is deleted only by force,
// and they have none then, as a change of theirs.
func TestFallbackIsDeleted(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		first := newServer("main", "red")
		first.Fallback = "spare"
		for _, m := range []*store.MailServer{newServer("spare", ""), first} {
			if _, _, err := s.CreateServer(ctx, m, store.Audit{}); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := s.DeleteServer(ctx, store.Everything, "spare", 0, false, store.Audit{})
		var used *store.InUseError
		if !errors.As(err, &used) || used.Count != 1 {
			t.Fatalf("got %v, want it refused: it is the fallback of one", err)
		}
		if _, _, err := s.DeleteServer(ctx, store.Everything, "spare", 0, true, store.Audit{Action: "DeleteMailServer"}); err != nil {
			t.Fatal(err)
		}
		if m, err := s.Server(ctx, store.Everything, "main"); err != nil || m.Fallback != "" || m.Version != 2 {
			t.Errorf("got %+v, %v, want it without a fallback, as version 2", m, err)
		}
	})
}

// TestFallbackOfEachOther: of two changes at once that would make each mail server the fallback
// of the other, one is refused.
func TestFallbackOfEachOther(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		for _, name := range []string{"aa", "bb"} {
			if _, _, err := s.CreateServer(ctx, newServer(name, ""), store.Audit{}); err != nil {
				t.Fatal(err)
			}
		}
		var errs [2]error
		var both sync.WaitGroup
		for i, to := range [][2]string{{"aa", "bb"}, {"bb", "aa"}} {
			both.Go(func() {
				_, errs[i] = s.UpdateServer(ctx, store.Everything, to[0], 0, store.Audit{}, func(m *store.MailServer) error { m.Fallback = to[1]; return nil })
			})
		}
		both.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Errorf("got %v and %v, want exactly one of them refused", errs[0], errs[1])
		}
	})
}
