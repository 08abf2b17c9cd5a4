package message

import "strings"

// hole is the place of a variable in a text.
type hole struct {
	name    string
	html    bool
	follows bool // the variable before it directly
	newline bool // the text before it ends in a line end, unless it follows
	last    bool // nothing of the text comes behind it
}

// run is a run of a text: a literal, or with a name the place of a variable.
type run struct{ literal, name string }

// cutVariables cuts a text at its variables. bad is the octet of the first "{{" that begins
// none; -1 = every one does.
func cutVariables(s string) (runs []run, bad int) {
	from := 0
	for at := 0; ; {
		i := strings.Index(s[at:], "{{")
		if i < 0 {
			break
		}
		at += i
		name, size := variable(s[at:])
		if size == 0 {
			return runs, at
		}
		if at > from {
			runs = append(runs, run{literal: s[from:at]})
		}
		runs = append(runs, run{name: name})
		at += size
		from = at
	}
	if from < len(s) {
		runs = append(runs, run{literal: s[from:]})
	}
	return runs, -1
}

// variable reads the one that s begins with; size 0 = none.
func variable(s string) (name string, size int) {
	i := 2
	blanks := func() {
		for i < len(s) && (s[i] == ' ' || s[i] == '\t') {
			i++
		}
	}
	blanks()
	from := i
	for i < len(s) && (s[i] == '_' || s[i] >= 'a' && s[i] <= 'z' || s[i] >= 'A' && s[i] <= 'Z' || i > from && s[i] >= '0' && s[i] <= '9') {
		i++
	}
	name = s[from:i]
	blanks()
	if name == "" || len(name) > maxVariableName || !strings.HasPrefix(s[i:], "}}") {
		return "", 0
	}
	return name, i + 2
}

// varied writes a text with variables: the literals, each so that what comes next begins a
// line, and where the variables stand.
func (c *composer) varied(runs []run, html bool) {
	follows, newline := false, false
	for i, r := range runs {
		last := i == len(runs)-1
		if r.name != "" {
			c.stops = append(c.stops, stop{at: c.buf.Len(), hole: &hole{name: r.name, html: html, follows: follows, newline: newline, last: last}})
			follows = true
			continue
		}
		s := lfLines(r.literal)
		c.write(writeQuoted(&c.buf, s))
		follows, newline = false, strings.HasSuffix(s, "\n")
		c.buf.WriteString(lineEnd(newline, last))
	}
}

// lineEnd brings what was encoded of a text to the beginning of a line: by a soft line break in
// the middle, by a line end behind it.
func lineEnd(newline, last bool) string {
	switch {
	case newline:
		return ""
	case last:
		return "\r\n"
	}
	return "=\r\n"
}

func fillRuns(runs []run, values map[string]string) string {
	if len(runs) == 1 && runs[0].name == "" {
		return runs[0].literal
	}
	var b strings.Builder
	for _, r := range runs {
		if r.name != "" {
			b.WriteString(values[r.name])
		} else {
			b.WriteString(r.literal)
		}
	}
	return b.String()
}
