// Package seal seals secrets for storage with XChaCha20-Poly1305. A sealed secret opens only
// with its key and in its place: what it belongs to is authenticated with it, so that a
// ciphertext moved to another row, or a row pointed at another host, opens to nothing.
//
// The key file holds one key a line, "ID BASE64", the newest last; the newest seals, any opens,
// so keys can be rotated without a break. A line that ends with the word "next" opens already
// and does not seal yet: so a key reaches every replica before one of them uses it. Ids are
// drawn by chance, so that a key file of another service is told from a damaged secret. Lines
// beginning with # are comments. The file must not be readable by others, nor by its group,
// unless another user owns it and the group may only read: so it is when an orchestrator mounts
// a secret.
//
// A running service reads its key file again when it changes: before it seals, and when it
// meets a secret of a key that it does not know. No line is needed twice, and what cannot be
// read changes nothing.
package seal

import (
	"bytes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// ErrOpen: the secret is damaged, sealed for another place, or with a key that is not in the
// file. Which of these is not told.
var ErrOpen = errors.New("the stored secret cannot be opened")

// version is the first octet of what Seal makes. Version 1 was sealed for a place that named
// less of what a secret belongs to.
const version = 2

// Ring seals with its newest key and opens with any. It may be used by any goroutine.
type Ring struct {
	path  string
	first []byte // the oldest key when the file was read first; others are derived from it
	log   *slog.Logger
	keys  atomic.Pointer[keys]

	mu     sync.Mutex // guards what follows; one goroutine reads the file
	looked time.Time
	seen   os.FileInfo // the file that was read last
	told   string      // the last fault that the log has
}

// keys are a key file's.
type keys struct {
	newest byte
	seals  bool // there is a newest one
	next   int  // how many do not seal yet
	by     map[byte]cipher.AEAD
	first  []byte
	text   []byte // the file's
}

// nextWord is behind a key that does not seal yet.
const nextWord = " next"

// lookAgain is how often a file is read again that looks the same.
const lookAgain = time.Second

// Logger is told when the key file was read again, or could not be. It is set before the ring
// is used.
func (r *Ring) Logger(log *slog.Logger) { r.log = log }

// Derive is a key of its own for purpose, the same wherever the same key file is used. It stays
// the same for as long as the process runs, and over rotations for as long as the oldest key
// stays in the file.
func (r *Ring) Derive(purpose string) []byte {
	m := hmac.New(sha256.New, r.first)
	m.Write([]byte(purpose))
	return m.Sum(nil)
}

// again reads the key file again if it is another one, or was read a while ago.
func (r *Ring) again() *keys {
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.keys.Load()
	st, err := os.Stat(r.path)
	if err == nil && time.Since(r.looked) < lookAgain && os.SameFile(st, r.seen) && st.Size() == r.seen.Size() && st.ModTime().Equal(r.seen.ModTime()) {
		return have
	}
	if err == nil {
		r.seen = st
	}
	r.looked = time.Now()
	now, err := readKeyFile(r.path)
	switch {
	case err != nil:
		if r.log != nil && err.Error() != r.told {
			r.log.Warn("not read again: the keys that were read before serve", "error", err)
		}
		r.told = err.Error()
	case !bytes.Equal(now.text, have.text):
		r.told = ""
		r.keys.Store(now)
		if r.log != nil {
			r.log.Info("key file read again", "keys", len(now.by), "newest", now.newest)
		}
		return now
	}
	return have
}

// ReadAgain reads the key file now. The keys that were read before serve where it cannot be
// read.
func (r *Ring) ReadAgain() {
	r.mu.Lock()
	r.looked = time.Time{}
	r.mu.Unlock()
	r.again()
}

// Seal seals secret for place.
func (r *Ring) Seal(secret, place string) []byte {
	k := r.again()
	a := k.by[k.newest]
	out := make([]byte, 2, 2+a.NonceSize()+len(secret)+a.Overhead())
	out[0], out[1] = version, k.newest
	nonce := make([]byte, a.NonceSize())
	rand.Read(nonce) // never fails
	out = append(out, nonce...)
	return a.Seal(out, nonce, []byte(secret), []byte(place))
}

// Current says whether a secret is sealed as it would be today: by the newest key, for all that
// it belongs to.
func (r *Ring) Current(sealed []byte) bool {
	return len(sealed) > 1 && sealed[0] == version && sealed[1] == r.again().newest
}

// Open opens what was sealed for place. first is the same place as version 1 named it; a secret
// that was sealed as version 1 opens for that one only.
func (r *Ring) Open(sealed []byte, place, first string) (string, error) {
	switch {
	case len(sealed) < 2:
		return "", ErrOpen
	case sealed[0] == 1:
		place = first
	case sealed[0] != version:
		return "", ErrOpen
	}
	a, ok := r.keys.Load().by[sealed[1]]
	if !ok {
		// of a key that another replica has been given
		a, ok = r.again().by[sealed[1]]
	}
	if !ok || len(sealed) < 2+a.NonceSize() {
		return "", ErrOpen
	}
	nonce := sealed[2 : 2+a.NonceSize()]
	b, err := a.Open(nil, nonce, sealed[2+a.NonceSize():], []byte(place))
	if err != nil {
		return "", ErrOpen
	}
	return string(b), nil
}

// Place joins what a secret belongs to without ambiguity.
func Place(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "%d:%s,", len(p), p)
	}
	return b.String()
}

