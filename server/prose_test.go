package server

import (
	"go/scanner"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// proseColumns is how wide comments and the prose of documents may be. A tab counts four.
const proseColumns = 96

// proseDone are the beginnings of the paths that are checked. "" is every file.
var proseDone = []string{""}

// proseFree are files that nobody may rewrap: generated ones, and migrations that were
// released.
var proseFree = regexp.MustCompile(`\.pb\.go$|^store/migrations/`)

func proseWidth(s string) int {
	return utf8.RuneCountInString(s) + 3*strings.Count(s, "\t")
}

var listItem = regexp.MustCompile(`^\s*([-*+•]|\d+[.)])\s`)

// laidOut says whether a line of a comment or a document is code or a table, where breaks mean
// something. An address cannot be broken.
func laidOut(text string) bool {
	indented := strings.HasPrefix(text, "\t") || strings.HasPrefix(text, "  ")
	return indented && !listItem.MatchString(text) || strings.HasPrefix(strings.TrimSpace(text), "|") || strings.Contains(text, "://")
}

// longComments are the lines whose comment reaches beyond the limit. comments gives the column
// at which a line's comment begins, by the line's index.
func longComments(lines []string, mark string, comments map[int]int) []int {
	var long []int
	for n, c := range comments {
		text := strings.TrimPrefix(lines[n][c:], mark)
		directive := text != "" && text[0] != ' ' && text[0] != '\t'
		if proseWidth(lines[n]) > proseColumns && !directive && !laidOut(strings.TrimPrefix(text, " ")) {
			long = append(long, n+1)
		}
	}
	slices.Sort(long)
	return long
}

// goLines finds the line comments of Go.
func goLines(src []byte) map[int]int {
	var s scanner.Scanner
	fset := token.NewFileSet()
	f := fset.AddFile("", fset.Base(), len(src))
	s.Init(f, src, nil, scanner.ScanComments)
	found := map[int]int{}
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return found
		}
		if p := f.Position(pos); tok == token.COMMENT && strings.HasPrefix(lit, "//") {
			found[p.Line-1] = p.Column - 1
		}
	}
}

var protoCode = regexp.MustCompile(`^(?:[^"'/]|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|/[^/])*//`)

// markedLines finds the line comments of the schema, and those of SQL that have a line of their
// own.
func markedLines(lines []string, mark string) map[int]int {
	found := map[int]int{}
	for n, l := range lines {
		if mark == "--" {
			if t := strings.TrimLeft(l, " "); strings.HasPrefix(t, mark) {
				found[n] = len(l) - len(t)
			}
		} else if m := protoCode.FindString(l); m != "" {
			found[n] = len(m) - len(mark)
		}
	}
	return found
}

// longProse are the lines of a document that are too long, outside code and tables.
func longProse(lines []string) []int {
	var long []int
	fenced := false
	for n, l := range lines {
		if strings.HasPrefix(strings.TrimSpace(l), "```") {
			fenced = !fenced
			continue
		}
		code := strings.HasPrefix(l, "    ") && !listItem.MatchString(l)
		if !fenced && !code && !strings.HasPrefix(l, "#") && proseWidth(l) > proseColumns && (listItem.MatchString(l) || !laidOut(l)) &&
			!strings.Contains(l, "://") {
			long = append(long, n+1)
		}
	}
	return long
}

// longLines are the numbers of a file's lines whose prose is too wide.
func longLines(name string, src []byte) []int {
	lines := strings.Split(string(src), "\n")
	switch filepath.Ext(name) {
	case ".go":
		return longComments(lines, "//", goLines(src))
	case ".proto":
		return longComments(lines, "//", markedLines(lines, "//"))
	case ".sql":
		return longComments(lines, "--", markedLines(lines, "--"))
	case ".md":
		return longProse(lines)
	}
	return nil
}

// TestProseWidth: comments and documents can be read in a window of ordinary width.
func TestProseWidth(t *testing.T) {
	out, err := exec.Command("git", "-C", "..", "ls-files", "*.go", "*.proto", "*.sql", "*.md").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(string(out)) {
		if proseFree.MatchString(f) || !slices.ContainsFunc(proseDone, func(p string) bool { return strings.HasPrefix(f, p) }) {
			continue
		}
		src, err := os.ReadFile(filepath.Join("..", f))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range longLines(f, src) {
			t.Errorf("%s:%d: prose beyond column %d", f, n, proseColumns)
		}
	}
}

// TestProseWidthSees: what is too wide is found, and what may be is not.
func TestProseWidthSees(t *testing.T) {
	long := strings.Repeat("word ", 20)
	for _, c := range []struct {
		name, src string
		want      bool
	}{
		{"a.go", "package a\n\n// " + long + "\n", true},
		{"a.go", "package a\n\nvar a int // " + long + "\n", true},
		{"a.go", "package a\n\nconst a = `// " + long + "`\n", false},
		{"a.go", "package a\n\n//\t" + long + "\n", false},
		{"a.go", "package a\n\n//   - " + long + "\n", true},
		{"a.go", "package a\n\n//go:generate " + long + "\n", false},
		{"a.go", "package a\n\n// https://example.com/" + long + "\n", false},
		{"a.proto", "// " + long, true},
		{"a.proto", `option a = "// ` + long + `";`, false},
		{"a.sql", "-- " + long, true},
		{"a.sql", "select '" + long + "'", false},
		{"a.md", long, true},
		{"a.md", "- " + long, true},
		{"a.md", "| " + long + " |", false},
		{"a.md", "```\n" + long + "\n```", false},
	} {
		if got := len(longLines(c.name, []byte(c.src))) > 0; got != c.want {
			t.Errorf("%s %q: got too wide=%v, want %v", c.name, c.src, got, c.want)
		}
	}
}
