package lifecycle

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/store"
)

var update = flag.Bool("update", false, "write the diagram of a mail's states")

// diagramFiles hold the diagram; one that does not exist, or has none, is left alone.
var diagramFiles = []string{"states.md", "../../../ARCHITECTURE.md"}

const (
	diagramBegin = "```mermaid\nstateDiagram-v2\n"
	diagramEnd   = "```\n"
)

// TestDiagram: the documents show the transitions that the tables of rules show, no more and no
// less. With -update it writes them.
func TestDiagram(t *testing.T) {
	want := diagramBegin + diagram(t) + diagramEnd
	for _, name := range diagramFiles {
		text, err := os.ReadFile(name)
		from := bytes.Index(text, []byte(diagramBegin))
		if os.IsNotExist(err) || from < 0 {
			if name == diagramFiles[0] {
				t.Errorf("%s holds no diagram", name)
			}
			continue
		}
		length := bytes.Index(text[from+len(diagramBegin):], []byte(diagramEnd))
		if length < 0 {
			t.Fatalf("%s: the diagram has no end", name)
		}
		to := from + len(diagramBegin) + length + len(diagramEnd)
		if string(text[from:to]) == want {
			continue
		}
		if !*update {
			t.Errorf("%s shows other transitions than the rules have; go test -run TestDiagram -update writes\n%s", name, want)
			continue
		}
		if err := os.WriteFile(name, slices.Concat(text[:from], []byte(want), text[to:]), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// diagram draws every transition of the tables.
func diagram(t *testing.T) string {
	edges := map[[2]string]map[string]bool{}
	edge := func(from, to, label string) {
		if edges[[2]string{from, to}] == nil {
			edges[[2]string{from, to}] = map[string]bool{}
		}
		edges[[2]string{from, to}][label] = true
	}
	reached := func(from string, kind store.SettleKind, status store.MailStatus, label string) {
		to := node(status, kind == store.SettleRetry)
		edge(from, to, label)
		switch kind {
		case store.SettleRetry:
			edge(to, "sending", "claim")
		case store.SettleArchive:
			edge(to, "[*]", "")
		}
	}
	edge("[*]", string(View(&store.NewMail{}).Status), "accepted")
	edge("[*]", string(View(&store.NewMail{Held: "why"}).Status), "accepted, to be held")
	edge("[*]", "sending", "accepted, php mode")
	for _, row := range attemptRules {
		v := row.verdict(t)
		reached("sending", v.Kind, v.Status, v.End.String())
	}
	for _, row := range personRules {
		m, c, err := row.says(t)
		if err != nil {
			continue
		}
		word, _ := strings.CutSuffix(row.word, "-first")
		if c.Stops && m.DueTime != nil { // what waits may be a replica's by now
			reached("sending", c.Kind, c.Status, word)
		}
		reached(node(m.Status, m.DueTime != nil), c.Kind, c.Status, strings.ReplaceAll(word, "-", " "))
	}
	var lines []string
	for e, labels := range edges {
		var words []string
		for l := range labels {
			words = append(words, l)
		}
		slices.Sort(words)
		line := fmt.Sprintf("    %s --> %s", e[0], e[1])
		if text := strings.Join(words, ", "); text != "" {
			line += ": " + text
		}
		lines = append(lines, line+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// node is a state in the diagram. A mail that some have waits for the others, or for a person.
func node(s store.MailStatus, due bool) string {
	if s == store.MailPartiallySent && !due {
		return "partially_sent_parked"
	}
	return string(s)
}
