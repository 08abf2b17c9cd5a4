package observe

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// journal is a due-out journal that says what a test wants.
type journal struct {
	count *store.QueueCount
	err   error
	asked int
}

func (j *journal) CountQueue(context.Context, store.Scope, *string, string) (*store.QueueCount, error) {
	j.asked++
	return j.count, j.err
}

// everything is metrics to which each event has happened, and whose state says all there is.
func everything(t testing.TB) (*Metrics, *journal) {
	t.Helper()
	now := time.Now()
	m := New(State{
		Build: Build{"v1", "abc", "go1"},
		Relays: func() []Relay {
			return []Relay{{Name: "relay-a", Suspended: true, Batch: 1, Busy: 2, Idle: 3, Limit: 4, Waiters: 5, Slots: 6}}
		},
		BatchLate:   func() time.Duration { return time.Second },
		Serving:     func() bool { return true },
		Writers:     func() map[string]int { return map[string]int{store.LineResults: 7} },
		Pools:       func() map[string]sql.DBStats { return map[string]sql.DBStats{"mail": {MaxOpenConnections: 9}} },
		OAuth:       func() map[string]OAuthToken { return map[string]OAuthToken{"relay-a": {now, now.Add(time.Hour)}} },
		Certificate: func() time.Time { return now },
		Damaged:     func() (mails, pages int) { return 1, 1 },
		Token:       func() time.Time { return now },
	})
	m.Attempted("relay-a", lifecycle.Sent, smtpx.FailNone)
	m.Ended("relay-a", store.KindInvoice, store.MailSent)
	m.DotAnswered("relay-a", time.Second)
	m.Opened("relay-a", smtpx.FailTLS)
	m.Suspended("relay-a")
	m.Committed(store.LineAccept, 3, time.Millisecond)
	m.Began("a.B/C")
	m.Called("a.B/C", "OK", time.Millisecond)
	m.Refused()
	m.Removed(store.KindBulk, store.PartBody, 2)
	m.Overdue(store.KindBulk, store.PartBody, time.Hour)
	m.RemovedContents(1, 2)
	m.Through(now)
	j := &journal{count: &store.QueueCount{Time: now, Scheduled: 4, WatchLag: time.Second, ByStatus: map[store.MailStatus]int{store.MailUnknown: 2},
		DueByServer: map[store.ServerLane]store.Lane{{MailServer: "relay-a", Priority: store.PriorityHigh}: {Waiting: 8, Oldest: now.Add(-time.Minute)}}}}
	m.sampleOnce(t.Context(), j)
	return m, j
}

