package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTally: what never arrives, arrives twice, was never sent or has another's text is told,
// and nothing else is.
func TestTally(t *testing.T) {
	mail := func(tl *tally, rcpt, text string) {
		tl.mail([][]byte{[]byte("TO:<" + rcpt + "@load.example>")}, []byte("Subject: s\r\n\r\n"+text+"\r\n"))
	}
	for _, c := range []struct {
		name string
		send func(*tally)
		want []string
	}{
		{"all well", func(tl *tally) { mail(tl, "m0", "No 0."); mail(tl, "m1", "No 1.") }, nil},
		{"quoted", func(tl *tally) { mail(tl, "m0", "No=20=\r\n0=\r\n..\r\nDear=20="); mail(tl, "m1", "No=201.") }, nil},
		{"lost", func(tl *tally) { mail(tl, "m1", "No 1.") }, []string{"1 of 2 mails never arrived"}},
		{"doubled", func(tl *tally) { mail(tl, "m0", "No 0."); mail(tl, "m1", "No 1."); mail(tl, "m1", "No 1.") }, []string{"1 of 2 mails arrived more than once"}},
		{"not ours", func(tl *tally) {
			mail(tl, "m0", "No 0.")
			mail(tl, "m1", "No 1.")
			mail(tl, "m2", "No 2.")
			mail(tl, "x", "No 1.")
		}, []string{"2 of 2 mails arrived that nobody sent"}},
		{"swapped", func(tl *tally) { mail(tl, "m0", "No 1."); mail(tl, "m1", "No 0.") }, []string{"2 of 2 mails arrived with the text of another"}},
	} {
		tl, err := newTally(10)
		if err != nil {
			t.Fatal(err)
		}
		tl.sink.Close()
		tl.give(2)
		c.send(tl)
		if got := tl.check(); !slices.Equal(got[:min(len(got), 1)], c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var ls []time.Duration
	for i := range 200 {
		ls = append(ls, time.Duration(i+1))
	}
	for _, c := range []struct{ p, want int }{{50, 100}, {99, 198}, {100, 200}} {
		if got := percentile(ls, c.p); got != time.Duration(c.want) {
			t.Errorf("p%d is %d, want %d", c.p, got, c.want)
		}
	}
	if got := percentile(ls[:1], 50); got != 1 {
		t.Errorf("of one: %d", got)
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want string
	}{{[]float64{3}, "3"}, {[]float64{9, 1, 2}, "2 (1-9)"}, {[]float64{4, 1, 2, 9}, "3 (1-9)"}} {
		if got := spread(c.in, "%.0f"); got != c.want {
			t.Errorf("%v: %s, want %s", c.in, got, c.want)
		}
	}
}

// TestSettings: each part of -compare is the command line with its own flags over it.
func TestSettings(t *testing.T) {
	all, err := settings(scenarios["php"], []string{"-mails", "7", "-compare", "conns=3,callers=5+env=GOGC=400"})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || all[0].conns != 3 || all[0].callers != 64 || all[1].conns != 64 || all[1].callers != 5 || all[1].env != "GOGC=400" || all[0].mails != 7 || all[1].mails != 7 {
		t.Errorf("%+v", all)
	}
	for _, args := range [][]string{{"-compare", "conns"}, {"-compare", "conns=x"}, {"-compare", "nosuch=1"}, {"-mails", "0"}, {"-database", "mysql"}, {"rest"}} {
		if _, err := settings(scenarios["php"], args); err == nil || errors.Is(err, flag.ErrHelp) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestKernel: a kernel setting is set and set back, also where its twin counts; what cannot be
// set leaves nothing behind. It writes what is there already.
func TestKernel(t *testing.T) {
	read := func(k string) string {
		b, err := os.ReadFile(procSys(k))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	const bytes, ratio, other = "vm.dirty_background_bytes", "vm.dirty_background_ratio", "vm.dirty_writeback_centisecs"
	was := []string{read(bytes), read(ratio), read(other)}
	same := other + "=" + was[2]
	for _, bad := range []string{same + " vm.nosuch=1", same + " vm", "../../etc/hostname=x"} {
		if _, err := kernel(bad); err == nil || !strings.Contains(err.Error(), "kernel: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	restore, err := kernel(same + " " + bytes + "=1073741824")
	if os.Geteuid() != 0 {
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("without root: %v", err)
		}
		return
	}
	if err != nil {
		if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
			t.Logf("this machine lets nobody set kernel settings: %v", err)
			return
		}
		t.Fatal(err)
	}
	if got := read(bytes); got != "1073741824" {
		t.Errorf("set: %s", got)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if now := []string{read(bytes), read(ratio), read(other)}; !slices.Equal(now, was) {
		t.Errorf("set back: %v, was %v", now, was)
	}
}

// TestDelay: every byte is late by the time asked for and not by much more, in order, however
// many follow each other; the end comes after the last byte.
func TestDelay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// an echo; the test looks at what comes back
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	const oneWay = 30 * time.Millisecond
	d, err := newDelay(oneWay, l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	c, err := net.Dial("tcp", d.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const lines = 2000 // one by one they would take two minutes
	begin := time.Now()
	go func() {
		for i := range lines {
			// a line that is missing fails the test below
			_, _ = fmt.Fprintf(c, "line %d %s\n", i, strings.Repeat("x", 1000))
		}
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	sc := bufio.NewScanner(c)
	n := 0
	for ; sc.Scan(); n++ {
		if n == 0 && time.Since(begin) < 2*oneWay {
			t.Errorf("the first line was back after %v", time.Since(begin))
		}
		if !strings.HasPrefix(sc.Text(), fmt.Sprintf("line %d ", n)) {
			t.Fatalf("line %d is %.20q", n, sc.Text())
		}
	}
	if n != lines || sc.Err() != nil {
		t.Errorf("%d of %d lines, %v", n, lines, sc.Err())
	}
	if took := time.Since(begin); took > lines*2*oneWay/4 {
		t.Errorf("%d lines took %v: they waited for each other", lines, took)
	}
}

// TestCPU: work of this process shows in its own figure and in what /proc says.
func TestCPU(t *testing.T) {
	own, proc := ownCPU(), cpuOf(os.Getpid())
	for end := time.Now().Add(30 * time.Second); ; {
		a, b := ownCPU()-own, cpuOf(os.Getpid())-proc
		if a > 50*time.Millisecond && b > 30*time.Millisecond {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after 30 s of work: own %v, /proc %v", a, b)
		}
	}
	if peakOf(os.Getpid()) < 1<<20 || pssOfTree(os.Getpid()) < 1<<20 {
		t.Errorf("memory of this process: peak %d, now %d", peakOf(os.Getpid()), pssOfTree(os.Getpid()))
	}
}

// TestScenario runs a small one on both databases: the program works, and its table has
// figures.
func TestScenario(t *testing.T) {
	for _, db := range []string{"sqlite", "postgres"} {
		t.Run(db, func(t *testing.T) {
			sc := scenarios["daemon"]
			all, err := settings(sc, []string{"-database", db, "-mails", "200", "-callers", "8", "-runs", "1"})
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if err := measure(context.Background(), sc, all, &out); err != nil {
				t.Fatalf("%v\n%s", err, &out)
			}
			for _, want := range []string{"queue mails/s", "drain mails/s", "service peak MiB", "exactly once", "yes"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in\n%s", want, &out)
				}
			}
		})
	}
}
