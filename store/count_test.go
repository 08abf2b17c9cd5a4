package store_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// TestCountsAtRandom does whatever can be done to mails, in any order, and adds up the counters
// now and then. At each look they say what the rows say.
func TestCountsAtRandom(t *testing.T) {
	t.Parallel()
	storetest.Everywhere(t, func(t *testing.T, s storetest.Store) {
		c := &counting{t: t, s: s, rand: rand.New(rand.NewPCG(1, 2)), owned: map[uuid.UUID]*store.Claimed{}}
		for _, name := range countServers {
			if _, _, err := s.CreateServer(ctx, &store.MailServer{Name: name, Type: store.TypeLocalhost, From: "a@x.example", Mode: store.ModeDaemon, Status: store.ServerAvailable}, store.Audit{}); err != nil {
				t.Fatal(err)
			}
		}
		c.replica = register(t, s)
		for i := range 90 {
			c.step()
			if i%9 == 8 {
				c.look()
			}
		}
		if len(c.done) < 9 {
			t.Fatalf("only %v was done", c.done)
		}
	})
}

var (
	countServers = []string{"s-one", "s-two"}
	countTeams   = []string{"sales", "stock"}
	countCallers = []string{"", "shop"}
	countBatches = []string{"", "b1", "b2"}
	countKinds   = []store.Kind{store.KindBulk, store.KindInvoice}
)

// counting is a run of TestCountsAtRandom.
type counting struct {
	t       *testing.T
	s       storetest.Store
	rand    *rand.Rand
	replica store.ReplicaID
	owned   map[uuid.UUID]*store.Claimed
	done    map[string]int
}

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

func (c *counting) step() {
	steps := []struct {
		name string
		do   func()
	}{{"enqueue", c.enqueue}, {"enqueue", c.enqueue}, {"claim", c.claim}, {"mark", c.mark}, {"settle", c.settle}, {"settle", c.settle}, {"hold", c.modify(store.MailHeld)},
		{"release", c.modify(store.MailQueued)}, {"cancel", c.modify(store.MailCancelled)}, {"fail", c.modify(store.MailFailed)}, {"move", c.move}, {"release all", c.unregister},
		{"delete server", c.holdDeleted}, {"older program", c.strip}, {"add up", c.keep}, {"add up", c.keep}}
	st := pick(c.rand, steps)
	if c.done == nil {
		c.done = map[string]int{}
	}
	c.done[st.name]++
	st.do()
}

func (c *counting) ok(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *counting) keep() { c.ok(c.s.KeepCounts(ctx)) }

// strip takes from some rows of both journals what they are counted by, as an older program
// leaves it out.
func (c *counting) strip() {
	s, ok := c.s.(*store.Store)
	if !ok {
		return
	}
	for table, more := range map[string]string{"due": "", "archive": ", priority = null"} {
		c.ok(s.Exec("update " + table + " set kind = null, batch_id = null, caller = null, create_time = null" + more + " where id in (select id from " + table + " order by id desc limit 9)"))
	}
}

func (c *counting) enqueue() {
	ms := make([]*store.NewMail, 1+c.rand.IntN(20))
	for i := range ms {
		ms[i] = newMail(pick(c.rand, countServers), func(m *store.NewMail) {
			m.Team, m.Caller, m.BatchID, m.Kind = pick(c.rand, countTeams), pick(c.rand, countCallers), pick(c.rand, countBatches), pick(c.rand, countKinds)
			m.Priority = pick(c.rand, []int16{store.PriorityLow, store.PriorityHigh})
			m.RunAt = m.RunAt.Add(pick(c.rand, []time.Duration{-time.Hour, 0, time.Hour, 2 * time.Hour}))
			if c.rand.IntN(6) == 0 {
				m.Held = "held"
			}
		})
	}
	enqueue(c.t, c.s, ms...)
}

func (c *counting) claim() {
	cs, err := c.s.Claim(ctx, c.replica, pick(c.rand, countServers), 1+c.rand.IntN(30), store.AnyPriority)
	c.ok(err)
	for _, m := range cs {
		c.owned[m.ID] = m
	}
}

