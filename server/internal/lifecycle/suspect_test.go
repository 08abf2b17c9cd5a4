package lifecycle

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// dyingService sends mails by the rules, in a process that dies. Nothing here knows the rules
// of suspicion: it claims what is due, records what it is told to record, and lets the next
// process adopt what the dead one held.
type dyingService struct {
	t      *testing.T
	rand   *rand.Rand
	now    time.Time
	due    []*store.Claimed
	sent   int
	parked []*store.Claimed
	deaths int
	kills  func(*store.Claimed) bool // whether sending this mail ends the process
}

const (
	atOnce  = 10   // mails on the wire
	claimed = 1000 // mails in the memory of the process
)

func newDyingService(t *testing.T, seed uint64, mails int) *dyingService {
	s := &dyingService{t: t, rand: rand.New(rand.NewPCG(seed, 0)), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	for range mails {
		s.due = append(s.due, &store.Claimed{ID: uuid.New(), Kind: store.KindBulk, RunAt: s.now, Recipients: []store.Recipient{{Mailbox: "u@y.example"}}})
	}
	return s
}

// live runs the process until nothing is due, or it has sent most mails and is killed, or a
// mail ends it.
func (s *dyingService) live(most int) {
	slices.SortStableFunc(s.due, func(a, b *store.Claimed) int { return cmp.Or(a.RunAt.Compare(b.RunAt)) })
	held := 0
	for held < len(s.due) && held < claimed && !s.due[held].RunAt.After(s.now) {
		held++
	}
	page := s.due[:held:held]
	s.due = s.due[held:]
	for len(page) > 0 {
		n := min(atOnce, len(page))
		if Begin(page[0], 1, s.now).Alone() {
			n = 1
		}
		var wire []*Attempt
		for _, m := range page[:n] {
			a := Begin(m, 1, s.now)
			if end, unsendable := a.Unsendable(s.now); unsendable {
				s.settle(m, a.Finish(end, "", store.Limits{}, s.now))
				continue
			}
			if a.Alone() && n > 1 {
				page = append(page, m) // its turn comes when it is alone
				continue
			}
			if begin := a.BeginSuspect(); begin != nil {
				m.Crashes, m.Begun = begin.Crashes, true
			}
			wire = append(wire, a)
		}
		page = page[n:]
		if len(wire) == 0 {
			continue
		}
		if most -= len(wire); most < 0 || slices.ContainsFunc(wire, func(a *Attempt) bool { return s.kills != nil && s.kills(a.Mail) }) {
			for _, a := range wire {
				page = append(page, a.Mail)
			}
			s.die(page)
			return
		}
		for _, a := range wire {
			a.After(a.Next(), smtpx.Outcome{DotSent: true, Recipients: []smtpx.RecipientOutcome{{Status: smtpx.StatusAccepted}}}, s.now)
			a.Mail.Begun = false
			s.settle(a.Mail, a.Finish(a.End(), "", store.Limits{}, s.now))
		}
	}
}

// die lets the next process adopt what this one held.
func (s *dyingService) die(held []*store.Claimed) {
	s.deaths++
	for _, m := range held {
		if m.Crashes < aloneCrashes { // the store gives these back by itself
			m.Crashes, m.Begun = max(m.Crashes, 1), false
			s.due = append(s.due, m)
			continue
		}
		v := Crash(m, 1, s.now)
		m.Begun = false
		s.settle(m, v)
	}
}

func (s *dyingService) settle(m *store.Claimed, v Verdict) {
	m.Crashes, m.Attempts, m.Progress = v.Crashes, v.Attempts, *v.Progress
	switch v.Kind {
	case store.SettleArchive:
		s.sent++
	case store.SettlePark:
		s.parked = append(s.parked, m)
	default:
		m.RunAt = v.RunAt
		s.due = append(s.due, m)
	}
}

// drain runs the service, a restart a second after each death, until everything is settled.
func (s *dyingService) drain(atMost time.Duration) {
	for end := s.now.Add(atMost); len(s.due) > 0; {
		s.live(1 << 30)
		s.now = s.now.Add(time.Second)
		if s.now.After(end) {
			s.t.Fatalf("%d mails still wait after %v", len(s.due), atMost)
		}
	}
}

// TestKillsConvictNobody: a service that is killed 50 times in 5,000 mails puts no mail aside.
func TestKillsConvictNobody(t *testing.T) {
	for seed := range uint64(10) {
		s := newDyingService(t, seed, 5000)
		for range 50 {
			s.live(20 + s.rand.IntN(280))
			s.now = s.now.Add(3 * time.Second)
		}
		s.drain(3 * time.Hour)
		if s.sent != 5000 || len(s.parked) != 0 {
			t.Fatalf("seed %d: %d sent, %d put aside after %d deaths", seed, s.sent, len(s.parked), s.deaths)
		}
	}
}

// TestPoisonIsConvicted: of 1,000 mails one ends the service whenever it is sent. It is put
// aside after five deaths and all others arrive, those that were never on the wire beside it
// within minutes.
func TestPoisonIsConvicted(t *testing.T) {
	for seed := range uint64(10) {
		s := newDyingService(t, seed, 1000)
		poison := s.due[s.rand.IntN(1000)]
		s.kills = func(m *store.Claimed) bool { return m == poison }
		s.drain(3 * time.Hour)
		if s.sent != 999 || len(s.parked) != 1 || s.parked[0] != poison || s.deaths != 5 {
			t.Fatalf("seed %d: %d sent, %d put aside after %d deaths", seed, s.sent, len(s.parked), s.deaths)
		}
	}
}
