package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

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

// A page token is version, position and a signature over both and the filter: it cannot be made
// up, and it is no good for another filter.
const tokenVersion = 1

func (a *API) pageToken(kind string, filter proto.Message, position []byte) string {
	t := append([]byte{tokenVersion}, position...)
	return base64.RawURLEncoding.EncodeToString(append(t, a.tokenSum(kind, filter, t)...))
}

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
	if err != nil || len(b) < 17 || b[0] != tokenVersion || !hmac.Equal(b[len(b)-16:], a.tokenSum(kind, filter, b[:len(b)-16])) {
		return nil, apierr.New(codes.InvalidArgument, pb.ReasonPageTokenInvalid, "page_token is not one of this listing with this filter")
	}
	return b[1 : len(b)-16], nil
}
