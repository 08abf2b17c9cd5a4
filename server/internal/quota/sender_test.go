package quota

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// book takes mail, and remembers it by its request_id.
type book struct {
	mu   sync.Mutex
	mail []*store.NewMail
	seen map[string]bool
	fail error
}

func (b *book) take(m *store.NewMail) store.Enqueued {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := store.Enqueued{ID: m.ID}
	if m.RequestID != "" && b.seen[m.RequestID] {
		e.Duplicate = true
		return e
	}
	if b.seen == nil {
		b.seen = map[string]bool{}
	}
	b.seen[m.RequestID] = true
	b.mail = append(b.mail, m)
	return e
}

func (b *book) Send(_ context.Context, s *delivery.Submission, observe func(delivery.Event) error) error {
	if b.fail != nil {
		return b.fail
	}
	return observe(delivery.Event{Accepted: &delivery.Accepted{Duplicate: b.take(s.Mail).Duplicate}})
}

func (b *book) Queue(_ context.Context, ms []*store.NewMail, _ bool) ([]store.Enqueued, error) {
	if b.fail != nil {
		return nil, b.fail
	}
	var out []store.Enqueued
	for _, m := range ms {
		out = append(out, b.take(m))
	}
	return out, nil
}

func (b *book) Yield(context.Context) {}

// held are the mails that the guard has held, by budget.
func (b *book) held() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := map[string]int{}
	for _, m := range b.mail {
		n[m.Guard]++
		if (m.Guard == "") != (m.Held == "") || m.Held != "" && !strings.Contains(m.Held, "somebody else") {
			panic(fmt.Sprintf("held by %q: %q", m.Guard, m.Held))
		}
	}
	return n
}

// counted is a store, and counts how often it is asked. Its KnownRequests are the book's.
type counted struct {
	*store.Store
	book  *book
	takes atomic.Int64
}

func (c *counted) TakeAllowances(ctx context.Context, takes []store.AllowanceTake) ([]store.AllowanceGrant, error) {
	c.takes.Add(1)
	return c.Store.TakeAllowances(ctx, takes)
}

func (c *counted) KnownRequests(_ context.Context, _ string, ids []string) (map[string]bool, error) {
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	known := map[string]bool{}
	for _, id := range ids {
		known[id] = c.book.seen[id]
	}
	return known, nil
}

// office is a replica, on a SQLite database with a clock of its own.
type office struct {
	*Quota
	t     *testing.T
	clock *hand
	store *counted
	book  *book
	to    Sender
	log   *strings.Builder
}

