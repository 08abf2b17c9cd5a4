package simulation

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var (
	seedFlag    = flag.Uint64("seed", 0, "run this seed alone and print its trace")
	fromFlag    = flag.Uint64("from", 1, "the first seed")
	seedsFlag   = flag.Uint64("seeds", 100, "how many seeds")
	workersFlag = flag.Int("workers", 1, "how many processes share the seeds, or the faults on purpose")
	allFlag     = flag.Bool("all", false, "every fault on purpose, not only a sample")
	plantFlag   = flag.String("plant", "", "only the faults on purpose that have this in their name")
	partFlag    = flag.Int("part", 0, "which of the processes this is; set by the first one")
	partsFlag   = flag.Int("parts", 1, "of how many")
)

// TestMain: one processor, so that which goroutine runs next depends on the program alone.
func TestMain(m *testing.M) {
	flag.Parse()
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)     // a collection in the middle of a run would move goroutines
	runtime.MemProfileRate = 0 // its samples are drawn from the luck that bless sets
	os.Exit(m.Run())
}

// shared runs the test in as many processes as are asked for. False: this is the only one, or
// one of them.
func shared(t *testing.T) bool {
	if *workersFlag < 2 {
		return false
	}
	var wg sync.WaitGroup
	for part := range *workersFlag {
		wg.Go(func() {
			args := []string{"-test.run", "^" + t.Name() + "$", "-test.v", "-from", fmt.Sprint(*fromFlag), "-seeds", fmt.Sprint(*seedsFlag), "-plant", *plantFlag, "-all=" + strconv.FormatBool(*allFlag),
				"-part", strconv.Itoa(part), "-parts", strconv.Itoa(*workersFlag), "-test.timeout", flag.Lookup("test.timeout").Value.String()}
			out, err := exec.Command(os.Args[0], args...).CombinedOutput()
			for l := range bytes.Lines(out) {
				if bytes.Contains(l, []byte("_test.go:")) || bytes.Contains(l, []byte("panic")) {
					t.Log(strings.TrimSpace(string(l)))
				}
			}
			if err != nil {
				t.Errorf("process %d: %v", part, err)
			}
		})
	}
	wg.Wait()
	return true
}

// replay is the command that runs a seed again.
func replay(seed uint64) string {
	return fmt.Sprintf("go test -count=1 -run TestSeeds ./server/e2e/simulation -seed %d", seed)
}

// TestSeeds: whatever happens, no promise is broken.
func TestSeeds(t *testing.T) {
	if *seedFlag != 0 {
		r := Run(t, *seedFlag, Options{Trace: true})
		for _, l := range r.Trace {
			fmt.Println(l)
		}
		fmt.Printf("seed %d: %d steps, hash %016x, %+v\n", r.Seed, r.Steps, r.Hash, r.Counts)
		for _, f := range r.Faults {
			t.Error(f)
		}
		return
	}
	if shared(t) {
		return
	}
	var sum Counts
	steps, n, failed := 0, 0, 0
	for seed := *fromFlag + uint64(*partFlag); seed < *fromFlag+*seedsFlag; seed += uint64(*partsFlag) {
		r := Run(t, seed, Options{})
		runtime.GC()
		sum.Add(r.Counts)
		steps += r.Steps
		n++
		if len(r.Faults) == 0 {
			continue
		}
		t.Errorf("seed %d: %s\n%s", seed, strings.Join(r.Faults, "; "), replay(seed))
		if failed++; failed == 1 {
			r := Run(t, seed, Options{Trace: true})
			t.Logf("trace of seed %d, its end:\n%s", seed, strings.Join(r.Trace[max(0, len(r.Trace)-300):], "\n"))
		}
	}
	t.Logf("%d seeds, %d failed, %d steps: %+v", n, failed, steps, sum)
	if n >= 50 && (sum.Crashes == 0 || sum.Twice == 0 || sum.Unknown == 0 || sum.Lost == 0 || sum.Stops == 0 || sum.Diverted == 0 || sum.Operations == 0) {
		t.Errorf("the runs were about nothing: %+v", sum)
	}
}

// TestPlants: each fault on purpose is found, and the table says after how many seeds.
func TestPlants(t *testing.T) {
	if shared(t) {
		return
	}
	for i, p := range Plants {
		if !*allFlag && *plantFlag == "" && i%8 != 0 {
			continue
		}
		if i%*partsFlag != *partFlag || !strings.Contains(p.Name, *plantFlag) {
			continue
		}
		found := uint64(0)
		text := ""
		for seed := *fromFlag; seed < *fromFlag+max(*seedsFlag, 2000) && found == 0; seed++ {
			r := Run(t, seed, Options{Plant: p})
			runtime.GC()
			if len(r.Faults) > 0 {
				found, text = seed-*fromFlag+1, r.Faults[0]
			}
		}
		if found == 0 {
			t.Errorf("%-64s not found", p.Name)
			continue
		}
		t.Logf("%-64s %4d  %.120s", p.Name, found, text)
	}
}

// TestReplays: the same seed is the same run, to the last operation.
//
// A machine that takes the processor away for 10 ms may change the order of two goroutines.
// Such a run is like no other, and further runs decide. Chance in the program itself shows as
// two orders that come again and again, or as none that comes twice.
func TestReplays(t *testing.T) {
	disturbed, torn := 0, 0
	n := min(*seedsFlag, 100)
	for seed := *fromFlag; seed < *fromFlag+n; seed++ {
		seen := map[uint64]int{}
		runs, most := 0, 0
		for runs < 9 && (most < 2 || len(seen) > 1 && most < 3) {
			h := Run(t, seed, Options{}).Hash
			seen[h]++
			runs, most = runs+1, max(most, seen[h])
		}
		runtime.GC()
		twice := 0
		for _, times := range seen {
			if times > 1 {
				twice++
			}
		}
		switch {
		case twice == 0:
			t.Errorf("seed %d: %d runs, no two of them the same", seed, runs)
		case twice > 1:
			torn++
		}
		if runs > 2 {
			disturbed++
		}
	}
	if torn > int(n)/20 {
		t.Errorf("%d of %d seeds have two orders", torn, n)
	}
	t.Logf("%d of %d seeds needed a further run", disturbed, n)
}