// TestFamilies: what is gathered is what the table says, name by name and label by label, and
// Prometheus' own linter has nothing to say of it.
func TestFamilies(t *testing.T) {
	m, _ := everything(t)
	problems, err := testutil.GatherAndLint(m.reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	gathered, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, g := range gathered {
		name, ours := strings.CutPrefix(g.GetName(), namespace+"_")
		if !ours {
			continue
		}
		got[name] = true
		f := familyOf(name)
		if kind := strings.ToLower(g.GetType().String()); kind != string(f.kind) {
			t.Errorf("%s: got a %s, want a %s", name, kind, f.kind)
		}
		for _, s := range g.Metric {
			var labels []string
			for _, l := range s.Label {
				labels = append(labels, l.GetName())
			}
			want := slices.Sorted(slices.Values(f.labels))
			if slices.Sort(labels); !slices.Equal(labels, want) {
				t.Errorf("%s: got labels %q, want %q", name, labels, want)
			}
		}
	}
	for _, f := range families {
		if !got[f.name] {
			t.Errorf("%s is in the table and was not gathered", f.name)
		}
	}
}

// TestLint: the linter is really asked.
func TestLint(t *testing.T) {
	problems, err := promlint.New(strings.NewReader("# HELP x_total y\n# TYPE x_total gauge\nx_total 1\n")).Lint()
	if err != nil || len(problems) == 0 {
		t.Fatalf("got %v, %v, want a problem", problems, err)
	}
}

// TestLabels: every label that a family has is explained, and none that could grow without a
// bound or say who somebody is.
func TestLabels(t *testing.T) {
	var explained []string
	for _, l := range labelValues() {
		explained = append(explained, strings.Split(l[0], ", ")...)
	}
	for _, f := range families {
		for _, l := range f.labels {
			if !slices.Contains(explained, l) {
				t.Errorf("%s: nothing says what the values of %q are", f.name, l)
			}
			if slices.Contains([]string{"team", "caller", "peer", "address", "recipient", "mail", "reference"}, l) {
				t.Errorf("%s has the label %q", f.name, l)
			}
		}
	}
}

// TestDocument: METRICS.md is what the code says. MAILDISPATCH_WRITE=1 writes it.
func TestDocument(t *testing.T) {
	path := filepath.Join("..", "..", "METRICS.md")
	if os.Getenv("MAILDISPATCH_WRITE") != "" {
		if err := os.WriteFile(path, []byte(Document()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != Document() {
		t.Error("server/METRICS.md is not what the code says; `MAILDISPATCH_WRITE=1 go test -run TestDocument ./server/internal/observe` writes it")
	}
}

// TestBoundedServers: the names of mail servers do not grow beyond the bound.
func TestBoundedServers(t *testing.T) {
	m := New(State{})
	for i := range maxServers + 50 {
		m.Suspended("relay-" + string(rune('a'+i%26)) + strings.Repeat("x", i/26))
	}
	if n := testutil.CollectAndCount(m.reg, namespace+"_suspensions_total"); n != maxServers+1 {
		t.Errorf("got %d series, want %d and one for all others", n, maxServers)
	}
}

// TestSampleStays: while the database does not answer the last sample stays, and nobody's
// scrape asks the database.
func TestSampleStays(t *testing.T) {
	m, j := everything(t)
	j.err = context.DeadlineExceeded
	m.sampleOnce(t.Context(), j)
	asked := j.asked
	for range 3 {
		want := `
# HELP maildispatch_due_mails Mails that are due and whose dot is not on its way. All replicas say the same; sampled.
# TYPE maildispatch_due_mails gauge
maildispatch_due_mails{lane="high",mail_server="relay-a"} 8
`
		if err := testutil.GatherAndCompare(m.reg, strings.NewReader(want), "maildispatch_due_mails"); err != nil {
			t.Error(err)
		}
	}
	if j.asked != asked {
		t.Errorf("scrapes asked the database %d times", j.asked-asked)
	}
}

// TestNobodyWatches: events cost nothing and break nothing when there are no metrics.
func TestNobodyWatches(t *testing.T) {
	var m *Metrics
	m.Attempted("a", lifecycle.Sent, smtpx.FailNone)
	m.Ended("a", store.KindBulk, store.MailSent)
	m.DotAnswered("a", 0)
	m.Opened("a", smtpx.FailNone)
	m.Suspended("a")
	m.Committed(store.LineAccept, 1, 0)
	m.Began("a")
	m.Called("a", "OK", 0)
	m.Refused()
}

// TestNoAllocation: an event whose series exists allocates nothing.
func TestNoAllocation(t *testing.T) {
	m, _ := everything(t)
	for name, event := range events(m) {
		if n := testing.AllocsPerRun(100, event); n != 0 {
			t.Errorf("%s: got %v allocations, want none", name, n)
		}
	}
}

func events(m *Metrics) map[string]func() {
	return map[string]func(){
		"Attempted":   func() { m.Attempted("relay-a", lifecycle.Sent, smtpx.FailNone) },
		"Ended":       func() { m.Ended("relay-a", store.KindInvoice, store.MailSent) },
		"DotAnswered": func() { m.DotAnswered("relay-a", time.Second) },
		"Opened":      func() { m.Opened("relay-a", smtpx.FailTLS) },
		"Committed":   func() { m.Committed(store.LineAccept, 3, time.Millisecond) },
		"Called":      func() { m.Called("a.B/C", "OK", time.Millisecond) },
	}
}

// processor is the time that this process has had of a processor, which a busy machine does not
// make longer.
func processor() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r) // fails for no arguments that there are here
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkEvent says what an event costs: below 200 ns each.
func BenchmarkEvent(b *testing.B) {
	m, _ := everything(b)
	for name, event := range events(m) {
		b.Run(name, func(b *testing.B) {
			before := processor()
			for b.Loop() {
				event()
			}
			b.ReportMetric(float64(processor()-before)/float64(b.N), "cpu-ns/op")
		})
	}
}
