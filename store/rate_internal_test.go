package store

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestRateOfAnyMinute: however late mails leave after they were granted, whatever comes back
// and whichever answers are lost, no minute sees more than 110 % of the limit.
func TestRateOfAnyMinute(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		now := time.Date(2026, 1, 1, 22, 0, 0, 0, time.UTC)
		perMinute := 1 + rnd.IntN(120)
		q := &rateRow{Tokens: rateRoom(perMinute), RefilledAt: dbTime{Time: now}, Day: now.Format(time.DateOnly)}
		type replica struct {
			share rateShare
			use   RateUse
			left  time.Time // when the last one left
		}
		rs := make([]replica, 1+rnd.IntN(3))
		quick := seed%2 == 0
		var left []time.Time
		for range 3000 {
			now = now.Add(time.Duration(rnd.IntN(400)) * time.Millisecond)
			if rnd.IntN(100) == 0 { // the relay hangs, and nobody asks
				now = now.Add(time.Duration(rnd.IntN(40)) * time.Second)
			}
			r := &rs[rnd.IntN(len(rs))]
			switch n := rnd.IntN(r.use.Held + 1); rnd.IntN(4) {
			case 0: // some leave
				switch {
				case quick: // but for the hang
					n = r.use.Held
				case rnd.IntN(3) > 0:
					n = 0 // the relay is slow
				}
				r.use.Held -= n
				r.use.Used += int64(n)
				if n > 0 {
					r.left = now
				}
				for range n {
					left = append(left, now)
				}
				continue
			case 1: // some go back
				r.use.Held -= n
			}
			others := 0
			for i := range rs {
				if &rs[i] != r {
					others += rs[i].share.Held
				}
			}
			want := rnd.IntN(50)
			r.use.Quiet = now.Sub(r.left)
			granted, _ := q.take(now, r.share, r.use, others, want, perMinute, 0)
			if granted < 0 || granted > want {
				t.Fatalf("seed %d: got %d of %d", seed, granted, want)
			}
			held := r.use.Held + granted
			r.share = rateShare{Granted: r.use.Used + int64(held), Held: held}
			if rnd.IntN(10) > 0 { // else the answer is lost
				r.use.Held = held
			}
		}
		most := int(rateRoom(perMinute)) + perMinute
		from := 0
		for to := range left {
			for left[to].Sub(left[from]) >= time.Minute {
				from++
			}
			if n := to - from + 1; n > most+1 {
				t.Fatalf("seed %d: %d within a minute, want %d at most", seed, n, most)
			}
		}
		if len(left) < perMinute {
			t.Errorf("seed %d: only %d left", seed, len(left))
		}
	}
}

// TestRateOfTheDay: at midnight UTC a new day begins with what is under way.
func TestRateOfTheDay(t *testing.T) {
	late := time.Date(2026, 1, 1, 23, 59, 59, 0, time.UTC)
	q := &rateRow{RefilledAt: dbTime{Time: late}, Day: "2026-01-01"}
	n, next := q.take(late, rateShare{}, RateUse{}, 0, 500, 0, 100)
	if n != 100 || !next.Equal(late.Add(time.Second)) {
		t.Fatalf("got %d until %v", n, next)
	}
	share := rateShare{Granted: 100, Held: 100}
	n, _ = q.take(late.Add(2*time.Second), share, RateUse{Used: 60, Held: 40}, 10, 500, 0, 100)
	if q.Day != "2026-01-02" || n != 0 {
		t.Errorf("got %d on %s", n, q.Day)
	}
	share = rateShare{Granted: 100, Held: 40}
	if n, _ = q.take(late.Add(3*time.Second), share, RateUse{Used: 60, Held: 0}, 0, 500, 0, 100); n != 30 {
		t.Errorf("got %d, want the 30 that are left when 40 of yesterday's came back", n)
	}
}
