package e2e

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/descriptorpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// dsn is the database that the service was started on.
func (s *service) dsn() string {
	for _, a := range s.args {
		if dsn, ok := strings.CutPrefix(a, "--database="); ok {
			return dsn
		}
	}
	return ""
}

// invariants runs `maildispatchd doctor --full` on the service's database, which may be in use,
// and wants that all invariants hold.
func (s *service) invariants(t *testing.T) {
	t.Helper()
	invariants(t, s.dsn())
}

func invariants(t *testing.T, dsn string) {
	t.Helper()
	if r := run(t, nil, "doctor", "--full", "--database="+dsn); r.code != 0 || r.stderr != "" || strings.Count(r.stdout, "  ok  ") != 10 {
		t.Errorf("the invariants do not hold: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// openDB opens a database beside the service.
func openDB(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	driver, name := "postgres", dsn
	if path, is := strings.CutPrefix(dsn, "sqlite:"); is {
		driver, name = "sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?_pragma=busy_timeout(10000)&_pragma=ignore_check_constraints(1)"
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() }) // whatever was meant to be written was committed
	return db
}

func mustExec(t *testing.T, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.Exec(statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// clinic is a service whose database holds mail of every status.
type clinic struct {
	*service
	ids map[string]string // by status
}

func newClinic(t *testing.T, s *service) *clinic {
	t.Helper()
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		switch {
		case c.Verb == "RCPT" && strings.Contains(c.Arg, "refused"):
			return &smtpxtest.Action{Reply: "550 5.1.1 no such user\r\n"}
		case c.Verb == "RCPT" && strings.Contains(c.Arg, "later"):
			return &smtpxtest.Action{Reply: "450 4.2.1 busy\r\n"}
		case c.Verb == "DOT" && strings.Contains(c.Arg, "silent"):
			return &smtpxtest.Action{Close: true}
		}
		return nil
	}}).Start(t)
	s.addServer("now", pb.Mode_MODE_PHP, relay.Port(), func(m *pb.MailServer) { yes := true; m.IsDefault = &yes })
	s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port())
	s.addServer("theirs", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { m.Team = "sales" })
	s.addServer("dead", pb.Mode_MODE_DAEMON, deadPort(t))
	c := &clinic{s, map[string]string{}}
	file := &pb.Attachment{Filename: "terms.pdf", ContentType: "application/pdf", Content: []byte(strings.Repeat("%PDF one copy for all ", 40000))}
	send := func(status, server string, kind pb.Kind, requestID string, to ...string) {
		t.Helper()
		m := message(to...)
		m.Attachments = []*pb.Attachment{file}
		c.ids[status] = s.mustSend(&pb.SendRequest{RequestId: requestID, Options: &pb.SendOptions{MailServer: server, Kind: kind, Reference: "R-" + status, Labels: map[string]string{"for": status}}, Message: m}).id
	}
	send("sent", "now", pb.Kind_KIND_INVOICE, "r1", "a@y.example", "b@y.example")
	send("failed", "now", pb.Kind_KIND_INVOICE, "r2", "refused@y.example")
	send("partially_sent", "now", pb.Kind_KIND_INVOICE, "", "a@y.example", "refused@y.example")
	send("unknown", "now", pb.Kind_KIND_INVOICE, "", "silent@y.example")
	send("repeated", "bulk", pb.Kind_KIND_BULK, "", "silent@y.example")
	send("deferred", "bulk", pb.Kind_KIND_BULK, "", "later@y.example")
	send("cancelled", "bulk", pb.Kind_KIND_BULK, "", "later@y.example")
	s.batch()
	send("suspended", "dead", pb.Kind_KIND_BULK, "", "a@y.example")
	s.batch()
	if _, err := s.dispatch.CancelMails(timeout(t), &pb.CancelMailsRequest{Ids: []string{c.ids["cancelled"]}}); err != nil {
		t.Fatal(err)
	}
	send("queued", "bulk", pb.Kind_KIND_BULK, "", "a@y.example")
	send("held", "bulk", pb.Kind_KIND_BULK, "", "a@y.example")
	if _, err := s.dispatch.HoldMails(timeout(t), &pb.HoldMailsRequest{Ids: []string{c.ids["held"]}}); err != nil {
		t.Fatal(err)
	}
	for status, id := range c.ids {
		want := map[string]string{"repeated": "deferred", "suspended": "queued"}[status]
		if want == "" {
			want = status
		}
		if got := s.mail(id); got.Status.String() != "MAIL_STATUS_"+strings.ToUpper(want) {
			t.Fatalf("%s: %v", status, got)
		}
	}
	return c
}

