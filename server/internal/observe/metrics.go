package observe

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// maxServers is how many mail servers have series of their own.
const maxServers = 1000

// Metrics is the registry and everything in it. Its methods may be called from any goroutine.
// Those that hear of events do nothing on a nil *Metrics, which stands for "nobody watches".
type Metrics struct {
	reg *prometheus.Registry

	attempts  series[attemptKey, prometheus.Counter]
	ended     series[endKey, prometheus.Counter]
	dotReply  series[string, prometheus.Observer]
	suspended series[string, prometheus.Counter]
	sessions  series[sessionKey, prometheus.Counter]
	commits   series[string, commitPair]
	rpcs      series[rpcKey, rpcEnd]
	inFlight  series[string, prometheus.Gauge]
	refused   prometheus.Counter
	crowded   prometheus.Counter
	kept      retained

	servers names
	sample  atomic.Pointer[sampled] // Sample writes it, a scrape reads it; nil before the first
}

type (
	attemptKey struct {
		server  string
		outcome lifecycle.Outcome
		failure smtpx.Failure
	}
	endKey struct {
		server string
		kind   store.Kind
		status store.MailStatus
	}
	sessionKey struct {
		server  string
		failure smtpx.Failure
	}
	rpcKey struct{ method, code string }
	rpcEnd struct {
		calls    prometheus.Counter
		took     prometheus.Observer
		inFlight prometheus.Gauge
	}
	commitPair struct{ mails, took prometheus.Observer }
)

// New makes the registry. What State says is read at each scrape.
func New(s State) *Metrics {
	m := &Metrics{reg: prometheus.NewRegistry()}
	attempts, ended := m.counters("attempts_total"), m.counters("mails_ended_total")
	m.attempts.make = func(k attemptKey) prometheus.Counter {
		return attempts.WithLabelValues(m.servers.label(k.server), string(k.outcome), failureLabel(k.failure))
	}
	m.ended.make = func(k endKey) prometheus.Counter {
		return ended.WithLabelValues(m.servers.label(k.server), string(k.kind), string(k.status))
	}
	dotReply, suspended, sessions := m.histograms("dot_reply_seconds"), m.counters("suspensions_total"), m.counters("sessions_total")
	m.dotReply.make = func(server string) prometheus.Observer { return dotReply.WithLabelValues(m.servers.label(server)) }
	m.suspended.make = func(server string) prometheus.Counter { return suspended.WithLabelValues(m.servers.label(server)) }
	m.sessions.make = func(k sessionKey) prometheus.Counter {
		return sessions.WithLabelValues(m.servers.label(k.server), failureLabel(k.failure))
	}
	mails, commit := m.histograms("commit_mails"), m.histograms("commit_seconds")
	m.commits.make = func(line string) commitPair {
		return commitPair{mails.WithLabelValues(line), commit.WithLabelValues(line)}
	}
	rpcs, took := m.counters("rpcs_total"), m.histograms("rpc_seconds")
	inFlight := m.gauges("rpcs_in_flight")
	m.rpcs.make = func(k rpcKey) rpcEnd {
		return rpcEnd{rpcs.WithLabelValues(k.method, k.code), took.WithLabelValues(k.method), inFlight.WithLabelValues(k.method)}
	}
	m.inFlight.make = func(method string) prometheus.Gauge { return inFlight.WithLabelValues(method) }
	m.crowded = m.counters("connections_refused_total").WithLabelValues()
	m.refused = m.counters("tls_refused_total").WithLabelValues()
	m.kept = m.newRetained()
	m.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newStateCollector(m, s))
	return m
}

func (m *Metrics) counters(name string) *prometheus.CounterVec {
	f := familyOf(name)
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: f.name, Help: f.help}, f.labels)
	m.reg.MustRegister(v)
	return v
}

func (m *Metrics) gauges(name string) *prometheus.GaugeVec {
	f := familyOf(name)
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: f.name, Help: f.help}, f.labels)
	m.reg.MustRegister(v)
	return v
}

func (m *Metrics) histograms(name string) *prometheus.HistogramVec {
	f := familyOf(name)
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: f.name, Help: f.help, Buckets: f.buckets}, f.labels)
	m.reg.MustRegister(v)
	return v
}

// Handler answers Prometheus' scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Attempted implements engine.Observer.
func (m *Metrics) Attempted(server string, outcome lifecycle.Outcome, failure smtpx.Failure) {
	if m == nil {
		return
	}
	m.attempts.get(attemptKey{server, outcome, failure}).Inc()
}

// Ended implements engine.Observer.
func (m *Metrics) Ended(server string, kind store.Kind, status store.MailStatus) {
	if m == nil {
		return
	}
	m.ended.get(endKey{server, kind, status}).Inc()
}

// DotAnswered implements engine.Observer.
func (m *Metrics) DotAnswered(server string, took time.Duration) {
	if m == nil {
		return
	}
	m.dotReply.get(server).Observe(took.Seconds())
}

// Opened implements relay.Observer.
func (m *Metrics) Opened(server string, failure smtpx.Failure) {
	if m == nil {
		return
	}
	m.sessions.get(sessionKey{server, failure}).Inc()
}

// Suspended implements relay.Observer.
func (m *Metrics) Suspended(server string) {
	if m == nil {
		return
	}
	m.suspended.get(server).Inc()
}

// Committed implements store.Observer.
func (m *Metrics) Committed(line string, mails int, took time.Duration) {
	if m == nil {
		return
	}
	c := m.commits.get(line)
	c.mails.Observe(float64(mails))
	c.took.Observe(took.Seconds())
}

// Began implements interceptor.Observer.
func (m *Metrics) Began(method string) {
	if m == nil {
		return
	}
	m.inFlight.get(method).Inc()
}

// Called implements interceptor.Observer.
func (m *Metrics) Called(method, code string, took time.Duration) {
	if m == nil {
		return
	}
	end := m.rpcs.get(rpcKey{method, code})
	end.calls.Inc()
	end.took.Observe(took.Seconds())
	end.inFlight.Dec()
}

// Crowded counts a connection for which there was no room.
func (m *Metrics) Crowded() {
	if m == nil {
		return
	}
	m.crowded.Inc()
}

// Refused counts a TLS handshake that failed.
func (m *Metrics) Refused() {
	if m == nil {
		return
	}
	m.refused.Inc()
}

func failureLabel(f smtpx.Failure) string {
	if f == smtpx.FailNone {
		return "none"
	}
	return string(f)
}

// series finds the series of a key without allocating once it exists.
type series[K comparable, V any] struct {
	make func(K) V // set before anything else

	mu  sync.RWMutex
	all map[K]V // guarded by mu
}

func (s *series[K, V]) get(k K) V {
	s.mu.RLock()
	v, ok := s.all[k]
	s.mu.RUnlock()
	if ok {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok = s.all[k]; ok {
		return v
	}
	v = s.make(k)
	if s.all == nil {
		s.all = map[K]V{}
	}
	s.all[k] = v
	return v
}

// names bounds the values of the label mail_server.
type names struct {
	mu    sync.Mutex
	known map[string]bool // guarded by mu
}

func (n *names) label(server string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known[server] {
		return server
	}
	if len(n.known) >= maxServers {
		return "other"
	}
	if n.known == nil {
		n.known = map[string]bool{}
	}
	n.known[server] = true
	return server
}
