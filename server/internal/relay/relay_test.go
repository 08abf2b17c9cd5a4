package relay_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/relay"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// journal is the database of one process, in memory.
type journal struct {
	mu       sync.Mutex
	breakers map[string]store.Breaker
	slots    map[int]int64 // number: token
	granted  int
	use      store.RateUse

	reading func()                  // runs between the reading of the breakers and its answer
	writing func()                  // runs before a breaker is changed
	fail    func(call string) error // of an answer: what was asked for is done
}

func (j *journal) err(call string) error {
	if j.fail == nil {
		return nil
	}
	return j.fail(call)
}

func (j *journal) Breakers(context.Context) (map[string]*store.Breaker, error) {
	j.mu.Lock()
	all := map[string]*store.Breaker{}
	for name, b := range j.breakers {
		all[name] = &b
	}
	j.mu.Unlock()
	if j.reading != nil {
		j.reading()
	}
	return all, nil
}

func (j *journal) ChangeBreaker(_ context.Context, server string, change func(time.Time, *store.Breaker) bool) (*store.Breaker, error) {
	if j.writing != nil {
		j.writing()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.breakers[server]
	b.MailServer = server
	if change(time.Now(), &b) {
		j.breakers[server] = b
	}
	return &b, j.err("ChangeBreaker")
}

func (j *journal) TakeSlot(_ context.Context, _ store.ReplicaID, t store.SlotTake) (int, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	held := map[int]bool{}
	for _, n := range t.Held {
		held[n] = true
	}
	for n := 1; n <= t.Limit; n++ {
		if token, taken := j.slots[n]; !taken || !held[n] && token < t.Settled {
			j.slots[n] = t.Token
			return n, true, j.err("TakeSlot")
		}
	}
	return 0, false, nil
}

func (j *journal) GiveSlot(_ context.Context, _ store.ReplicaID, s store.Slot) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.err("GiveSlot"); err != nil {
		return err
	}
	if j.slots[s.N] == s.Token {
		delete(j.slots, s.N)
	}
	return nil
}

func (j *journal) HoldSlots(_ context.Context, _ store.ReplicaID, held []store.Slot, settled int64) ([]store.Slot, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	keep := map[int]bool{}
	for _, s := range held {
		keep[s.N] = true
	}
	for n, token := range j.slots {
		if !keep[n] && token < settled {
			delete(j.slots, n)
		}
	}
	return nil, j.err("HoldSlots")
}

func (j *journal) TakeRate(_ context.Context, _ store.ReplicaID, _ string, use store.RateUse, want, _, perDay int) (int, time.Time, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.use = use
	n := min(want, perDay-int(use.Used)-use.Held)
	j.granted = int(use.Used) + use.Held + n
	return n, time.Time{}, j.err("TakeRate")
}

// session is a connection that does nothing; whoever has it says what becomes of its mails.
type session struct {
	closed bool
	ended  func()
}

func (s *session) Submit(context.Context, *smtpx.Transaction) error { return nil }
func (s *session) Flush(context.Context) error                      { return nil }
func (s *session) Usable() bool                                     { return !s.closed }
func (s *session) Close() error {
	if !s.closed {
		s.closed = true
		s.ended()
	}
	return nil
}

// bench is one process and one mail server, on a clock that waits for nobody.
type bench struct {
	t       *testing.T
	journal *journal
	relays  *relay.Relays
	server  *store.MailServer

	mu    sync.Mutex
	dial  func(ctx context.Context) error
	dials int
	open  int
	most  int
}

func run(t *testing.T, limits store.Limits, test func(b *bench, r *relay.Relay)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, journal: &journal{breakers: map[string]store.Breaker{}, slots: map[int]int64{}},
			server: &store.MailServer{Name: "ss", Mode: store.ModePHP, Version: 1, Limits: limits}}
		b.relays = relay.New(relay.Config{Journal: b.journal, Dial: b.connect, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now,
			Replica: func() store.ReplicaID { return 1 }, Stopping: func() bool { return false }, MaxConnections: 10, MailsPerConnection: 1000})
		defer b.relays.Close()
		test(b, b.relays.Of(b.server))
	})
}