func newOffice(t *testing.T, l Limits) *office {
	clock := newHand()
	s, err := store.Open(t.Context(), storetest.SQLiteDSN(t), store.Options{Now: clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // nothing is asked any more
	b := &book{}
	return replica(t, l, clock, &counted{Store: s, book: b}, b)
}

func replica(t *testing.T, l Limits, clock *hand, s *counted, b *book) *office {
	o := &office{t: t, clock: clock, store: s, book: b, log: &strings.Builder{}}
	c := Config{Limits: l, Store: s, Secret: []byte("secret"), Logger: slog.New(slog.NewTextHandler(o.log, nil))}
	if clock != nil {
		c.Now = clock.Now
	}
	o.Quota = New(c)
	o.to = o.Sender(b)
	return o
}

func mail(to ...string) *store.NewMail {
	m := &store.NewMail{ID: uuid.New(), Team: "t1", Caller: "billing", Kind: store.KindInvoice, Mode: store.ModePHP}
	for _, a := range to {
		m.Recipients = append(m.Recipients, store.Recipient{Mailbox: a})
	}
	return m
}

func (o *office) send(m *store.NewMail) error {
	return o.to.Send(o.t.Context(), &delivery.Submission{Mail: m}, func(delivery.Event) error { return nil })
}

// TestLimitsOfMail: each limit lets through what it says, refuses the rest with the time to
// come again, and lets through the same again a minute later.
func TestLimitsOfMail(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits Limits
		other  func(*store.NewMail) // what makes a mail another's
		budget *store.Budget        // of the token
	}{
		"caller_mails_per_minute":      {Limits{CallerMails: 40}, func(m *store.NewMail) { m.Caller = "other" }, nil},
		"caller_recipients_per_minute": {Limits{CallerRecipients: 80}, func(m *store.NewMail) { m.Caller = "other" }, nil},
		"team_mails_per_minute":        {Limits{TeamMails: 40}, func(m *store.NewMail) { m.Team = "t2" }, nil},
		"team_recipients_per_minute":   {Limits{TeamRecipients: 80}, func(m *store.NewMail) { m.Team = "t2" }, nil},
		"token_mails_per_day":          {Limits{}, func(m *store.NewMail) { m.Budget = nil }, &store.Budget{Token: "a", Mails: 40}},
		"token_recipients_per_day":     {Limits{}, func(m *store.NewMail) { m.Budget.Token = "b" }, &store.Budget{Token: "a", Recipients: 80}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOffice(t, c.limits)
			period := time.Minute
			mail := func(to ...string) *store.NewMail {
				m := mail(to...)
				if c.budget != nil {
					own := *c.budget
					m.Budget, period = &own, 24*time.Hour
				}
				return m
			}
			let := func() (n int, after time.Duration) {
				for range 50 {
					no, wait := over(t, o.send(mail("a@y.example", "b@y.example")))
					if no {
						after = wait
						continue
					}
					n++
				}
				return n, after
			}
			if n, after := let(); n != 40 || after <= 0 || after > period*21/20 {
				t.Errorf("got %d mails and %v to wait, want 40 and %v at most", n, after, period)
			}
			m := mail("a@y.example", "b@y.example")
			c.other(m)
			if err := o.send(m); err != nil {
				t.Errorf("another's mail: %v", err)
			}
			o.clock.pass(period * 21 / 20)
			if n, _ := let(); n != 40 {
				t.Errorf("%v later: got %d mails, want 40", period, n)
			}
		})
	}
}

// TestBudgetOfAToken: it holds over replicas and for the parts of a batch, whoever else is
// limited or not.
func TestBudgetOfAToken(t *testing.T) {
	t.Parallel()
	first := newOffice(t, Limits{})
	second := replica(t, Limits{}, first.clock, first.store, first.book)
	bound := func(n int) (ms []*store.NewMail) {
		for _, m := range many(n) {
			m.Budget = &store.Budget{Token: "a", Mails: 100}
			ms = append(ms, m)
		}
		return ms
	}
	accepted := 0
	for _, o := range []*office{first, second} {
		res, err := o.to.Queue(t.Context(), bound(80), false)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range res {
			if r.Err == nil {
				accepted++
			} else if no, after := over(t, r.Err); !no || after <= time.Minute {
				t.Errorf("got %v and %v to wait, want hours", r.Err, after)
			}
		}
	}
	if accepted > 105 || accepted < 85 {
		t.Errorf("two replicas accepted %d mails of a token with 100 a day", accepted)
	}
	if res, err := second.to.Queue(t.Context(), many(50), false); err != nil || res[49].Err != nil {
		t.Errorf("another token's mails: got %v, %v", res, err)
	}
}

// TestReplayCostsNothing: a request_id that is known is answered when nothing is left, and
// takes nothing while something is.
func TestReplayCostsNothing(t *testing.T) {
	t.Parallel()
	o := newOffice(t, Limits{TeamMails: 10, Guard: Guard{Team: 10}})
	first := mail("a@y.example")
	first.RequestID = "q1"
	for range 100 {
		if err := o.send(first); err != nil {
			t.Fatal(err)
		}
	}
	if res, err := o.to.Queue(t.Context(), []*store.NewMail{first}, true); err != nil || !res[0].Duplicate {
		t.Fatalf("got %v, %v", res, err)
	}
	for i := range 9 {
		if err := o.send(mail("a@y.example")); err != nil {
			t.Fatalf("mail %d: %v", i, err)
		}
	}
	if no, _ := over(t, o.send(mail("a@y.example"))); !no {
		t.Error("an eleventh mail was let in")
	}
	if err := o.send(first); err != nil {
		t.Errorf("the first one again, with nothing left: %v", err)
	}
	if res, err := o.to.Queue(t.Context(), []*store.NewMail{first}, true); err != nil || !res[0].Duplicate {
		t.Errorf("the first one again, in a batch: got %v, %v", res, err)
	}
	if held := o.book.held(); held[""] != 10 || len(held) != 1 {
		t.Errorf("got %v, want ten mails of which none is held", held)
	}
}

