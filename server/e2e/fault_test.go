package e2e

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// The fault tests (F-numbers, README.md beside this file) print their figures in one line each
// and end with the invariants. In an ordinary run they are scaled down;
// MAILDISPATCH_TEST_FULL=1 runs them at full size.

// scaled is the size of a fault test.
func scaled(ordinary, full int) int {
	if os.Getenv("MAILDISPATCH_TEST_FULL") == "1" {
		return full
	}
	return ordinary
}

// flight is the connections to the relay in the fault tests, "C" of the tables.
const flight = 16

func flightLimit(m *pb.MailServer) { m.Limits = &pb.Limits{MaxConnections: flight} }

// witness is a relay that remembers every mail that it accepted before it says so, and counts
// commands to trip a fault at one of them.
type witness struct {
	*smtpxtest.Server
	commands atomic.Int64
	mu       sync.Mutex
	tripAt   int64
	tripped  chan time.Time
}

// newWitness starts one; delay is the time of its answers, which keeps connections in flight.
func newWitness(t *testing.T, delay time.Duration, on func(smtpxtest.Command) *smtpxtest.Action) *witness {
	t.Helper()
	w := &witness{}
	w.Server = (&smtpxtest.Server{Delay: delay, On: func(c smtpxtest.Command) *smtpxtest.Action {
		n := w.commands.Add(1)
		w.mu.Lock()
		if w.tripped != nil && n >= w.tripAt {
			w.tripped <- time.Now()
			w.tripped = nil
		}
		w.mu.Unlock()
		if on != nil {
			return on(c)
		}
		return nil
	}}).Start(t)
	return w
}

