package store_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// BenchmarkJournal is what bulk asks of PostgreSQL: mails are written in groups of 500, claimed
// in pages of 500, and marked and finished in groups of eight, as over sixteen connections. It
// tells the processor time of the database's backends and of this process for each mail, which
// other work on the machine disturbs less than rates.
//
//	go test -run '^$' -bench Journal -benchtime 10x -count 5 ./store
const journalGroup = 16

func BenchmarkJournal(b *testing.B) {
	s := storetest.Open(b, storetest.PostgresDSN(b))
	body := bytes.Repeat([]byte("A line of sixty-four characters, as they stand in many letters.\r\n"), 76)
	var write, claim, settle cpu
	for range b.N {
		ms := make([]*store.NewMail, cycleMails)
		for i := range ms {
			ms[i] = newMail("ss", func(m *store.NewMail) {
				m.Recipients = []store.Recipient{{Mailbox: fmt.Sprintf("customer.%d@example.com", rand.Int64())}}
				m.Raw[0].Data = append(m.Raw[0].Data, body...)
			})
		}
		before := cpuNow(b, s)
		for group := range slices.Chunk(ms, 500) {
			if _, err := s.EnqueueBatch(ctx, group); err != nil {
				b.Fatal(err)
			}
		}
		write.add(before, cpuNow(b, s))
		r := register(b, s)
		for done := 0; done < len(ms); {
			before := cpuNow(b, s)
			cs, err := s.Claim(ctx, r, "ss", 500, store.AnyPriority)
			if err != nil || len(cs) == 0 {
				b.Fatal(len(cs), err)
			}
			claim.add(before, cpuNow(b, s))
			before = cpuNow(b, s)
			var marked []*store.Claimed
			for group := range slices.Chunk(cs, journalGroup) {
				settleAll(b, s, r, group, marked)
				marked = group
			}
			settleAll(b, s, r, nil, marked)
			settle.add(before, cpuNow(b, s))
			done += len(cs)
		}
		if err := s.Unregister(ctx, r); err != nil {
			b.Fatal(err)
		}
	}
	mails := float64(b.N * cycleMails)
	b.ReportMetric(1e6*write.database.Seconds()/mails, "write-db-us")
	b.ReportMetric(1e6*write.process.Seconds()/mails, "write-us")
	b.ReportMetric(1e6*claim.database.Seconds()/mails, "claim-db-us")
	b.ReportMetric(1e6*claim.process.Seconds()/mails, "claim-us")
	b.ReportMetric(1e6*settle.database.Seconds()/mails, "settle-db-us")
	b.ReportMetric(1e6*settle.process.Seconds()/mails, "settle-us")
}

// settleAll writes marks for some and the ends of others, and waits for all of it.
func settleAll(b *testing.B, s *store.Store, r store.ReplicaID, marks, ends []*store.Claimed) {
	answers := make([]<-chan store.Settled, 0, len(marks)+len(ends))
	for _, c := range marks {
		answers = append(answers, s.Settle(&store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleMark}))
	}
	for _, c := range ends {
		answers = append(answers, s.Settle(&store.Settlement{ID: c.ID, Owner: r, Claim: c.Claim, Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1,
			Progress: &store.Progress{Results: []store.RecipientResult{{Status: store.RecipientAccepted, Code: 250, Attempt: 1, Time: c.CreateTime}}}}))
	}
	for _, a := range answers {
		if got := <-a; got.Err != nil || !got.Mine {
			b.Fatalf("%+v", got)
		}
	}
}

// cpu is processor time, of the database's backends and of this process.
type cpu struct{ database, process time.Duration }

func (c *cpu) add(from, to cpu) {
	c.database += to.database - from.database
	c.process += to.process - from.process
}

func cpuNow(b *testing.B, s *store.Store) cpu {
	b.Helper()
	var c cpu
	var pids string
	if err := s.Get(&pids, "select string_agg(pid::text, ' ') from pg_stat_activity where datname = current_database()"); err != nil {
		b.Fatal(err)
	}
	for pid := range strings.FieldsSeq(pids) {
		// The first field is the time on a processor in nanoseconds.
		stat, err := os.ReadFile("/proc/" + pid + "/schedstat")
		if err != nil {
			b.Fatal(err)
		}
		ns, err := strconv.ParseInt(strings.Fields(string(stat))[0], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		c.database += time.Duration(ns)
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	c.process = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	return c
}
