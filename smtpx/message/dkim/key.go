package dkim

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
)

// Sizes of keys, in bits. RFC 8301 3.2 wants 2048 of a signer; a longer key than 4096 need not
// be understood by anybody.
const (
	KeyBits    = 2048
	maxKeyBits = 4096
	maxKeyText = 16 << 10
)

// ErrKey says that a text is no key that can sign.
var ErrKey = errors.New("is not one RSA private key of 2048 to 4096 bits in PEM")

// NewKey makes a key. That takes a fifth of a second, now and then one.
func NewKey() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, KeyBits) }

// ParseKey reads a key in PEM, PKCS #8 or PKCS #1, as openssl writes them. The error holds
// nothing of the text.
func ParseKey(text string) (*rsa.PrivateKey, error) {
	if len(text) > maxKeyText {
		return nil, ErrKey
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || strings.TrimSpace(string(rest)) != "" {
		return nil, ErrKey
	}
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return nil, ErrKey
		}
		return checked(key)
	case "PRIVATE KEY":
		return ParseDER(block.Bytes)
	}
	return nil, ErrKey
}

// ParseDER reads what MarshalDER has made.
func ParseDER(der []byte) (*rsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, ErrKey
	}
	key, is := parsed.(*rsa.PrivateKey)
	if !is {
		return nil, ErrKey
	}
	return checked(key)
}

// MarshalDER is a key as it is stored: PKCS #8.
func MarshalDER(key *rsa.PrivateKey) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(key) }

func checked(key *rsa.PrivateKey) (*rsa.PrivateKey, error) {
	if n := key.N.BitLen(); n < KeyBits || n > maxKeyBits || len(key.Primes) != 2 || key.Validate() != nil {
		return nil, ErrKey
	}
	return key, nil
}

// PublicKey is a key's public half as a DNS record holds it (RFC 6376 3.6.1): base64.
func PublicKey(key *rsa.PrivateKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	return base64.StdEncoding.EncodeToString(der), err
}