// TestDoctorFindsDamage: each invariant holds on a database with mail of every status, in use
// and at rest, and each is seen to be broken by what breaks it.
func TestDoctorFindsDamage(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		c := newClinic(t, s)
		s.invariants(t)
		s.stop()
		s.invariants(t)
		db := openDB(t, s.dsn())
		isSQLite := strings.HasPrefix(s.dsn(), "sqlite:")
		freeOfConstraints(t, db, isSQLite)
		put := backup(t, db, isSQLite)
		mustExec(t, db, "insert into count_queue (team, mail_server, priority, kind, status, second, n) values ('x', 'y', 0, 'bulk', 'queued', 0, 1)")
		if broken := inspect(t, s.dsn()); !slices.Equal(broken, []string{"I10"}) {
			t.Errorf("a count is wrong: broken %v, want I10", broken)
		}
		// From here on they are said to be incomplete, or all that breaks a journal would break
		// its counts as well.
		mustExec(t, db, "update count_state set counted = "+map[bool]string{true: "0", false: "false"}[isSQLite])
		past, future := "timestamptz 'epoch'", "now() + interval '1 hour'"
		uuid, now, yes, no, hash := "::uuid", "now()", "true", "false", "'\\x00'::bytea"
		if isSQLite {
			past, future, uuid, now, yes, no, hash = "0", fmt.Sprint(time.Now().Add(time.Hour).UnixMicro()), "", "1", "1", "0", "x'00'"
		}
		replica := func(id int, until string) string {
			over := "overriding system value "
			if isSQLite {
				over = ""
			}
			return fmt.Sprintf("insert into replica (id, name, alive_until) %svalues (%d, 'r', %s)", over, id, until)
		}
		id := func(status string) string { return "'" + c.ids[status] + "'" + uuid }
		// by the binary, of which one look at each invariant is enough
		told := map[string]bool{}
		const accepted, rejected = `{"s":"accepted","n":1}`, `{"s":"rejected","n":1}`
		for _, d := range []struct {
			name   string
			broken string // which
			do     []string
		}{
			{"a mail is lost", "I1", []string{"delete from due where id = " + id("queued")}},
			{"a finished mail is lost", "I1", []string{"delete from archive where id = " + id("sent")}},
			{"a mail is in both journals", "I1", []string{"insert into archive (id, team, mail_server, done_at, status, attempts, possible_duplicate, last_error, result) select id, team, mail_server, " + now + ", 'cancelled', 0, " + no + ", '', '{}' from due where id = " + id("queued")}},
			{"a journal row has no mail", "I1", []string{"delete from mail where id = " + id("deferred")}},
			{"an archive row has no mail", "I1", []string{"delete from mail where id = " + id("cancelled")}},
			{"a mail is another team's", "I1", []string{"update due set team = 'other' where id = " + id("queued")}},
			{"a mail is another mail server's", "I1", []string{"update archive set mail_server = 'bulk' where id = " + id("sent")}},
			{"a queued mail is never due", "I2", []string{"update due set run_at = null where id = " + id("queued")}},
			{"a held mail is due", "I2", []string{"update due set run_at = " + now + " where id = " + id("held")}},
			{"a due mail says that it is sent", "I2", []string{"update due set status = 'gone', run_at = null where id = " + id("queued")}},
			{"an archived mail says that it is queued", "I2", []string{"update archive set status = 'held' where id = " + id("cancelled")}},
			{"a parked mail is being sent", "I2", []string{replica(501, future), "update due set owner = 501 where id = " + id("failed")}},
			{"attempts below nothing", "I2", []string{"update due set attempts = -1 where id = " + id("queued")}},
			{"a dead owner beside a living replica", "I3", []string{replica(501, past), replica(502, future), "update due set owner = 501 where id = " + id("queued")}},
			{"a mark without owner", "I3", []string{"update due set data_at = " + now + " where id = " + id("queued")}},
			{"an owner that nobody knows", "I3", []string{"update due set owner = 501 where id = " + id("queued")}},
			{"sent though one was refused", "I4", []string{`update archive set result = '{"r":[` + accepted + `,` + rejected + `]}' where id = ` + id("sent")}},
			{"sent and nobody knows to whom", "I4", []string{`update archive set result = '{}' where id = ` + id("sent")}},
			{"a result is missing", "I4", []string{`update due set progress = '{"r":[` + accepted + `]}' where id = ` + id("partially_sent")}},
			{"queued though one accepted", "I4", []string{`update due set progress = '{"r":[` + accepted + `]}' where id = ` + id("queued")}},
			{"failed though one accepted", "I4", []string{"update due set status = 'failed' where id = " + id("partially_sent")}},
			{"failed without a result", "I4", []string{"update due set progress = null where id = " + id("failed")}},
			{"unknown and nothing is unknown", "I4", []string{"update due set status = 'unknown' where id = " + id("failed")}},
			{"partially sent to nobody", "I4", []string{"update due set status = 'partially_sent' where id = " + id("failed")}},
			{"sent again in silence", "I5", []string{`update due set progress = '{"r":[{"s":"deferred","n":2}],"a":[{"n":1,"o":"unknown"},{"n":2,"o":"deferred"}]}' where id = ` + id("deferred")}},
			{"sent twice in silence", "I5", []string{`update archive set result = '{"r":[{"s":"accepted","n":2},{"s":"accepted","n":3}],"a":[{"n":1,"o":"unknown"}]}' where id = ` + id("sent")}},
			{"a message is cut", "I6", []string{"update mail set layout = null where id = " + id("queued")}},
			{"a message has other bytes of its own", "I6", []string{"update mail set raw = " + hash + " where id = " + id("queued")}},
			{"a message is longer than it was", "I6", []string{"update mail set size_bytes = size_bytes + 1 where id = " + id("queued")}},
			{"shared content is gone", "I6", []string{"delete from content_chunk", "delete from content"}},
			{"a piece of shared content is gone", "I6", []string{"delete from content_chunk where n = 0"}},
			{"shared content has other bytes", "I6", []string{swapChunks(isSQLite)}},
			{"the message of another mail", "I6", []string{"update mail set message_id = 'other@x.example' where id = " + id("queued")}},
			{"no recipient", "I6", []string{"update mail set recipients = '[]' where id = " + id("queued")}},
			{"another recipient", "I6", []string{`update mail set recipients = '[{"a":"thief@z.example"}]' where id = ` + id("queued")}},
			{"no sender", "I6", []string{"update mail set sender = '' where id = " + id("queued")}},
			{"a mail that cannot be found", "I6", []string{"delete from term where mail_id = " + id("queued")}},
			{"two defaults", "I7", []string{"update mail_server set is_default = " + yes + " where name = 'bulk'"}},
			{"a deleted default", "I7", []string{"update mail_server set delete_time = " + now + " where is_default"}},
			{"a request_id used twice", "I7", []string{"update mail set request_id = 'r1' where request_id = 'r2'"}},
			{"two mail servers of one request", "I7", []string{"update mail_server set request_id = 'x' where team = ''"}},
		} {
			for _, statement := range d.do {
				mustExec(t, db, statement)
			}
			if broken := inspect(t, s.dsn()); !slices.Equal(broken, []string{d.broken}) {
				t.Errorf("%s: broken %v, want %s", d.name, broken, d.broken)
			}
			if !told[d.broken] {
				told[d.broken] = true
				r := run(t, nil, "doctor", "--database="+s.dsn())
				said := regexp.MustCompile(`(?m)^(I\d)  BROKEN  .*: \d+ breaches\n    \S`).FindAllStringSubmatch(r.stdout, -1)
				if r.code != 1 || strings.Count(r.stderr, "\n") != 1 || len(said) != 1 || said[0][1] != d.broken {
					t.Errorf("%s: %+v", d.name, r)
				}
			}
			put()
		}
		invariants(t, s.dsn()) // it was not the putting back
	})
}

