package observe

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/maildispatch/maildispatch/store"
)

// retained is what retention does.
type retained struct {
	removed          *prometheus.CounterVec
	overdue          *prometheus.GaugeVec
	files, fileBytes prometheus.Counter
	through          prometheus.Gauge
}

func (m *Metrics) newRetained() retained {
	return retained{removed: m.counters("retention_removed_total"), overdue: m.gauges("retention_overdue_seconds"),
		files: m.counters("retention_removed_files_total").WithLabelValues(), fileBytes: m.counters("retention_removed_file_bytes_total").WithLabelValues(),
		through: m.gauges("retention_run_timestamp_seconds").WithLabelValues()}
}

// Removed implements retention.Observer.
func (m *Metrics) Removed(kind store.Kind, part store.Part, mails int) {
	if m != nil {
		m.kept.removed.WithLabelValues(string(kind), string(part)).Add(float64(mails))
	}
}

// Overdue implements retention.Observer.
func (m *Metrics) Overdue(kind store.Kind, part store.Part, by time.Duration) {
	if m != nil {
		m.kept.overdue.WithLabelValues(string(kind), string(part)).Set(by.Seconds())
	}
}

// RemovedContents implements retention.Observer.
func (m *Metrics) RemovedContents(files int, bytes int64) {
	if m != nil {
		m.kept.files.Add(float64(files))
		m.kept.fileBytes.Add(float64(bytes))
	}
}

// Through implements retention.Observer.
func (m *Metrics) Through(at time.Time) {
	if m != nil {
		m.kept.through.Set(float64(at.Unix()))
	}
}
