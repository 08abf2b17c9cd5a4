package seal

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func ring(t *testing.T) (*Ring, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	r, _, err := LoadOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	return r, path
}

func TestSealedSecretOpensOnlyInItsPlace(t *testing.T) {
	r, path := ring(t)
	place := Place("one", "mx.example", "587", "starttls", "user")
	sealed := r.Seal("geheim", place)
	again, err := LoadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Open(sealed, place, ""); err != nil || got != "geheim" {
		t.Fatalf("%q %v", got, err)
	}
	for name, other := range map[string]string{
		"row":       Place("two", "mx.example", "587", "starttls", "user"),
		"host":      Place("one", "evil.example", "587", "starttls", "user"),
		"ambiguity": Place("one", "mx.example587", "", "starttls", "user"),
	} {
		if got, err := r.Open(sealed, other, ""); !errors.Is(err, ErrOpen) {
			t.Errorf("opened for another %s: %q %v", name, got, err)
		}
	}
	for i := range sealed {
		bad := append([]byte(nil), sealed...)
		bad[i] ^= 1
		if _, err := r.Open(bad, place, ""); !errors.Is(err, ErrOpen) {
			t.Errorf("opened with byte %d flipped: %v", i, err)
		}
	}
	stranger, _ := ring(t)
	if _, err := stranger.Open(sealed, place, ""); !errors.Is(err, ErrOpen) {
		t.Errorf("opened with another key: %v", err)
	}
	if string(sealed) == string(r.Seal("geheim", place)) {
		t.Error("sealing twice gives the same bytes")
	}
}

func TestKeyFileIsGuarded(t *testing.T) {
	_, path := ring(t)
	if err := CreateKeyFile(path); err == nil {
		t.Error("an existing key file was overwritten")
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeyFile(path); err == nil {
		t.Error("a key file that others can read was taken")
	}
	for _, text := range []string{"", "x", "1 short", "300 AAAA"} {
		p := filepath.Join(t.TempDir(), "k")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKeyFile(p); err == nil {
			t.Errorf("taken: %q", text)
		}
	}
}

// TestPipeAsKeyFile: what is no file is refused at once. To open a pipe for reading waits until
// somebody writes to it, and nothing but a kill ends that.
func TestPipeAsKeyFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, t.TempDir()} {
		ended := make(chan error, 1)
		go func() { _, err := LoadKeyFile(path); ended <- err }()
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s was taken for a key file", path)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s is waited for", path)
		}
	}
}

// TestRotated: a ring that is in use seals with a new key as soon as the file has it, and opens
// what another process sealed with a key that came after the ring was made. What was sealed
// before opens still, and what is derived stays.
func TestRotated(t *testing.T) {
	r, path := ring(t)
	place := Place("one")
	old, derived := r.Seal("geheim", place), r.Derive("x")
	if !r.Current(old) {
		t.Error("sealed by the only key and not current")
	}
	other, err := LoadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	id, err := Rotate(path)
	if err != nil {
		t.Fatal(err)
	}
	sealed := r.Seal("neu", place)
	if sealed[1] != id || !r.Current(sealed) || r.Current(old) {
		t.Errorf("sealed by key %d, want %d; current: %v, the one before: %v", sealed[1], id, r.Current(sealed), r.Current(old))
	}
	if got, err := other.Open(sealed, place, ""); err != nil || got != "neu" {
		t.Errorf("another process, which has not sealed since: %q %v", got, err)
	}
	again, err := LoadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Ring{r, other, again} {
		if got, err := r.Open(old, place, ""); err != nil || got != "geheim" {
			t.Errorf("what was sealed before: %q %v", got, err)
		}
		if string(r.Derive("x")) != string(derived) {
			t.Error("a derived key is another one after the rotation")
		}
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Open(r.Seal("still", place), place, ""); err != nil || got != "still" {
		t.Errorf("with a damaged file: %q %v", got, err)
	}
	if _, err := Rotate(path); err == nil {
		t.Error("a damaged file was rotated")
	}
}

// TestRotatedFile: the file keeps its mode, a link to it stays a link, and no half file is
// left.
func TestRotatedFile(t *testing.T) {
	_, path := ring(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	taken := map[byte]bool{}
	for range 20 {
		id, err := Rotate(link)
		if err != nil || taken[id] {
			t.Fatalf("id %d, taken before: %v, %v", id, taken[id], err)
		}
		taken[id] = true
	}
	st, err := os.Lstat(link)
	if err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v %v", st.Mode(), err)
	}
	if st, err = os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v %v", st.Mode(), err)
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestPrivate: a mounted secret belongs to root and is read by the service's group.
func TestPrivate(t *testing.T) {
	for _, c := range []struct {
		mode       os.FileMode
		ours, want bool
	}{
		{0o600, true, true}, {0o400, true, true}, {0o640, true, false}, {0o604, true, false},
		{0o440, false, true}, {0o640, false, true}, {0o460, false, false}, {0o444, false, false},
	} {
		if got := private(c.mode, c.ours); got != c.want {
			t.Errorf("mode %04o, ours %v: %v", c.mode, c.ours, got)
		}
	}
}

// TestKeysOfTwoFiles: ids are drawn, so a secret of another key file most often names a key
// that is not there.
func TestKeysOfTwoFiles(t *testing.T) {
	ids := map[byte]bool{}
	for range 8 {
		r, _ := ring(t)
		ids[r.keys.Load().newest] = true
	}
	if len(ids) < 2 {
		t.Error("eight key files name their keys alike")
	}
}

// TestAddedBeforeItSeals: a key that was added opens at once, also in a ring that is in use,
// and seals from Use on.
func TestAddedBeforeItSeals(t *testing.T) {
	r, path := ring(t)
	place := Place("one")
	before := r.keys.Load().newest
	if err := Use(path); err == nil {
		t.Error("there is no key to use, and it was used")
	}
	id, err := Add(path)
	if err != nil {
		t.Fatal(err)
	}
	if sealed := r.Seal("geheim", place); sealed[1] != before {
		t.Errorf("sealed by key %d, which other replicas may not have", sealed[1])
	}
	// another replica, which was given the file with the key in use
	copied := filepath.Join(t.TempDir(), "copy")
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(copied, text, 0o600)
	}
	if err == nil {
		err = Use(copied)
	}
	if err != nil {
		t.Fatal(err)
	}
	other, err := LoadKeyFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	sealed := other.Seal("neu", place)
	if got, err := r.Open(sealed, place, ""); err != nil || got != "neu" || sealed[1] != id {
		t.Errorf("sealed by key %d, want %d: %q %v", sealed[1], id, got, err)
	}
	if err := Use(path); err != nil {
		t.Fatal(err)
	}
	if sealed := r.Seal("geheim", place); sealed[1] != id {
		t.Errorf("sealed by key %d, want %d", sealed[1], id)
	}
}

// TestUnmake: only the file that was read goes.
func TestUnmake(t *testing.T) {
	r, path := ring(t)
	kept, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, append(kept, '\n'), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.Unmake(); !there(path) {
		t.Error("another file was removed")
	}
	if err := os.WriteFile(path, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if r.Unmake(); there(path) {
		t.Error("the file is still there")
	}
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
