package store_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

const (
	forgotten = "Anna+&news@Customer.example"
	nobody    = "erased-0123@erased.invalid"
)

func erasure() *store.Erasure {
	return &store.Erasure{Mailbox: forgotten, Pseudonym: nobody, Hash: bytes.Repeat([]byte{7}, 32), Audit: store.Audit{Actor: "officer", Action: "EraseRecipient", Reason: "asked to"}}
}

// textColumns are all columns of the database that hold texts, as it says itself.
func textColumns(t *testing.T, s *store.Store) (out [][3]string) {
	t.Helper()
	q := `select table_name || ' ' || column_name || ' ' || data_type from information_schema.columns
  where table_schema = current_schema() and data_type in ('text', 'character varying', 'json', 'jsonb') and table_name not like 'goose%' order by 1`
	if s.Dialect() == "sqlite" {
		q = `select m.name || ' ' || c.name || ' text' from sqlite_schema m, pragma_table_info(m.name) c
  where m.type = 'table' and lower(c.type) = 'text' and m.name not like 'goose%' and m.name not like 'sqlite%' order by 1`
	}
	var rows []string
	if err := s.Select(&rows, q); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		out = append(out, [3]string(strings.SplitN(r, " ", 3)))
	}
	return out
}

// dump is every text of every row that names something like what.
func dump(t *testing.T, s *store.Store, what string) (found []string) {
	t.Helper()
	for _, c := range textColumns(t, s) {
		var n int
		if err := s.Get(&n, fmt.Sprintf("select count(*) from %s where lower(cast(%s as text)) like '%%%s%%'", c[0], c[1], strings.ToLower(what))); err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			found = append(found, fmt.Sprintf("%s.%s: %d", c[0], c[1], n))
		}
	}
	return found
}

