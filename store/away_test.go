package store_test

import (
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !done(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// TestDatabaseAway: every call says so while PostgreSQL cannot be reached, what was accepted
// before is there after, and nothing has to be restarted.
func TestDatabaseAway(t *testing.T) {
	u, err := url.Parse(storetest.PostgresDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	line := &wire{to: u.Host, conns: map[net.Conn]bool{}}
	line.listen(t, "127.0.0.1:0")
	u.Host = line.addr
	s := storetest.Open(t, u.String())
	r := register(t, s)
	kept := newMail("ss", func(m *store.NewMail) { m.Owner = r })
	enqueue(t, s, kept)
	line.cut()
	st := &store.Settlement{ID: kept.ID, Owner: r, Claim: store.BornClaim, Kind: store.SettleArchive, Status: store.MailSent}
	answer := s.Settle(st) // waits by itself
	lost := newMail("ss")
	for name, call := range map[string]func() error{
		"ping":    func() error { return s.Ping(ctx) },
		"clock":   func() error { _, err := s.Now(ctx); return err },
		"enqueue": func() error { _, err := s.Enqueue(ctx, lost); return err },
		"claim":   func() error { _, err := s.Claim(ctx, r, "ss", 1, store.AnyPriority); return err },
		"renew":   func() error { return s.Renew(ctx, r, time.Minute) },
		"recover": func() error { _, _, err := s.Recover(ctx, r, 1); return err },
		"mail":    func() error { _, err := s.Mail(ctx, store.Everything, kept.ID); return err },
		"list": func() error {
			_, err := s.ListDue(ctx, store.Everything, store.MailFilter{}, store.Cursor{}, 1)
			return err
		},
		"changes": func() error { _, err := s.LastChange(ctx); return err },
		"breaker": func() error {
			_, err := s.ChangeBreaker(ctx, "ss", func(time.Time, *store.Breaker) bool { return true })
			return err
		},
		"rate":  func() error { _, _, err := s.TakeRate(ctx, r, "ss", store.RateUse{Call: 1}, 1, 1, 1); return err },
		"slots": func() error { _, err := s.HoldSlots(ctx, r, nil, 1); return err },
	} {
		if err := call(); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	line.listen(t, line.addr)
	if a := <-answer; a.Err != nil || !a.Mine {
		t.Errorf("the result that waited: %+v", a)
	}
	until(t, "new mail is taken", func() bool { r, err := s.Enqueue(ctx, lost); return err == nil && r.Err == nil })
	if m, err := s.Mail(ctx, store.Everything, kept.ID); err != nil || m.Status != store.MailSent {
		t.Errorf("%+v %v", m, err)
	}
}

// wire is a TCP connection to somewhere that can be cut.
type wire struct {
	to, addr string
	l        net.Listener
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

func (w *wire) listen(t *testing.T, addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	w.l, w.addr = l, l.Addr().String()
	t.Cleanup(func() { _ = l.Close() }) // closed already when it was cut
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", w.to)
			if err != nil {
				_ = c.Close() // the other side sees the end
				continue
			}
			for _, p := range [][2]net.Conn{{c, d}, {d, c}} {
				w.mu.Lock()
				w.conns[p[0]] = true
				w.mu.Unlock()
				go func() {
					_, _ = io.Copy(p[0], p[1]) // ends when either side does
					_ = p[0].Close()
				}()
			}
		}
	}()
}

func (w *wire) cut() {
	_ = w.l.Close() // it was open
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Close() // may have ended by itself
	}
	clear(w.conns)
}
