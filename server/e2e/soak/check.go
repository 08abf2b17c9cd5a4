package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

// checker holds the database and the relay against what callers were told.
type checker struct {
	db           *sql.DB
	load         *load
	stops, kills int // by the one goroutine that replaces
	lost         int
	unflagged    int
	flagged      int
	samples      [][3]float64 // minutes, rss, heap

	mu     sync.Mutex
	faults []string
}

func openChecker(dsn string, l *load) (*checker, error) {
	db, err := sql.Open("postgres", dsn)
	return &checker{db: db, load: l}, err
}

func (c *checker) close() { _ = c.db.Close() }

// broken notes that the promise was broken.
func (c *checker) broken(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
	fmt.Println("BROKEN:", c.faults[len(c.faults)-1])
}

// recent is how far back the look of each minute goes; the last one looks at everything.
const recent = 10 * time.Minute

// look checks and prints a line of figures.
func (c *checker) look(ctx context.Context, at time.Duration, all bool) error {
	since := time.Now().Add(-recent)
	l, r := c.load, c.load.relay
	told := map[string]*mail{}
	l.mu.Lock()
	acked, refused, again, given, doubled, late := len(l.acked), fmt.Sprint(l.refused), l.again, l.given, l.doubled, l.late
	for id, m := range l.acked {
		if all || m.since.After(since) {
			x := *m
			told[id] = &x
		}
	}
	l.mu.Unlock()
	var doubles, came []string
	r.mu.Lock()
	arrived, other, faults := r.arrived, r.other, 0
	for _, n := range r.faults {
		faults += n
	}
	for id, m := range r.took {
		if !all && m.last.Before(since) {
			continue
		}
		came = append(came, id)
		for _, n := range m.times {
			if n > 1 {
				doubles = append(doubles, id)
				break
			}
		}
	}
	r.mu.Unlock()

	var both, due, owned, archived int
	var mb float64
	err := c.db.QueryRowContext(ctx, `select (select count(*) from due join archive using (id)), (select count(*) from due), (select count(*) from due where owner is not null),
		(select count(*) from archive), pg_database_size(current_database()) / 1048576.0`).Scan(&both, &due, &owned, &archived, &mb)
	if err != nil {
		return err
	}
	if both > 0 {
		c.broken("%d mails are in both journals", both)
	}
	if other > 0 {
		c.broken("%d attempts had other bytes than the first", other)
	}
	if doubled > 0 {
		c.broken("%d request_ids got two mails", doubled)
	}
	status, flags, err := c.states(ctx, append(came, keys(told)...))
	if err != nil {
		return err
	}
	c.lost, c.unflagged = 0, 0
	for id, m := range told {
		switch s := status[id]; {
		case s == "":
			c.lost++
			c.broken("lost: %s was accepted and is in no journal", id)
		case s == "sent" && !r.has(id, m.to):
			c.lost++
			c.broken("lost: %s is in the archive and the relay has not taken it for everybody", id)
		case m.sent && s != "sent":
			c.broken("%s: its caller was told sent, the journal says %s", id, s)
		}
	}
	for _, id := range came {
		if status[id] == "" {
			c.broken("%s came to the relay and is in no journal", id)
		}
	}
	for _, id := range doubles {
		if !flags[id] {
			c.unflagged++
			c.broken("unflagged: %s came twice", id)
		}
	}
	if err := c.db.QueryRowContext(ctx, "select (select count(*) from due where possible_duplicate) + (select count(*) from archive where possible_duplicate)").Scan(&c.flagged); err != nil {
		return err
	}
	rss, heap := l.replicas[len(l.replicas)-1].memory()
	if !all {
		c.samples = append(c.samples, [3]float64{at.Minutes(), rss, heap})
	}
	fmt.Printf("%v acked=%d arrived=%d archived=%d due=%d owned=%d lost=%d unflagged=%d both=%d flagged=%d faults=%d again=%d %s given_up=%d slowest=%v stops=%d kills=%d rss=%.1fMiB heap=%.0fMiB db=%.0fMiB\n",
		at.Round(time.Second), acked, arrived, archived, due, owned, c.lost, c.unflagged, both, c.flagged, faults, again, refused, given, late.Round(time.Millisecond), c.stops, c.kills, rss, heap, mb)
	return nil
}