// TestEraseEverywhere puts the address into every column of every table that can hold a text,
// as the schema has them, and erases it: nothing of it is left but the tombstone, and the
// database is as sound as before.
func TestEraseEverywhere(t *testing.T) {
	t.Parallel()
	eachDSN(t, func(t *testing.T, s *store.Store, dsn string) {
		serve(t, s)
		to := []store.Recipient{{Mailbox: forgotten}, {Mailbox: "other@x.example", Kind: "cc"}}
		mail := newMail("ss", aged(day), func(m *store.NewMail) {
			m.Recipients, m.RequestID, m.Fingerprint = to, "r1", []byte("f")
			m.Raw = []store.Piece{{Data: []byte("To: " + forgotten + "\r\nMessage-ID: <" + m.MessageID + ">\r\n\r\nDear Anna\r\n")}}
		})
		mention := newMail("ss", aged(day), func(m *store.NewMail) {
			m.Reference, m.Labels, m.Subject, m.Kind = "for "+forgotten, map[string]string{"who": strings.ToLower(forgotten)}, "of <"+forgotten+">", store.KindInvoice
		})
		longer := newMail("ss", aged(day), func(m *store.NewMail) { m.Reference = "x" + forgotten + ".org" })
		enqueue(t, s, mail, mention, longer)
		finish(t, s)
		record(t, s, 3, "sales")
		if _, err := s.AuditHead(ctx); err != nil {
			t.Fatal(err)
		}
		ref := "R"
		if err := s.PlaceHold(ctx, &store.LegalHold{ID: uuid.Must(uuid.NewV7()), Team: "elsewhere", Reference: &ref}, store.Audit{Action: "PlaceLegalHold"}); err != nil {
			t.Fatal(err)
		}
		// A row in each table that has none, without what the rules of the service demand.
		sq := s.Dialect() == "sqlite"
		at, blob := "now()", "'\\x01'::bytea"
		if sq {
			at, blob = "1", "x'01'"
		}
		for _, q := range []string{
			"insert into upload (id, team, filename, content_type, sha256, size_bytes, hash, content_size, create_time, expire_time) values ('00000001-0000-7000-8000-000000000001', 't', 'f', 'c', " + blob + ", 1, " + blob + ", 1, " + at + ", " + at + ")",
			"insert into token (id, name, hash, roles, teams, kinds, mail_servers, system, created_by, create_time, expire_time, revoke_time) values ('t', 'n', " + blob + ", '[]', '[]', '[]', '[]', " + map[bool]string{true: "1", false: "true"}[sq] + ", 'c', " + at + ", " + at + ", " + at + ")",
			"insert into allowance (key, used, expire_time) values (" + blob + ", '[]', " + at + ")",
			"insert into breaker (mail_server, version) values ('ss', 1)",
			"insert into erasure (id, hash, actor, time, mails) values ('00000001-0000-7000-8000-000000000001', " + blob + ", 'a', " + at + ", 0)",
			"update mail_server set delete_time = " + at,
			"update legal_hold set lift_time = " + at,
		} {
			if err := s.Exec(q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
		planted := 0
		for _, c := range textColumns(t, s) {
			table, column := c[0], c[1]
			value := "'see " + forgotten + "'"
			if strings.Contains(c[2], "json") || slices.Contains([]string{"recipients", "labels", "layout", "progress", "result", "detail", "smtp", "limits", "annotations"}, column) {
				value = `'{"x":"` + strings.ReplaceAll(forgotten, "&", `\u0026`) + `"}'`
			}
			switch table + "." + column {
			case "mail.recipients", "mail.labels", "mail.layout", "mail.message_id", "archive.result", "mail.id", "archive.id", "upload.id", "legal_hold.id", "erasure.id", "mail.team", "archive.team", "mail.mail_server", "archive.mail_server", "mail_server.name",
				"retention.name", "mail.request_id", "mail_server.request_id", "upload.request_id":
				// keys, what the mails above hold already, and what has to stay readable
				continue
			}
			if table == "audit" {
				continue // append-only: rows of its own below
			}
			where := ""
			if table == "mail" || table == "archive" {
				where = " where id = '" + mention.ID.String() + "'"
			}
			q := fmt.Sprintf("update %s set %s = %s%s", table, column, value, where)
			if err := s.Exec(q); err != nil {
				if strings.Contains(strings.ToLower(err.Error()), "constraint") || strings.Contains(err.Error(), "uuid") || strings.Contains(err.Error(), "datatype mismatch") {
					continue // it holds a word of a list
				}
				t.Fatalf("%s: %v", q, err)
			}
			planted++
		}
		if planted < 25 {
			t.Errorf("the address was put into %d columns only", planted)
		}
		if err := s.Record(ctx, store.Audit{Actor: forgotten, Action: "about " + forgotten, Reason: "wrote to " + forgotten + ","}, "team "+forgotten, forgotten, &store.MailServer{DisplayName: forgotten}); err != nil {
			t.Fatal(err)
		}
		head, err := s.AuditHead(ctx)
		if err != nil {
			t.Fatal(err)
		}
		dry := erasure()
		dry.DryRun = true
		before := dump(t, s, "customer.example")
		counted, err := s.EraseRecipient(ctx, dry)
		if err != nil || counted.Mails != 1 || counted.Texts["audit"] != 1 || counted.Texts["mail"] < 2 || !counted.Before.IsZero() {
			t.Fatalf("counted %+v %v", counted, err)
		}
		if after := dump(t, s, "customer.example"); !slices.Equal(before, after) {
			t.Fatalf("counting has changed something:\n%v\n%v", before, after)
		}
		e := erasure()
		e.Keys = [][]byte{{1}} // of the allowance above
		done, err := s.EraseRecipient(ctx, e)
		if err != nil || done.Mails != 1 {
			t.Fatalf("%+v %v", done, err)
		}
		var allowances int
		if err := s.Get(&allowances, "select count(*) from allowance"); err != nil || allowances != 0 {
			t.Errorf("%d allowances are left: %v", allowances, err)
		}
		// longer is another address, which is in one column
		if left := dump(t, s, "anna"); !slices.Equal(left, []string{"mail.reference: 1"}) {
			t.Errorf("left in the database: %v", left)
		}
		if left := dump(t, s, "u0026news"); len(left) > 0 {
			t.Errorf("left in the database, as JSON writes it: %v", left)
		}
		var raws [][]byte
		if err := s.Select(&raws, "select raw from mail"); err != nil {
			t.Fatal(err)
		}
		for _, raw := range raws {
			if bytes.Contains(bytes.ToLower(raw), []byte("anna")) {
				t.Errorf("left in a message: %q", raw)
			}
		}
		got, err := s.Mail(ctx, store.Everything, mail.ID)
		if err != nil || got.Removed != store.RemovedErased || got.Recipients[0].Mailbox != nobody || got.Recipients[1].Mailbox != "other@x.example" || got.Subject != "" || got.Status != store.MailSent {
			t.Fatalf("%+v %v", got, err)
		}
		for who, want := range map[string]int{forgotten: 0, nobody: 1} {
			ms, _, err := s.FindMails(ctx, store.Everything, store.FindFilter{MailFilter: store.MailFilter{Recipient: who}}, uuid.Nil, 10)
			if err != nil || len(ms) != want {
				t.Errorf("%d mails are found by %s: %v", len(ms), who, err)
			}
		}
		if _, err := s.Recount(ctx); err != nil { // the counts that were put in are of no mail
			t.Fatal(err)
		}
		breaches, now := auditBreaches(t, dsn, head)
		if len(breaches) > 0 || now.Seq <= head.Seq {
			t.Errorf("the chain does not hold: %v", breaches)
		}
		again, err := s.EraseRecipient(ctx, erasure())
		if err != nil || again.Mails != 0 || again.Before.IsZero() || again.BeforeMails != 1 || again.BeforeFirst.IsZero() {
			t.Errorf("again: %+v %v", again, err)
		}
	})
}

// TestEraseIsRefused: an address that mail of the due-out journal names, that a legal hold
// keeps or that is in use is not erased, and nothing is changed.
func TestEraseIsRefused(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		serve(t, s)
		to := func(m *store.NewMail) { m.Recipients = []store.Recipient{{Mailbox: forgotten}} }
		sent := newMail("ss", aged(day), to)
		enqueue(t, s, sent)
		finish(t, s)
		waits := newMail("ss", to)
		enqueue(t, s, waits)
		h := &store.LegalHold{ID: uuid.Must(uuid.NewV7()), Team: "sales", MailID: sent.ID}
		if err := s.PlaceHold(ctx, h, store.Audit{}); err != nil {
			t.Fatal(err)
		}
		if err := s.Exec("update mail_server set sender = '" + forgotten + "'"); err != nil {
			t.Fatal(err)
		}
		before := dump(t, s, "customer.example")
		_, err := s.EraseRecipient(ctx, erasure())
		var r *store.EraseRefusedError
		if !errors.As(err, &r) || !slices.Equal(r.Waiting, []uuid.UUID{waits.ID}) || !slices.Equal(r.Held, []uuid.UUID{sent.ID}) || !slices.Equal(r.Settings, []string{"mail server ss"}) {
			t.Fatalf("%+v", err)
		}
		if after := dump(t, s, "customer.example"); !slices.Equal(before, after) {
			t.Fatalf("what was refused has changed something:\n%v\n%v", before, after)
		}
	})
}

