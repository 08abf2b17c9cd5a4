package engine

import "slices"

// line holds jobs in the order in which they leave: the more urgent first, within one priority
// by turns over the teams, a team's in the order they came. So a deep line delays nothing
// urgent, and one team's bulk does not delay another's.
type line struct {
	first []*job // taken before and given back: they go before everything
	lanes []*lane
	n     int
}

// lane is one priority.
type lane struct {
	priority int16
	turns    []*turn // teams with jobs; the next one's turn is the first
	byTeam   map[string]*turn
}

// turn is one team's jobs of a lane.
type turn struct {
	team string
	jobs []*job
}

func (l *line) len() int { return l.n }

func (l *line) add(j *job) {
	l.n++
	ln := l.lane(j.Mail.Priority)
	t := ln.byTeam[j.Mail.Team]
	if t == nil {
		t = &turn{team: j.Mail.Team}
		ln.byTeam[t.team] = t
		ln.turns = append(ln.turns, t)
	}
	t.jobs = append(t.jobs, j)
}

func (l *line) giveBack(j *job) {
	l.n++
	l.first = append(l.first, j)
}

// lane finds or makes a priority's lane; there are a handful, the most urgent first.
func (l *line) lane(p int16) *lane {
	i := 0
	for i < len(l.lanes) && l.lanes[i].priority > p {
		i++
	}
	if i < len(l.lanes) && l.lanes[i].priority == p {
		return l.lanes[i]
	}
	ln := &lane{priority: p, byTeam: map[string]*turn{}}
	l.lanes = append(l.lanes, nil)
	copy(l.lanes[i+1:], l.lanes[i:])
	l.lanes[i] = ln
	return ln
}

// least is the lowest priority of the jobs that wait, false when none does.
func (l *line) least() (int16, bool) {
	for i := len(l.lanes) - 1; i >= 0; i-- {
		if len(l.lanes[i].turns) > 0 {
			return l.lanes[i].priority, true
		}
	}
	return 0, false
}

// next takes the job whose turn it is, nil when there is none.
func (l *line) next() *job {
	if n := len(l.first); n > 0 {
		j := l.first[n-1]
		l.first[n-1] = nil
		l.first = l.first[:n-1]
		l.n--
		return j
	}
	for _, ln := range l.lanes {
		if len(ln.turns) == 0 {
			continue
		}
		t := ln.turns[0]
		j := t.jobs[0]
		t.jobs[0] = nil
		t.jobs = t.jobs[1:]
		ln.turns[0] = nil
		ln.turns = ln.turns[1:]
		if len(t.jobs) > 0 {
			ln.turns = append(ln.turns, t)
		} else {
			delete(ln.byTeam, t.team)
		}
		l.n--
		return j
	}
	return nil
}

// all are the jobs, in no order.
func (l *line) all() []*job {
	out := append(make([]*job, 0, l.n), l.first...)
	for _, ln := range l.lanes {
		for _, t := range ln.turns {
			out = append(out, t.jobs...)
		}
	}
	return out
}

// remove takes out the jobs of which taken is true. The others keep their order.
func (l *line) remove(taken func(*job) bool) (out []*job) {
	split := func(jobs []*job) []*job {
		return slices.DeleteFunc(jobs, func(j *job) bool {
			gone := taken(j)
			if gone {
				out = append(out, j)
			}
			return gone
		})
	}
	l.first = split(l.first)
	for _, ln := range l.lanes {
		ln.turns = slices.DeleteFunc(ln.turns, func(t *turn) bool {
			if t.jobs = split(t.jobs); len(t.jobs) > 0 {
				return false
			}
			delete(ln.byTeam, t.team)
			return true
		})
	}
	l.n -= len(out)
	return out
}