// TestWhatFailsCostsNothing: a mail that is known not to be stored gives its charge back.
func TestWhatFailsCostsNothing(t *testing.T) {
	t.Parallel()
	o := newOffice(t, Limits{TeamMails: 10})
	o.book.fail = store.Unwritten(errors.New("away"))
	for range 20 {
		if err := o.send(mail("a@y.example")); !errors.Is(err, o.book.fail) {
			t.Fatal(err)
		}
		if _, err := o.to.Queue(t.Context(), []*store.NewMail{mail("a@y.example")}, false); !errors.Is(err, o.book.fail) {
			t.Fatal(err)
		}
	}
	o.book.fail = nil
	for i := range 10 {
		if err := o.send(mail("a@y.example")); err != nil {
			t.Fatalf("mail %d: %v", i, err)
		}
	}
}

// TestStrictBeyondTheLimit: a strict batch that no minute lets in hears so at once, without a
// time to come again.
func TestStrictBeyondTheLimit(t *testing.T) {
	t.Parallel()
	o := newOffice(t, Limits{TeamMails: 10})
	var ms []*store.NewMail
	for range 11 {
		ms = append(ms, mail("a@y.example"))
	}
	_, err := o.to.Queue(t.Context(), ms, true)
	if no, after := over(t, err); !no || after != 0 || len(o.book.mail) != 0 {
		t.Errorf("got %v, %v to wait and %d mails; want to hear that it is never", err, after, len(o.book.mail))
	}
	if _, err := o.to.Queue(t.Context(), ms[:10], true); err != nil {
		t.Errorf("ten: %v", err)
	}
}

// minutes grants a limit in each minute of the clock.
type minutes struct {
	Store
	mu     sync.Mutex
	minute int64
	used   int64
}

func (m *minutes) TakeAllowances(_ context.Context, takes []store.AllowanceTake) ([]store.AllowanceGrant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if at := now.Unix() / 60; at != m.minute {
		m.minute, m.used = at, 0
	}
	t := takes[0]
	m.used = max(0, m.used-t.Back)
	g := store.AllowanceGrant{Granted: min(t.Want, t.Limit-m.used), Next: now.Truncate(time.Minute).Add(time.Minute).Sub(now)}
	if t.Need > t.Limit {
		g.Next = 0
	}
	m.used += g.Granted
	return []store.AllowanceGrant{g}, nil
}

// TestBulkWaits: what is over the limit waits for the next minute and is lost nowhere. A
// service that stops does not wait for it.
func TestBulkWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		b := &book{}
		to := New(Config{Limits: Limits{TeamMails: 100}, Store: &minutes{}, Secret: []byte("s"), Stopping: stop}).Sender(b)
		var ms []*store.NewMail
		for range 250 {
			ms = append(ms, mail("a@y.example"))
		}
		began := time.Now()
		res, err := to.Queue(t.Context(), ms, false)
		if took := time.Since(began); err != nil || len(res) != 250 || len(b.mail) != 250 || took < time.Minute || took > 3*time.Minute {
			t.Errorf("got %v, %d answers and %d mails after %v; want all 250 in the third minute", err, len(res), len(b.mail), took)
		}
		go func() {
			time.Sleep(time.Second)
			close(stop)
		}()
		began = time.Now()
		res, err = to.Queue(t.Context(), ms, false)
		if err != nil || len(res) != 250 {
			t.Fatalf("got %d answers, %v", len(res), err)
		}
		if no, _ := over(t, res[249].Err); !no || time.Since(began) != time.Second {
			t.Errorf("stopped after a second: got %v after %v", res[249].Err, time.Since(began))
		}
	})
}