func (b *bench) connect(ctx context.Context, _ *store.MailServer) (relay.Session, error) {
	b.mu.Lock()
	b.dials++
	dial := b.dial
	b.mu.Unlock()
	if dial != nil {
		if err := dial(ctx); err != nil {
			return nil, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open++
	b.most = max(b.most, b.open)
	return &session{ended: func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.open--
	}}, nil
}

// behave says what dialling does from now on.
func (b *bench) behave(dial func(ctx context.Context) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dial = dial
}

func refused(context.Context) error { return errors.New("connection refused") }

func (b *bench) breaker() store.Breaker {
	b.journal.mu.Lock()
	defer b.journal.mu.Unlock()
	return b.journal.breakers["ss"]
}

// send is what a php-mode mail does; outcome is what its transaction shows.
func (b *bench) send(r *relay.Relay, patience time.Duration, outcome relay.Outcome) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := r.Get(ctx, b.server)
	if err != nil {
		return err
	}
	err = r.Report(ctx, s, b.server, time.Now(), outcome, "421 go away")
	if outcome == relay.Lost || outcome == relay.Interrupted {
		_ = s.Close()
	}
	r.Put(s)
	synctest.Wait() // a session that is closed is closed by a goroutine
	return err
}

// waits are how long a mail server is left alone after each failure in a row.
var waits = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute, 15 * time.Minute}

// TestSuspension: whatever way a mail server fails, it is left alone for longer each time.
func TestSuspension(t *testing.T) {
	for name, test := range map[string]struct {
		dial    func(context.Context) error
		outcome relay.Outcome
	}{
		"no session can be had":                 {dial: refused},
		"a good greeting, then 421 to the mail": {outcome: relay.Lost},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
				b.behave(test.dial)
				for i, wait := range waits {
					if err := b.send(r, time.Minute, test.outcome); err == nil {
						t.Fatal("no error")
					}
					got := b.breaker()
					if d := time.Until(got.RetryAt); got.Failures != i+1 || d != wait {
						t.Fatalf("failure %d: %d failures, left alone for %v, want %v", i+1, got.Failures, d, wait)
					}
					before := b.dials
					var suspended *relay.SuspendedError
					if err := b.send(r, time.Minute, relay.Answered); !errors.As(err, &suspended) || b.dials != before {
						t.Fatalf("while it is suspended: %v, %d dials", err, b.dials-before)
					}
					time.Sleep(wait)
				}
				b.behave(nil)
				if err := b.send(r, time.Minute, relay.Answered); err != nil {
					t.Fatal(err)
				}
				if got := b.breaker(); got.Failures != 0 || got.HealedAt.IsZero() {
					t.Errorf("after a mail was answered: %+v", got)
				}
			})
		})
	}
}

// TestRamp: after a recovery connections double every three seconds.
func TestRamp(t *testing.T) {
	for after, want := range map[time.Duration]int{0: 1, 3 * time.Second: 2, 6 * time.Second: 4, 9 * time.Second: 8, 12 * time.Second: 10, time.Hour: 10} {
		run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
			b.behave(refused)
			_ = b.send(r, time.Minute, relay.Nothing)
			b.behave(nil)
			time.Sleep(time.Second)
			s, err := r.Get(context.Background(), b.server)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Report(context.Background(), s, b.server, time.Now(), relay.Answered, ""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after)
			b.server.Mode = store.ModeDaemon
			if got := 1 + b.workers(r); got != want { // s is one of them
				t.Errorf("%v after the recovery: %d connections, want %d", after, got, want)
			}
			r.Put(s)
		})
	}
}

// workers takes all permits that the batch can get, and returns how many.
func (b *bench) workers(r *relay.Relay) (n int) {
	for {
		if _, ok := r.TryBatch(context.Background(), b.server); !ok {
			return n
		}
		n++
	}
}

// TestImpatientCallers: a probe has its own deadline. A caller who cannot wait for it takes
// nothing away, and the next one gets the session.
func TestImpatientCallers(t *testing.T) {
	run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
		b.behave(refused)
		_ = b.send(r, time.Minute, relay.Nothing)
		time.Sleep(time.Second)
		b.behave(func(ctx context.Context) error { // it greets slowly
			select {
			case <-time.After(20 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		before := b.dials
		for range 10 {
			if err := b.send(r, time.Second, relay.Answered); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v", err)
			}
		}
		if err := b.send(r, time.Minute, relay.Answered); err != nil {
			t.Errorf("a patient caller: %v", err)
		}
		if n := b.dials - before; n != 1 || b.breaker().Failures != 0 {
			t.Errorf("%d connections while it was suspended, want the probe; %+v", n, b.breaker())
		}
	})
}

// TestProbeUndecided: a probe whose session ends before any mail was answered is free for the
// next.
func TestProbeUndecided(t *testing.T) {
	run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
		b.behave(refused)
		_ = b.send(r, time.Minute, relay.Nothing)
		time.Sleep(time.Second)
		b.behave(nil)
		s, err := r.Get(context.Background(), b.server)
		if err != nil {
			t.Fatal(err)
		}
		if b.breaker().ProbeUntil.IsZero() {
			t.Fatal("no probe is reserved")
		}
		_ = s.Close()
		r.Put(s)
		synctest.Wait()
		if got := b.breaker(); !got.ProbeUntil.IsZero() || got.Failures != 1 {
			t.Errorf("%+v", got)
		}
		if err := b.send(r, time.Minute, relay.Answered); err != nil {
			t.Error(err)
		}
	})
}

