package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// stateFile is what the machine remembers of databases, one entry for each installation.
// Several processes may share it: its folder is locked while it is read and written.
type stateFile struct{ path string }

// stateEntry is what is known of one installation.
type stateEntry struct {
	Beat  int64  `json:"beat"`            // the highest seen
	Nonce string `json:"nonce,omitempty"` // SQLite: of the last start
	Next  string `json:"next,omitempty"`  // SQLite: of a start that may have come to nothing
}

type stateContent struct {
	Installations map[string]stateEntry `json:"installations"`
}

// get is the entry of an installation, false if there is none.
func (f *stateFile) get(id string) (stateEntry, bool, error) {
	c, err := f.read()
	e, ok := c.Installations[id]
	return e, ok, err
}

// put changes the entry of an installation. After a crash the file is as before or as after.
func (f *stateFile) put(id string, change func(*stateEntry)) (err error) {
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	defer dir.Close() // ends the lock
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	c, err := f.read()
	if err != nil || c.Installations == nil { // what cannot be read is written anew
		c.Installations = map[string]stateEntry{}
	}
	e := c.Installations[id]
	change(&e)
	c.Installations[id] = e
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.OpenFile(f.path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = tmp.Write(append(b, '\n')); err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), f.path)
	}
	if err == nil {
		err = dir.Sync()
	}
	return err
}

func (f *stateFile) read() (stateContent, error) {
	var c stateContent
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	return c, err
}
