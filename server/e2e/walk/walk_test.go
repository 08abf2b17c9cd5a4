package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// walked walks a document in an empty repository, and returns what is wrong with it and how it
// reads with its answers recorded anew.
func walked(t *testing.T, text string) (faults []string, recorded string) {
	t.Helper()
	room := t.TempDir()
	clone := filepath.Join(room, "clone")
	if out, err := exec.Command("git", "init", "-q", clone).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d, err := parse(strings.ReplaceAll(text, "~~~", "```"))
	if err != nil {
		t.Fatal(err)
	}
	w := walker{room: room, clone: clone, patience: 300 * time.Millisecond}
	found, err := w.walk(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		faults = append(faults, f.text)
	}
	return faults, strings.ReplaceAll(d.recorded(), "```", "~~~")
}

// TestWalk: what a document says and is not so is found, and nothing else.
func TestWalk(t *testing.T) {
	for _, c := range []struct{ name, text, fault string }{
		{"right", "~~~sh\necho hello; cd \"$WALK\"\n~~~\n\n~~~text\nhello\n~~~\n~~~sh\necho \"${PWD##*/}\"\n~~~\n~~~text\nwalk\n~~~\n", ""},
		{"another answer", "~~~sh\necho hello\n~~~\n~~~text\ngood day\n~~~\n", "good day"},
		{"more than the answer", "~~~sh\necho hello; echo you\n~~~\n~~~text\nhello\n~~~\n", "the answer is another"},
		{"ids and times", "~~~sh\necho 01980000-0000-7000-8000-000000000001 at 12:00:01 in 3.4ms\n~~~\n~~~text\n01a80000-0000-7000-8000-00000000000f at 22:00:01 in 12ms\n~~~\n", ""},
		{"any text", "~~~sh\necho a b c; echo d; echo e; echo f\n~~~\n~~~text\na … c\n…\nf\n~~~\n", ""},
		{"any text before", "~~~sh\necho a; echo b\n~~~\n~~~text\n…\nb\n~~~\n", ""},
		{"any text or none", "~~~sh\necho a\n~~~\n~~~text\n…\na\n…\n~~~\n", ""},
		{"not any text", "~~~sh\necho a b c; echo d\n~~~\n~~~text\na … d\n…\n~~~\n", "the answer is another"},
		{"a failing command", "~~~sh\ntrue\nfalse\ntrue\n~~~\n", "false: exit code 1"},
		{"a command that is not there", "~~~sh\nmaildispatchx\n~~~\n", "exit code 127"},
		{"a failure that is expected", "~~~sh\nfalse || echo \"exit code $?\"\n~~~\n~~~text\nexit code 1\n~~~\n", ""},
		{"what comes later", "~~~sh\n(while [ ! -e \"$WALK\"/go ]; do :; done; echo late) &\n~~~\n~~~sh\ntouch \"$WALK\"/go\n~~~\n~~~text\nlate\n~~~\n", ""},
		{"a process is left", "~~~sh\nsleep 60 &\n~~~\n", "this still runs: sleep"},
		{"a process has ended", "~~~sh\nsleep 60 &\n~~~\n~~~sh\nkill %1\n~~~\n", ""},
		{"a file is left", "~~~sh\ntouch \"$TMPDIR\"/a\n~~~\n", "this is left: tmp/a"},
		{"a file is left in the clone", "~~~sh\ntouch a\n~~~\n", "left in the clone: ?? a"},
		{"not run", "<!-- walk: skip, it would take too long -->\n~~~sh\nfalse\n~~~\n~~~sh\ntrue\n~~~\n", ""},
		{"hidden", "<!-- walk\n~~~bash\nid=7\necho nobody looks\n~~~\n-->\n<!-- walk: put $id for ID -->\n~~~sh\necho \"ID\"\n~~~\n~~~text\n7\n~~~\n", ""},
		{"hidden failure", "<!-- walk\n~~~bash\nfalse\n~~~\n-->\n", "this fails: false"},
		{"a file", "<!-- walk: save $WALK/a.go -->\n~~~go\npackage a\n~~~\n~~~sh\ncat \"$WALK\"/a.go\n~~~\n~~~text\npackage a\n~~~\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			faults, recorded := walked(t, c.text)
			if all := strings.Join(faults, "\n"); (c.fault == "") != (all == "") || !strings.Contains(all, c.fault) {
				t.Fatalf("got %q, want %q", all, c.fault)
			}
			if strings.Contains(c.fault, "answer is another") || c.fault == "good day" {
				if again, _ := walked(t, recorded); len(again) > 0 {
					t.Errorf("recorded, and yet %q:\n%s", again, recorded)
				}
			} else if recorded != c.text {
				t.Errorf("got the document\n%s\nwant it as it was", recorded)
			}
		})
	}
}

// TestParse: what is no word of the walk is found, as is a document without a command.
func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"<!-- walk: skip -->\n":         "not a word",
		"<!-- walk: put a -->\n":        "put A for B",
		"<!-- walk\ntrue\n-->\n":        "not one bash block",
		"```sh\ntrue\n":                 "does not end",
		"<!-- walk\ntrue\n":             "does not end",
		"nothing\n":                     "nothing to do",
		"```text\nno commands\n```\n\n": "nothing to do",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// TestDocumentsAreWalked: .ci/run walks each document that shows commands.
func TestDocumentsAreWalked(t *testing.T) {
	run, err := os.ReadFile("../../../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"README.md", "client/README.md", "server/CONFIGURATION.md", "server/OPERATING.md"} {
		if !strings.Contains(string(run), d) {
			t.Errorf(".ci/run does not walk %s", d)
		}
	}
}
