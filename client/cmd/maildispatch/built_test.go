//go:build callers

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// grpcurlVersion is that of client/README.md.
const grpcurlVersion = "v1.9.3"

// TestBuilt: what people do, by the built command line or real grpcurl, at the built service.
func TestBuilt(t *testing.T) {
	bin := t.TempDir()
	for _, build := range [][]string{{"build", "-o", bin, ".", "../../../server/cmd/maildispatchd"}, {"install", "github.com/fullstorydev/grpcurl/cmd/grpcurl@" + grpcurlVersion}} {
		cmd := exec.Command("go", build...)
		cmd.Env = append(os.Environ(), "GOBIN="+bin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(build, " "), err, out)
		}
	}
	for name, test := range map[string]func(*rig, *testing.T){"support tasks": (*rig).byCommand, "support tasks by grpcurl": (*rig).byGrpcurl,
		"every command by grpcurl": (*rig).everyCommand, "bulk and Ctrl-C": (*rig).interrupted} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(builtRig(t, bin), t)
		})
	}
}

// builtRig runs the programs in bin.
func builtRig(t *testing.T, bin string) *rig {
	t.Helper()
	r := emptyRig(t)
	r.do = func(ctx context.Context, input string, args ...string) (int, string, string) {
		r.t.Helper()
		var out, errs bytes.Buffer
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "maildispatch"), args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = strings.NewReader(input), &out, &errs, 20*time.Second
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		if exit := (*exec.ExitError)(nil); errors.As(cmd.Run(), &exit) && !exit.Exited() && exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
			r.t.Fatal(exit)
		}
		return cmd.ProcessState.ExitCode(), out.String(), errs.String()
	}
	r.call = func(line string) string {
		r.t.Helper()
		var errs bytes.Buffer
		cmd := exec.Command("sh", "-c", "exec "+line)
		cmd.Env, cmd.Stderr = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH")), &errs
		pipe, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			r.t.Fatal(err)
		}
		var out strings.Builder
		for sc := bufio.NewScanner(pipe); sc.Scan(); {
			out.WriteString(sc.Text() + "\n")
			if strings.HasSuffix(line, "/WatchMails") && strings.Contains(sc.Text(), `"cursor"`) {
				_ = cmd.Process.Kill() // nothing ends it
			}
		}
		if err := cmd.Wait(); err != nil && cmd.ProcessState.Exited() {
			r.t.Fatalf("%s: %v\n%s", line, err, errs.String())
		}
		return out.String()
	}

	service := exec.Command(filepath.Join(bin, "maildispatchd"), append([]string{"serve"}, r.serveFlags()...)...)
	pipe, err := service.StderrPipe()
	if err == nil {
		err = service.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	address, ended := make(chan string, 1), make(chan error, 1)
	go func() { // until the service has ended
		for sc := bufio.NewScanner(pipe); sc.Scan(); {
			if _, rest, is := strings.Cut(sc.Text(), "msg=listening address="); is {
				a, _, _ := strings.Cut(rest, " ")
				address <- a
			}
		}
		ended <- service.Wait()
	}()
	t.Cleanup(func() {
		_ = service.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("the service ended with %v", err)
		}
	})
	select {
	case a := <-address:
		r.connect(a)
	case err := <-ended:
		ended <- err
		t.Fatalf("the service ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the service does not listen")
	}
	t.Cleanup(func() { _ = r.c.Close() }) // nothing is asked any more
	r.addServers()
	return r
}

