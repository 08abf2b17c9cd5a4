package server

import (
	"os/exec"
	"strings"
	"testing"
)

// TestImports holds the house rule of who may import whom. Test files count as well, but for the helpers that exist for them.
func TestImports(t *testing.T) {
	const root = "github.com/maildispatch/maildispatch/"
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}}: {{join .Imports \" \"}}", "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, l := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		pkg, imports, _ := strings.Cut(l, ": ")
		pkg = strings.TrimPrefix(pkg, root)
		top, _, _ := strings.Cut(pkg, "/")
		for _, imp := range strings.Fields(imports) {
			if !strings.HasPrefix(imp, root) {
				continue
			}
			imp = strings.TrimPrefix(imp, root)
			seen++
			to, _, _ := strings.Cut(imp, "/")
			bad := false
			switch top {
			case "proto", "store", "smtpx":
				bad = to != top
			case "client":
				bad = to != "proto" && to != "client"
			}
			if strings.HasPrefix(pkg, "server/internal/api") && strings.HasPrefix(imp, "server/internal/engine") ||
				strings.HasPrefix(pkg, "server/internal/engine") && (strings.HasPrefix(imp, "server/internal/api") || to == "proto") {
				bad = true
			}
			if bad {
				t.Errorf("%s must not import %s", pkg, imp)
			}
		}
	}
	if seen < 10 {
		t.Fatalf("only %d imports of ours seen: the walk is broken", seen)
	}
}

// TestTopLevel: no folder at the top but the house's own.
func TestTopLevel(t *testing.T) {
	out, err := exec.Command("git", "-C", "..", "ls-files").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(string(out)) {
		if dir, _, ok := strings.Cut(f, "/"); ok && !strings.Contains("proto server client store smtpx .ci", dir) {
			t.Errorf("%s: folder %s is not of the house", f, dir)
		}
	}
}
