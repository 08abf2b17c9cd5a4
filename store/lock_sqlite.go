package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// One process serves an SQLite database. What is locked is the file itself, whatever name leads
// to it: two processes that lock two names of one file write into each other's pages.
//
// The lock is flock's. SQLite's own are POSIX locks by fcntl, which belong to the process and
// are dropped as soon as it closes any descriptor of the file; on Linux flock knows nothing of
// them, belongs to the one descriptor and ends with it or with the process. For the same reason
// the descriptor is closed after SQLite's, and the file is never opened a second time in this
// process: see lockedHere.
//
// The file with .lock behind the name is locked too. It keeps out a program from before the
// database file itself was locked, and it is asked first.

// fileID is a file, whatever its names are.
type fileID struct{ dev, ino uint64 }

// lockedHere is the files that this process has locked. Its mutex guards it.
var lockedHere = struct {
	sync.Mutex
	files map[fileID]bool
}{files: map[fileID]bool{}}

// resolveSQLite is the path of the file that a name leads to, which need not exist yet. It
// refuses what has a second name, because SQLite keeps the log of a file beside its name.
func resolveSQLite(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("database: %w", err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, fs.ErrNotExist) {
		if st, lerr := os.Lstat(abs); lerr == nil && st.Mode()&fs.ModeSymlink != 0 {
			return "", fmt.Errorf("database: %s is a symbolic link to nothing", path)
		}
		dir, derr := filepath.EvalSymlinks(filepath.Dir(abs))
		if derr != nil {
			return "", fmt.Errorf("database: %w", derr)
		}
		return filepath.Join(dir, filepath.Base(abs)), nil
	}
	if err != nil {
		return "", fmt.Errorf("database: %w", err)
	}
	st, err := os.Stat(real)
	if err != nil {
		return "", fmt.Errorf("database: %w", err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("database: %s is not a file", path)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink > 1 {
		return "", fmt.Errorf("database: %s has %d names (hard links), and what is written through one is not seen through another: leave one", path, sys.Nlink)
	}
	if mountPoint(real) {
		return "", fmt.Errorf("database: %s is mounted by itself, without the folder in which SQLite keeps its log beside it: mount the folder", path)
	}
	return real, nil
}

// mountPoint says whether something is mounted at exactly this path. Elsewhere than on Linux it
// does not know.
func mountPoint(path string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && mountedIn(string(b), path)
}

// mountedIn says whether a list as of /proc/self/mountinfo has path as a mount point. In its
// fifth field blanks, tabs, newlines and backslashes are written as octal numbers.
func mountedIn(mounts, path string) bool {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 4 && unescape.Replace(f[4]) == path {
			return true
		}
	}
	return false
}

// lockSQLite locks a database by its name as it was written and as it is resolved, and then its
// file, which it makes when there is none. What it returns gives the locks back; SQLite has to
// have closed the file before.
func lockSQLite(path, real string) (unlock func() error, err error) {
	var held []func() error
	unlock = func() error {
		var errs []error
		for i := len(held) - 1; i >= 0; i-- {
			errs = append(errs, held[i]())
		}
		return errors.Join(errs...)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	names := []string{real + ".lock"}
	if abs != real {
		names = append(names, abs+".lock")
	}
	for _, name := range names {
		f, err := lockFile(name)
		if err != nil {
			return nil, errors.Join(err, unlock())
		}
		held = append(held, f.Close)
	}
	free, err := claimFile(real)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	held = append(held, free)
	return unlock, nil
}

// claimFile locks the database file itself.
func claimFile(path string) (func() error, error) {
	lockedHere.Lock()
	defer lockedHere.Unlock()
	if st, err := os.Stat(path); err == nil && lockedHere.files[idOf(st)] {
		return nil, locked(path) // not opened: closing it would drop SQLite's locks
	}
	f, err := lockFile(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database: %w", err), f.Close())
	}
	id := idOf(st)
	lockedHere.files[id] = true
	return func() error {
		lockedHere.Lock()
		defer lockedHere.Unlock()
		delete(lockedHere.files, id)
		return f.Close()
	}, nil
}

func idOf(st os.FileInfo) fileID {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return fileID{uint64(sys.Dev), uint64(sys.Ino)}
	}
	return fileID{}
}

func locked(path string) error {
	return fmt.Errorf("database: %w: %s is locked; SQLite serves one process, use PostgreSQL for several", ErrLocked, path)
}

// lockFile opens a file, makes it if there is none, and takes an exclusive lock that ends with
// the process, however it ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, locked(path)
		}
		return nil, fmt.Errorf("database: lock %s: %w", path, err)
	}
	return f, nil
}