// LoadKeyFile reads a key file. fs.ErrNotExist when there is none.
func LoadKeyFile(path string) (*Ring, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	k, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	r := &Ring{path: path, first: k.first, looked: time.Now(), seen: st}
	r.keys.Store(k)
	return r, nil
}

func readKeyFile(path string) (*keys, error) {
	// A pipe that nobody writes to would be waited for, and what waits there hears no signal.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("key file %s is no ordinary file", path)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !private(st.Mode(), ok && int(sys.Uid) == os.Geteuid()) {
		return nil, fmt.Errorf("key file %s can be read by others (mode %04o): chmod 600 it", path, st.Mode().Perm())
	}
	k := &keys{by: map[byte]cipher.AEAD{}}
	if k.text, err = io.ReadAll(io.LimitReader(f, 1<<16)); err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	n := 0
	for line := range strings.Lines(string(k.text)) {
		n++
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		line, next := strings.CutSuffix(line, nextWord)
		id, key, err := parseLine(line)
		if err != nil {
			// never the line itself
			return nil, fmt.Errorf("key file %s, line %d: %w", path, n, err)
		}
		if k.by[id] != nil {
			return nil, fmt.Errorf("key file %s, line %d: key %d is there twice", path, n, id)
		}
		if k.by[id], err = chacha20poly1305.NewX(key); err != nil {
			return nil, fmt.Errorf("key file %s, line %d: %w", path, n, err)
		}
		if next {
			k.next++
		} else {
			k.newest, k.seals = id, true
		}
		if k.first == nil {
			k.first = key
		}
	}
	if !k.seals {
		return nil, fmt.Errorf("key file %s holds no key that seals", path)
	}
	return k, nil
}

// private says whether nobody else reads a key file of that mode. ours: its owner is the user
// that the service runs as.
func private(mode fs.FileMode, ours bool) bool {
	if ours {
		return mode.Perm()&0o077 == 0
	}
	return mode.Perm()&0o037 == 0
}

func parseLine(line string) (byte, []byte, error) {
	f := strings.Fields(line)
	if len(f) != 2 {
		return 0, nil, errors.New("is not ID BASE64")
	}
	id, err := strconv.ParseUint(f[0], 10, 8)
	if err != nil {
		return 0, nil, errors.New("the id is not a number from 0 to 255")
	}
	key, err := base64.StdEncoding.DecodeString(f[1])
	if err != nil || len(key) != chacha20poly1305.KeySize {
		return 0, nil, fmt.Errorf("the key is not %d bytes of base64", chacha20poly1305.KeySize)
	}
	return byte(id), key, nil
}

