package main

import (
	"fmt"
	"regexp"
	"strings"
)

// document is what one file tells to do. Lines count from 0.
type document struct {
	lines []string
	steps []*step
}

// step is one block of commands, or one file.
type step struct {
	line     int    // where it begins
	commands string // what is typed
	hidden   bool   // its answer is not looked at
	file     string // it is the content of this file, and nothing is typed
	answered bool   // an answer is recorded,
	from, to int    // in these lines,
	answer   string
	fresh    string // what came in its place; "" = it is right
}

var (
	fence     = regexp.MustCompile("^```(\\w*)$")
	directive = regexp.MustCompile(`^<!-- walk: (skip,|put|save) (.+) -->$`)
)

// parse reads a document.
func parse(text string) (*document, error) {
	d := &document{lines: strings.Split(text, "\n")}
	var (
		skip bool
		save string
		puts [][2]string
		last *step // the block whose answer may follow
	)
	end := func(from int, mark string) (int, error) {
		for i := from; i < len(d.lines); i++ {
			if d.lines[i] == mark {
				return i, nil
			}
		}
		return 0, fmt.Errorf("line %d: it does not end", from)
	}
	put := func(s string) string {
		for _, p := range puts {
			s = strings.ReplaceAll(s, p[1], p[0])
		}
		return s
	}
	for i := 0; i < len(d.lines); i++ {
		l := d.lines[i]
		switch m := directive.FindStringSubmatch(l); {
		case m != nil && m[1] == "skip,":
			skip = true
		case m != nil && m[1] == "save":
			save = m[2]
		case m != nil:
			a, b, ok := strings.Cut(m[2], " for ")
			if !ok {
				return nil, fmt.Errorf("line %d: put A for B", i+1)
			}
			puts = append(puts, [2]string{a, b})
		case l == "<!-- walk":
			to, err := end(i+1, "-->")
			if err != nil {
				return nil, err
			}
			if to < i+4 || d.lines[i+1] != "```bash" || d.lines[to-1] != "```" {
				return nil, fmt.Errorf("line %d: it is not one bash block", i+1)
			}
			d.steps = append(d.steps, &step{line: i + 2, commands: strings.Join(d.lines[i+2:to-1], "\n"), hidden: true})
			i, last = to, nil
		case strings.HasPrefix(l, "<!-- walk"):
			return nil, fmt.Errorf("line %d: %s is not a word of the walk", i+1, l)
		case fence.MatchString(l):
			kind := fence.FindStringSubmatch(l)[1]
			to, err := end(i+1, "```")
			if err != nil {
				return nil, err
			}
			body := strings.Join(d.lines[i+1:to], "\n")
			switch {
			case save != "":
				d.steps = append(d.steps, &step{line: i + 1, commands: body, file: save})
				save, last = "", nil
			case kind == "sh" && skip:
				skip, last = false, nil
			case kind == "sh":
				last = &step{line: i + 1, commands: put(body)}
				d.steps = append(d.steps, last)
			case kind == "text" && last != nil:
				last.answered, last.from, last.to, last.answer = true, i+1, to, body
				last = nil
			default:
				last = nil
			}
			i = to
		case strings.TrimSpace(l) != "":
			last = nil // an answer follows its commands without a word between
		}
	}
	if len(d.steps) == 0 {
		return nil, fmt.Errorf("there is nothing to do in it")
	}
	return d, nil
}

func (d *document) answers() int {
	n := 0
	for _, s := range d.steps {
		if s.answered {
			n++
		}
	}
	return n
}

// recorded is the document with what came in the place of answers that differ.
func (d *document) recorded() string {
	var out []string
	at := 0
	for _, s := range d.steps {
		if s.fresh == "" {
			continue
		}
		out = append(append(out, d.lines[at:s.from]...), s.fresh)
		at = s.to
	}
	return strings.Join(append(out, d.lines[at:]...), "\n")
}

// What differs between two runs.
var changing = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`), "ID"},
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?`), "TIME"},
	{regexp.MustCompile(`\b\d\d:\d\d:\d\d(\.\d+)?\b`), "TIME"},
	{regexp.MustCompile(`\b\d+(\.\d+)?(s|ms|µs)\b`), "DURATION"},
	{regexp.MustCompile(` +\d+\.\d+ ms\b`), " DURATION"},
	{regexp.MustCompile(`\b\d+\.\d{3,}s\b`), "DURATION"},
	{regexp.MustCompile(`\bmd_\w+`), "TOKEN"},
	{regexp.MustCompile(`/tmp/[\w./-]*`), "FOLDER"},
	// a port of the system's choice
	{regexp.MustCompile(`\b127\.0\.0\.1:[1-9]\d{4}\b`), "ADDRESS"},
}

// settled is a text without what differs between two runs.
func settled(s string) string {
	s = strings.ReplaceAll(s, "127.0.0.1:50051", "SERVICE")
	for _, c := range changing {
		s = c.pattern.ReplaceAllString(s, c.name)
	}
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

// matches says whether what came is what was recorded.
func matches(recorded, came string) bool {
	var pattern strings.Builder
	pattern.WriteString(`^`)
	for i, l := range strings.Split(settled(recorded), "\n") {
		switch {
		case l != "…":
			if i > 0 {
				pattern.WriteString(`\n`)
			}
			pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(l), "…", ".*"))
		case i > 0:
			pattern.WriteString(`(\n.*)*`)
		default: // a line break before the first line that is held against something
			came = "\n" + came
			pattern.WriteString(`(\n.*)*`)
		}
	}
	pattern.WriteString(`$`)
	return regexp.MustCompile(pattern.String()).MatchString(settled(came))
}
