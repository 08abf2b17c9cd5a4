package store_test

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// BenchmarkCounts is what the counters cost, as BenchmarkTerms does it: mails of one batch with
// the triggers of the counters and without, by turns on one database.
//
//	go test -run '^$' -bench Counts -benchtime 40x ./store
func BenchmarkCounts(b *testing.B) {
	body := bytes.Repeat([]byte("A line of sixty-four characters, as they stand in many letters.\r\n"), 76)
	for name, dsn := range storetest.DSNs(b) {
		b.Run(name, func(b *testing.B) {
			s := storetest.Open(b, dsn)
			count := triggers(b, s)
			var took, cpu [2]time.Duration
			for i := range b.N {
				for j := range 2 {
					way := (i + j) % 2 // which goes first changes
					count(way == 0)
					before := processorTime(b)
					took[way] += cycle(b, s, body)
					cpu[way] += processorTime(b) - before
				}
			}
			count(true)
			rate := func(d time.Duration) float64 { return float64(b.N*cycleMails) / d.Seconds() }
			b.ReportMetric(rate(took[0]), "with/s")
			b.ReportMetric(rate(took[1]), "without/s")
			b.ReportMetric(100*(took[0].Seconds()/took[1].Seconds()-1), "cost-%")
			b.ReportMetric(100*(cpu[0].Seconds()/cpu[1].Seconds()-1), "own-cpu-%")
			b.ReportMetric(cpu[1].Seconds()/float64(b.N*cycleMails)*1e6, "own-µs/mail")
		})
	}
}

// processorTime is what this process has used; PostgreSQL's own is not in it.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// triggers switches the triggers of the counters.
func triggers(b *testing.B, s *store.Store) func(on bool) {
	b.Helper()
	exec := func(q string) {
		if err := s.Exec(q); err != nil {
			b.Fatal(err)
		}
	}
	if s.Dialect() == "postgres" {
		return func(on bool) {
			do := "enable"
			if !on {
				do = "disable"
			}
			for trigger, table := range map[string]string{"count_due_new": "due", "count_due_gone": "due", "count_due_changed": "due", "count_archive_new": "archive"} {
				exec(fmt.Sprintf("alter table %s %s trigger %s", table, do, trigger))
			}
		}
	}
	var sqls string
	if err := s.Get(&sqls, "select group_concat(sql, ';;') from sqlite_master where type = 'trigger' and name like 'count_%'"); err != nil {
		b.Fatal(err)
	}
	there := true
	return func(on bool) {
		if on == there {
			return
		}
		there = on
		for _, q := range strings.Split(sqls, ";;") {
			if on {
				exec(q)
			} else {
				exec("drop trigger " + strings.Fields(q)[2])
			}
		}
	}
}
