package store_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// auditBreaches is what an inspection of dsn says of the audit log.
func auditBreaches(t *testing.T, dsn string, known store.AuditHead) (breaches []string, head store.AuditHead) {
	t.Helper()
	in, err := store.OpenInspector(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r, err := in.Inspect(ctx, store.InspectOptions{AuditHead: known})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range r.Invariants {
		for _, b := range i.Breaches {
			breaches = append(breaches, i.Name+" "+b.Subject+" "+b.Problem)
		}
	}
	return breaches, r.AuditHead
}

// record writes n rows, named by their reasons.
func record(t *testing.T, s *store.Store, n int, team string) {
	t.Helper()
	for i := range n {
		if err := s.Record(ctx, store.Audit{Actor: "me", Action: "Try", Reason: fmt.Sprint("r", i)}, team, "target", nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAuditChain: rows written at the same time, by two processes and with any text, are one
// chain without a gap, whose head the service and an inspection tell alike.
func TestAuditChain(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := storetest.Open(t, dsn)
			if head, err := s.AuditHead(ctx); err != nil || head.Seq != 0 {
				t.Fatalf("got %v %v, want an empty chain", head, err)
			}
			writers := []*store.Store{s}
			if name == "postgres" {
				writers = append(writers, storetest.Open(t, dsn))
			}
			var g sync.WaitGroup
			for i := range 8 {
				g.Go(func() {
					for k := range 5 {
						a := store.Audit{Actor: `a","b`, Action: "Try", Reason: fmt.Sprintf("%d/%d é \u2028 <&>", i, k)}
						if err := writers[i%len(writers)].Record(ctx, a, "team", "target", nil); err != nil {
							t.Error(err)
						}
					}
				})
			}
			g.Wait()
			m := &store.MailServer{Name: "audited", Type: store.TypeLocalhost, From: "a@x.example", Mode: store.ModeDaemon, Status: store.ServerAvailable}
			if _, _, err := s.CreateServer(ctx, m, store.Audit{Actor: "me", Action: "CreateMailServer"}); err != nil {
				t.Fatal(err)
			}
			head, err := s.AuditHead(ctx)
			if err != nil || head.Seq != 41 {
				t.Fatalf("got %v %v, want 41 rows", head, err)
			}
			again, err := store.ParseAuditHead(head.String())
			if err != nil || again.String() != head.String() {
				t.Fatalf("%q is read as %v %v", head, again, err)
			}
			if breaches, seen := auditBreaches(t, dsn, head); len(breaches) > 0 || seen.String() != head.String() {
				t.Errorf("got %q, head %v, want none and %v", breaches, seen, head)
			}
		})
	}
}

// TestAuditWaitsForNobody: a process that is frozen while it links rows holds up nobody's
// change. What could not be linked then is linked afterwards.
func TestAuditWaitsForNobody(t *testing.T) {
	s := storetest.Open(t, storetest.PostgresDSN(t))
	release, err := s.HoldAuditLock(ctx)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	record(t, s, 2, "")
	if took := time.Since(at); took > 5*time.Second { // an idle transaction ends after 10 s
		t.Errorf("a change waited %v", took)
	}
	var linked int
	if err := s.Get(&linked, "select count(*) from audit where seq is not null"); err != nil || linked != 0 {
		t.Errorf("got %d linked rows (%v): the lock was not held", linked, err)
	}
	release()
	if head, err := s.AuditHead(ctx); err != nil || head.Seq != 2 {
		t.Errorf("got %v (%v), want 2 rows", head, err)
	}
}

// TestAuditIsKept: no row can be changed or taken out by who only has the tables' rights, also
// not by the statement that links rows.
func TestAuditIsKept(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		record(t, s, 2, "")
		for _, q := range []string{
			"update audit set reason = 'x'", "update audit set hash = null", "update audit set seq = 9 where seq = 2", "delete from audit where seq = 2", "delete from audit",
		} {
			if err := s.Exec(q); err == nil || !strings.Contains(err.Error(), "append-only") {
				t.Errorf("%s: got %v, want a refusal", q, err)
			}
		}
	})
}