// TestRefusedBesideOthers: a relay that says "too many connections" while sessions stand is not
// dialled again and again, and is not suspended.
func TestRefusedBesideOthers(t *testing.T) {
	run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
		b.server.Mode = store.ModeDaemon
		s, err := r.Get(context.Background(), b.server)
		if err != nil {
			t.Fatal(err)
		}
		b.behave(refused)
		before := b.dials
		for range 4 * 60 { // a minute of looking every 250 ms
			if pm, ok := r.TryBatch(context.Background(), b.server); ok {
				if _, err := r.Connect(context.Background(), pm, b.server, false); err == nil {
					t.Fatal("no error")
				}
				r.Release(pm)
			}
			time.Sleep(250 * time.Millisecond)
		}
		if n := b.dials - before; n < 2 || n > 6 || b.breaker().Failures != 0 {
			t.Errorf("%d dials in a minute; %+v", n, b.breaker())
		}
		r.Put(s)
	})
}

// TestThrottle: each throttling answer takes half the connections away, one comes back when
// each of the rest has delivered a mail, and three answers in a row suspend the mail server.
func TestThrottle(t *testing.T) {
	for name, test := range map[string]struct {
		answers   []relay.Outcome
		want      int // connections besides the one in use
		suspended bool
	}{
		"none":                     {nil, 9, false},
		"one":                      {[]relay.Outcome{relay.Throttled}, 4, false},
		"two":                      {[]relay.Outcome{relay.Throttled, relay.Throttled}, 1, false},
		"two with an accepted one": {[]relay.Outcome{relay.Throttled, relay.Answered, relay.Throttled}, 1, false},
		"one and two accepted":     {[]relay.Outcome{relay.Throttled, relay.Answered, relay.Answered}, 4, false},
		"three":                    {[]relay.Outcome{relay.Throttled, relay.Throttled, relay.Throttled}, 0, true},
		"three that hang up":       {[]relay.Outcome{relay.ThrownOut, relay.ThrownOut, relay.ThrownOut}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
				b.server.Mode = store.ModeDaemon
				s, err := r.Get(context.Background(), b.server)
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range test.answers {
					err = r.Report(context.Background(), s, b.server, time.Now(), o, "450 4.7.0 slow down")
				}
				if got := b.workers(r); got != test.want || (err != nil) != test.suspended || (b.breaker().Failures > 0) != test.suspended {
					t.Errorf("%d more connections, want %d; %v; %+v", got, test.want, err, b.breaker())
				}
				r.Put(s)
			})
		})
	}
}

// TestSuspendedAtOnce: a mail server that has failed is left alone from that moment, however
// long the database takes to write it down. What the database says then counts.
func TestSuspendedAtOnce(t *testing.T) {
	run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
		written := make(chan struct{})
		b.journal.writing = func() { <-written }
		first := make(chan error, 1)
		go func() { first <- b.send(r, time.Minute, relay.Lost) }()
		synctest.Wait()
		var suspended *relay.SuspendedError
		if err := b.send(r, 10*time.Second, relay.Answered); !errors.As(err, &suspended) || b.dials != 1 {
			t.Errorf("%d dials, %v, want the mail server suspended", b.dials, err)
		}
		close(written)
		if err := <-first; err == nil {
			t.Error("the first had no error")
		}
		if got := b.breaker(); got.Failures != 1 || time.Until(got.RetryAt) != waits[0] {
			t.Errorf("the database says %d failures, left alone for %v", got.Failures, time.Until(got.RetryAt))
		}
		b.journal.writing = nil
		time.Sleep(waits[0])
		if err := b.send(r, time.Minute, relay.Answered); err != nil || b.dials != 2 {
			t.Errorf("at its next try: %d dials, %v", b.dials, err)
		}
	})
}

