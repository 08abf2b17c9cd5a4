package store_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// breakPage overwrites a page of the due-out journal while the server is down, and returns
// which mails were on it.
func breakPage(t *testing.T, c *storetest.Cluster, page int) (lost []uuid.UUID) {
	t.Helper()
	s, err := store.Open(ctx, c.DSN(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	if err := s.Select(&lost, fmt.Sprintf("select id from due where (ctid::text::point)[0] = %d", page)); err != nil || len(lost) == 0 {
		t.Fatalf("on the page: %v, %v", lost, err)
	}
	if err := s.Select(&paths, "select pg_relation_filepath('due')"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(c.Dir, paths[0]), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, 8192), int64(page)*8192); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return lost
}

// TestDamagedPageOfDue: a page of the due-out journal that PostgreSQL cannot read keeps what is
// on it. Everything else leaves: what was due, what a dead replica had, what is accepted later.
func TestDamagedPageOfDue(t *testing.T) {
	c := cluster(t)
	s, err := store.Open(ctx, c.DSN(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
		t.Fatal(err)
	}
	dead := register(t, s)
	var all []*store.NewMail
	for i := range 300 {
		all = append(all, newMail("ss", func(m *store.NewMail) {
			m.Team = []string{"a", "b", "c"}[i%3]
			if i%10 == 0 {
				m.Owner = dead
			}
		}))
	}
	enqueue(t, s, all...)
	// Every page is half empty, and the free space map says so.
	for _, q := range []string{"delete from due where id in (select id from due where owner is null and right(id::text, 1) < '8')", "vacuum due"} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	var there []uuid.UUID
	if err := s.Select(&there, "select id from due"); err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(m *store.NewMail) bool { return !slices.Contains(there, m.ID) })
	bury(t, s, dead)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	lost := breakPage(t, c, 2)

	s = storetest.Open(t, c.DSN())
	me := register(t, s)
	if names, err := s.DueServers(ctx); err != nil || !slices.Equal(names, []string{"ss"}) {
		t.Errorf("mail is due at %v, %v", names, err)
	}
	if _, _, err := s.Recover(ctx, me, 100); err != nil {
		t.Errorf("what a dead replica had: %v", err)
	}
	left := map[uuid.UUID]bool{}
	leave := func() {
		for range 20 {
			cs, err := s.Claim(ctx, me, "ss", 100, store.AnyPriority)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range cs {
				if left[m.ID] {
					t.Errorf("%s is claimed twice", m.ID)
				}
				left[m.ID] = true
				if !settle(t, s, &store.Settlement{ID: m.ID, Owner: me, Claim: m.Claim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1}) {
					t.Errorf("%s is not its owner's", m.ID)
				}
			}
			if len(cs) == 0 {
				return
			}
		}
	}
	leave()
	for _, m := range all {
		if on := slices.Contains(lost, m.ID); left[m.ID] == on {
			t.Errorf("%s: on the page %v, left %v", m.ID, on, left[m.ID])
		}
	}
	if owned, err := s.Owned(ctx, me); err != nil || len(owned) > 0 {
		t.Errorf("afterwards it has %v, %v", owned, err)
	}
	var later []*store.NewMail
	for range 100 {
		later = append(later, newMail("ss"))
	}
	enqueue(t, s, later...)
	leave()
	for _, m := range later {
		if !left[m.ID] {
			t.Errorf("%s, accepted later, does not leave", m.ID)
		}
	}
	if n, pages := s.DamagedMails(), s.DamagedPages(); n != 0 || pages != 1 {
		t.Errorf("%d mails and %d pages are known to be damaged, want the page", n, pages)
	}
	if err := s.Unregister(ctx, me); err != nil {
		t.Errorf("its end: %v", err)
	}
	fill := func() string {
		var options []string
		if err := s.Select(&options, "select array_to_string(reloptions, ' ') from pg_class where oid = 'due'::regclass"); err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile("fillfactor=[0-9]+").FindString(options[0])
	}
	if f := fill(); f != "fillfactor=10" {
		t.Errorf("new rows go to pages with room: %s", f)
	}
	in, err := store.OpenInspector(ctx, c.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	found, err := in.Inspect(ctx, store.InspectOptions{Messages: -1, ContentBytes: -1, Late: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range found.Invariants {
		if i.Name == "I9" && (len(i.Breaches) == 0 || i.Breaches[0].Subject != "page 2 of due") {
			t.Errorf("the doctor: %v", i.Breaches)
		}
	}
	if err := s.ForgetDamageNotes(ctx); err != nil || fill() != "fillfactor=40" {
		t.Errorf("nobody meets it any more: %s, %v", fill(), err)
	}
}

// TestFaultOfTheServerIsNoDamagedPage: where the server fails at everything, no page is to
// blame.
func TestFaultOfTheServerIsNoDamagedPage(t *testing.T) {
	s := storetest.Open(t, storetest.PostgresDSN(t))
	enqueue(t, s, newMail("ss"), newMail("ss"))
	for _, q := range []string{
		"alter table due rename to was_due",
		`create function ill() returns setof was_due language plpgsql as $$ begin raise exception 'no space in shared memory' using errcode = 'XX000'; end $$`,
		"create view due as select '(0,0)'::tid as ctid, * from ill()",
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := s.DueServers(ctx); err == nil {
		t.Errorf("got %v, want the fault", names)
	}
	if n := s.DamagedPages(); n != 0 {
		t.Errorf("%d pages are gone round", n)
	}
}

// TestNotedPagesAreForgotten: what is noted of a page goes once nobody has met it for long.
func TestNotedPagesAreForgotten(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		if err := store.NoteDamagedPage(ctx, s, 7); err != nil {
			t.Fatal(err)
		}
		noted := func() (n int) {
			if err := s.Get(&n, "select count(*) from damaged_page"); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := noted(); n != 1 {
			t.Fatalf("%d pages are noted, want 1", n)
		}
		if err := s.ForgetDamageNotes(ctx); err != nil || noted() != 0 {
			t.Errorf("%d pages are noted after they were forgotten: %v", noted(), err)
		}
	})
}

// TestReadByPlace: a journal that is read page by page says the same as by its indexes.
func TestReadByPlace(t *testing.T) {
	t.Parallel()
	s := storetest.Open(t, storetest.PostgresDSN(t))
	if _, _, err := s.CreateServer(ctx, newServer("ss", ""), store.Audit{}); err != nil {
		t.Fatal(err)
	}
	enqueue(t, s, newMail("ss"), newMail("ss"), newMail("ss"))
	r := register(t, s)
	cs, err := s.Claim(ctx, r, "ss", 1, store.AnyPriority)
	if err != nil || len(cs) != 1 {
		t.Fatal(len(cs), err)
	}
	servers, owned, err := store.PagesOfDue(ctx, s, r)
	if err != nil || len(servers) != 1 || servers[0] != "ss" || len(owned) != 1 || owned[0].ID != cs[0].ID || owned[0].Claim != cs[0].Claim {
		t.Errorf("got servers %q and owned %+v, %v; want ss and the one mail that was claimed", servers, owned, err)
	}
}