// TestFewQuestions: the database is asked ten times a second and not for each mail, also where
// the answer is no. An address that gets little mail is never asked about.
func TestFewQuestions(t *testing.T) {
	t.Parallel()
	o := newOffice(t, Limits{TeamMails: 100_000, CallerMails: 100_000, Guard: Guard{Address: 3600}})
	for i := range 3_000 { // in three seconds
		if err := o.send(mail(fmt.Sprintf("u%d@y.example", i))); err != nil {
			t.Fatal(err)
		}
		o.clock.pass(time.Millisecond)
	}
	if n := o.store.takes.Load(); n > 60 {
		t.Errorf("got %d questions for 3,000 mails in three seconds, want about forty", n)
	}
	o = newOffice(t, Limits{TeamMails: 10})
	for range 1000 { // in a second
		_ = o.send(mail("a@y.example"))
		o.clock.pass(time.Millisecond)
	}
	if n := o.store.takes.Load(); n > 25 {
		t.Errorf("got %d questions for 1,000 mails of which ten go, want about ten more", n)
	}
}

// TestA13: one limit over two replicas, many callers' tokens and many goroutines holds within a
// tenth. It has a whole minute's worth at once, which is where it is passed most easily.
func TestA13(t *testing.T) {
	t.Parallel()
	const limit = 600
	hammer := func(t *testing.T, os ...*office) {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range 120 {
					m := mail("a@y.example", "b@y.example")
					if err := os[i%len(os)].send(m); err != nil {
						if no, _ := over(t, err); !no {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		sum := 0
		for _, o := range os {
			sum += len(o.book.mail)
		}
		if sum > limit*11/10 || sum < limit*9/10 {
			t.Errorf("got %d mails, want %d within a tenth", sum, limit)
		}
	}
	for name, l := range map[string]Limits{"team": {TeamMails: limit}, "caller": {CallerMails: limit}, "recipients": {TeamRecipients: 2 * limit}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newOffice(t, l)
			b := &book{}
			hammer(t, a, replica(t, l, a.clock, &counted{Store: a.store.Store, book: b}, b))
		})
	}
}

// TestUnusedGoesBack: what a replica took in advance and does not use is another's a second
// later.
func TestUnusedGoesBack(t *testing.T) {
	t.Parallel()
	l := Limits{TeamMails: 100}
	a := newOffice(t, l)
	b := &book{}
	o := replica(t, l, a.clock, &counted{Store: a.store.Store, book: b}, b)
	for range 50 {
		if err := a.send(mail("a@y.example")); err != nil {
			t.Fatal(err)
		}
	}
	a.clock.pass(unused)
	if err := a.giveBack(false); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := o.send(mail("a@y.example")); err != nil {
			t.Fatalf("mail %d of the other replica: %v", i, err)
		}
	}
	if no, _ := over(t, o.send(mail("a@y.example"))); !no {
		t.Error("got 101 mails of 100")
	}
	a.clock.pass(2 * time.Minute)
	if err := errors.Join(a.giveBack(false), o.giveBack(true)); err != nil || len(a.meters)+len(o.meters) != 0 {
		t.Errorf("got %d and %d meters after two minutes, %v", len(a.meters), len(o.meters), err)
	}
}

// BenchmarkCharge is what the default limits, and all of them, add to a mail.
func BenchmarkCharge(b *testing.B) {
	for name, l := range map[string]Limits{"default": Defaults(), "all": {TeamMails: 1 << 40, TeamRecipients: 1 << 40, CallerMails: 1 << 40, CallerRecipients: 1 << 40, Queue: 1 << 40, DiskMiB: 1,
		Guard: Guard{Address: 3600, Team: 1 << 40, Caller: 1 << 40, Kinds: Kinds{store.KindInvoice: 1 << 40}}}} {
		b.Run(name, func(b *testing.B) {
			q := New(Config{Limits: l, Store: plenty{}, Secret: []byte("s")})
			ms := make([][]*store.NewMail, 20_000)
			for i := range ms {
				ms[i] = []*store.NewMail{mail(fmt.Sprintf("u%d@y.example", i))}
				ms[i][0].Mode = store.ModeDaemon
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m := ms[i%len(ms)]
				if _, err := q.admit(b.Context(), m, true, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// plenty grants whatever is wanted.
type plenty struct{ Store }

func (plenty) TakeAllowances(_ context.Context, takes []store.AllowanceTake) ([]store.AllowanceGrant, error) {
	out := make([]store.AllowanceGrant, len(takes))
	for i := range takes {
		out[i].Granted = takes[i].Want
	}
	return out, nil
}