// has says whether everybody of to was reached.
func (r *relay) has(id string, to []string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.took[id]
	return m != nil && !slices.ContainsFunc(to, func(a string) bool { return m.times[a] == 0 })
}

func keys(m map[string]*mail) []string {
	var ids []string
	for id := range m {
		ids = append(ids, id)
	}
	return ids
}

// states reads where mails are and whether they carry the flag.
func (c *checker) states(ctx context.Context, ids []string) (status map[string]string, flags map[string]bool, err error) {
	status, flags = map[string]string{}, map[string]bool{}
	for page := range slices.Chunk(ids, 5000) {
		// One snapshot: a mail that moves to the archive meanwhile is seen once.
		rows, err := c.db.QueryContext(ctx, `select id, status, possible_duplicate from due where id = any($1::uuid[])
			union all select id, status, possible_duplicate from archive where id = any($1::uuid[])`, pq.Array(page))
		if err != nil {
			return nil, nil, err
		}
		for rows.Next() {
			var id, s string
			var flag bool
			if err := rows.Scan(&id, &s, &flag); err != nil {
				return nil, nil, errors.Join(err, rows.Close())
			}
			status[id], flags[id] = s, flag
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, nil, err
		}
	}
	return status, flags, nil
}

// settle waits until nothing is being sent and nothing is due, so that the last look sees the
// end of every mail.
func (c *checker) settle(ctx context.Context) error {
	var busy int
	for end := time.Now().Add(4 * time.Minute); ; <-time.After(time.Second) {
		err := c.db.QueryRowContext(ctx, "select count(*) from due where owner is not null or status = 'queued' and run_at < now()").Scan(&busy)
		if err != nil || busy == 0 {
			return err
		}
		if time.Now().After(end) {
			c.broken("%d mails are still queued or being sent 4 minutes after the last one", busy)
			return nil
		}
	}
}

// verdict prints the end and says whether the promise held.
func (c *checker) verdict(measured *replica) error {
	rows, err := c.db.Query(`select relname, pg_total_relation_size(oid) / 1024, (select count(*) from mail) from pg_class
		where relkind = 'r' and relnamespace = 'public'::regnamespace order by 2 desc limit 6`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var tables []string
	for rows.Next() {
		var name string
		var kb, mails int
		if err := rows.Scan(&name, &kb, &mails); err != nil {
			return err
		}
		tables = append(tables, fmt.Sprintf("%s=%dKiB", name, kb))
	}
	var silent int
	if err := c.db.QueryRow("select count(*) from due where status <> 'queued' and last_error = ''").Scan(&silent); err != nil {
		return err
	}
	if silent > 0 {
		c.broken("%d unfinished mails have no reason", silent)
	}
	r := c.load.relay
	r.mu.Lock()
	fmt.Println("faults:", fmt.Sprint(r.faults))
	r.mu.Unlock()
	fmt.Println("tables:", strings.Join(tables, " "))
	fmt.Printf("%s: rss %+.1f MiB/h, live heap %+.1f MiB/h\n", measured.name, slope(c.samples, 1), slope(c.samples, 2))
	if n := len(c.faults); n > 0 {
		return fmt.Errorf("the promise was broken %d times; the first: %s", n, c.faults[0])
	}
	fmt.Println("the promise held")
	return rows.Err()
}

// slope is the growth of a column an hour by least squares, without the first sixth, in which
// caches fill.
func slope(samples [][3]float64, column int) float64 {
	s := samples[len(samples)/6:]
	var n, x, y, xx, xy float64
	for _, p := range s {
		n, x, y, xx, xy = n+1, x+p[0], y+p[column], xx+p[0]*p[0], xy+p[0]*p[column]
	}
	if d := n*xx - x*x; d != 0 {
		return 60 * (n*xy - x*y) / d
	}
	return 0
}
