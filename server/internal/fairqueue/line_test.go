package fairqueue

import (
	"strings"
	"testing"
)

// mail is an item of a team.
type mail struct {
	place Place
	at    int
}

func (m *mail) Place() *Place { return &m.place }

// TestLine: mails as they come (team and priority), and the order in which they leave: by
// priority, within one by turns over the teams, a team's in the order they came.
func TestLine(t *testing.T) {
	for came, want := range map[string]string{
		"":                        "",
		"a1 a1 a1":                "a1 a1 a1",
		"a1 a1 a2":                "a2 a1 a1",
		"a1 a1 a1 b1 b1 c1":       "a1 b1 c1 a1 b1 a1",
		"a2 b2 a2 a1 a1 c1 a1 b1": "a2 b2 a2 a1 c1 b1 a1 a1",
	} {
		var l line[*mail]
		for i, w := range strings.Fields(came) {
			l.add(&mail{Place{Team: w[:1], Priority: int16(w[1] - '0')}, i})
		}
		var got []string
		last := map[string]int{}
		for m, any := l.next(); any; m, any = l.next() {
			w := m.place.Team + string(rune('0'+m.place.Priority))
			if was, ok := last[w]; ok && was > m.at {
				t.Errorf("%s: a mail of %s was overtaken by a later one", came, w)
			}
			last[w] = m.at
			got = append(got, w)
		}
		if g := strings.Join(got, " "); g != want || l.len() != 0 {
			t.Errorf("%s: %s, want %s; %d left", came, g, want, l.len())
		}
	}
}