// everyCommand: each command prints calls that grpcurl makes. What the support tasks have is
// left to them.
func (r *rig) everyCommand(t *testing.T) {
	t.Helper()
	missing := map[string]bool{}
	var gather func(c *cobra.Command)
	gather = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			gather(sub)
		}
		if !c.HasSubCommands() {
			missing[c.CommandPath()] = true
		}
	}
	root := (&app{}).command()
	gather(root)
	has := func(args []string) {
		c, _, err := root.Find(args)
		if err != nil {
			t.Fatal(err)
		}
		delete(missing, c.CommandPath())
	}
	for _, x := range r.tasks() {
		has(x.args)
	}
	r.bulk("many", 1100)
	r.done("hold", "--batch", "many", "--yes")
	// the first one below the seven names of columns
	operation := strings.Fields(r.done("operation", "list"))[7]
	list, text := r.write("list.csv", "to,name\nann@many.example,Ann\n"), r.write("news.txt", "Subject: News\n\nDear {{name}}\n")
	token := r.write("token", "")
	var made struct {
		Secret string
		Info   struct{ ID string }
	}
	for _, x := range []struct {
		args  []string
		shows string
	}{
		{[]string{"show", "INV-1"}, `"reference": "INV-1"`},
		{[]string{"bulk", list, "--template", text, "--server", "later"}, `"accepted": "1"`},
		{[]string{"server", "add", "extra", "--host", "127.0.0.1", "--port", "2525", "--encryption", "none", "--from", "shop@x.example", "--mode", "php"}, `"name": "extra"`},
		{[]string{"server", "list"}, `"name": "extra"`},
		{[]string{"server", "show", "extra"}, `"name": "extra"`},
		{[]string{"server", "default", "extra"}, `"previousDefault"`},
		{[]string{"server", "delete", "extra"}, `"deleteTime"`},
		{[]string{"operation", "list"}, `"HoldMails"`},
		{[]string{"operation", "show", operation}, `"HoldMails"`},
		{[]string{"operation", "watch", operation}, `"OPERATION_STATE_DONE"`},
		{[]string{"operation", "stop", operation}, `"OPERATION_STATE_DONE"`},
		{[]string{"watch"}, `"cursor"`},
		{[]string{"whoami"}, `{`},
		{[]string{"domains", "set", "shop", "shop.example"}, `"shop.example"`},
		{[]string{"domains", "list"}, `"shop.example"`},
		{[]string{"token", "list"}, `{`},
		{[]string{"token", "create", "ops", "--role", "admin", "--system"}, `"secret"`},
		{[]string{"token", "revoke", "TOKEN", "--token-file", token}, `"revokeTime"`},
	} {
		has(x.args)
		for i, arg := range x.args {
			if arg == "TOKEN" {
				x.args[i] = made.Info.ID
				r.write("token", made.Secret)
			}
		}
		code, lines, errs := r.run(context.Background(), "", append(x.args, "--grpcurl")...)
		answers := ""
		for l := range strings.Lines(lines) {
			answers += r.call(strings.TrimSpace(l))
		}
		_ = json.Unmarshal([]byte(answers), &made) // where it is one answer and has a token
		if code != exitDone || !strings.Contains(answers, x.shows) {
			t.Errorf("%v: got %d, %q\n%s%s", x.args, code, answers, lines, errs)
		}
	}
	if len(missing) > 0 {
		t.Errorf("these commands are not tried: %v", slices.Sorted(maps.Keys(missing)))
	}
}

// interrupted: a bulk that Ctrl-C stops three times, each time somewhere else, and that is
// called again, brings each recipient one mail.
func (r *rig) interrupted(t *testing.T) {
	n := int64(2000)
	if os.Getenv("MAILDISPATCH_TEST_FULL") == "1" {
		n = 20_000
	}
	var list strings.Builder
	list.WriteString("to,name\n")
	for i := range n {
		fmt.Fprintf(&list, "c%d@many.example,Customer %d\n", i, i)
	}
	args := []string{"bulk", r.write("customers.csv", list.String()), "--template", r.write("news.txt", "Subject: News for {{name}}\n\nDear {{name}},\n"), "--server", "later", "--batch", "news"}
	taken := func() int64 {
		res, err := r.c.GetBatch(context.Background(), &maildispatchv1.GetBatchRequest{BatchId: "news"})
		if err != nil {
			return 0 // it has not begun
		}
		return res.Batch.Mails
	}
	stopped := 0
	for range 3 {
		ctx, interrupt := context.WithCancel(context.Background())
		at := taken() + rand.Int64N(n/4)
		over := make(chan struct{})
		go func() { // until so many were taken
			defer close(over)
			for ctx.Err() == nil && taken() <= at {
				time.Sleep(time.Millisecond)
			}
			interrupt()
		}()
		code, out, errs := r.run(ctx, "", args...)
		interrupt()
		<-over
		t.Logf("Ctrl-C at %d of %d:\n%s%s", at, n, out, errs)
		if code == exitNotAll && strings.Contains(out, "Stopped. The same command again goes on from here.") {
			stopped++
		} else if code != exitDone && code != -1 { // it ended before, or had not begun
			t.Fatalf("got %d", code)
		}
	}
	if stopped == 0 {
		t.Error("no Ctrl-C came before the end")
	}
	code, out, errs := r.run(context.Background(), "", args...)
	t.Logf("to the end:\n%s%s", out, errs)
	if code != exitDone || !strings.Contains(out, fmt.Sprintf("Batch news: %d of %d handed over", n, n)) {
		t.Fatalf("got %d", code)
	}
	if _, err := r.c.RunBatch(context.Background(), &maildispatchv1.RunBatchRequest{MailServer: "later", Wait: true}); err != nil {
		t.Fatal(err)
	}
	times := map[string]int{}
	for _, m := range r.relay.Mails() {
		for _, to := range m.To {
			times[to]++
		}
	}
	for i := range n {
		if to := fmt.Sprintf("c%d@many.example", i); times[to] != 1 {
			t.Fatalf("%s got %d mails", to, times[to])
		}
	}
	if len(times) != int(n) {
		t.Errorf("%d recipients got mail, want %d", len(times), n)
	}
}