// inspect names the invariants that are broken.
func inspect(t *testing.T, dsn string) (broken []string) {
	t.Helper()
	in, err := store.OpenInspector(timeout(t), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	found, err := in.Inspect(timeout(t), store.InspectOptions{Messages: -1, ContentBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range found.Invariants {
		if len(i.Breaches) > 0 {
			broken = append(broken, i.Name)
		}
	}
	return broken
}

// swapChunks changes shared content without changing its length.
func swapChunks(isSQLite bool) string {
	if isSQLite {
		return "update content_chunk set data = zeroblob(length(data)) where n = 0"
	}
	return "update content_chunk set data = set_byte(data, 0, 255) where n = 0"
}

// freeOfConstraints lets damage in.
func freeOfConstraints(t *testing.T, db *sql.DB, isSQLite bool) {
	t.Helper()
	for _, index := range []string{"mail_server_default", "mail_server_request", "mail_request"} {
		mustExec(t, db, "drop index "+index)
	}
	if !isSQLite { // there the connection ignores them
		mustExec(t, db, `do $$ declare c record; begin
  for c in select conrelid::regclass as r, conname from pg_constraint where contype = 'c' and connamespace = 'public'::regnamespace loop
    execute format('alter table %s drop constraint %I', c.r, c.conname);
  end loop; end $$`)
	}
}

// backup returns what puts every table back as it is now.
func backup(t *testing.T, db *sql.DB, isSQLite bool) (put func()) {
	t.Helper()
	tables := []string{"mail", "due", "archive", "content", "content_chunk", "term", "replica", "mail_server"}
	for _, name := range tables {
		mustExec(t, db, "create table kept_"+name+" as select * from "+name)
	}
	return func() {
		t.Helper()
		for _, name := range tables {
			mustExec(t, db, "delete from "+name)
			over := ""
			if name == "replica" && !isSQLite {
				over = " overriding system value"
			}
			mustExec(t, db, "insert into "+name+over+" select * from kept_"+name)
		}
	}
}

// TestDoctorAdvises: what a person should look at is named, each with commands that the service
// takes.
func TestDoctorAdvises(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		if r := run(t, nil, "doctor", "--database="+s.dsn()); r.code != 0 || !strings.Contains(r.stdout, "\n1 replicas alive\n") || !strings.Contains(r.stdout, "the system has no default mail server") || !strings.Contains(r.stdout, "CreateMailServer") {
			t.Errorf("an empty database: %+v", r)
		}
		c := newClinic(t, s)
		db := openDB(t, s.dsn())
		mustExec(t, db, "update due set last_error = 'quarantined: it panics', status = 'failed' where id = '"+c.ids["failed"]+"'")
		relay := deadPort(t) // nothing is sent through these
		s.addServer("retired", pb.Mode_MODE_DAEMON, relay, func(m *pb.MailServer) {
			m.Team, m.IsDefault, m.Status = "buying", new(true), pb.MailServer_STATUS_UNAVAILABLE
		})
		s.addServer("successor", pb.Mode_MODE_DAEMON, relay, func(m *pb.MailServer) { m.Team = "buying" })
		r := run(t, nil, "doctor", "--late=0s", "--database="+s.dsn())
		if r.code != 0 || r.stderr != "" {
			t.Fatalf("%+v", r)
		}
		for _, want := range []string{
			"UNKNOWN: mail " + c.ids["unknown"] + " of mail server now", "QUARANTINED: mail " + c.ids["failed"], "PARTIALLY_SENT: mail " + c.ids["partially_sent"],
			"HELD: mail " + c.ids["held"], "LATE: 1 mails of mail server bulk are due", "LATE: 1 mails of mail server dead are due", "it is suspended",
			"mail server dead is suspended after 1 failures", "connection refused", "team sales has no default mail server", `{"name":"theirs"}`,
			"mail server retired, the default of team buying, is unavailable", `{"mail_server":{"name":"retired","status":"STATUS_AVAILABLE"}}`, `{"name":"successor"}`,
		} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("no %q in\n%s", want, r.stdout)
			}
		}
		ref := &reflector{t: t, conn: s.conn, files: map[string]*descriptorpb.FileDescriptorProto{}}
		ran := 0
		for _, line := range strings.Split(r.stdout, "\n") {
			line = strings.TrimSpace(line)
			if !strings.HasPrefix(line, "grpcurl ") {
				continue
			}
			words, err := shellWords(line)
			if err != nil {
				t.Fatal(err)
			}
			cmd, err := parseGrpcurl(words[0][1:])
			if err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if _, err := ref.call(timeout(t), cmd.method, cmd.body); err != nil {
				t.Errorf("%s: %v", line, err)
			}
			ran++
		}
		if ran != 15 {
			t.Errorf("%d commands in\n%s", ran, r.stdout)
		}
		// They did what they promise: what could be mended is not there any more.
		r = run(t, nil, "doctor", "--database="+s.dsn())
		if r.code != 0 || strings.Contains(r.stdout, "UNKNOWN") || strings.Contains(r.stdout, "QUARANTINED") || strings.Contains(r.stdout, "HELD") || strings.Contains(r.stdout, "sales") || strings.Contains(r.stdout, "buying") {
			t.Errorf("after its commands: %+v", r)
		}
		s.invariants(t)
	})
}

