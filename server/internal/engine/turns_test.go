package engine

import (
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/store"
)

// TestTakeTurns: a page as it is claimed, by priority and due time, and the order in which it is sent.
func TestTakeTurns(t *testing.T) {
	for page, want := range map[string]string{
		"":                        "",
		"a1 a1 a1":                "a1 a1 a1",
		"a2 a1 a1":                "a2 a1 a1",
		"a1 a1 a1 b1 b1 c1":       "a1 b1 c1 a1 b1 a1",
		"a2 b2 a2 a1 a1 c1 a1 b1": "a2 b2 a2 a1 c1 b1 a1 a1",
	} {
		var cs []*store.Claimed
		at := map[*store.Claimed]int{}
		for i, w := range strings.Fields(page) {
			c := &store.Claimed{Team: w[:1], Priority: int16(w[1] - '0')}
			at[c] = i
			cs = append(cs, c)
		}
		var got []string
		last := map[string]int{}
		for _, c := range takeTurns(cs) {
			w := c.Team + string(rune('0'+c.Priority))
			if was, ok := last[w]; ok && was > at[c] {
				t.Errorf("%s: a mail of %s was overtaken by a later one", page, w)
			}
			last[w] = at[c]
			got = append(got, w)
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("%s: %s, want %s", page, g, want)
		}
	}
}
