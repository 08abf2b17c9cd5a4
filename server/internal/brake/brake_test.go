package brake

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/lease"
	"github.com/maildispatch/maildispatch/store"
)

// database is the mail servers as they are stored. The test writes, the brake asks.
type database struct {
	mu     sync.Mutex // guards all below
	byName map[string]*store.MailServer
	fails  error // of every answer
	reads  int
}

func (d *database) ServerVersions(ctx context.Context, names []string) (map[string]int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	if d.fails != nil {
		return nil, d.fails
	}
	out := map[string]int64{}
	for _, n := range names {
		if s := d.byName[n]; s != nil {
			out[n] = s.Version
		}
	}
	return out, nil
}

func (d *database) Server(_ context.Context, _ store.Scope, name string) (*store.MailServer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fails != nil {
		return nil, d.fails
	}
	return d.byName[name], nil
}

// asked is how often the versions were read.
func (d *database) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reads
}

// change stores a newer configuration.
func (d *database) change(name string, f func(*store.MailServer)) *store.MailServer {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := *d.byName[name]
	s.Version++
	f(&s)
	d.byName[name] = &s
	return &s
}

func run(t *testing.T, test func(t *testing.T, d *database, b *Brake)) {
	synctest.Test(t, func(t *testing.T) {
		d := &database{byName: map[string]*store.MailServer{}}
		for _, name := range []string{"a", "f"} {
			d.byName[name] = &store.MailServer{Name: name, Status: store.ServerAvailable, Version: 1}
		}
		b := New(Config{Journal: d, Now: time.Now, InUse: func(map[string]bool) {}, Changed: func(*store.MailServer) {}})
		b.Heard(d.byName["a"])
		b.Heard(d.byName["f"])
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.Run(ctx)
		}()
		test(t, d, b)
		cancel()
		<-done
	})
}

// TestMayLeave: what the newest configuration that was heard says counts, and any newer one
// ends what was begun under an older.
func TestMayLeave(t *testing.T) {
	at := func(d time.Duration) *time.Time { x := time.Now().Add(d); return &x }
	for name, test := range map[string]struct {
		change func(s *store.MailServer)
		want   error
	}{
		"nothing":      {nil, nil},
		"another port": {func(s *store.MailServer) { s.SMTP = &store.SMTP{Port: 26} }, ErrReconfigured},
		"switched off": {func(s *store.MailServer) { s.Status = store.ServerUnavailable }, ErrUnavailable},
		"deleted":      {func(s *store.MailServer) { s.DeleteTime = at(0) }, errDeleted},
		"paused":       {func(s *store.MailServer) { s.PauseUntil = at(time.Hour) }, errPaused},
		"a pause over": {func(s *store.MailServer) { s.PauseUntil = at(-time.Hour) }, ErrReconfigured},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, d *database, b *Brake) {
				old := d.byName["a"]
				if test.change != nil {
					d.change("a", test.change)
					b.Read(t.Context(), "a")
				}
				if err := b.MayLeave(old); !errors.Is(err, test.want) {
					t.Errorf("under the old one: %v, want %v", err, test.want)
				}
				now, err := b.Current(old)
				if errors.Is(test.want, ErrReconfigured) && (err != nil || now != d.byName["a"]) {
					t.Errorf("it is not sent with the new one: %+v, %v", now, err)
				}
				b.Heard(old) // somebody has read it before, and is slow
				if err := b.MayLeave(old); !errors.Is(err, test.want) {
					t.Errorf("an older reading counts: %v", err)
				}
			})
		})
	}
}

// TestMayDivert: mail goes through the fallback while its own mail server is switched off, not
// while that is paused or deleted, and only while the fallback itself may be used.
func TestMayDivert(t *testing.T) {
	off := func(s *store.MailServer) { s.Status = store.ServerUnavailable }
	paused := func(s *store.MailServer) { x := time.Now().Add(time.Hour); s.PauseUntil = &x }
	for name, test := range map[string]struct {
		name   string
		change func(s *store.MailServer)
		want   error
	}{
		"its own switched off":      {"a", off, nil},
		"its own paused":            {"a", paused, errPaused},
		"the fallback switched off": {"f", off, ErrUnavailable},
		"the fallback paused":       {"f", paused, errPaused},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, d *database, b *Brake) {
				b.Heard(d.change(test.name, test.change))
				w := Way{Server: d.byName["a"], Via: d.byName["f"]}
				if err := b.MayTake(w); !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
			})
		})
	}
}