// some is some of what the replica has.
func (c *counting) some(do func(m *store.Claimed) *store.Settlement) {
	var answers []<-chan store.Settled
	for _, id := range slices.SortedFunc(maps.Keys(c.owned), func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }) {
		if c.rand.IntN(3) == 0 {
			m := c.owned[id]
			st := do(m)
			st.ID, st.Owner, st.Claim = id, c.replica, m.Claim
			answers = append(answers, c.s.Settle(st))
		}
	}
	for _, a := range answers {
		c.ok((<-a).Err)
	}
}

func (c *counting) mark() {
	c.some(func(*store.Claimed) *store.Settlement { return &store.Settlement{Kind: store.SettleMark} })
}

func (c *counting) settle() {
	c.some(func(m *store.Claimed) *store.Settlement {
		delete(c.owned, m.ID)
		dup := c.rand.IntN(4) == 0
		switch c.rand.IntN(5) {
		case 0:
			return &store.Settlement{Kind: store.SettleRetry, Status: store.MailDeferred, RunAt: time.Now().Add(time.Hour), Attempts: 1, PossibleDuplicate: dup}
		case 1:
			return &store.Settlement{Kind: store.SettlePark, Status: pick(c.rand, []store.MailStatus{store.MailFailed, store.MailUnknown, store.MailPartiallySent}), PossibleDuplicate: dup}
		}
		return &store.Settlement{Kind: store.SettleArchive, Status: store.MailSent, Attempts: 1, PossibleDuplicate: dup, Progress: &store.Progress{}}
	})
}

func (c *counting) modify(to store.MailStatus) func() {
	return func() {
		f := store.MailFilter{MailServer: pick(c.rand, countServers), Kind: pick(c.rand, countKinds)}
		_, _, _, err := c.s.Modify(ctx, store.Everything, nil, &f, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			ch := &store.Change{Kind: store.SettlePark, Status: to, Stops: c.rand.IntN(2) == 0, PossibleDuplicate: m.PossibleDuplicate}
			switch to {
			case store.MailQueued:
				ch.Kind, ch.RunAt = store.SettleRetry, time.Now().Add(time.Duration(c.rand.IntN(2))*time.Hour)
			case store.MailCancelled:
				if ch.Kind = store.SettleArchive; c.rand.IntN(2) == 0 {
					return nil, nil
				}
			}
			return ch, nil
		})
		c.ok(err)
	}
}

func (c *counting) move() {
	to := pick(c.rand, countServers)
	_, _, _, err := c.s.Modify(ctx, store.Everything, nil, &store.MailFilter{Kind: store.KindBulk}, false, store.Audit{}, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		if m.Owner != 0 {
			return nil, nil
		}
		ch := &store.Change{Kind: store.SettlePark, Status: m.Status, MailServer: to}
		if m.DueTime != nil {
			ch.Kind, ch.RunAt = store.SettleRetry, *m.DueTime
		}
		return ch, nil
	})
	c.ok(err)
}

// unregister lets go of everything that is not marked.
func (c *counting) unregister() {
	c.ok(c.s.Unregister(ctx, c.replica))
	clear(c.owned)
	c.replica = register(c.t, c.s)
}

func (c *counting) holdDeleted() {
	_, _, err := c.s.DeleteServer(ctx, store.Everything, "s-two", 0, true, store.Audit{})
	c.ok(err)
	_, err = c.s.UndeleteServer(ctx, store.Everything, "s-two", store.Audit{})
	c.ok(err)
}

// look holds the counters against the rows.
func (c *counting) look() {
	c.t.Helper()
	due, err := c.s.ListDue(ctx, store.Everything, store.MailFilter{}, store.Cursor{}, 1<<20)
	c.ok(err)
	archived, err := c.s.ListArchive(ctx, store.Everything, store.MailFilter{}, store.Cursor{}, 1<<20)
	c.ok(err)
	ms := append(due, archived...)
	for _, team := range countTeams {
		for _, caller := range countCallers {
			for _, batch := range countBatches[1:] {
				c.batch(ms, team, caller, batch)
			}
		}
		for _, server := range append(countServers, "") {
			c.queue(ms, &team, server)
		}
	}
	c.queue(ms, nil, "")
}

