package api

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"testing"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestTokensTellNothing: a page token or a cursor does not show the position it stands for, two
// of one position differ, and it is good for its own listing and filter only.
func TestTokensTellNothing(t *testing.T) {
	t.Parallel()
	a := New(Config{TokenKey: bytes.Repeat([]byte{7}, 32)})
	f := &pb.MailFilter{BatchId: "spring"}
	position := binary.BigEndian.AppendUint64(nil, 0x1122334455667788)
	token := a.pageToken("watch", f, position)
	if token == a.pageToken("watch", f, position) {
		t.Error("a position has the same token twice: whoever compares two sees whether anything happened")
	}
	plain, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || bytes.Contains(plain, position[4:]) {
		t.Errorf("the token %x shows the position %x", plain, position)
	}
	got, err := a.position("watch", f, token)
	if err != nil || !bytes.Equal(got, position) {
		t.Errorf("got %x, %v, want %x", got, err, position)
	}
	for i := range plain {
		bad := bytes.Clone(plain)
		bad[i] ^= 1
		if _, err := a.position("watch", f, base64.RawURLEncoding.EncodeToString(bad)); err == nil {
			t.Errorf("taken with octet %d changed", i)
		}
	}
	if _, err := a.position("due", f, token); err == nil {
		t.Error("taken for another listing")
	}
	if _, err := a.position("watch", &pb.MailFilter{}, token); err == nil {
		t.Error("taken for another filter")
	}
	if _, err := New(Config{TokenKey: bytes.Repeat([]byte{8}, 32)}).position("watch", f, token); err == nil {
		t.Error("taken with another key")
	}
	// A cursor that a caller has kept from before still counts.
	signed := append([]byte{signedTokens}, position...)
	signed = append(signed, a.tokenSum("watch", f, signed)...)
	if got, err := a.position("watch", f, base64.RawURLEncoding.EncodeToString(signed)); err != nil || !bytes.Equal(got, position) {
		t.Errorf("a signed token: got %x, %v, want %x", got, err, position)
	}
}
