package deploy_test

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server"
)

// runFiles are the files by which the service is started.
var runFiles = []string{"systemd/maildispatchd.service", "Dockerfile", "compose.yaml", "kubernetes/maildispatch.yaml"}

// TestRunFilesAreAll: a file that nobody looks at is found.
func TestRunFilesAreAll(t *testing.T) {
	for _, pattern := range []string{"systemd/*", "kubernetes/*", "Dockerfile*", "*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !slices.Contains(runFiles, f) {
				t.Errorf("no test looks at %s", f)
			}
		}
	}
}

var (
	serveLine   = regexp.MustCompile(`maildispatchd serve( .*)?\n`)
	serveList   = regexp.MustCompile(`(?m)^ *- serve\n((?: *- --.*\n)*)`)
	variable    = regexp.MustCompile(`MAILDISPATCH_[A-Z_]+`)
	variableSet = regexp.MustCompile(`(?m)^ *(?:Environment=)?(MAILDISPATCH_[A-Z_]+)(?:=|: )(\S+)$`)
	image       = regexp.MustCompile(`(?m)(?:image: |^FROM )(\S+)`)
	patience    = regexp.MustCompile(`(?m)^ *(?:TimeoutStopSec=|stop_grace_period: |terminationGracePeriodSeconds: )(\d+)`)
)

// serves are the arguments of each serve in a file.
func serves(text string) [][]string {
	var all [][]string
	for _, m := range serveLine.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.Fields(m[1]))
	}
	for _, m := range serveList.FindAllStringSubmatch(text, -1) {
		args := []string{}
		for line := range strings.Lines(m[1]) {
			args = append(args, strings.TrimPrefix(strings.TrimSpace(line), "- "))
		}
		all = append(all, args)
	}
	return all
}

// TestServes: what a file starts the service with is a configuration that it takes, and the
// service may take as long to end as it is told to.
func TestServes(t *testing.T) {
	for _, f := range runFiles {
		if f == "Dockerfile" {
			continue // it has no flags
		}
		t.Run(f, func(t *testing.T) {
			text := read(t, f)
			for _, m := range variableSet.FindAllStringSubmatch(text, -1) {
				t.Setenv(m[1], m[2])
			}
			all := serves(text)
			if len(all) != 1 || len(all[0]) == 0 {
				t.Fatalf("got %q, want the arguments of one serve", all)
			}
			var c server.Config
			fs := flag.NewFlagSet("serve", flag.ContinueOnError)
			fs.SetOutput(io.Discard)
			if err := c.Flags(fs); err != nil {
				t.Fatal(err)
			}
			if err := fs.Parse(all[0]); err != nil {
				t.Fatalf("%q: %v", all[0], err)
			}
			if fs.NArg() > 0 {
				t.Errorf("%q are no flags", fs.Args())
			}
			if err := c.Validate(); err != nil {
				t.Errorf("%q: %v", all[0], err)
			}
			if c.HealthListen == "" || c.MetricsListen == "" {
				t.Errorf("%q: got health at %q and metrics at %q, want both", all[0], c.HealthListen, c.MetricsListen)
			}
			m := patience.FindStringSubmatch(text)
			if m == nil {
				t.Fatal("the file does not say how long the service may take to end")
			}
			wait, err := time.ParseDuration(m[1] + "s")
			if err != nil {
				t.Fatal(err)
			}
			if needs := c.DrainDelay + c.ShutdownGrace; wait < needs+5*time.Second {
				t.Errorf("the service is killed after %v, and takes up to %v to end", wait, needs)
			}
		})
	}
}

// TestVariables: each variable that a file names is the twin of a flag.
func TestVariables(t *testing.T) {
	var c server.Config
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	if err := c.Flags(fs); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range append([]string{"../OPERATING.md"}, runFiles...) {
		for _, v := range variable.FindAllString(read(t, f), -1) {
			seen++
			name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(v, "MAILDISPATCH_"), "_", "-"))
			if fs.Lookup(name) == nil {
				t.Errorf("%s names %s, and there is no flag --%s", f, v, name)
			}
		}
	}
	if seen < 5 {
		t.Errorf("read %d variables", seen)
	}
}

// TestImages: images are named without a registry, and the service's own runs without root.
func TestImages(t *testing.T) {
	for _, f := range runFiles[1:] {
		found := image.FindAllStringSubmatch(read(t, f), -1)
		if len(found) == 0 {
			t.Errorf("%s names no image", f)
		}
		for _, m := range found {
			if strings.Contains(m[1], "/") {
				t.Errorf("%s: the image %s names a registry", f, m[1])
			}
		}
	}
	for _, line := range []string{"CGO_ENABLED=0 ", "\nFROM scratch\n", "\nUSER 10001:10001\n", "\nENTRYPOINT [\"/maildispatchd\"]\n", " ./server/cmd/maildispatchd "} {
		if !strings.Contains(read(t, "Dockerfile"), line) {
			t.Errorf("the Dockerfile lacks %q", line)
		}
	}
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if v := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(mod)); !strings.Contains(read(t, "Dockerfile"), "FROM golang:"+v[1]+" ") {
		t.Errorf("the Dockerfile builds with another Go than go.mod's %s", v[1])
	}
}

var (
	declared    = regexp.MustCompile(`\bfs\.\w+\((?:&[\w.]+, )?"([a-z-]+)"`)
	commandLine = regexp.MustCompile(`(?m)\bmaildispatchd (health|doctor|check-config|token|adopt|serve|key|catchall)\b(.*)$`)
	flagOf      = regexp.MustCompile(`(?:^|\s)--?([a-z][a-z-]*)`)
)

// TestCommands: the flags of every command line of ours exist.
func TestCommands(t *testing.T) {
	var c server.Config
	known := flag.NewFlagSet("", flag.ContinueOnError)
	if err := c.Flags(known); err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob("../cmd/maildispatchd/*.go")
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{}
	for _, f := range sources {
		for _, m := range declared.FindAllStringSubmatch(read(t, f), -1) {
			own[m[1]] = true
		}
	}
	seen := 0
	for _, f := range append([]string{"../OPERATING.md"}, runFiles...) {
		for _, m := range commandLine.FindAllStringSubmatch(read(t, f), -1) {
			for _, n := range flagOf.FindAllStringSubmatch(m[2], -1) {
				if seen++; known.Lookup(n[1]) == nil && !own[n[1]] {
					t.Errorf("%s: %s: there is no flag --%s", f, m[0], n[1])
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("read %d flags", seen)
	}
}