// TestAuditForgery: who owns the tables can switch the triggers off. The chain shows what was
// done, and a head that is kept elsewhere shows also what the chain cannot.
func TestAuditForgery(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name, does string
		known      bool // whether a head from the log is given
		want       string
	}{
		{"a row says something else", "update audit set reason = 'r9' where seq = 3", false, "row 3 of the audit log was changed"},
		{"another time", "update audit set time = (select time from audit where seq = 1) where seq = 3", false, "row 3 of the audit log was changed"},
		{"another detail", "update audit set detail = '{}' where seq = 2", false, "row 2 of the audit log was changed"},
		{"a row is gone", "delete from audit where seq = 3", false, "row 4 of the audit log follows row 2"},
		{"the first row is gone", "delete from audit where seq = 1", false, "row 2 of the audit log follows row 0"},
		{"the last row is gone", "delete from audit where seq = 5", true, "row 5 of the audit log is missing"},
		{"all rows are gone", "delete from audit", true, "row 5 of the audit log is missing"},
		{"a hash of its own", "update audit set hash = (select hash from audit where seq = 1) where seq = 5", true, "row 5 of the audit log is not the one that the log remembers"},
	}
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := storetest.Open(t, dsn)
			record(t, s, 5, "")
			head, err := s.AuditHead(ctx)
			if err != nil {
				t.Fatal(err)
			}
			off, back := []string{"drop trigger audit_kept", "drop trigger audit_kept_whole"}, "insert into audit select * from kept"
			if name == "postgres" {
				off, back = []string{"alter table audit disable trigger all"}, "insert into audit overriding system value select * from kept"
			}
			exec := func(queries ...string) {
				t.Helper()
				for _, q := range queries {
					if err := s.Exec(q); err != nil {
						t.Fatal(err)
					}
				}
			}
			exec(append(off, "create table kept as select * from audit")...)
			for _, c := range cases {
				exec(c.does)
				var known store.AuditHead
				if c.known {
					known = head
				}
				breaches, _ := auditBreaches(t, dsn, known)
				if !strings.Contains(strings.Join(breaches, "\n"), c.want) {
					t.Errorf("%s: got %q, want %q", c.name, breaches, c.want)
				}
				exec("delete from audit", back)
				if breaches, _ := auditBreaches(t, dsn, head); len(breaches) > 0 {
					t.Fatalf("%s: set back, got %q", c.name, breaches)
				}
			}
		})
	}
}

// TestAuditOfAnOlderVersion: what an older version wrote beside this one is linked by the next
// row, or by the next look at the head, also when it is more than one transaction links.
func TestAuditOfAnOlderVersion(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := storetest.Open(t, dsn)
			now := "now()"
			if name == "sqlite" {
				now = "1700000000000000"
			}
			old := "insert into audit (time, actor, action, team, target, reason) values (" + now + ", '', 'Old', '', '', '')"
			for _, q := range []string{old, old} {
				if err := s.Exec(q); err != nil {
					t.Fatal(err)
				}
			}
			record(t, s, 1, "")
			var linked int
			if err := s.Get(&linked, "select count(*) from audit where seq is not null"); err != nil || linked != 3 {
				t.Fatalf("got %d linked rows (%v), want 3", linked, err)
			}
			many := strings.Replace(old, "values (", "select ", 1)
			many = many[:len(many)-1] + " from (select 1 as n from audit) x"
			for range 9 {
				if err := s.Exec(many); err != nil {
					t.Fatal(err)
				}
			}
			head, err := s.AuditHead(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var rows int64
			if err := s.Get(&rows, "select count(*) from audit"); err != nil || head.Seq != rows || rows != 3<<9 {
				t.Errorf("got %d linked of %d rows (%v)", head.Seq, rows, err)
			}
			if breaches, _ := auditBreaches(t, dsn, head); len(breaches) > 0 {
				t.Error(breaches)
			}
		})
	}
}

// TestAuditRows: the newest first, page by page, narrowed by each filter and by the scope.
func TestAuditRows(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		record(t, s, 3, "north")
		record(t, s, 2, "south")
		if err := s.Record(ctx, store.Audit{Actor: "you", Action: "Look"}, "", "other", &store.MailServer{Name: "other", Type: store.TypeLocalhost}); err != nil {
			t.Fatal(err)
		}
		north := "north"
		later := time.Now().Add(time.Hour)
		for _, c := range []struct {
			name  string
			scope store.Scope
			f     store.AuditFilter
			want  int
		}{
			{"all", store.Everything, store.AuditFilter{}, 6},
			{"no scope", store.Scope{}, store.AuditFilter{}, 0},
			{"a team's scope", store.Scope{Teams: []string{"south"}}, store.AuditFilter{}, 2},
			{"a team out of scope", store.Scope{Teams: []string{"south"}}, store.AuditFilter{Team: &north}, 0},
			{"a team", store.Everything, store.AuditFilter{Team: &north}, 3},
			{"an actor", store.Everything, store.AuditFilter{Actor: "you"}, 1},
			{"an action", store.Everything, store.AuditFilter{Action: "Try"}, 5},
			{"a target", store.Everything, store.AuditFilter{Target: "other"}, 1},
			{"since", store.Everything, store.AuditFilter{Since: later}, 0},
			{"until", store.Everything, store.AuditFilter{Until: later}, 6},
		} {
			rows, err := s.AuditRows(ctx, c.scope, c.f, 0, 100)
			if err != nil || len(rows) != c.want {
				t.Errorf("%s: got %d rows (%v), want %d", c.name, len(rows), err, c.want)
			}
		}
		var seqs []int64
		for before := int64(0); ; {
			rows, err := s.AuditRows(ctx, store.Everything, store.AuditFilter{}, before, 4)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) == 0 {
				break
			}
			for _, r := range rows {
				seqs = append(seqs, r.Seq)
			}
			before = rows[len(rows)-1].ID
		}
		if fmt.Sprint(seqs) != "[6 5 4 3 2 1]" {
			t.Errorf("got rows %v in pages of 4, want 6 to 1", seqs)
		}
		newest, err := s.AuditRows(ctx, store.Everything, store.AuditFilter{}, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		var detail map[string]any
		if r := newest[0]; json.Unmarshal(r.Detail, &detail) != nil || detail["used"] == nil || r.Actor != "you" || len(r.Hash) != 32 || time.Since(r.Time) > time.Hour {
			t.Errorf("got %+v", r)
		}
	})
}