// TestDoctorOfADeadService: a service that died leaves mail that its next start takes over;
// doctor says so and breaks nothing over it.
func TestDoctorOfADeadService(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *service) {
		var hung atomic.Bool
		reached := make(chan bool)
		relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
			if c.Verb == "DOT" && hung.CompareAndSwap(false, true) {
				close(reached)
				return &smtpxtest.Action{Hang: true}
			}
			return nil
		}}).Start(t)
		s.addServer("bulk", pb.Mode_MODE_DAEMON, relay.Port(), func(m *pb.MailServer) { yes := true; m.IsDefault = &yes })
		id := s.queue("bulk", 1)[0]
		if _, err := s.admin.RunBatch(timeout(t), &pb.RunBatchRequest{}); err != nil {
			t.Fatal(err)
		}
		<-reached
		s.kill()
		db := openDB(t, s.dsn())
		past := "now() - interval '1 hour'"
		if strings.HasPrefix(s.dsn(), "sqlite:") {
			past = "5"
		}
		mustExec(t, db, "update replica set alive_until = "+past) // time flies
		r := run(t, nil, "doctor", "--full", "--database="+s.dsn())
		if r.code != 0 || !strings.Contains(r.stdout, "is dead and owns 1 mails") || !strings.Contains(r.stdout, "maildispatchd serve") {
			t.Errorf("%+v", r)
		}
		s.run()
		eventually(t, 30*time.Second, "the mail is taken over", func() bool { return s.mail(id).PossibleDuplicate })
		s.invariants(t)
		if r := run(t, nil, "doctor", "--database="+s.dsn()); r.code != 0 || strings.Contains(r.stdout, "is dead") || !strings.Contains(r.stdout, "- nothing") {
			t.Errorf("after the restart: %+v", r)
		}
	})
}