// newKey is the line of a new key, whose id is none of those taken.
func newKey(taken map[byte]cipher.AEAD) (byte, string) {
	draw := make([]byte, 1+chacha20poly1305.KeySize)
	for {
		rand.Read(draw) // never fails
		if _, is := taken[draw[0]]; !is {
			return draw[0], fmt.Sprintf("%d %s\n", draw[0], base64.StdEncoding.EncodeToString(draw[1:]))
		}
	}
}

// CreateKeyFile makes a key file with one new key. It never overwrites one: a lost key loses
// every password.
func CreateKeyFile(path string) error {
	_, line := newKey(nil)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	return written(f, "# maildispatch: keys that seal passwords. Keep it secret, keep a copy apart from the database.\n"+line)
}

// maxKeys is how many keys a file may hold before another is refused: ids are one octet.
const maxKeys = 200

// Rotate adds a new key to a key file, which seals from then on, and gives its id. It is for a
// file that all replicas share. The file is replaced as a whole, so that nobody reads half of
// it; owner, group and mode stay.
func Rotate(path string) (byte, error) { return add(path, "") }

// Add adds a new key to a key file, which opens and does not seal until Use, and gives its id.
func Add(path string) (byte, error) { return add(path, nextWord) }

func add(path, mark string) (id byte, err error) {
	err = rewrite(path, func(k *keys) (string, error) {
		if len(k.by) >= maxKeys {
			return "", fmt.Errorf("it holds %d keys: take out those that seal nothing any more", len(k.by))
		}
		text := string(k.text)
		if !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		var line string
		id, line = newKey(k.by)
		return text + strings.TrimSuffix(line, "\n") + mark + "\n", nil
	})
	return id, err
}

// Use lets the keys that Add added seal.
func Use(path string) error {
	return rewrite(path, func(k *keys) (string, error) {
		if k.next == 0 {
			return "", errors.New("every key in it seals already, or did")
		}
		var b strings.Builder
		for line := range strings.Lines(string(k.text)) {
			text := strings.TrimSpace(line)
			if cut, next := strings.CutSuffix(text, nextWord); next && !strings.HasPrefix(text, "#") {
				line = cut + "\n"
			}
			b.WriteString(line)
		}
		return b.String(), nil
	})
}

// rewrite puts another text in the place of a key file's.
func rewrite(path string, text func(*keys) (string, error)) error {
	k, err := readKeyFile(path)
	if err != nil {
		return err
	}
	now, err := text(k)
	if err != nil {
		return fmt.Errorf("key file %s: %w", path, err)
	}
	// what a link points to is replaced, not the link
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		err = f.Chown(int(sys.Uid), int(sys.Gid))
	}
	err = errors.Join(err, f.Chmod(st.Mode().Perm()), written(f, now))
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("key file: %w", err)
	}
	return nil
}

// Unmake removes the key file that the ring was read from, if it still holds what it held: a
// file that was put in its place meanwhile stays.
func (r *Ring) Unmake() {
	if now, err := os.ReadFile(r.path); err == nil && bytes.Equal(now, r.keys.Load().text) {
		_ = os.Remove(r.path)
	}
}

// written writes and closes a new file. Half a key file is worse than none.
func written(f *os.File, text string) error {
	_, err := f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("key file: %w", err)
	}
	return nil
}

// LoadOrCreate reads the key file and makes it first when there is none; made says so.
func LoadOrCreate(path string) (r *Ring, made bool, err error) {
	r, err = LoadKeyFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = CreateKeyFile(path); err == nil || errors.Is(err, fs.ErrExist) {
			made = err == nil
			r, err = LoadKeyFile(path)
		}
	}
	return r, made, err
}