// TestEraseWaitsForOperations: an address that an operation names is not erased while that
// runs, and goes once it has ended, however the call has it.
func TestEraseWaitsForOperations(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		r := register(t, s)
		begin := func(f store.MailFilter, request string) uuid.UUID {
			t.Helper()
			o := &store.Operation{Action: "HoldMails", Scope: store.Everything, Filter: f, Request: request, Audit: store.Audit{Actor: "me"}, Brakes: true}
			if err := s.BeginOperation(ctx, o); err != nil {
				t.Fatal(err)
			}
			return o.ID
		}
		in64 := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
		call := fmt.Sprintf(`{"Call":{"filter":{"recipient":%q}}}`, forgotten)
		ended := begin(store.MailFilter{Recipient: forgotten}, fmt.Sprintf(`{"Call":"%s"}`, in64("\n\x04"+forgotten)))
		if o, err := s.TakeOperation(ctx, r); err != nil || o == nil || o.ID != ended {
			t.Fatal(o, err)
		}
		if o, _, err := s.Operate(ctx, r, ended, 10, cancelled, explained); err != nil || o == nil || o.State != store.OperationDone {
			t.Fatal(o, err)
		}
		stopped := begin(store.MailFilter{Recipient: forgotten}, fmt.Sprintf(`{"Call":"%s"}`, in64("\n\x04x"+forgotten)))
		if err := s.StopOperation(ctx, stopped, store.Audit{Actor: "me"}); err != nil {
			t.Fatal(err)
		}
		for name, id := range map[string]uuid.UUID{
			"its filter": begin(store.MailFilter{Reference: "for " + forgotten}, "{}"),
			"its call":   begin(store.MailFilter{BatchID: "b"}, call),
		} {
			before := dump(t, s, "customer.example")
			_, err := s.EraseRecipient(ctx, erasure())
			var refused *store.EraseRefusedError
			if !errors.As(err, &refused) || !slices.Contains(refused.Operations, id) || len(refused.Waiting)+len(refused.Held)+len(refused.Settings) > 0 {
				t.Fatalf("%s has the address: %v", name, err)
			}
			if after := dump(t, s, "customer.example"); !slices.Equal(before, after) {
				t.Fatalf("what was refused has changed something:\n%v\n%v", before, after)
			}
			if err := s.StopOperation(ctx, id, store.Audit{Actor: "me"}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.EraseRecipient(ctx, erasure()); err != nil {
			t.Fatal(err)
		}
		left := dump(t, s, "anna")
		for _, before := range []string{"", "x", "xx"} { // base64 has three ways of writing it
			text := in64(before + forgotten)
			left = append(left, dump(t, s, text[4:len(text)-4])...)
		}
		if len(left) > 0 {
			t.Errorf("left in the database: %v", left)
		}
	})
}

