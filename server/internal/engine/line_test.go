package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

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
		var l line
		at := map[*job]int{}
		for i, w := range strings.Fields(came) {
			j := newJob(&store.Claimed{Team: w[:1], Priority: int16(w[1] - '0')}, 1, time.Time{})
			at[j] = i
			l.add(j)
		}
		var got []string
		last := map[string]int{}
		for j := l.next(); j != nil; j = l.next() {
			w := j.Mail.Team + string(rune('0'+j.Mail.Priority))
			if was, ok := last[w]; ok && was > at[j] {
				t.Errorf("%s: a mail of %s was overtaken by a later one", came, w)
			}
			last[w] = at[j]
			got = append(got, w)
		}
		if g := strings.Join(got, " "); g != want || l.len() != 0 {
			t.Errorf("%s: %s, want %s; %d left", came, g, want, l.len())
		}
	}
}
