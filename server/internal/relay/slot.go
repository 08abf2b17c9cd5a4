package relay

import (
	"context"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// holdEvery is how often a process writes down which slots it holds.
const holdEvery = 5 * time.Second

// slots knows which connections of limited mail servers this process holds. What it says of
// them is state: the database is told all of them again and again, so an answer that was lost,
// or a giving back that failed, leaves nothing behind. A taking that is under way has a token
// that no other statement of this process names, so takings and tellings need no lock between
// them.
type slots struct {
	cfg *Config

	mu     sync.Mutex // guards everything below; never held during a statement
	token  int64      // of the last taking
	taking map[int64]bool
	held   map[*Permit]bool
	told   time.Time // when the database was told last
	unsure bool      // the database may have rows of ours that nobody holds
}

func newSlots(cfg *Config) *slots {
	return &slots{cfg: cfg, taking: map[int64]bool{}, held: map[*Permit]bool{}}
}

// settled is the token before which no taking is under way. With mu held.
func (sl *slots) settled() int64 {
	t := sl.token + 1
	for x := range sl.taking {
		t = min(t, x)
	}
	return t
}

// take takes one of the mail server's connections over all replicas for pm.
func (sl *slots) take(ctx context.Context, server string, limit int, pm *Permit) (bool, error) {
	sl.mu.Lock()
	sl.token++
	t := store.SlotTake{MailServer: server, Limit: limit, Token: sl.token}
	sl.taking[t.Token] = true
	t.Settled = sl.settled()
	for h := range sl.held {
		if h.slot.MailServer == server {
			t.Held = append(t.Held, h.slot.N)
		}
	}
	sl.mu.Unlock()
	n, ok, err := sl.cfg.Journal.TakeSlot(ctx, sl.cfg.Replica(), t)
	sl.mu.Lock()
	defer sl.mu.Unlock()
	delete(sl.taking, t.Token)
	if ok && err == nil {
		pm.slot = store.Slot{MailServer: server, N: n, Token: t.Token}
		sl.held[pm] = true
	}
	sl.unsure = sl.unsure || err != nil
	return ok, err
}

// give gives pm's slot back, if it has one.
func (sl *slots) give(pm *Permit) {
	sl.mu.Lock()
	had := sl.held[pm]
	delete(sl.held, pm)
	sl.mu.Unlock()
	if !had {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeTime)
	defer cancel()
	if err := sl.cfg.Journal.GiveSlot(ctx, sl.cfg.Replica(), pm.slot); err != nil {
		sl.cfg.Logger.Warn("connection slot not given back yet", "mail_server", pm.slot.MailServer, "error", err)
		sl.mu.Lock()
		sl.unsure = true
		sl.mu.Unlock()
	}
}

// tell writes down what is held, when it is time for that.
func (sl *slots) tell(ctx context.Context) {
	sl.mu.Lock()
	// Also when nothing is held: a statement that was given up may still be carried out, and
	// then writes down what was held when it was sent.
	if !sl.unsure && time.Since(sl.told) < holdEvery {
		sl.mu.Unlock()
		return
	}
	list := make([]store.Slot, 0, len(sl.held))
	for pm := range sl.held {
		list = append(list, pm.slot)
	}
	settled := sl.settled()
	sl.told, sl.unsure = time.Now(), false
	sl.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	lost, err := sl.cfg.Journal.HoldSlots(ctx, sl.cfg.Replica(), list, settled)
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if err != nil {
		sl.unsure = true
		return
	}
	for pm := range sl.held {
		for _, x := range lost {
			if pm.slot == x {
				pm.lost.Store(true)
			}
		}
	}
}