// TestAuditNamesWhatWasTouched: the row of a control call has the ids of all the mails, one row
// for each team, and the forced deletion of the system's mail server is told to every team
// whose mail it holds.
func TestAuditNamesWhatWasTouched(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		if _, _, err := s.CreateServer(ctx, newServer("shared", ""), store.Audit{}); err != nil {
			t.Fatal(err)
		}
		of := map[string][]string{}
		for i := range 7 {
			m := newMail("shared", func(m *store.NewMail) { m.Team = []string{"north", "south"}[i%2] })
			enqueue(t, s, m)
			of[m.Team] = append(of[m.Team], m.ID.String())
		}
		_, changed, _, err := s.Modify(ctx, store.Everything, nil, &store.MailFilter{MailServer: "shared"}, false, store.Audit{Actor: "me", Action: "Postpone"}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: m.DueTime.Add(time.Hour)}, nil
		})
		if err != nil || changed != 7 {
			t.Fatalf("got %d, %v", changed, err)
		}
		if _, held, err := s.DeleteServer(ctx, store.Everything, "shared", 0, true, store.Audit{Actor: "me", Action: "DeleteMailServer"}); err != nil || held.Held != 7 {
			t.Fatalf("got %+v, %v", held, err)
		}
		for team, ids := range of {
			for action, target := range map[string]string{"Postpone": fmt.Sprintf("%d mails from %s", len(ids), ids[0]), "DeleteMailServer": "shared"} {
				rows, err := s.AuditRows(ctx, store.Scope{Teams: []string{team}}, store.AuditFilter{Action: action}, 0, 10)
				if err != nil || len(rows) != 1 || rows[0].Target != target {
					t.Fatalf("%s of %s: got %+v, %v, want one row", action, team, rows, err)
				}
				var detail struct {
					IDs  []string
					Held int
				}
				if err := json.Unmarshal(rows[0].Detail, &detail); err != nil {
					t.Fatal(err)
				}
				if action == "Postpone" && !slices.Equal(detail.IDs, ids) || action == "DeleteMailServer" && detail.Held != len(ids) {
					t.Errorf("%s of %s: got %+v, want %q", action, team, detail, ids)
				}
			}
		}
	})
}

// TestAuditNamesAllOfAPiece: a piece of an operation may change more mails than a row names.
func TestAuditNamesAllOfAPiece(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		const mails = 1100
		ms := make([]*store.NewMail, mails)
		for i := range ms {
			ms[i] = newMail("ss", func(m *store.NewMail) { m.BatchID, m.CreateTime = "b", m.CreateTime.Add(-time.Minute) })
		}
		enqueue(t, s, ms...)
		o := &store.Operation{Action: "CancelMails", Scope: store.Everything, Filter: store.MailFilter{BatchID: "b"}, Request: "{}", Audit: store.Audit{Actor: "me", Action: "CancelMails"}}
		if err := s.BeginOperation(ctx, o); err != nil {
			t.Fatal(err)
		}
		r := register(t, s)
		if got, err := s.TakeOperation(ctx, r); err != nil || got == nil {
			t.Fatal(got, err)
		}
		if got, _, err := s.Operate(ctx, r, o.ID, 2*mails, cancelled, explained); err != nil || got.Changed != mails {
			t.Fatalf("got %+v, %v, want %d changed", got, err, mails)
		}
		rows, err := s.AuditRows(ctx, store.Everything, store.AuditFilter{Action: "CancelMails"}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		named := map[string]bool{}
		for _, row := range rows {
			var detail struct{ IDs []string }
			if err := json.Unmarshal(row.Detail, &detail); err != nil {
				t.Fatal(err)
			}
			for _, id := range detail.IDs {
				named[id] = true
			}
		}
		if len(named) != mails {
			t.Errorf("%d of %d mails are named in %d rows", len(named), mails, len(rows))
		}
	})
}