func (c *counting) batch(ms []*store.Mail, team, caller, batch string) {
	c.t.Helper()
	want := &store.BatchCount{ByStatus: map[store.MailStatus]int{}}
	for _, m := range ms {
		if m.Team != team || m.BatchID != batch || caller != "" && m.Caller != caller {
			continue
		}
		want.Mails++
		want.ByStatus[m.Status]++
		if m.DueTime != nil || m.Status == store.MailSending {
			want.Waiting++
		}
		if m.PossibleDuplicate {
			want.Doubtful++
		}
		if want.First.IsZero() || m.CreateTime.Before(want.First) {
			want.First = m.CreateTime
		}
		if m.FinishTime != nil && m.FinishTime.After(want.Last) {
			want.Last = *m.FinishTime
		}
	}
	got, err := c.s.CountBatch(ctx, store.Scope{All: true, Caller: caller}, team, batch)
	if want.Mails == 0 {
		if err != store.ErrNotFound {
			c.t.Fatalf("batch %s: got %v, %v, want none", batch, got, err)
		}
		return
	}
	c.ok(err)
	if !reflect.DeepEqual(got, want) {
		c.t.Fatalf("batch %s of %s, caller %q: got %+v, want %+v (after %v)", batch, team, caller, got, want, c.done)
	}
}

func (c *counting) queue(ms []*store.Mail, team *string, server string) {
	c.t.Helper()
	got, err := c.s.CountQueue(ctx, store.Everything, team, server)
	c.ok(err)
	want := &store.QueueCount{ByStatus: map[store.MailStatus]int{}, Lanes: map[int16]store.Lane{}, DueByServer: map[store.ServerLane]store.Lane{}, Time: got.Time, WatchLag: got.WatchLag}
	for _, m := range ms {
		if team != nil && m.Team != *team || server != "" && m.MailServer != server {
			continue
		}
		switch {
		case m.Archived:
			if m.Status == store.MailSent {
				want.Sent++
			}
			continue
		case m.DueTime == nil:
		case m.DueTime.After(got.Time):
			want.Scheduled++
		default:
			l := store.ServerLane{MailServer: m.MailServer, Priority: m.Priority}
			want.Lanes[m.Priority], want.DueByServer[l] = joined(want.Lanes[m.Priority], *m.DueTime), joined(want.DueByServer[l], *m.DueTime)
		}
		want.ByStatus[m.Status]++
	}
	if !reflect.DeepEqual(got, want) {
		c.t.Fatalf("queue of %v and %q: got %+v, want %+v (after %v)", team, server, got, want, c.done)
	}
}

func joined(l store.Lane, due time.Time) store.Lane {
	l.Waiting++
	if l.Oldest.IsZero() || due.Before(l.Oldest) {
		l.Oldest = due
	}
	return l
}