// TestEraseKeepsRequestIDs: a caller who names mails by their address, and sends again what was
// sent before the address was erased, is told of that mail. When its metadata go the request_id
// is free.
func TestEraseKeepsRequestIDs(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		serve(t, s)
		mail := func(to string) *store.NewMail {
			return newMail("ss", aged(10*day), func(m *store.NewMail) {
				m.RequestID, m.Fingerprint = "newsletter-11:"+to, []byte("f")
				m.Recipients = []store.Recipient{{Mailbox: to}}
			})
		}
		// two that read the same behind the erasure
		a, b := mail(forgotten), mail(strings.ToUpper(forgotten))
		enqueue(t, s, a, b, mail("other@x.example"))
		finish(t, s)
		if _, err := s.EraseRecipient(ctx, erasure()); err != nil {
			t.Fatal(err)
		}
		if left := dump(t, s, "anna"); len(left) > 0 {
			t.Errorf("left in the database: %v", left)
		}
		for _, m := range []*store.NewMail{a, b} {
			again := mail(m.Recipients[0].Mailbox)
			if res, err := s.Enqueue(ctx, again); err != nil || res.Err != nil || !res.Duplicate || res.ID != m.ID {
				t.Errorf("sent again: %+v %v, want the mail %s", res, err, m.ID)
			}
			if res, err := s.EnqueueAll(ctx, []*store.NewMail{again}); err != nil || res[0].Err != nil || !res[0].Duplicate || res[0].ID != m.ID {
				t.Errorf("sent again in a batch: %+v %v, want the mail %s", res, err, m.ID)
			}
		}
		fresh := mail("third@x.example")
		if res, err := s.Enqueue(ctx, fresh); err != nil || res.Err != nil || res.Duplicate || res.ID != fresh.ID {
			t.Errorf("another request_id: %+v %v", res, err)
		}
		purge(t, s, 10, store.KeepRule{Kind: store.KindBulk, Part: store.PartMetadata, Age: 7 * day})
		var n int
		if err := s.Get(&n, "select count(*) from erased_request"); err != nil || n != 0 {
			t.Errorf("%d hashes of mail that is gone: %v", n, err)
		}
		if res, err := s.Enqueue(ctx, mail(forgotten)); err != nil || res.Err != nil || res.Duplicate {
			t.Errorf("the request_id of a mail that is gone: %+v %v", res, err)
		}
	})
}

