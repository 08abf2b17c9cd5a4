package server

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	markdownLink = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	namedCommand = regexp.MustCompile("(?m)(?:^|`)(?:\\./[a-z]+\\.sh|\\.ci/[a-z]+|make [a-z-]+)")
	makeTarget   = regexp.MustCompile(`(?m)^([a-z-]+):`)
)

// markdownFiles are the documents of the repository, by their path from the top.
func markdownFiles(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("git", "-C", "..", "ls-files", "*.md").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(out))
	if len(files) < 3 {
		t.Fatalf("got %q, want the documents of the repository", files)
	}
	return files
}

// TestDocumentsLead: what a document links to and the commands that it names exist.
func TestDocumentsLead(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range makeTarget.FindAllStringSubmatch(string(makefile), -1) {
		targets[m[1]] = true
	}
	for _, f := range markdownFiles(t) {
		b, err := os.ReadFile(filepath.Join("..", f))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range markdownLink.FindAllStringSubmatch(string(b), -1) {
			if to := m[1]; !strings.Contains(to, ":") {
				if _, err := os.Stat(filepath.Join("..", filepath.Dir(f), to)); err != nil {
					t.Errorf("%s links to %s: %v", f, to, err)
				}
			}
		}
		for _, c := range namedCommand.FindAllString(string(b), -1) {
			c = strings.TrimPrefix(c, "`")
			if target, ok := strings.CutPrefix(c, "make "); ok {
				if !targets[target] {
					t.Errorf("%s names %q, which the Makefile does not have", f, c)
				}
			} else if _, err := os.Stat(filepath.Join("..", c)); err != nil {
				t.Errorf("%s names %s: %v", f, c, err)
			}
		}
	}
}
