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
	"github.com/maildispatch/maildispatch/store"
)

const (
	defaultPage = 50
	largestPage = 500
	// A page ends before it is larger than this, so that every client takes it: 4 MiB is what
	// gRPC's take unless they are told otherwise. One entry alone is never so large.
	pageWeight = 2 << 20
	// mails that are read at once, before it is known how large they are
	firstRead = defaultPage + 1
)

// fits is how many of the first n entries go into a page: fewer than there are where they are
// heavy, but one at least.
func fits[T proto.Message](entries []T, n int) int {
	n = min(n, len(entries))
	weight := 0
	for i, e := range entries[:n] {
		if weight += proto.Size(e); weight > pageWeight && i > 0 {
			return i
		}
	}
	return n
}

// mailPage is a page of mails that is read piece by piece, so that not many more heavy mails
// are in memory than go into it.
type mailPage struct {
	mails  []*pb.Mail
	from   []*store.Mail // what they show
	weight int
}

// room is how many mails are read next, of n that are still wanted.
func (p *mailPage) room(n int) int {
	if len(p.mails) == 0 {
		return min(n, firstRead)
	}
	return max(1, min(n, (pageWeight-p.weight)/max(1, p.weight/len(p.mails))+1))
}

// add takes mails up to the page's weight; full: there was one too many.
func (p *mailPage) add(v viewer, ms []*store.Mail) (full bool) {
	for _, m := range ms {
		x := v.mail(m)
		size := proto.Size(x)
		if p.weight+size > pageWeight && len(p.mails) > 0 {
			return true
		}
		p.mails, p.from, p.weight = append(p.mails, x), append(p.from, m), p.weight+size
	}
	return false
}

// last is the last mail of the page.
func (p *mailPage) last() *store.Mail { return p.from[len(p.from)-1] }

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