// TestEraseAddsCountsUp: counts of a caller whose name is the address, in more than one way of
// writing it, become one count.
func TestEraseAddsCountsUp(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		no, late := "0", "9"
		if s.Dialect() == "postgres" {
			no, late = "false", "to_timestamp(9)"
		}
		for i, caller := range []string{forgotten, strings.ToUpper(forgotten), "else"} {
			first := strings.Replace(late, "9", fmt.Sprint(5-i), 1)
			for _, q := range []string{
				fmt.Sprintf("insert into count_batch (batch_id, team, caller, status, waiting, doubtful, n, first, last) values ('b', 't', '%s', 'sent', %s, %s, %d, %s, null)", caller, no, no, i+1, first),
				fmt.Sprintf("insert into count_queue (team, mail_server, priority, kind, status, second, n) values ('%s', 's', 1, 'bulk', 'queued', 0, %d)", caller, i+1),
				fmt.Sprintf("insert into count_delta (team, mail_server, priority, kind, status, second, caller, doubtful, n) values ('t', 's', 1, 'bulk', 'queued', 0, '%s', %s, 1)", caller, no),
			} {
				if err := s.Exec(q); err != nil {
					t.Fatalf("%s: %v", q, err)
				}
			}
		}
		if _, err := s.EraseRecipient(ctx, erasure()); err != nil {
			t.Fatal(err)
		}
		for q, want := range map[string]int{
			"select n from count_batch where caller = '" + nobody + "' and first = " + strings.Replace(late, "9", "4", 1): 3,
			"select n from count_queue where team = '" + nobody + "'":                                                     3,
			"select count(*) from count_delta where caller = '" + nobody + "'":                                            2,
			"select sum(n) from count_batch":                                                                              6, "select sum(n) from count_queue": 6, "select count(*) from count_delta": 3,
		} {
			var n int
			if err := s.Get(&n, q); err != nil || n != want {
				t.Errorf("%s: %d, want %d: %v", q, n, want, err)
			}
		}
		if left := dump(t, s, "anna"); len(left) > 0 {
			t.Errorf("left in the database: %v", left)
		}
	})
}

// TestEraseLeavesLegalHolds: what an open hold is about stays as it is, and a hold that comes
// while the erasure is under way is seen.
func TestEraseLeavesLegalHolds(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ref := "order of " + forgotten
		h := &store.LegalHold{ID: uuid.Must(uuid.NewV7()), Team: "sales", Reference: &ref}
		if err := s.PlaceHold(ctx, h, store.Audit{Reason: "dispute"}); err != nil {
			t.Fatal(err)
		}
		var r *store.EraseRefusedError
		if _, err := s.EraseRecipient(ctx, erasure()); !errors.As(err, &r) || !slices.Equal(r.Settings, []string{"legal hold " + h.ID.String()}) {
			t.Fatalf("%v", err)
		}
		if _, err := s.LiftHold(ctx, store.Everything, h.ID, store.Audit{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.EraseRecipient(ctx, erasure()); err != nil {
			t.Fatal(err)
		}
		if left := dump(t, s, "anna"); len(left) > 0 {
			t.Errorf("left in the database: %v", left)
		}
	})
}

// TestErasureHidesNoChange: a row of the audit log that somebody changed as if it had been an
// erasure is a breach, and so is one that was changed behind an erasure.
func TestErasureHidesNoChange(t *testing.T) {
	t.Parallel()
	eachDSN(t, func(t *testing.T, s *store.Store, dsn string) {
		if err := s.Record(ctx, store.Audit{Actor: "a", Reason: "for " + forgotten}, "sales", "x", nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Record(ctx, store.Audit{Actor: "mallory", Reason: "stole"}, "sales", "x", nil); err != nil {
			t.Fatal(err)
		}
		head, err := s.AuditHead(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.EraseRecipient(ctx, erasure()); err != nil {
			t.Fatal(err)
		}
		if b, _ := auditBreaches(t, dsn, head); len(b) > 0 {
			t.Fatalf("breaches of what nobody changed: %v", b)
		}
		if err := s.Exec("update audit set reason = 'nothing', salt = null, erasure = (select id from erasure limit 1) where actor = 'mallory'"); err != nil {
			t.Fatal(err) // the trigger takes it for an erasure; the chain does not
		}
		if b, _ := auditBreaches(t, dsn, head); len(b) != 1 {
			t.Errorf("a change that was made to look like an erasure: %v", b)
		}
	})
}
