package api

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"golang.org/x/crypto/chacha20poly1305"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

const (
	defaultPage = 50
	largestPage = 500
)

func pageSize(c *apierr.Check, n int32) int {
	switch {
	case n < 0:
		c.Bad("page_size", "is negative")
	case n == 0:
		return defaultPage
	}
	return min(int(n), largestPage)
}

// A page token is version, nonce, and the position sealed for the listing and its filter: it
// cannot be made up, it is no good for another filter, and it tells nothing. A position in the
// log of changes would tell how busy others are.
const tokenVersion = 2

// signedTokens is the version that was signed and could be read. Cursors of it may be kept for
// as long as changes are.
const signedTokens = 1

func (a *API) pageToken(kind string, filter proto.Message, position []byte) string {
	b := append([]byte{tokenVersion}, make([]byte, chacha20poly1305.NonceSizeX)...)
	rand.Read(b[1:]) // never fails
	return base64.RawURLEncoding.EncodeToString(a.tokens.Seal(b, b[1:], position, listing(kind, filter)))
}

// listing is what a token is for, without ambiguity.
func listing(kind string, filter proto.Message) []byte {
	// a message that came over the wire always can be
	f, _ := proto.MarshalOptions{Deterministic: true}.Marshal(filter)
	return append(append([]byte(kind), 0), f...)
}

// tokenSum signs a token of the first version.
func (a *API) tokenSum(kind string, filter proto.Message, t []byte) []byte {
	m := hmac.New(sha256.New, a.TokenKey)
	// a message that came over the wire always can be
	f, _ := proto.MarshalOptions{Deterministic: true}.Marshal(filter)
	for _, p := range [][]byte{[]byte(kind), f, t} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		m.Write(n[:])
		m.Write(p)
	}
	return m.Sum(nil)[:16]
}

// position reads a token back; nil for the first page.
func (a *API) position(kind string, filter proto.Message, token string) ([]byte, error) {
	if token == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil && len(b) > chacha20poly1305.NonceSizeX && b[0] == tokenVersion {
		nonce, sealed := b[1:1+chacha20poly1305.NonceSizeX], b[1+chacha20poly1305.NonceSizeX:]
		if p, err := a.tokens.Open(nil, nonce, sealed, listing(kind, filter)); err == nil {
			return p, nil
		}
	}
	if err == nil && len(b) >= 17 && b[0] == signedTokens && hmac.Equal(b[len(b)-16:], a.tokenSum(kind, filter, b[:len(b)-16])) {
		return b[1 : len(b)-16], nil
	}
	return nil, apierr.New(codes.InvalidArgument, pb.ReasonPageTokenInvalid, "page_token is not one of this listing with this filter")
}
