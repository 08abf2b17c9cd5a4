package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// walker walks one document.
type walker struct {
	room, clone string        // folders: its own, and the clone in it
	patience    time.Duration // how long an answer may take to be complete behind its commands
	log         io.Writer
}

// fault is something that a document says and that is not so.
type fault struct {
	line int
	text string
}

// marks are what the shell writes for the walker, in lines of their own.
var mark = regexp.MustCompile(`(?m)^\x01(failed|done) (.*)\n`)

// maxBlock is how long a block may run.
const maxBlock = 5 * time.Minute

func (w *walker) walk(ctx context.Context, d *document) ([]fault, error) {
	tmp, bin, own := filepath.Join(w.room, "tmp"), filepath.Join(w.room, "bin"), filepath.Join(w.room, "walk")
	home := filepath.Join(w.room, "home")
	for _, dir := range []string{tmp, bin, own, home} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	defer os.RemoveAll(own)
	defer os.RemoveAll(home)
	env, err := environment(ctx, map[string]string{"HOME": home, "TMPDIR": tmp, "GOBIN": bin, "WALK": own, "PATH": bin + ":" + os.Getenv("PATH"), "LC_ALL": "C.UTF-8", "TZ": "UTC"})
	if err != nil {
		return nil, err
	}
	sh, err := startShell(ctx, w.clone, env, w.log)
	if err != nil {
		return nil, err
	}
	defer sh.close()
	var faults []fault
	for _, s := range d.steps {
		switch f, err := w.do(ctx, sh, s); {
		case err != nil:
			return faults, fmt.Errorf("line %d: %w", s.line, err)
		case len(f) > 0:
			faults = append(faults, f...)
		}
	}
	sh.end()
	last := d.steps[len(d.steps)-1].line
	for _, p := range sh.left(w.patience) {
		faults = append(faults, fault{last, "behind the last command this still runs: " + p})
	}
	for _, dir := range []string{tmp, home} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return faults, err
		}
		for _, e := range entries {
			if e.Name() == ".cache" || e.Name() == ".config" || strings.HasPrefix(e.Name(), "go-build") {
				continue // of Go itself
			}
			faults = append(faults, fault{last, "behind the last command this is left: " + filepath.Join(filepath.Base(dir), e.Name())})
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return faults, err
			}
		}
	}
	status := exec.CommandContext(ctx, "git", "status", "--porcelain", "--ignored")
	status.Dir = w.clone
	out, err := status.Output()
	if err != nil {
		return faults, err
	}
	for l := range strings.Lines(string(out)) {
		faults = append(faults, fault{last, "behind the last command this is left in the clone: " + strings.TrimSpace(l)})
	}
	return faults, nil
}

// do does one step and says what was not as the document says.
func (w *walker) do(ctx context.Context, sh *shell, s *step) ([]fault, error) {
	if s.file != "" {
		name := strings.ReplaceAll(s.file, "$WALK", filepath.Join(w.room, "walk"))
		if !filepath.IsAbs(name) {
			name = filepath.Join(w.clone, name)
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return nil, err
		}
		return nil, os.WriteFile(name, []byte(s.commands+"\n"), 0o600)
	}
	block := filepath.Join(w.room, "block.sh")
	if err := os.WriteFile(block, []byte(s.commands+"\n"), 0o600); err != nil {
		return nil, err
	}
	said, failed, err := sh.run(ctx, block, func(said string) bool {
		return !s.answered || s.hidden || matches(s.answer, said)
	}, w.patience)
	if err != nil {
		return nil, err
	}
	var faults []fault
	for _, f := range failed {
		faults = append(faults, fault{s.line, "this fails: " + f + "\n" + strings.TrimSpace(said)})
	}
	if s.answered && !s.hidden && !matches(s.answer, said) {
		faults = append(faults, fault{s.from, fmt.Sprintf("the answer is another.\n--- recorded\n%s\n--- came\n%s", s.answer, said)})
		s.fresh = strings.TrimRight(said, "\n")
	}
	return faults, nil
}

// environment is that of a person who has Go and nothing else of ours.
func environment(ctx context.Context, more map[string]string) ([]string, error) {
	names := []string{"GOPATH", "GOMODCACHE", "GOCACHE", "GOFLAGS", "GOPROXY", "GOSUMDB", "GONOSUMDB"}
	out, err := exec.CommandContext(ctx, "go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		return nil, err
	}
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if _, ours := more[name]; !ours && !slices.Contains(names, name) && !strings.HasPrefix(name, "MAILDISPATCH_") {
			env = append(env, e)
		}
	}
	for i, v := range strings.Split(strings.TrimSuffix(string(out), "\n"), "\n") {
		env = append(env, names[i]+"="+v)
	}
	for name, v := range more {
		env = append(env, name+"="+v)
	}
	return env, nil
}