// TestCountsBefore: what was there before there were counters, or what somebody has changed
// past them, is counted by Recount, and an inspection finds it until then.
func TestCountsBefore(t *testing.T) {
	t.Parallel()
	for name, dsn := range storetest.DSNs(t) {
		t.Run(name, func(t *testing.T) {
			s := storetest.Open(t, dsn)
			var ms []*store.NewMail
			for range 30 {
				ms = append(ms, newMail("ss", func(m *store.NewMail) { m.BatchID = "b" }))
			}
			enqueue(t, s, ms...)
			if err := s.Exec("delete from count_delta"); err != nil {
				t.Fatal(err)
			}
			broken := func() int {
				t.Helper()
				in, err := store.OpenInspector(ctx, dsn)
				if err != nil {
					t.Fatal(err)
				}
				defer in.Close()
				r, err := in.Inspect(ctx, store.InspectOptions{})
				if err != nil {
					t.Fatal(err)
				}
				return len(r.Invariants[9].Breaches)
			}
			if n := broken(); n != 2 {
				t.Errorf("an inspection finds %d wrong totals, want 2: of the queue and of the batch", n)
			}
			if n, err := s.Recount(ctx); err != nil || n != 2 {
				t.Fatalf("recount: %d corrected, %v; want 2", n, err)
			}
			if n := broken(); n != 0 {
				t.Errorf("after the recount %d totals are wrong", n)
			}
			// A database of before has no counters yet: the rows are counted.
			for _, q := range []string{"update count_state set counted = " + map[string]string{"sqlite": "0", "postgres": "false"}[name], "delete from count_batch", "delete from count_queue"} {
				if err := s.Exec(q); err != nil {
					t.Fatal(err)
				}
			}
			for _, step := range []string{"before", "after"} {
				store.ForgetCounted(s)
				b, err := s.CountBatch(ctx, store.Everything, "sales", "b")
				if err != nil || b.Mails != 30 || b.Waiting != 30 {
					t.Fatalf("%s it is counted: %+v, %v", step, b, err)
				}
				q, err := s.CountQueue(ctx, store.Everything, nil, "ss")
				if err != nil || q.ByStatus[store.MailQueued] != 30 {
					t.Fatalf("%s it is counted: %+v, %v", step, q, err)
				}
				if err := s.KeepCounts(ctx); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestCountsOfPurgedMail: a mail that leaves the archive and its row, in any order, is counted
// no more.
func TestCountsOfPurgedMail(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		for i, order := range [][]string{{"archive", "mail"}, {"mail", "archive"}, {"archive", "mail"}, {"mail", "archive"}} {
			batch := fmt.Sprint("b", i)
			a, b := newMail("ss", func(m *store.NewMail) { m.BatchID = batch }), newMail("ss", func(m *store.NewMail) { m.BatchID = batch })
			enqueue(t, s, a, b)
			_, n, _, err := s.Modify(ctx, store.Everything, []uuid.UUID{a.ID, b.ID}, nil, false, store.Audit{}, func(*store.Mail, *store.MailServer) (*store.Change, error) {
				return &store.Change{Kind: store.SettleArchive, Status: store.MailCancelled}, nil
			})
			if err != nil || n != 2 {
				t.Fatal(n, err)
			}
			if i > 1 { // as an older program wrote it
				if err := s.Exec(fmt.Sprintf("update archive set kind = null, batch_id = null, caller = null, create_time = null, priority = null where id = '%s'", a.ID)); err != nil {
					t.Fatal(err)
				}
			}
			for _, table := range order {
				if err := s.Exec(fmt.Sprintf("delete from %s where id = '%s'", table, a.ID)); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				got, err := s.CountBatch(ctx, store.Everything, "sales", batch)
				if err != nil || got.Mails != 1 || got.ByStatus[store.MailCancelled] != 1 {
					t.Errorf("%v: got %+v, %v; want one cancelled", order, got, err)
				}
				if err := s.KeepCounts(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// TestCountMatching: what the counters say of a filter is what is there, and they say nothing
// where they do not know. Callers are told so how many mails an operation is about.
func TestCountMatching(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		var ms []*store.NewMail
		for i := range 12 {
			ms = append(ms, newMail([]string{"one", "two"}[i%2], func(m *store.NewMail) {
				m.BatchID, m.Caller = []string{"", "b1", "b2"}[i%3], []string{"", "me"}[i/6]
				if i%4 == 0 {
					m.Held = "held"
				}
			}))
		}
		enqueue(t, s, ms...)
		sales, held := "sales", []store.MailStatus{store.MailHeld}
		mine := store.Scope{All: true, Caller: "me"}
		for _, x := range []struct {
			sc    store.Scope
			f     store.MailFilter
			known bool
		}{
			{store.Everything, store.MailFilter{}, true},
			{store.Everything, store.MailFilter{MailServer: "one", Kind: ms[0].Kind, Statuses: held}, true},
			{store.Everything, store.MailFilter{BatchID: "b1"}, true},
			{store.Everything, store.MailFilter{BatchID: "b1", Team: &sales, Statuses: held}, true},
			{store.Everything, store.MailFilter{BatchID: "none"}, true},
			{store.Scope{Teams: []string{"other"}}, store.MailFilter{BatchID: "b1"}, true},
			{mine, store.MailFilter{BatchID: "b2"}, true},
			{mine, store.MailFilter{}, false},
			{store.Everything, store.MailFilter{BatchID: "b1", Kind: ms[0].Kind}, false},
			{store.Everything, store.MailFilter{BatchID: "b1", MailServer: "one"}, false},
		} {
			want, err := s.CountUpTo(ctx, x.sc, x.f, 100)
			if err != nil {
				t.Fatal(err)
			}
			n, known, err := s.CountMatching(ctx, x.sc, x.f)
			if err != nil || known != x.known || known && n != want {
				t.Errorf("%+v of %+v: got %d, %v, %v, want %d, %v", x.f, x.sc, n, known, err, want, x.known)
			}
		}
	})
}
