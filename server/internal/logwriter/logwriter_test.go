package logwriter_test

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/logwriter"
)

// writes keeps each write by itself.
type writes struct {
	mu  sync.Mutex
	all []string
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(p))
	return len(p), nil
}

func (w *writes) got() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.all...)
}

// TestLines: a lone line is written at once, those close behind it together 10 ms later.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var to writes
		w := logwriter.New(&to)
		w.Group()
		time.Sleep(time.Second)
		fmt.Fprintln(w, "alone")
		if got := to.got(); len(got) != 1 {
			t.Fatalf("after a pause: %q", got)
		}
		fmt.Fprintln(w, "one")
		fmt.Fprintln(w, "two")
		time.Sleep(9 * time.Millisecond)
		fmt.Fprintln(w, "three")
		if got := to.got(); len(got) != 1 {
			t.Fatalf("before the delay is over: %q", got)
		}
		time.Sleep(2 * time.Millisecond)
		if got := to.got(); len(got) != 2 || got[1] != "one\ntwo\nthree\n" {
			t.Fatalf("after it: %q", got)
		}
		time.Sleep(time.Second)
		fmt.Fprintln(w, "alone again")
		if got := to.got(); len(got) != 3 {
			t.Fatalf("after another pause: %q", got)
		}
	})
}

// TestFullBuffer: lines are written before they are many.
func TestFullBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var to writes
		w := logwriter.New(&to)
		w.Group()
		line := strings.Repeat("x", 1023) + "\n"
		for range 200 {
			fmt.Fprint(w, line)
		}
		got := to.got()
		if len(got) != 4 || len(got[1]) != 64<<10 {
			t.Errorf("%d writes", len(got))
		}
		_ = w.Close()
		if all := strings.Join(to.got(), ""); len(all) != 200*len(line) {
			t.Errorf("%d bytes", len(all))
		}
	})
}

// TestWarningWaitsForNothing: it comes at once, behind what came before it. After Close every
// line does.
func TestWarningWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var to writes
		w := logwriter.New(&to)
		w.Group()
		log := slog.New(w.Handler(slog.NewTextHandler(w, nil))).With("a", 1).WithGroup("g")
		log.Info("first")
		log.Info("second")
		log.Info("third")
		if got := to.got(); len(got) != 1 {
			t.Fatalf("%q", got)
		}
		log.Warn("fourth")
		got := to.got()
		if len(got) != 2 || strings.Count(got[1], "\n") != 3 || !strings.Contains(got[1], "msg=fourth a=1") {
			t.Fatalf("%q", got)
		}
		_ = w.Close()
		log.Info("fifth")
		if got := to.got(); len(got) != 3 {
			t.Fatalf("%q", got)
		}
		time.Sleep(time.Second)
		if got := to.got(); len(got) != 3 {
			t.Fatalf("a line came twice: %q", got)
		}
	})
}

// TestManyWriters: nothing is lost, torn or turned round.
func TestManyWriters(t *testing.T) {
	var to writes
	w := logwriter.New(&to)
	w.Group()
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Go(func() {
			for n := range 500 {
				fmt.Fprintf(w, "%d %d\n", k, n)
			}
		})
	}
	wg.Wait()
	_ = w.Close()
	var next [8]int
	for l := range strings.Lines(strings.Join(to.got(), "")) {
		var k, n int
		if _, err := fmt.Sscanf(l, "%d %d\n", &k, &n); err != nil || n != next[k] {
			t.Fatalf("%q after %d: %v", l, next[k], err)
		}
		next[k]++
	}
	for k, n := range next {
		if n != 500 {
			t.Errorf("%d: %d lines", k, n)
		}
	}
}

// BenchmarkLine is a line of an ended mail, written in groups and by itself.
func BenchmarkLine(b *testing.B) {
	line := []byte("time=2026-11-30T18:55:34.723Z level=INFO msg=mail mail_id=0192f0c4-8a2b-7c10-9f00-3b0d6c1b2a3f reference=INV-2026-10017 kind=invoice mail_server=main status=sent accepted=1 took_ms=41 caller=billing\n")
	for name, grouped := range map[string]bool{"grouped": true, "each by itself": false} {
		b.Run(name, func(b *testing.B) {
			r, to, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			defer to.Close()
			go io.Copy(io.Discard, r) // ends with the pipe
			w := logwriter.New(to)
			if grouped {
				w.Group()
			}
			for b.Loop() {
				_, _ = w.Write(line)
			}
			w.Flush()
		})
	}
}