// shell is a bash that is typed into. Its processes, and theirs, are of one session.
type shell struct {
	cmd   *exec.Cmd
	input io.WriteCloser
	log   io.Writer
	gone  chan struct{} // closed when it ended

	mu   sync.Mutex // guards said, which the reader writes
	said strings.Builder
	read int           // of said, what earlier blocks said; the walker's own
	more chan struct{} // told that said grew
}

// startShell starts it. A failing command is told of; what a document catches itself is not.
func startShell(ctx context.Context, dir string, env []string, log io.Writer) (*shell, error) {
	r, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &shell{cmd: exec.CommandContext(ctx, "bash", "--norc", "--noprofile"), log: log, gone: make(chan struct{}), more: make(chan struct{}, 1)}
	s.cmd.Dir, s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = dir, env, out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.input, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	_ = out.Close() // the shell has it
	go s.listen(r)
	go func() {
		_ = s.cmd.Wait() // how it ended is seen by what it did not say
		close(s.gone)
	}()
	_, err = io.WriteString(s.input, `trap 'printf "\001failed %s\n" "$BASH_COMMAND: exit code $?"' ERR`+"\n")
	return s, err
}

func (s *shell) listen(r io.ReadCloser) {
	defer r.Close()
	b := bufio.NewReader(r)
	for {
		line, err := b.ReadString('\n')
		s.mu.Lock()
		s.said.WriteString(line)
		s.mu.Unlock()
		if s.log != nil && line != "" && line[0] != 1 {
			fmt.Fprint(s.log, "    ", line)
		}
		select {
		case s.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// run types a file of commands, waits until they are done, and for what processes behind them
// say until it is enough or patience has passed.
func (s *shell) run(ctx context.Context, file string, enough func(string) bool, patience time.Duration) (said string, failed []string, err error) {
	if s.log != nil {
		b, _ := os.ReadFile(file)
		fmt.Fprintf(s.log, "$ %s", strings.ReplaceAll(string(b), "\n", "\n  "))
		fmt.Fprintln(s.log)
	}
	if _, err := fmt.Fprintf(s.input, ". %q </dev/null; trap - ERR; printf '\\001done .\\n'; trap 'printf \"\\001failed %%s\\n\" \"$BASH_COMMAND: exit code $?\"' ERR\n", file); err != nil {
		return "", nil, err
	}
	limit := time.NewTimer(maxBlock)
	defer limit.Stop()
	var late <-chan time.Time
	for {
		s.mu.Lock()
		text := s.said.String()[s.read:]
		s.mu.Unlock()
		done := false
		failed = nil
		for _, m := range mark.FindAllStringSubmatch(text, -1) {
			if m[1] == "done" {
				done = true
			} else if !strings.HasPrefix(m[2], ". ") { // the block, whose command has failed
				failed = append(failed, m[2])
			}
		}
		said = mark.ReplaceAllString(text, "")
		if done && late == nil {
			late = time.After(patience)
		}
		if done && enough(said) {
			s.read += len(text)
			return said, failed, nil
		}
		select {
		case <-s.more:
		case <-late:
			s.read += len(text)
			return said, failed, nil
		case <-limit.C:
			return said, failed, fmt.Errorf("it runs for longer than %v, and said:\n%s", maxBlock, said)
		case <-s.gone:
			return said, failed, errors.New("the shell has ended, and said:\n" + said)
		case <-ctx.Done():
			return said, failed, ctx.Err()
		}
	}
}

// end has the shell end, and waits for it.
func (s *shell) end() {
	_ = s.input.Close()
	<-s.gone
}

// left are the processes of the shell's session that still run when patience has passed.
func (s *shell) left(patience time.Duration) []string {
	var found []string
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		found = nil
		for pid, name := range session(s.cmd.Process.Pid) {
			found = append(found, fmt.Sprintf("%s (%d)", name, pid))
		}
		if len(found) == 0 || time.Now().After(end) {
			return found
		}
	}
}

// close ends what is left of it.
func (s *shell) close() {
	for pid := range session(s.cmd.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
	}
	<-s.gone
}

// session are the processes of a session, by their id.
func session(leader int) map[int]string {
	found := map[int]string{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return found
	}
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // ended meanwhile
		}
		// pid (name) state parent group session
		name, rest, _ := strings.Cut(string(b), ") ")
		_, name, _ = strings.Cut(name, "(")
		if x := strings.Fields(rest); len(x) > 3 && x[0] != "Z" && x[3] == strconv.Itoa(leader) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err == nil {
				found[pid] = name
			}
		}
	}
	return found
}
