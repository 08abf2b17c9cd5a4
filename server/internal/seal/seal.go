// Package seal seals secrets for storage with XChaCha20-Poly1305. A sealed secret opens only
// with its key and in its place: what it belongs to is authenticated with it, so that a
// ciphertext moved to another row, or a row pointed at another host, opens to nothing.
//
// The key file holds one key a line, "ID BASE64", the newest last; the newest seals, any opens,
// so keys can be rotated without a break. Lines beginning with # are comments. The file must
// not be readable by group or others.
package seal

import (
	"bufio"
	"bytes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/crypto/chacha20poly1305"
)

// ErrOpen: the secret is damaged, sealed for another place, or with a key that is not in the
// file. Which of these is not told.
var ErrOpen = errors.New("the stored secret cannot be opened")

// version is the first octet of what Seal makes. Version 1 was sealed for a place that named
// less of what a secret belongs to.
const version = 2

// Ring seals with its newest key and opens with any.
type Ring struct {
	newest byte
	keys   map[byte]cipher.AEAD
	first  []byte // the oldest key, from which others are derived
}

// Derive is a key of its own for purpose, the same wherever the same key file is used.
func (r *Ring) Derive(purpose string) []byte {
	m := hmac.New(sha256.New, r.first)
	m.Write([]byte(purpose))
	return m.Sum(nil)
}

// Seal seals secret for place.
func (r *Ring) Seal(secret, place string) []byte {
	a := r.keys[r.newest]
	out := make([]byte, 2, 2+a.NonceSize()+len(secret)+a.Overhead())
	out[0], out[1] = version, r.newest
	nonce := make([]byte, a.NonceSize())
	rand.Read(nonce) // never fails
	out = append(out, nonce...)
	return a.Seal(out, nonce, []byte(secret), []byte(place))
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
	a, ok := r.keys[sealed[1]]
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
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s can be read by others (mode %04o): chmod 600 it", path, st.Mode().Perm())
	}
	r := &Ring{keys: map[byte]cipher.AEAD{}}
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, key, err := parseLine(line)
		if err != nil {
			// never the line itself
			return nil, fmt.Errorf("key file %s, line %d: %w", path, n, err)
		}
		if r.keys[id] != nil {
			return nil, fmt.Errorf("key file %s, line %d: key %d is there twice", path, n, id)
		}
		if r.keys[id], err = chacha20poly1305.NewX(key); err != nil {
			return nil, fmt.Errorf("key file %s, line %d: %w", path, n, err)
		}
		r.newest = id
		if r.first == nil {
			r.first = key
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if len(r.keys) == 0 {
		return nil, fmt.Errorf("key file %s holds no key", path)
	}
	return r, nil
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

// CreateKeyFile makes a key file with one new key. It never overwrites one: a lost key loses
// every password.
func CreateKeyFile(path string) error {
	key := make([]byte, chacha20poly1305.KeySize)
	rand.Read(key) // never fails
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	var b bytes.Buffer
	b.WriteString("# maildispatch: keys that seal passwords. Keep it secret, keep a copy apart from the database.\n")
	fmt.Fprintf(&b, "1 %s\n", base64.StdEncoding.EncodeToString(key))
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path) // half a key file is worse than none
		return fmt.Errorf("key file: %w", err)
	}
	return nil
}

// LoadOrCreate reads the key file and makes it first when there is none.
func LoadOrCreate(path string) (*Ring, error) {
	r, err := LoadKeyFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = CreateKeyFile(path); err == nil || errors.Is(err, fs.ErrExist) {
			return LoadKeyFile(path)
		}
	}
	return r, err
}
