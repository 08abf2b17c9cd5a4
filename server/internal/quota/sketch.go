package quota

import (
	"time"
)

// sketch counts how often something was seen lately, in a fixed room. It hardly ever says too
// little, and rarely too much, where others fall on the same places. It keeps rare things,
// which are nearly all of them, out of the database.
type sketch struct {
	now  [sketchRows][]uint8 // since turned
	old  [sketchRows][]uint8 // in the half before
	turn time.Time
}

const (
	sketchRows  = 2
	sketchWidth = 1 << 18
	sketchHalf  = 30 * time.Minute
	sketchMost  = 250 // what a place counts to
)

func newSketch(now time.Time) *sketch {
	s := &sketch{turn: now}
	for i := range sketchRows {
		s.now[i], s.old[i] = make([]uint8, sketchWidth), make([]uint8, sketchWidth)
	}
	return s
}

// sight is one that was counted, so that it can be taken back.
type sight struct {
	hash  uint64
	turn  time.Time        // of the sketch then
	grown [sketchRows]bool // the places that counted it
}

// unseen takes back one that was counted. What is older than the last turn stays: it is
// forgotten at the next one. Others that fall on the same places and came meanwhile may be
// counted one too low.
func (s *sketch) unseen(c sight) {
	if !c.turn.Equal(s.turn) {
		return
	}
	for i := range sketchRows {
		if p := &s.now[i][uint32(c.hash>>(32*i))%sketchWidth]; c.grown[i] && *p > 0 {
			*p--
		}
	}
}

// seen counts one more of what has the hash, and says how many there were in the last half hour
// to hour. From most on it counts no further.
func (s *sketch) seen(now time.Time, h uint64, most int) (int, sight) {
	for range 2 {
		if now.Sub(s.turn) < sketchHalf {
			break
		}
		s.now, s.old = s.old, s.now
		for i := range s.now {
			clear(s.now[i])
		}
		if s.turn = s.turn.Add(sketchHalf); now.Sub(s.turn) >= 2*sketchHalf {
			s.turn = now.Add(-sketchHalf) // nobody came for long
		}
	}
	var places [sketchRows]*uint8
	least := most
	for i := range sketchRows {
		p := uint32(h>>(32*i)) % sketchWidth
		places[i] = &s.now[i][p]
		least = min(least, int(s.now[i][p])+int(s.old[i][p]))
	}
	c := sight{hash: h, turn: s.turn}
	if least >= most {
		return most, c
	}
	for i, p := range places {
		if int(*p)+int(s.old[i][uint32(h>>(32*i))%sketchWidth]) == least && *p < sketchMost {
			*p++ // only the places that say the least have to grow
			c.grown[i] = true
		}
	}
	return least, c
}