// TestDoctorCannotBegin: exit code 2 and one line, and nothing is made.
func TestDoctorCannotBegin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	onlyLine(t, run(t, nil, "doctor", "--database=sqlite:"+dir+"/none.db"), "none.db")
	empty := filepath.Join(dir, "empty.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	onlyLine(t, run(t, nil, "doctor", "--database=sqlite:"+empty), "maildispatchd migrate")
	onlyLine(t, run(t, nil, "doctor", fmt.Sprintf("--database=postgres://nobody@127.0.0.1:%d/x?sslmode=disable", deadPort(t))), "cannot reach PostgreSQL")
	onlyLine(t, run(t, nil, "doctor", "--database="+storetest.EmptyPostgresDSN(t)), "maildispatchd migrate")
	onlyLine(t, run(t, nil, "doctor", "--colour"), "colour")
	old := storetest.EmptySQLiteDSN(t)
	if r := run(t, nil, "migrate", "--database="+old); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	invariants(t, old)
	mustExec(t, openDB(t, old), "delete from goose_db_version where version_id > 2")
	onlyLine(t, run(t, nil, "doctor", "--database="+old), "its schema is at 2", "maildispatchd migrate")
	if made, _ := filepath.Glob(dir + "/none*"); len(made) != 0 {
		t.Errorf("doctor made %q", made)
	}
}
