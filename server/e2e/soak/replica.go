package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/maildispatch/maildispatch/client"
)

// replica is one process of the service, and one after it when it is replaced.
type replica struct {
	name, binary, dsn, key, dir string
	measured                    bool // the runtime tells its live heap after each collection

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan error
	client *client.Client // nil while it is down
	heap   float64        // MiB, of the last collection
}

var collected = regexp.MustCompile(`^gc \d+ .*->(\d+) MB, `)

func (r *replica) start(ctx context.Context) error {
	cmd := exec.Command(r.binary, "serve", "--listen=127.0.0.1:0", "--database="+r.dsn, "--key-file="+r.key, "--batch-interval=5s", "--smtp-destinations=loopback:*")
	// Only an older binary needs it, on the schema of a newer one; one that has no such flag
	// yet does not ask.
	cmd.Env = append(os.Environ(), "MAILDISPATCH_ALLOW_UNSAFE_DATABASE=true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = os.Environ()
	if r.measured {
		cmd.Env = append(cmd.Env, "GODEBUG=gctrace=1")
	}
	out, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(r.dir, r.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	addr, exited := make(chan string, 1), make(chan error, 1)
	go func() {
		defer log.Close()
		for sc := bufio.NewScanner(out); sc.Scan(); {
			line := sc.Text()
			if _, rest, ok := strings.Cut(line, "msg=listening address="); ok {
				addr <- strings.Fields(rest)[0]
			}
			if m := collected.FindStringSubmatch(line); m != nil {
				n, _ := strconv.ParseFloat(m[1], 64) // the pattern has digits only
				r.mu.Lock()
				r.heap = n
				r.mu.Unlock()
			} else if !strings.Contains(line, "level=INFO") {
				fmt.Fprintln(log, line)
			}
		}
		exited <- cmd.Wait()
	}()
	select {
	case a := <-addr:
		c, err := client.New(a, client.Options{})
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.cmd, r.exited, r.client = cmd, exited, c
		r.mu.Unlock()
		return nil
	case err = <-exited:
	case <-time.After(60 * time.Second):
		err = errors.New("it does not listen")
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = cmd.Process.Kill() // it may have ended by itself
	return fmt.Errorf("%s: %w\n%s", r.name, err, r.tail())
}

// tail is the end of its log.
func (r *replica) tail() []byte {
	b, _ := os.ReadFile(filepath.Join(r.dir, r.name+".log")) // nothing there is nothing to show
	return bytes.TrimSpace(b[max(0, len(b)-2000):])
}

func (r *replica) end(sig syscall.Signal) error {
	r.mu.Lock()
	cmd, exited, c := r.cmd, r.exited, r.client
	r.cmd, r.client = nil, nil
	r.mu.Unlock()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(sig) // it may have ended by itself: Wait tells
	select {
	case err := <-exited:
		_ = c.Close() // nobody is behind it any more
		return err
	case <-time.After(40 * time.Second):
		_ = cmd.Process.Kill()
		_ = c.Close()
		return errors.New("SIGTERM does not end it within 40 s")
	}
}

func (r *replica) stop() error { return r.end(syscall.SIGTERM) }

// "signal: killed" is what was meant
func (r *replica) kill() { _ = r.end(syscall.SIGKILL) }

// memory is its resident memory and its live heap in MiB, zero while it is down.
func (r *replica) memory() (rss, heap float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil {
		return 0, 0
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid)) // gone just now = 0
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	if f := strings.Fields(rest); len(f) > 0 {
		kb, _ := strconv.ParseFloat(f[0], 64)
		rss = kb / 1024
	}
	return rss, r.heap
}

func (r *replica) up() *client.Client {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.client
}
