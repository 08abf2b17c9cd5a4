package store

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestAllowanceOfAnyPeriod: whatever is wanted and given back, no period sees more than the
// limit, and who always wants more gets 20/21 of it.
func TestAllowanceOfAnyPeriod(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		now := time.Date(2026, 1, 1, 22, 0, 0, 0, time.UTC)
		began := now
		take := AllowanceTake{Limit: 1 + rnd.Int64N(200), Period: time.Minute}
		var u allowanceUse
		type use struct {
			at time.Time
			n  int64
		}
		var uses []use
		total, greedy := int64(0), seed%2 == 0
		for range 3000 {
			now = now.Add(time.Duration(rnd.IntN(400)) * time.Millisecond)
			if take.Want = rnd.Int64N(20); greedy {
				take.Want = take.Limit
			}
			g := u.take(now, &take)
			if g.Granted < 0 || g.Granted > take.Want || g.Left < 0 || len(u) > AllowanceSlots+1 {
				t.Fatalf("seed %d: granted %d of %d, %d left, %d slots", seed, g.Granted, take.Want, g.Left, len(u))
			}
			take.Back, take.BackSlot = 0, g.Slot
			if !greedy && rnd.IntN(3) == 0 {
				take.Back = rnd.Int64N(g.Granted + 1)
			}
			if n := g.Granted - take.Back; n > 0 {
				uses, total = append(uses, use{now, n}), total+n
			}
		}
		from, sum := 0, int64(0)
		for _, x := range uses {
			for sum += x.n; x.at.Sub(uses[from].at) >= take.Period; from++ {
				sum -= uses[from].n
			}
			if sum > take.Limit {
				t.Fatalf("seed %d: a minute has %d of %d", seed, sum, take.Limit)
			}
		}
		minutes := now.Sub(began).Minutes()
		if least := int64(float64(take.Limit) * minutes * 20 / 21 * 0.97); greedy && total < least {
			t.Errorf("seed %d: got %d in %.1f minutes of %d each, want at least %d", seed, total, minutes, take.Limit, least)
		}
	}
}

// TestAllowance: what was used before counts, what comes back can be granted again, and who is
// told when gets it then.
func TestAllowance(t *testing.T) {
	at := time.Date(2026, 1, 1, 22, 0, 0, 0, time.UTC)
	var u allowanceUse
	take := func(d time.Duration, t AllowanceTake) AllowanceGrant {
		t.Limit, t.Period = 100, time.Hour
		return u.take(at.Add(d), &t)
	}
	if g := take(0, AllowanceTake{Used: 30, Want: 50}); g.Granted != 50 || g.Left != 20 {
		t.Errorf("got %+v, want 50 granted and 20 left", g)
	}
	g := take(10*time.Minute, AllowanceTake{Want: 40, Need: 40})
	if g.Granted != 20 || g.Left != 0 || g.Next != 53*time.Minute {
		t.Errorf("got %+v, want 20 granted, and more when the first slot is an hour old", g)
	}
	if g := take(10*time.Minute, AllowanceTake{Back: 5, BackSlot: g.Slot, Want: 10}); g.Granted != 5 {
		t.Errorf("got %+v, want the 5 that came back", g)
	}
	if g := take(11*time.Minute, AllowanceTake{Want: 101, Need: 101}); g.Next != 0 {
		t.Errorf("got %+v, want it to be never", g)
	}
	if g := take(63*time.Minute, AllowanceTake{Want: 100}); g.Granted != 80 {
		t.Errorf("got %+v, want the first 80 again", g)
	}
	// The clock was ahead: what was taken then counts from now on, and not until then.
	if g := take(-24*time.Hour, AllowanceTake{Want: 100}); g.Granted != 0 {
		t.Errorf("got %+v, want nothing", g)
	}
	if g := take(-22*time.Hour, AllowanceTake{Want: 100}); g.Granted != 100 {
		t.Errorf("got %+v, want 100", g)
	}
}
