package store_test

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/maildispatch/maildispatch/store"
)

// TestMain ends a run of the whole package with the question whether every statement was
// executed on its database.
//
// More tests run beside each other than there are processors: they wait for commits and locks.
// Those that measure are not parallel, nor are those that want a change to be in the log at
// once: a transaction in any database of the cluster holds it back.
func TestMain(m *testing.M) {
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		_ = flag.Set("test.parallel", strconv.Itoa(max(4, runtime.GOMAXPROCS(0))))
	}
	was := store.RecordUse()
	code := m.Run()
	if code == 0 && whole() {
		for _, d := range []string{"postgres", "sqlite"} {
			all, err := store.Statements(d)
			if err != nil {
				fmt.Println(err)
				code = 1
			}
			for _, st := range all {
				if !was(d, st.Name) {
					fmt.Printf("FAIL: no test executes statement %s on %s\n", st.Name, d)
					code = 1
				}
			}
		}
	}
	os.Exit(code)
}

// whole: nothing on the command line leaves tests out.
func whole() bool {
	for _, name := range []string{"test.run", "test.skip", "test.list"} {
		if flag.Lookup(name).Value.String() != "" {
			return false
		}
	}
	return true
}
