package quota

import (
	"time"
)

// sketch counts how often something was seen lately, in a fixed room. It never says too little,
// and rarely too much, where others fall on the same places. It keeps rare things,
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

// seen counts n more of what has the hash, and says how many there were in the last half hour
// to hour. From most on it counts no further.
func (s *sketch) seen(now time.Time, h uint64, most int) int {
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
	if least >= most {
		return most
	}
	for i, p := range places {
		if int(*p)+int(s.old[i][uint32(h>>(32*i))%sketchWidth]) == least && *p < sketchMost {
			*p++ // only the places that say the least have to grow
		}
	}
	return least
}
