package fairqueue

import "slices"

// line holds items in the order in which they leave: the more urgent first, within one priority
// by turns over the teams, a team's in the order they came. So a deep line delays nothing
// urgent, and one team's bulk does not delay another's.
type line[T Item] struct {
	first []T // taken before and given back: they go before everything
	lanes []*lane[T]
	n     int
}

// lane is one priority.
type lane[T Item] struct {
	priority int16
	teams    []*teamQueue[T] // teams with items; the next one's turn is the first
	byTeam   map[string]*teamQueue[T]
}

// teamQueue is one team's items of a lane.
type teamQueue[T Item] struct {
	team  string
	items []T
}

func (l *line[T]) len() int { return l.n }

func (l *line[T]) add(j T) {
	l.n++
	at := j.Place()
	ln := l.lane(at.Priority)
	t := ln.byTeam[at.Team]
	if t == nil {
		t = &teamQueue[T]{team: at.Team}
		ln.byTeam[t.team] = t
		ln.teams = append(ln.teams, t)
	}
	t.items = append(t.items, j)
}

func (l *line[T]) giveBack(j T) {
	l.n++
	l.first = append(l.first, j)
}

// lane finds or makes a priority's lane; there are a handful, the most urgent first.
func (l *line[T]) lane(p int16) *lane[T] {
	i := 0
	for i < len(l.lanes) && l.lanes[i].priority > p {
		i++
	}
	if i < len(l.lanes) && l.lanes[i].priority == p {
		return l.lanes[i]
	}
	ln := &lane[T]{priority: p, byTeam: map[string]*teamQueue[T]{}}
	l.lanes = append(l.lanes, nil)
	copy(l.lanes[i+1:], l.lanes[i:])
	l.lanes[i] = ln
	return ln
}

// minPriority is the lowest priority of the items that wait, false when none does.
func (l *line[T]) minPriority() (int16, bool) {
	for i := len(l.lanes) - 1; i >= 0; i-- {
		if len(l.lanes[i].teams) > 0 {
			return l.lanes[i].priority, true
		}
	}
	return 0, false
}

// next takes the item whose turn it is, false when there is none.
func (l *line[T]) next() (j T, any bool) {
	var none T
	if n := len(l.first); n > 0 {
		j = l.first[n-1]
		l.first[n-1] = none
		l.first = l.first[:n-1]
		l.n--
		return j, true
	}
	for _, ln := range l.lanes {
		if len(ln.teams) == 0 {
			continue
		}
		t := ln.teams[0]
		j = t.items[0]
		t.items[0] = none
		t.items = t.items[1:]
		ln.teams[0] = nil
		ln.teams = ln.teams[1:]
		if len(t.items) > 0 {
			ln.teams = append(ln.teams, t)
		} else {
			delete(ln.byTeam, t.team)
		}
		l.n--
		return j, true
	}
	return none, false
}

// all are the items, in no order.
func (l *line[T]) all() []T {
	out := append(make([]T, 0, l.n), l.first...)
	for _, ln := range l.lanes {
		for _, t := range ln.teams {
			out = append(out, t.items...)
		}
	}
	return out
}

// remove takes out the items of which taken is true. The others keep their order.
func (l *line[T]) remove(taken func(T) bool) (out []T) {
	split := func(items []T) []T {
		return slices.DeleteFunc(items, func(j T) bool {
			gone := taken(j)
			if gone {
				out = append(out, j)
			}
			return gone
		})
	}
	l.first = split(l.first)
	for _, ln := range l.lanes {
		ln.teams = slices.DeleteFunc(ln.teams, func(t *teamQueue[T]) bool {
			if t.items = split(t.items); len(t.items) > 0 {
				return false
			}
			delete(ln.byTeam, t.team)
			return true
		})
	}
	l.n -= len(out)
	return out
}
