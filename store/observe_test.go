package store_test

import (
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// commits is an Observer that adds up the mails of each line.
type commits struct {
	mu    sync.Mutex // guards mails
	mails map[string]int
}

func (c *commits) Committed(line string, mails int, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if took > 0 {
		c.mails[line] += mails
	}
}

// TestWatched: what is due is counted by mail server and priority, every commit is heard of
// under its line, and the pools are told apart.
func TestWatched(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			heard := &commits{mails: map[string]int{}}
			s, err := store.Open(ctx, dsn, store.Options{Observer: heard})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, server := range []string{"sa", "sb"} {
				if _, _, err := s.CreateServer(ctx, newServer(server, ""), store.Audit{}); err != nil {
					t.Fatal(err)
				}
			}
			oldest := time.Now().Add(-time.Hour).UTC().Truncate(time.Microsecond)
			enqueue(t, s, newMail("sa", func(m *store.NewMail) { m.Priority, m.RunAt = store.PriorityHigh, oldest }))
			enqueue(t, s, newMail("sa", func(m *store.NewMail) { m.Priority = store.PriorityHigh }))
			enqueue(t, s, newMail("sb", func(m *store.NewMail) { m.Priority = store.PriorityHigh }))
			enqueue(t, s, newMail("sb", func(m *store.NewMail) { m.RunAt = time.Now().Add(time.Hour) }))
			q, err := s.CountQueue(ctx, store.Everything, nil, "")
			if err != nil {
				t.Fatal(err)
			}
			a, b := q.DueByServer[store.ServerLane{MailServer: "sa", Priority: store.PriorityHigh}], q.DueByServer[store.ServerLane{MailServer: "sb", Priority: store.PriorityHigh}]
			if a.Waiting != 2 || !a.Oldest.Equal(oldest) || b.Waiting != 1 || len(q.DueByServer) != 2 || q.Scheduled != 1 {
				t.Errorf("got %+v, want two mails of sa, the oldest of %v, and one of sb", q, oldest)
			}
			if l := q.Lanes[store.PriorityHigh]; l.Waiting != 3 || !l.Oldest.Equal(oldest) {
				t.Errorf("the lane: got %+v, want 3 mails and %v", l, oldest)
			}
			heard.mu.Lock()
			if heard.mails[store.LineAccept] != 4 {
				t.Errorf("commits: got %v, want 4 mails accepted", heard.mails)
			}
			heard.mu.Unlock()
			if n, ok := s.Waiting()[store.LineResults]; !ok || n != 0 {
				t.Errorf("got %v, want an empty line", s.Waiting())
			}
			if p := s.PoolStats()["mail"]; p.MaxOpenConnections == 0 || p.OpenConnections == 0 {
				t.Errorf("got %+v, want the connections of mail", p)
			}
		})
	}
}
