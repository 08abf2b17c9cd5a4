// Command walk does what documents say, line by line, as a newcomer would: it clones the
// repository, types the commands of each document's sh blocks into a shell, in their order, and
// holds what they print against the recorded answer, the text block that follows.
//
//	go run ./server/e2e/walk README.md client/README.md   # -w records the answers anew
//
// Commands and answers stand in the documents and nowhere else. In an answer "…" stands for any
// text, on a line of its own for any lines. Ids, times, durations and temporary folders differ
// between two runs and are not compared. Every command has to succeed. At the end of a document
// no process of it may be left, no file of it in the clone, and none in the folder for
// temporary files: a walk ends as it began.
//
// What a reader is not shown stands in comments of the document:
//
//	<!-- walk
//	```bash
//	commands that are run, and whose answer nobody looks at
//	```
//	-->
//	<!-- walk: skip, REASON -->          the next sh block is not run
//	<!-- walk: put A for B -->           commands have A where the document has B
//	<!-- walk: save FILE -->             the next block becomes this file
//
// The shell finds the programs that a document installs (GOBIN), and in WALK a folder that is
// gone at the end.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	record := flag.Bool("w", false, "record answers that differ in the documents")
	dirty := flag.Bool("dirty", false, "walk the working tree as it is, not only what is committed")
	verbose := flag.Bool("v", false, "print what is typed and what comes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := walk(ctx, flag.Args(), *record, *dirty, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "walk:", err)
		os.Exit(1)
	}
}

// walk walks the documents one after another, each in a shell of its own in one clone.
func walk(ctx context.Context, documents []string, record, dirty, verbose bool) error {
	if len(documents) == 0 {
		return fmt.Errorf("no document is named")
	}
	begin := time.Now()
	room, err := os.MkdirTemp("", "maildispatch-walk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(room)
	clone := filepath.Join(room, "maildispatch")
	if err := takeClone(ctx, clone, dirty); err != nil {
		return err
	}
	bad := 0
	for _, d := range documents {
		text, err := os.ReadFile(filepath.Join(clone, d))
		if err != nil {
			return err
		}
		doc, err := parse(string(text))
		if err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
		at := time.Now()
		w := walker{room: room, clone: clone, patience: 30 * time.Second}
		if verbose {
			w.log = os.Stdout
		}
		faults, err := w.walk(ctx, doc)
		if err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
		for _, f := range faults {
			fmt.Printf("%s:%d: %s\n", d, f.line, f.text)
		}
		fmt.Printf("%s: %d blocks, %d answers, %.1fs (%.1fs after the clone)\n", d, len(doc.steps), doc.answers(), time.Since(at).Seconds(), time.Since(begin).Seconds())
		bad += len(faults)
		if record {
			if err := os.WriteFile(d, []byte(doc.recorded()), 0o644); err != nil {
				return err
			}
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d times the documents say something else", bad)
	}
	return nil
}

// takeClone clones the repository of the working folder, and lays what is not committed over it
// where that is wanted.
func takeClone(ctx context.Context, to string, dirty bool) error {
	script := `git clone -q . "$1"`
	if dirty {
		script += `
git diff HEAD --name-only --diff-filter=d -z | xargs -0 -r cp --parents -t "$1"
git ls-files -o --exclude-standard -z | xargs -0 -r cp --parents -t "$1"
cd "$1" && git add -A && git -c user.name=walk -c user.email=walk@example.com commit -q --allow-empty -m walk`
	}
	cmd := exec.CommandContext(ctx, "bash", "-euc", script, "bash", to)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("clone: %w\n%s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