// after returns a channel that hears when n more commands have come.
func (w *witness) after(n int) <-chan time.Time {
	c := make(chan time.Time, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tripAt, w.tripped = w.commands.Load()+int64(n), c
	return c
}

// await waits for a channel of after.
func await(t *testing.T, what string, c <-chan time.Time) time.Time {
	t.Helper()
	select {
	case at := <-c:
		return at
	case <-time.After(2 * time.Minute):
		t.Fatalf("not within 2 minutes: %s", what)
	}
	return time.Time{}
}

// messageID finds the mail's id in its Message-ID.
func messageID(data []byte) string {
	_, rest, _ := strings.Cut(string(data), "Message-ID: <")
	id, _, _ := strings.Cut(rest, "@")
	return id
}

// account is what became of acknowledged mails: the relay's memory against the journals.
type account struct {
	lost, unflagged   int
	flagged, doubled  int
	quarantined       int
	mostPerConnection int // mails of one connection that were accepted again on a later one
}

// account compares. Every id has to be sent and in the relay's memory, all copies of it with
// the same bytes, and flagged if there are several.
func (w *witness) account(s *service, ids []string) account {
	s.t.Helper()
	return w.accountOf(s, ids, false)
}

// accountOf also takes mail that was kept and sent though nobody heard of it, where callers
// were cut off.
func (w *witness) accountOf(s *service, ids []string, cutOff bool) account {
	s.t.Helper()
	copies := map[string][]smtpxtest.Mail{}
	for _, m := range w.Mails() {
		id := messageID(m.Data)
		copies[id] = append(copies[id], m)
	}
	var a account
	again := map[int]int{}
	for _, id := range ids {
		m := s.mail(id)
		cs := copies[id]
		switch visible := m.Status == pb.MailStatus_MAIL_STATUS_FAILED || m.Status == pb.MailStatus_MAIL_STATUS_UNKNOWN || m.Status == pb.MailStatus_MAIL_STATUS_HELD; {
		case len(cs) == 0 && !visible:
			a.lost++
			s.t.Errorf("lost: %s is %s and the relay never accepted it", id, m.Status)
		case m.Status == pb.MailStatus_MAIL_STATUS_FAILED && strings.Contains(m.LastError, "quarantined"):
			a.quarantined++
		case m.Status != pb.MailStatus_MAIL_STATUS_SENT:
			s.t.Errorf("%s is %s: %s", id, m.Status, m.LastError)
		}
		if m.PossibleDuplicate {
			a.flagged++
		}
		if len(cs) > 1 {
			a.doubled++
			if !m.PossibleDuplicate {
				a.unflagged++
				s.t.Errorf("unflagged: %s was accepted %d times", id, len(cs))
			}
		}
		for i, c := range cs {
			if string(c.Data) != string(cs[0].Data) {
				s.t.Errorf("%s was sent with other bytes", id)
			}
			if i < len(cs)-1 {
				again[c.Conn]++
				a.mostPerConnection = max(a.mostPerConnection, again[c.Conn])
			}
		}
		delete(copies, id)
	}
	for id, cs := range copies {
		if !cutOff {
			s.t.Errorf("%s was accepted %d times by the relay and never acknowledged", id, len(cs))
		}
		if len(cs) > 1 && !s.mail(id).PossibleDuplicate {
			a.unflagged++
			s.t.Errorf("unflagged: %s was accepted %d times", id, len(cs))
		}
	}
	return a
}

func (a account) String() string {
	return fmt.Sprintf("lost=%d unflagged=%d flagged=%d doubled=%d quarantined=%d", a.lost, a.unflagged, a.flagged, a.doubled, a.quarantined)
}

// drained polls until nothing of the mail server waits to be sent, making due at once what
// waits for another try. also is done before each look.
func (s *service) drained(server string, within time.Duration, also ...func()) {
	s.t.Helper()
	open := []pb.MailStatus{pb.MailStatus_MAIL_STATUS_QUEUED, pb.MailStatus_MAIL_STATUS_SENDING, pb.MailStatus_MAIL_STATUS_DEFERRED, pb.MailStatus_MAIL_STATUS_PARTIALLY_SENT}
	eventually(s.t, within, "all mail is sent", func() bool {
		for _, f := range also {
			f()
		}
		if _, err := s.dispatch.RetryMails(timeout(s.t), &pb.RetryMailsRequest{Filter: &pb.MailFilter{MailServer: server, Statuses: open[2:3]}}); err != nil {
			s.t.Fatal(err)
		}
		if _, err := s.admin.RunBatch(timeout(s.t), &pb.RunBatchRequest{}); err != nil {
			s.t.Fatal(err)
		}
		r, err := s.dispatch.ListDueOutMails(timeout(s.t), &pb.ListDueOutMailsRequest{PageSize: 1, Filter: &pb.MailFilter{MailServer: server, Statuses: open}})
		if err != nil {
			s.t.Fatal(err)
		}
		return len(r.Mails) == 0
	})
}

// owned counts the mails that a replica has, on their way or in its memory.
func owned(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRow("select count(*) from due where owner is not null").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// intact asks SQLite whether its file is; PostgreSQL has checked its own at its start.
func intact(t *testing.T, dsn string) {
	t.Helper()
	if !strings.HasPrefix(dsn, "sqlite:") {
		return
	}
	var said string
	if err := openDB(t, dsn).QueryRow("pragma integrity_check").Scan(&said); err != nil || said != "ok" {
		t.Errorf("integrity: %s %v", said, err)
	}
}

// leaseOver lets the lease of every replica run out, as 30 seconds would. Nothing else is
// changed.
func leaseOver(t *testing.T, db *sql.DB, dsn string) {
	t.Helper()
	if !strings.HasPrefix(dsn, "sqlite:") {
		// there a new process means that the last one is dead
		mustExec(t, db, "update replica set alive_until = now() - interval '1 second' where alive_until > now()")
	}
}

// suspicionOver lets the wait of the mail that owners died of run out, as minutes would.
// Nothing else is changed.
func suspicionOver(t *testing.T, db *sql.DB, dsn string) {
	t.Helper()
	now := "now()"
	if strings.HasPrefix(dsn, "sqlite:") {
		now = fmt.Sprint(time.Now().UnixMicro())
	}
	mustExec(t, db, "update due set run_at = "+now+" where crashes > 0 and owner is null and status = 'queued' and run_at > "+now)
}

// about is a random number around n.
func about(n int) int { return n/2 + rand.N(n) }

// TestFaultTable: every test that the table of fault tests names is in the package that it
// names before the test. No package is this one, and a package holds up to the next semicolon.
func TestFaultTable(t *testing.T) {
	table, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{"": ".", "engine": "../internal/engine", "fairqueue": "../internal/fairqueue", "lifecycle": "../internal/lifecycle", "budget": "../internal/budget", "smtpx": "../../smtpx", "store": "../../store"}
	tests := map[string]string{} // the text of the tests of a package
	for name, dir := range dirs {
		files, err := filepath.Glob(dir + "/*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			tests[name] += string(b)
		}
	}
	name := regexp.MustCompile("(?:([a-z]+) )?`(Test[A-Za-z0-9_]+)`")
	named := 0
	for line := range strings.Lines(string(table)) {
		for group := range strings.SplitSeq(line, ";") {
			in := ""
			for _, m := range name.FindAllStringSubmatch(group, -1) {
				if m[1] != "" {
					in = m[1]
				}
				if named++; !strings.Contains(tests[in], "\nfunc "+m[2]+"(") {
					t.Errorf("%s is named and is not in %q", m[2], dirs[in])
				}
			}
		}
	}
	if named < 20 {
		t.Errorf("the table names %d tests", named)
	}
}