// TestAwait: a dot leaves behind a reading that is less than a second old. It waits for one,
// hears of a change, and gives up while the database does not answer.
func TestAwait(t *testing.T) {
	t.Run("a reading is asked for", func(t *testing.T) {
		run(t, func(t *testing.T, d *database, b *Brake) {
			began := time.Now()
			if err := b.Await(t.Context(), Direct(d.byName["a"])); err != nil || d.asked() != 1 {
				t.Fatalf("%v after %d readings", err, d.asked())
			}
			if err := b.Await(t.Context(), Direct(d.byName["a"])); err != nil || d.asked() != 1 || !time.Now().Equal(began) {
				t.Errorf("the next dot waits: %v after %d readings", err, d.asked())
			}
			time.Sleep(freshFor)
			if fresh, _, _ := b.MayStillTake(Direct(d.byName["a"])); fresh {
				t.Error("a reading of a second ago is good enough")
			}
		})
	})
	t.Run("another replica has changed it", func(t *testing.T) {
		run(t, func(t *testing.T, d *database, b *Brake) {
			old := d.byName["a"]
			d.change("a", func(s *store.MailServer) { s.Status = store.ServerUnavailable })
			if err := b.Await(t.Context(), Direct(old)); !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("another replica has changed the fallback", func(t *testing.T) {
		run(t, func(t *testing.T, d *database, b *Brake) {
			b.Heard(d.change("a", func(s *store.MailServer) { s.Status = store.ServerUnavailable }))
			w := Way{Server: d.byName["a"], Via: d.byName["f"]}
			if err := b.Await(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			d.change("f", func(s *store.MailServer) { s.SMTP = &store.SMTP{Port: 26} })
			time.Sleep(freshFor)
			b.newest.note(time.Now(), []string{"a"}, map[string]int64{"a": 2})
			if fresh, _, _ := b.MayStillTake(w); fresh {
				t.Error("a reading of its own mail server is good enough")
			}
			if err := b.Await(t.Context(), w); !errors.Is(err, ErrReconfigured) {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("the database is away", func(t *testing.T) {
		run(t, func(t *testing.T, d *database, b *Brake) {
			d.mu.Lock()
			d.fails = errors.New("away")
			d.mu.Unlock()
			began := time.Now()
			if err := b.Await(t.Context(), Direct(d.byName["a"])); !errors.Is(err, errVersionsLate) || time.Since(began) != lease.Fresh {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		})
	})
	t.Run("the newer one cannot be read", func(t *testing.T) {
		run(t, func(t *testing.T, d *database, b *Brake) {
			old := d.byName["a"]
			d.change("a", func(s *store.MailServer) {})
			newest := d.byName["a"]
			d.mu.Lock()
			d.byName["a"] = old // its version was read, and then an old answer
			d.mu.Unlock()
			b.newest.note(time.Now(), []string{"a"}, map[string]int64{"a": newest.Version})
			if fresh, _, _ := b.MayStillTake(Direct(old)); fresh {
				t.Error("a dot may leave although a newer configuration is known of")
			}
		})
	})
}

// TestLooks: mail servers in use are looked at every half second, in one statement, and a
// change is told once.
func TestLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &database{byName: map[string]*store.MailServer{"a": {Name: "a", Status: store.ServerAvailable, Version: 1}}}
		var told []int64
		b := New(Config{Journal: d, Now: time.Now, InUse: func(names map[string]bool) { names["a"] = true }, Changed: func(s *store.MailServer) { told = append(told, s.Version) }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.Run(ctx)
		}()
		time.Sleep(10 * Every)
		synctest.Wait()
		d.change("a", func(*store.MailServer) {})
		time.Sleep(10 * Every)
		synctest.Wait()
		cancel()
		<-done
		if d.asked() < 19 || d.asked() > 21 || len(told) != 2 || told[1] != 2 {
			t.Errorf("%d readings in 10 s, told %v", d.asked(), told)
		}
	})
}
