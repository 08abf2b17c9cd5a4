package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// usage is CPU time used so far, user and system: by the service, by all processes of
// PostgreSQL (the ended ones too), and by this process, which is the callers and the sink.
type usage struct{ service, database, load time.Duration }

func (u usage) since(v usage) usage {
	return usage{u.service - v.service, u.database - v.database, u.load - v.load}
}

// tick is the unit of CPU times in /proc: USER_HZ, which is 100 on every architecture that Go
// runs on.
const tick = 10 * time.Millisecond

// stat reads the fields of /proc/PID/stat behind the program's name; the first is the state.
func stat(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil // it has ended: its parent's figures have it
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

// cpuOf is the CPU time of a process and of its children that have ended.
func cpuOf(pid int) time.Duration {
	f := stat(pid)
	var sum int64
	for i := 11; i <= 14 && len(f) > i; i++ { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(f[i], 10, 64) // the kernel writes numbers
		sum += n
	}
	return time.Duration(sum) * tick
}

// childrenOf are the processes that have pid as their parent.
func childrenOf(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if f := stat(n); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			pids = append(pids, n)
		}
	}
	return pids
}

// cpuOfTree is the CPU time of a process, of those below it and of those that have ended.
func cpuOfTree(pid int) time.Duration {
	sum := cpuOf(pid)
	for _, c := range childrenOf(pid) {
		sum += cpuOf(c)
	}
	return sum
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memoryField reads a field, in bytes, of a file that says kB.
func memoryField(file, field string) int64 {
	f, err := os.Open(file)
	if err != nil {
		return 0
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), field+":"); ok {
			// the kernel writes numbers
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			return n << 10
		}
	}
	return 0
}

// peakOf is the most memory a process has had at once.
func peakOf(pid int) int64 { return memoryField(fmt.Sprintf("/proc/%d/status", pid), "VmHWM") }

// pssOfTree is what a process and those below it have in memory now, with shared pages counted
// once.
func pssOfTree(pid int) int64 {
	var sum int64
	for _, p := range append(childrenOf(pid), pid) {
		sum += memoryField(fmt.Sprintf("/proc/%d/smaps_rollup", p), "Pss")
	}
	return sum
}

// cpuByTitle is the CPU time of PostgreSQL's living processes by what they do, and of the ended
// ones.
func cpuByTitle(pid int) map[string]time.Duration {
	sum := map[string]time.Duration{"postmaster and ended processes": cpuOf(pid)}
	for _, c := range childrenOf(pid) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c)) // ended meanwhile = no title
		title := "other"
		if f := strings.Fields(strings.ReplaceAll(string(b), "\x00", " ")); len(f) > 1 {
			title = strings.TrimSuffix(strings.Join(f[1:min(3, len(f))], " "), ":")
			if !slices.Contains([]string{"checkpointer", "background writer", "walwriter", "autovacuum launcher", "autovacuum worker", "logical replication"}, title) {
				title = "backends"
			}
		}
		sum[title] += cpuOf(c)
	}
	return sum
}
