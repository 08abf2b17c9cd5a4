package observe

import (
	"database/sql"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/maildispatch/maildispatch/store"
)

// State is what is read at each scrape. A function that is nil says nothing. None may ask the
// database or wait for anything.
type State struct {
	Build Build
	// Relays are the mail servers that this process knows.
	Relays func() []Relay
	// BatchLate is how much later than its interval the batch looks for mail.
	BatchLate func() time.Duration
	Serving   func() bool
	// Writers is how many writes wait, by line.
	Writers func() map[string]int
	// Damaged is how many mails, and pages of mails that wait, are left out because the
	// database cannot read or write them.
	Damaged func() (mails, pages int)
	// Pools are the connections to the database.
	Pools func() map[string]sql.DBStats
	// OAuth are the access tokens that this process holds, by mail server.
	OAuth func() map[string]OAuthToken
	// Certificate is when the service's certificate ends; zero = it has none.
	Certificate func() time.Time
	// Token is when the first of the callers' tokens ends; zero = none ends.
	Token func() time.Time
}

// Build is what the program was built from.
type Build struct{ Version, Revision, Go string }

// Relay is what this process has with one mail server.
type Relay struct {
	Name      string
	Suspended bool
	Batch     int // connections of the batch
	Busy      int // connections of mails in php mode, and those that are being opened
	Idle      int
	Limit     int
	Waiters   int
	Slots     int
}

// OAuthToken is the life of an access token.
type OAuthToken struct{ Since, Until time.Time }

// stateCollector makes metrics of State and of the newest sample.
type stateCollector struct {
	m     *Metrics
	s     State
	descs map[string]*prometheus.Desc
	types map[string]prometheus.ValueType
}

// fromState are the families that have no vector of their own.
var fromState = []string{
	"due_mails", "due_oldest_age_seconds", "scheduled_mails", "journal_mails", "watch_lag_seconds", "sample_age_seconds",
	"mail_server_suspended", "connections", "connections_limit", "connections_waiters", "connections_slots",
	"batch_late_seconds", "serving", "writer_queue", "damaged_mails", "damaged_pages", "database_connections", "database_connections_max", "database_waits_total", "database_wait_seconds_total",
	"oauth_token_age_seconds", "oauth_token_expiry_timestamp_seconds", "certificate_expiry_timestamp_seconds", "token_expiry_timestamp_seconds", "build_info",
}

func newStateCollector(m *Metrics, s State) *stateCollector {
	c := &stateCollector{m: m, s: s, descs: map[string]*prometheus.Desc{}, types: map[string]prometheus.ValueType{}}
	for _, name := range fromState {
		f := familyOf(name)
		c.descs[name], c.types[name] = f.desc(), prometheus.GaugeValue
		if f.kind == counter {
			c.types[name] = prometheus.CounterValue
		}
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	put := func(name string, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], c.types[name], v, labels...)
	}
	b := c.s.Build
	put("build_info", 1, b.Version, b.Revision, b.Go)
	if c.s.Relays != nil {
		putRelays(put, c.s.Relays())
	}
	if c.s.BatchLate != nil {
		put("batch_late_seconds", max(0, c.s.BatchLate()).Seconds())
	}
	if c.s.Serving != nil {
		put("serving", truth(c.s.Serving()))
	}
	if c.s.Writers != nil {
		for line, n := range c.s.Writers() {
			put("writer_queue", float64(n), line)
		}
	}
	if c.s.Damaged != nil {
		mails, pages := c.s.Damaged()
		put("damaged_mails", float64(mails))
		put("damaged_pages", float64(pages))
	}
	if c.s.Pools != nil {
		for pool, s := range c.s.Pools() {
			put("database_connections", float64(s.InUse), pool, "in_use")
			put("database_connections", float64(s.Idle), pool, "idle")
			put("database_connections_max", float64(s.MaxOpenConnections), pool)
			put("database_waits_total", float64(s.WaitCount), pool)
			put("database_wait_seconds_total", s.WaitDuration.Seconds(), pool)
		}
	}
	if c.s.OAuth != nil {
		for i, t := range upTo(c.s.OAuth()) {
			put("oauth_token_age_seconds", time.Since(t.Since).Seconds(), i)
			put("oauth_token_expiry_timestamp_seconds", unix(t.Until), i)
		}
	}
	if c.s.Certificate != nil {
		if t := c.s.Certificate(); !t.IsZero() {
			put("certificate_expiry_timestamp_seconds", unix(t))
		}
	}
	if c.s.Token != nil {
		if t := c.s.Token(); !t.IsZero() {
			put("token_expiry_timestamp_seconds", unix(t))
		}
	}
	if s := c.m.sample.Load(); s != nil {
		s.put(put)
	}
}

// putter puts one series out.
type putter func(name string, v float64, labels ...string)

func putRelays(put putter, relays []Relay) {
	for i, r := range relays {
		if i >= maxServers {
			return
		}
		put("mail_server_suspended", truth(r.Suspended), r.Name)
		put("connections", float64(r.Batch), r.Name, "batch")
		put("connections", float64(r.Busy), r.Name, "interactive")
		put("connections", float64(r.Idle), r.Name, "idle")
		put("connections_limit", float64(r.Limit), r.Name)
		put("connections_waiters", float64(r.Waiters), r.Name)
		put("connections_slots", float64(r.Slots), r.Name)
	}
}

// upTo is no more of a map than mail servers have series.
func upTo[V any](m map[string]V) map[string]V {
	if len(m) <= maxServers {
		return m
	}
	few := make(map[string]V, maxServers)
	for k, v := range m {
		if few[k] = v; len(few) == maxServers {
			break
		}
	}
	return few
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// lanes are the words for priorities.
var lanes = map[int16]string{store.PriorityLow: "low", store.PriorityNormal: "normal", store.PriorityHigh: "high", store.PriorityUrgent: "urgent"}

func laneLabel(p int16) string {
	if w := lanes[p]; w != "" {
		return w
	}
	return "other"
}
