package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"hash/crc32"
	"strings"
)

// A token is md_<id>_<secret>_<crc>. The id names it in logs. The secret is 32 random bytes.
// The sum behind them lets a program that looks for leaked secrets tell a token from noise, and
// a mistyped one costs no look at the tokens.
const (
	prefix    = "md_"
	idBytes   = 8
	idLen     = 13 // of idBytes in base32
	secretLen = 52 // of 32 bytes in base32
	sumLen    = 8
	tokenLen  = len(prefix) + idLen + 1 + secretLen + 1 + sumLen
)

var letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewSecret makes a token: what its holder sends, the id in it, and the hash to be kept.
func NewSecret() (token, id string, hash [32]byte) {
	var b [idBytes + 32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program first
	id = letters.EncodeToString(b[:idBytes])
	secret := letters.EncodeToString(b[idBytes:])
	token = prefix + id + "_" + secret
	return token + fmt.Sprintf("_%08x", crc32.ChecksumIEEE([]byte(token))), id, sha256.Sum256([]byte(secret))
}

// parse takes a token apart; false for what cannot be one.
func parse(token string) (id string, hash [32]byte, ok bool) {
	if len(token) != tokenLen || !strings.HasPrefix(token, prefix) {
		return "", hash, false
	}
	rest := token[len(prefix):]
	id, secret, sum := rest[:idLen], rest[idLen+1:idLen+1+secretLen], rest[idLen+1+secretLen+1:]
	body := token[:tokenLen-sumLen-1]
	if rest[idLen] != '_' || token[len(body)] != '_' || !matches(sum, crc32.ChecksumIEEE([]byte(body))) {
		return "", hash, false
	}
	return id, sha256.Sum256([]byte(secret)), true
}

// matches says whether text is n in eight hexadecimal digits.
func matches(text string, n uint32) bool {
	const digits = "0123456789abcdef"
	for i := range sumLen {
		if text[i] != digits[n>>(28-4*i)&15] {
			return false
		}
	}
	return true
}
