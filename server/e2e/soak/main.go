// Command soak keeps the service under a steady load and steady faults for as long as it is
// told, replaces its replicas meanwhile, and ends with the promise checked: nothing lost, no
// duplicate without its flag, no mail in both journals, the same bytes in every attempt, memory
// that does not grow.
//
//	go run ./server/e2e/soak -for 30m -rate 10 -faults 5% [-replace 3m] [-old BINARY [-back]]
//
// Everything runs on this machine: a private PostgreSQL, a relay in this process that does
// something wrong with a share of the mails, and three replicas of the binary built from this
// tree. Two of them are replaced in turn, by SIGTERM and by kill -9; the third is left alone
// and measured. With -old those two start from an older binary first: the third then changes
// the schema under them, and they are replaced by the new one later (a rolling upgrade); with
// -back they go back to the older one after that, and so on (a rollback). It
// exits 1 when the promise was broken.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/maildispatch/maildispatch/store/storetest"
)

// percent reads "5%".
func percent(s string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || n < 0 || n > 50 {
		return 0, fmt.Errorf("%q is not a share from 0%% to 50%%", s)
	}
	return n / 100, nil
}

func main() {
	length := flag.Duration("for", 30*time.Minute, "how long mail is sent")
	rate := flag.Float64("rate", 10, "mails a second")
	faults := flag.String("faults", "5%", "share of the mails with which the relay does something wrong")
	replace := flag.Duration("replace", 3*time.Minute, "how often one of the two replicas is replaced")
	old := flag.String("old", "", "binary of an older version that those two start from")
	back := flag.Bool("back", false, "replace them by the older binary again, in turn")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *length, *rate, *faults, *replace, *old, *back); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, length time.Duration, rate float64, faults string, replace time.Duration, old string, back bool) error {
	share, err := percent(faults)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "maildispatch-soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary, key := filepath.Join(dir, "maildispatchd"), filepath.Join(dir, "key")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "./server/cmd/maildispatchd").CombinedOutput(); err != nil {
		return fmt.Errorf("build (run it from the top of the repository): %w: %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, binary, "key", "create", key).CombinedOutput(); err != nil {
		return fmt.Errorf("key: %w: %s", err, out)
	}
	cluster, err := storetest.StartCluster()
	if err != nil {
		return err
	}
	relay, err := startRelay(share)
	if err != nil {
		return err
	}
	defer relay.close()

	first := binary
	if old != "" {
		first = old
	}
	rs := []*replica{{name: "one", binary: first}, {name: "two", binary: first}, {name: "left-alone", binary: binary, measured: true}}
	for _, r := range rs[:2] {
		r.dsn, r.key, r.dir = cluster.DSN(), key, dir
		if err := r.start(ctx); err != nil {
			return err
		}
	}
	defer func() {
		for _, r := range rs {
			r.kill()
		}
	}()
	l := &load{replicas: rs, relay: relay, acked: map[string]*mail{}}
	if err := l.configure(ctx); err != nil {
		return err
	}
	c, err := openChecker(cluster.DSN(), l)
	if err != nil {
		return err
	}
	defer c.close()

	sending, endSending := context.WithTimeout(ctx, length)
	defer endSending()
	var wg sync.WaitGroup
	wg.Go(func() { l.run(sending, rate) })
	wg.Go(func() { l.person(sending) })
	// The third comes while mail flows: with -old it changes the schema under the other two.
	rs[2].dsn, rs[2].key, rs[2].dir = cluster.DSN(), key, dir
	select {
	case <-time.After(min(20*time.Second, length/4)):
	case <-sending.Done():
	}
	if err := rs[2].start(ctx); err != nil {
		return err
	}
	binaries := []string{binary}
	if back && old != "" {
		binaries = append(binaries, old)
	}
	wg.Go(func() { roll(sending, rs[:2], binaries, replace, c) })

	began, minute := time.Now(), time.NewTicker(time.Minute)
	defer minute.Stop()
	for running := true; running; {
		select {
		case <-minute.C:
			if err := c.look(ctx, time.Since(began), false); err != nil {
				return err
			}
		case <-sending.Done():
			running = false
		}
	}
	wg.Wait()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	if err := c.look(ctx, time.Since(began), true); err != nil {
		return err
	}
	for _, r := range rs {
		if err := r.stop(); err != nil {
			c.broken("%s does not stop: %v", r.name, err)
		}
	}
	return c.verdict(rs[2])
}

// roll replaces the replicas in turn until ctx ends, gently and by force: all of them by the
// first binary, then by the next one.
func roll(ctx context.Context, rs []*replica, binaries []string, every time.Duration, c *checker) {
	t := time.NewTicker(every)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		r := rs[n%len(rs)]
		if n%4 < len(rs) { // each gently once, then each by force once
			c.stops++
			if err := r.stop(); err != nil {
				c.broken("%s does not stop: %v", r.name, err)
			}
		} else {
			c.kills++
			r.kill()
		}
		r.binary = binaries[n/len(rs)%len(binaries)]
		if err := r.start(ctx); err != nil && ctx.Err() == nil {
			c.broken("%s does not start: %v", r.name, err)
		}
	}
}
