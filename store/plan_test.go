package store_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

const seeded = 100_000 // mails in each journal

// seed fills both journals with mails of 20 teams, 50 mail servers and 4 priorities, by
// statements on whole sets.
func seed(t testing.TB, s *store.Store, n int) {
	t.Helper()
	id, at, blob, day, yes := "printf('%%08x-0000-7000-8000-%%012x', %[1]s, %[1]s)", "(1700000000 + %s) * 1000000", "cast('body ' || i as blob)", "19000", "1"
	if s.Dialect() == "postgres" {
		id, at = "(lpad(to_hex(%[1]s), 8, '0') || '-0000-7000-8000-' || lpad(to_hex(%[1]s), 12, '0'))::uuid", "to_timestamp(1700000000.0 + %s)"
		blob, day, yes = "convert_to('body ' || i, 'UTF8')", "date '2022-01-08'", "true"
	}
	no := "not " + yes
	ID, AT := func(x string) string { return fmt.Sprintf(id, x) }, func(x string) string { return fmt.Sprintf(at, x) }
	insert := func(table, columns, values string, n int) {
		t.Helper()
		const part = 5_000 // a statement has half a minute, on a busy machine too
		for from := 0; from < n; from += part {
			q := fmt.Sprintf("insert into %s (%s) with recursive g(i) as (select %d union all select i + 1 from g where i < %d) select %s from g",
				table, columns, from+1, min(from+part, n), values)
			if err := s.Exec(q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
	}
	insert("mail_server", "name, team, display_name, type, mode, status, is_default, sender, limits, annotations, version, request_id, create_time, update_time",
		"'s' || i, 't' || (i % 20), '', 'localhost', 'daemon', 'available', i <= 20, 'a@x.example', '{}', '{}', 1, 'q' || i, "+AT("i")+", "+AT("i"), min(n, 2000))
	insert("breaker", "mail_server, version", "'s' || i, 1", min(n, 2000))
	insert("quota", "mail_server, tokens, refilled_at, day, day_used", "'s' || i, 1, "+AT("i")+", '2022-01-08', 0", min(n, 2000))
	insert("replica", "name, alive_until", "'r', case when i < 3 then "+AT("-1700000000")+" else "+AT("1000000000")+" end", min(n, 2000))
	insert("rate_share", "mail_server, replica, call, granted, held", "'s' || (i % 500), i, 1, 1, 1", min(n, 2000))
	insert("connection_slot", "mail_server, n, replica", "'s' || (i % 500), i, i", min(n, 2000))
	insert("content", "hash, size, touched, used", blob+", 5, "+day+", i % 10 > 0", min(n, 5000))
	insert("content_chunk", "hash, n, data", blob+", 0, "+blob, min(n, 5000))
	insert("erased_request", "hash, mail_id", blob+", "+ID("i"), min(n, 5000))
	insert("upload", "id, team, filename, content_type, sha256, size_bytes, hash, content_size, request_id, create_time, expire_time",
		ID("i")+", 't' || (i % 20), 'f', 'x/y', "+blob+", 5, "+blob+", 5, 'q' || i, "+AT("i")+", "+AT("i * 1000"), min(n, 5000))
	insert("mail", "id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, recipients, request_id, route, utf8, create_time, raw, batch_id",
		ID("i")+", 't' || (i % 20), 's' || (i % 50), 'daemon', case i % 4 when 0 then 'invoice' when 1 then 'bulk' when 2 then 'other' else 'work_order' end, 10 * (i % 4), 'R' || (i % 1000), "+
			"'a@x.example', 'subject ' || i, 'm' || i, 100, '[{\"a\":\"r@x.example\"}]', case when i % 2 = 0 then 'q' || i end, 'named', "+no+", "+AT("i")+", "+blob+
			", case when i % 4 = 0 then 'b' || (i % 8000) end", 2*n)
	// 1 in 50 is held by one of the two dead replicas, a tenth of these with the dot away; 1 in
	// 20 has failed; 1 in 10 is due later.
	insert("due", "id, team, mail_server, priority, status, run_at, owner, data_at",
		ID("i")+", 't' || (i % 20), 's' || (i % 50), 10 * (i % 4), case when i % 20 = 7 then 'failed' else 'queued' end, case when i % 20 <> 7 then "+
			AT("i + (case when i % 10 = 3 then 1000000000 else 0 end)")+" end, case when i % 50 = 1 then 1 + i % 2 end, case when i % 500 = 1 then "+AT("i")+" end", n)
	insert("archive", "id, team, mail_server, done_at, status, attempts, possible_duplicate, last_error, result",
		ID(fmt.Sprintf("(%d + i)", n))+", 't' || (i % 20), 's' || (i % 50), "+AT("i")+", case when i % 50 = 0 then 'cancelled' else 'sent' end, 1, "+no+", '', '{}'", n)
	insert("term", "term, mail_id", "i % 50000, "+ID("i"), 2*n)
	if s.Dialect() == "postgres" { // SQLite's triggers have done it
		insert("change", "mail_id, status", ID("i")+", 'queued'", n)
		var tables string
		if err := s.Get(&tables, "select string_agg(tablename, ' ') from pg_tables where schemaname = current_schema()"); err != nil {
			t.Fatal(err)
		}
		for table := range strings.FieldsSeq(tables) { // each has half a minute
			if err := s.Exec("analyze " + table); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// planArgs are arguments for PostgreSQL's statements that look something up, in their order.
func planArgs() map[string][]any {
	at, id, hash, list := time.Unix(1700000000, 0), seededID(1), []byte("body 1"), `["00000001-0000-7000-8000-000000000001"]`
	return map[string][]any{
		"server_get": {"s1"}, "server_by_request": {"t1", "q1"}, "server_default": {"t1"}, "server_clear_default": {false, at, "t1", "s1"}, "server_pending": {"s1"},
		"server_fallback_of": {"s1"}, "server_update": {"", "daemon", "available", false, "a@x.example", nil, nil, "{}", "{}", false, at, nil, 1, at, nil, nil, nil, "s1"}, "server_hold": {"s1", "why"},
		"audit_head": {}, "audit_unlinked": {}, "audit_link": {1, hash, hash, hash, 1}, "audit_rows": {1 << 40, false, `["t1"]`, false, "t1", "", "", "", nil, nil, 50},
		"replica_unregister": {1}, "replica_release": {list, 1}, "replica_renew": {1, 1}, "replica_forget": {},
		"mail_request": {"t1", "q2"}, "erased_request": {hash}, "erased_request_insert": {hash, id}, "purge_requests": {list}, "mail_exists": {id}, "mail_raw": {1, id, false, `["t1"]`, ""}, "mail_copy": {id, false, `["t1"]`, ""}, "settled_under": {`[{"id":"00000001-0000-7000-8000-000000000001","c":1}]`}, "due_count": {"s1"},
		"content_chunks": {hash}, "content_size": {hash}, "content_piece": {1, 1, hash, 0}, "mail_piece": {1, 1, id}, "content_touch": {"2022-01-08", true, hash}, "content_used": {hash}, "content_lock": {hash}, "chunk_delete": {hash}, "content_collect": {"2022-01-09"},
		"upload_get": {list, "t1", at}, "upload_by_request": {"t1", "q1"}, "upload_use": {at.AddDate(9, 0, 0), list}, "upload_forget": {at},
		"breaker_lock": {"s1"}, "breaker_write": {1, 0, "", nil, nil, nil, nil, nil, "", "s1"}, "quota_lock": {"s1"}, "allowance_lock": {hash}, "allowance_write": {"[]", at, hash}, "allowance_forget": {at}, "quota_write": {1.5, at, "2022-01-08", 0, "s1"},
		"enqueue": {"[]", []byte{}}, "due_servers": {}, "claim": {"s1", store.AnyPriority, 1, 100, "{}"}, "claimable": {"s1", store.AnyPriority, 1, 100, "{}"}, "claim_these": {list, "s1", 1},
		"damage_control": {id}, "damage_note": {id, at, "x"}, "damage_forget": {at}, "damaged_page_note": {1, at, "x"}, "damaged_page_forget": {at}, "damaged_page_count": {},
		"settle": {`[{"id":"00000001-0000-7000-8000-000000000001"}]`, `[{"id":"00000001-0000-7000-8000-000000000003"}]`, `[{"id":"00000001-0000-7000-8000-000000000002"}]`, 1}, "modify_lock": {list}, "modify_lock_owned": {list}, "move_target": {"s1"}, "move_due": {"s1", list}, "move_mail": {"s1", list}, "unguard": {list}, "modify": {`[{"id":"00000001-0000-7000-8000-000000000001"}]`},
		"owned_by": {"[1]"}, "recover_unmarked": {list, "[1]"}, "recover_marked": {list, "[1]", 1, 100}, "owned": {1}, "owners_gone": {}, "replica_end": {1}, "replica_bury": {1},
		"take_back": {`[{"id":"00000001-0000-7000-8000-000000000001","c":1}]`, 1}, "take_back_marked": {`[{"id":"00000001-0000-7000-8000-000000000001","c":1}]`, 1},
		"slot_take": {"s1", 1, 1, "{}", 2, 4}, "slot_free": {"s1", 1, 1, "{}", 4}, "slot_give": {"s1", 1, 1, 1},
		"modify_servers": {list}, "server_versions": {list}, "slot_drop": {1, 1, "{s1}", "{1}"}, "slot_mine": {1}, "rate_share": {"s1", 1}, "rate_share_forget": {"s1"}, "rate_others": {"s1", 1, at},
		"purge_page": {at, id, at.AddDate(0, 0, 1), 1000, "bulk"}, "purge_free": {list}, "purge_archive": {list}, "purge_mail": {list}, "purge_body": {"body", list}, "purge_attachments": {"attachments", list},
		"purge_terms": {`[["1","00000001-0000-7000-8000-000000000001"]]`}, "unlisted_page": {500}, "unlisted_mails": {list}, "mail_listed": {list}, "loose_page": {"2022-01-09", 100}, "loose_content": {hash, 1, "2022-01-09"}, "loose_delete": {hash, 1},
		"audit_redact": {"", "", "", "", "", nil, id, 1}, "erasure_known": {hash}, "erase_found": {1, id, 200}, "erase_mail": {"[]", id}, "erase_result": {"{}", id}, "erase_result_of": {id}, "allowance_drop": {hash},
		"rule_state": {"bulk/body"}, "rules_again": {}, "rules_done": {}, "rule_next": {at, id, at.AddDate(0, 0, 1)}, "holder_take": {"me", at, at}, "holder_lock": {},
		"hold_lift": {"me", "over", at, id}, "hold_get": {id, false, `["t1"]`}, "hold_list": {id, false, `["t1"]`, false, "t1", false, 50},
		"sender_get": {"t1"}, "sender_delete": {"t1"}, "sender_list": {"t1", 100},
		"token_list": {"t1", true, at, 100}, "token_get": {"t1"}, "token_revoke": {at, "t1"}, "token_use": {at, "t1"}, "change_lag": {}, "change_read": {0, 0, 1 << 40, 100}, "change_forget": {5000, 1000000}, "batch_count": {"b4", "t4", ""}, "batch_count_rows": {"b4", "t4", ""},

		"count_fold": {1000}, "count_fold_batches": {`["b4"]`}, "lanes": {}, "brake_delete": {id}, "operation_get": {id}, "operation_list": {id, 0, 50},
		"operation_write": {"done", id, "[]", 1, 1, 1, "[]", "", at, at, id}, "operation_take": {1}, "operation_lock": {id, 1}, "operation_stop": {at, id}, "operate_lock": {list}, "operate_left": {list},
	}
}

func seededID(i int) uuid.UUID {
	return uuid.MustParse(fmt.Sprintf("%08x-0000-7000-8000-%012x", i, i))
}

const large = "due|mail|archive|term|change|content_chunk"

var (
	insertion = regexp.MustCompile(`(?s)^insert into \w+ \([^)]*\)\s*values`)
	// an index that refuses rows is in no plan
	decides    = regexp.MustCompile(`decides? what is new`)
	ownKey     = regexp.MustCompile(`(\w+)'s primary key`)
	table      = regexp.MustCompile(`\b(?:from|join|update|using)\s+(` + large + `)\b(?:\s+(?:as\s+)?(\w+))?`)
	seqScan    = regexp.MustCompile(`Seq Scan on (` + large + `)\b`)
	indexScan  = regexp.MustCompile(`Index (?:Only )?Scan (?:Backward )?using (\w+) on (?:` + large + `)\b`)
	everyPair  = regexp.MustCompile(`Join Filter: \(+\w+\.id = \w+\.id\)|Index Cond: [^\n]*\w\.id\b[^\n]*= ANY`)
	sqliteScan = regexp.MustCompile(`(?m)^SCAN (\w+)(.*)$`)
)

// fullScan says where a plan reads a large table from one end to the other. limited: an index
// that is read in the order that is wanted, up to a limit, is none, nor is due_owner, which
// holds only what is being sent.
func fullScan(dialect, text, plan string, limited bool) string {
	if dialect == "postgres" {
		if m := seqScan.FindString(plan); m != "" {
			return m
		}
		lines := strings.Split(plan, "\n")
		for i, l := range lines {
			if m := indexScan.FindStringSubmatch(l); m != nil && m[1] != "due_owner" && !limited && (i+1 == len(lines) || !strings.Contains(lines[i+1], "Index Cond")) {
				return strings.TrimSpace(l)
			}
		}
		return ""
	}
	names := map[string]bool{}
	for _, m := range table.FindAllStringSubmatch(text, -1) {
		names[m[1]], names[m[2]] = true, true
	}
	for _, m := range sqliteScan.FindAllStringSubmatch(plan, -1) {
		if names[m[1]] && (!limited || strings.Contains(plan, "USE TEMP B-TREE FOR ORDER BY")) {
			return m[0]
		}
	}
	return ""
}

// key matches where a plan uses a primary key; of no table in particular when that is "".
func key(dialect, table string) *regexp.Regexp {
	switch {
	case dialect == "sqlite" && table == "":
		return regexp.MustCompile(`USING (INTEGER )?PRIMARY KEY|INDEX sqlite_autoindex_\w+_1\b|(SEARCH|SCAN) change\b`)
	case dialect == "sqlite":
		return regexp.MustCompile(`USING (INTEGER )?PRIMARY KEY|INDEX sqlite_autoindex_` + table + `_1\b`)
	case table == "":
		return regexp.MustCompile(`\w+_pkey\b`)
	}
	return regexp.MustCompile(`\b` + table + `_pkey\b`)
}

// TestHundredThousand looks at plans and at large control calls, on journals of 100,000 mails
// each. SQLite has 2,000: its plans are the same for any number, because the service never has
// it gather statistics. MAILDISPATCH_TEST_FULL=1 gives it as many as PostgreSQL, and times the
// calls over four times as many mails, but under the race detector, where no speed is measured.
func TestHundredThousand(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		n := seeded
		small := raceDetector || os.Getenv("MAILDISPATCH_TEST_FULL") != "1"
		if small && s.Dialect() == "sqlite" {
			n = 2000
		}
		if s.Dialect() == "postgres" {
			// A prepared statement keeps its first plan for a while, so it has to be right
			// before there is anything to know.
			t.Run("statements on an empty database", func(t *testing.T) { plansOfStatements(t, s) })
			seed(t, s, 50)
			t.Run("statements on a small one", func(t *testing.T) { plansOfStatements(t, s) })
			if err := s.Exec("truncate mail_server, breaker, quota, rate_share, replica, connection_slot, content, content_chunk, erased_request, upload, mail, due, archive, term, change, count_delta, count_queue, count_batch restart identity cascade"); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		seed(t, s, n)
		t.Logf("%d mails seeded in %v", 2*n, time.Since(begin).Round(time.Millisecond))
		t.Run("statements", func(t *testing.T) { plansOfStatements(t, s) })
		t.Run("journals", func(t *testing.T) { plansOfJournals(t, s) })
		t.Run("find", func(t *testing.T) { plansOfFind(t, s) })
		if small {
			n /= 4
		}
		t.Run("control", func(t *testing.T) { largeControl(t, s, n/5) })
	})
}

// plansOfStatements: every named statement is served by the indexes that the line under its
// name says, reads no large table from end to end, and takes a list of 500 mails not 500 times
// as long as one.
func plansOfStatements(t *testing.T, s *store.Store) {
	d := s.Dialect()
	q := "select name from sqlite_master where type = 'index' and sql is not null"
	if d == "postgres" {
		q = "select indexname from pg_indexes where schemaname = 'public' and indexname not like '%\\_pkey'"
	}
	var indexes []string
	if err := s.Select(&indexes, q); err != nil {
		t.Fatal(err)
	}
	all, err := store.Statements(d)
	if err != nil {
		t.Fatal(err)
	}
	args := planArgs()
	for _, st := range all {
		head, _, _ := strings.Cut(strings.NewReplacer(":", ";", ". ", ";").Replace(st.Index), ";")
		var want []*regexp.Regexp
		for _, name := range indexes {
			if regexp.MustCompile(`\b` + name + `\b`).MatchString(head) {
				want = append(want, regexp.MustCompile(`\b`+name+`\b`))
			}
		}
		switch m := ownKey.FindStringSubmatch(head); {
		case m != nil:
			want = append(want, key(d, m[1]))
		case strings.Contains(head, "primary key"):
			want = append(want, key(d, ""))
		}
		switch {
		case want == nil && !regexp.MustCompile(`^(none|one|a handful)\b`).MatchString(head):
			t.Errorf("%s: the line under its name says neither which index serves it nor that none is needed: %q", st.Name, st.Index)
			continue
		case insertion.MatchString(st.Text), strings.HasPrefix(head, "none"):
			// nothing is looked up
			continue
		case decides.MatchString(head):
			want = nil
		}
		for _, generic := range []bool{false, true} {
			var a []any
			if d == "postgres" && !generic {
				known := false
				if a, known = args[st.Name]; !known && want != nil {
					t.Errorf("%s: planArgs has no arguments for it, so its plan for real ones is not known", st.Name)
				}
				if !known {
					continue
				}
			}
			plan, err := s.Plan(ctx, st.Text, a, generic)
			if err != nil {
				t.Errorf("%s: %v", st.Name, err)
				continue
			}
			if scan := fullScan(d, st.Text, plan, strings.Contains(st.Text, " limit ")); scan != "" {
				t.Errorf("%s (generic %v) reads a table from end to end: %s\n%s", st.Name, generic, scan, plan)
			}
			if pair := everyPair.FindString(plan); pair != "" {
				t.Errorf("%s (generic %v) looks for every mail of a list in all of the list: %s\n%s", st.Name, generic, pair, plan)
			}
			for _, w := range want {
				if !w.MatchString(plan) {
					t.Errorf("%s (generic %v) does not use %s, as %q says\n%s", st.Name, generic, w, head, plan)
				}
			}
		}
	}
}

// plansOfJournals: the first and the next page of both journals, for all, for some teams and
// for one, with every field of the filter, read no table from end to end and sort no more than
// what was searched for.
func plansOfJournals(t *testing.T, s *store.Store) {
	team := "t4"
	at := time.Unix(1700000000+seeded, 0)
	filters := map[string]store.MailFilter{
		"nothing": {}, "team": {Team: &team}, "server": {MailServer: "s4"}, "statuses": {Statuses: []store.MailStatus{store.MailFailed, store.MailCancelled}},
		"sending": {Statuses: []store.MailStatus{store.MailSending}}, "kind": {Kind: store.KindInvoice}, "reference": {Reference: "R4"}, "recipient": {Recipient: "r@x.example"},
		"message id": {MessageID: seededID(4).String() + "@x.example"}, "labels": {Labels: map[string]string{"a": "b", "c": "d"}}, "request id": {RequestID: "q4"},
		"batch id": {BatchID: "b4"}, "since": {Since: at}, "until": {Until: at}, "since and until": {Since: at, Until: at.Add(time.Hour)},
		"team and server": {Team: &team, MailServer: "s4"}, "team and kind": {Team: &team, Kind: store.KindInvoice}, "team and request id": {Team: &team, RequestID: "q4"},
		"team and recipient": {Team: &team, Recipient: "r@x.example"}, "team and batch id": {Team: &team, BatchID: "b4"},
		"server and statuses": {MailServer: "s4", Statuses: []store.MailStatus{store.MailQueued, store.MailDeferred}},
	}
	for _, archive := range []bool{false, true} {
		for scope, sc := range map[string]store.Scope{"all": store.Everything, "one team": {Teams: []string{"t4"}}, "two teams": {Teams: []string{"t4", "t5"}}} {
			for name, f := range filters {
				for page, after := range map[string]store.Cursor{"first": {}, "next": {Time: at.Add(-time.Hour), ID: seededID(seeded / 2)}} {
					text, args := s.JournalQuery(archive, sc, f, after, 50)
					plan, err := s.Plan(ctx, text, args, false)
					if err != nil {
						t.Fatal(err)
					}
					if scan := fullScan(s.Dialect(), text, plan, true); scan != "" {
						t.Errorf("archive %v, %s, filter %s, %s page: %s\n%s", archive, scope, name, page, scan, plan)
					}
				}
			}
		}
	}
}

// TestUrgentClaimBesideBacklog: looking for what is more urgent than a backlog does not read
// the backlog. The best of ten, so that a busy machine does not matter; read through, 50,000
// take a tenth of a second and more.
func TestUrgentClaimBesideBacklog(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		id, at := "printf('%08x-0000-7000-8000-000000000000', i)", "i"
		if s.Dialect() == "postgres" {
			id, at = "(lpad(to_hex(i), 8, '0') || '-0000-7000-8000-000000000000')::uuid", "to_timestamp(i)"
		}
		if err := s.Exec("insert into due (id, team, mail_server, priority, status, run_at) with recursive g(i) as (select 1 union all select i + 1 from g where i < 50000) " +
			"select " + id + ", 't', 'busy', 10, 'queued', " + at + " from g"); err != nil {
			t.Fatal(err)
		}
		r := register(t, s)
		best := time.Hour
		for range 10 {
			begin := time.Now()
			got, err := s.Claim(ctx, r, "busy", 50, 10)
			if err != nil || len(got) > 0 {
				t.Fatalf("claimed %d, %v", len(got), err)
			}
			best = min(best, time.Since(begin))
		}
		if best > 10*time.Millisecond {
			t.Errorf("it took %v", best)
		}
	})
}
