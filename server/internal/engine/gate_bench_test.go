package engine_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// BenchmarkGate drains b.N queued mails of 5 KB to a sink. Built with the tag nogate no dot
// waits for its mark: the difference is what the dot gate costs. While one connection waits for
// its mark to be durable the others use the wire, so it costs less with more of them.
// CONTRIBUTING.md has the two commands.
func BenchmarkGate(b *testing.B) {
	for _, db := range []string{"sqlite", "postgres"} {
		for _, connections := range []int{10, 32, 100} {
			benchmarkGate(b, db, connections)
		}
	}
}

func benchmarkGate(b *testing.B, db string, connections int) {
	b.Run(fmt.Sprintf("%s/connections=%d/gate=%v", db, connections, engine.Gated), func(b *testing.B) {
		sink := &smtpxtest.Sink{}
		if err := sink.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(sink.Close)
		dsn := storetest.SQLiteDSN
		if db == "postgres" {
			dsn = storetest.PostgresDSN
		}
		r := newRig(b, dsn(b), nil, func(c *engine.Config) { c.MaxConnections = connections })
		s := r.server("bulk", store.ModeDaemon, sink, store.Limits{})
		body := bytes.Repeat([]byte(strings.Repeat("x", 70)+"\r\n"), 5000/72)
		for left := b.N; left > 0; left -= 500 {
			var ms []*store.NewMail
			for range min(left, 500) {
				m := newMail(s, store.KindBulk, "u@y.example")
				m.Raw[0].Data = append(m.Raw[0].Data, body...)
				m.SizeBytes = int64(len(m.Raw[0].Data))
				ms = append(ms, m)
			}
			r.queue(s, ms...)
		}
		b.ResetTimer()
		c := r.batch("")
		b.StopTimer()
		if c.Sent != b.N || sink.Mails() != b.N {
			b.Fatalf("%d of %d arrived: %+v", sink.Mails(), b.N, c)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
	})
}