// TestOldNews: what is read of the other replicas does not overwrite what this one has found
// out since the reading began.
func TestOldNews(t *testing.T) {
	run(t, store.Limits{}, func(b *bench, r *relay.Relay) {
		b.behave(refused)
		b.journal.reading = func() { _ = b.send(r, time.Minute, relay.Nothing) }
		b.relays.Refresh(context.Background())
		if b.relays.Suspended(b.server) == nil {
			t.Error("a failure that was noted during the reading is forgotten")
		}
		b.journal.reading = nil
		b.journal.breakers["ss"] = store.Breaker{} // another replica has healed it
		b.relays.Refresh(context.Background())
		if b.relays.Suspended(b.server) != nil {
			t.Error("news of another replica are not heard")
		}
	})
}

// TestAnswersOfSlotsAreLost: with whatever answers lost, the limit holds and no slot is lost.
func TestAnswersOfSlotsAreLost(t *testing.T) {
	for _, lost := range []string{"TakeSlot", "GiveSlot", "HoldSlots"} {
		t.Run(lost, func(t *testing.T) {
			run(t, store.Limits{MaxConnections: 2}, func(b *bench, r *relay.Relay) {
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() { defer close(done); b.relays.Run(ctx) }()
				b.server.Mode = store.ModeDaemon
				for range 5 {
					b.journal.mu.Lock()
					b.journal.fail = func(call string) error {
						if call == lost {
							return store.ErrUnavailable
						}
						return nil
					}
					b.journal.mu.Unlock()
					pm, ok := r.TryBatch(ctx, b.server)
					if ok != (lost != "TakeSlot") {
						t.Fatalf("got a permit: %v", ok)
					}
					if ok {
						r.Release(pm)
					}
					b.journal.mu.Lock()
					b.journal.fail = nil
					b.journal.mu.Unlock()
					time.Sleep(2 * time.Second)
					if b.journal.mu.Lock(); len(b.journal.slots) != 0 {
						t.Errorf("other replicas still see %v", b.journal.slots)
					}
					b.journal.mu.Unlock()
				}
				if n := b.workers(r); n != 2 {
					t.Errorf("%d connections, want 2", n)
				}
				cancel()
				<-done
			})
		})
	}
}

// TestSlotsAreToldAlsoWhenNoneIsHeld: a renewal that was given up may be carried out late, and
// then takes a slot again that was given back since.
func TestSlotsAreToldAlsoWhenNoneIsHeld(t *testing.T) {
	run(t, store.Limits{MaxConnections: 2}, func(b *bench, r *relay.Relay) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); b.relays.Run(ctx) }()
		b.server.Mode = store.ModeDaemon
		pm, ok := r.TryBatch(ctx, b.server)
		if !ok {
			t.Fatal("got no permit")
		}
		r.Release(pm)
		b.journal.mu.Lock()
		b.journal.slots[1] = 1
		b.journal.mu.Unlock()
		time.Sleep(10 * time.Second)
		if b.journal.mu.Lock(); len(b.journal.slots) != 0 {
			t.Errorf("other replicas still see %v", b.journal.slots)
		}
		b.journal.mu.Unlock()
		cancel()
		<-done
	})
}

// TestRatesComeBack: what was taken and did not leave is told to the others within a second or
// two, and what an answer that was lost had granted as well.
func TestRatesComeBack(t *testing.T) {
	run(t, store.Limits{MailsPerDay: 100}, func(b *bench, r *relay.Relay) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); b.relays.Run(ctx) }()
		if n, _, err := r.TakeRate(ctx, b.server, 30); n != 30 || err != nil {
			t.Fatal(n, err)
		}
		r.Spend(10)
		r.GiveBack(20)
		b.journal.mu.Lock()
		b.journal.fail = func(string) error { return store.ErrUnavailable }
		b.journal.mu.Unlock()
		if _, _, err := r.TakeRate(ctx, b.server, 40); err == nil {
			t.Fatal("no error")
		}
		b.journal.mu.Lock()
		b.journal.fail = nil
		b.journal.mu.Unlock()
		time.Sleep(3 * time.Second)
		b.journal.mu.Lock()
		if b.journal.granted != 10 || b.journal.use.Used != 10 || b.journal.use.Held != 0 {
			t.Errorf("%d are taken, %+v", b.journal.granted, b.journal.use)
		}
		b.journal.mu.Unlock()
		cancel()
		<-done
	})
}
