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
	r, err := LoadOrCreate(path)
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
