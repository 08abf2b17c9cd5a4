package storetest

import (
	"os"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// memoryRoom is how much of the machine's memory has to be free for databases to be kept in it.
const memoryRoom = 6 << 30

// memoryFolder is where tests keep their databases: in memory where there is room, else "", the
// folder of temporary files. All that a process writes survives its end there too, and a sync
// takes no time. What a power cut or a full disk does is tested on disks of their own.
//
// Benchmarks, which are programs of their own, and the tests at full size are on the disk.
var memoryFolder = sync.OnceValue(func() string {
	const shm = "/dev/shm"
	if !testing.Testing() || os.Getenv("MAILDISPATCH_TEST_FULL") == "1" {
		return ""
	}
	var fs syscall.Statfs_t
	if syscall.Statfs(shm, &fs) != nil || fs.Bavail*uint64(fs.Bsize) < memoryRoom || available() < memoryRoom {
		return ""
	}
	return shm
})

// available is how much memory Linux can give, in bytes.
func available() uint64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	m := regexp.MustCompile(`MemAvailable: +([0-9]+) kB`).FindSubmatch(b)
	if m == nil {
		return 0
	}
	kb, _ := strconv.ParseUint(string(m[1]), 10, 64)
	return kb << 10
}
