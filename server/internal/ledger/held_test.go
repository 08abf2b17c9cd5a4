package ledger

import (
	"testing"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

// TestKnownTokens: a mail is known under its claim's token and those its progress raises it to,
// until its result is durable; a result that comes late leaves a later claim of the same mail
// known.
func TestKnownTokens(t *testing.T) {
	h, id := newHeld(), uuid.New()
	lost := func(claim int64) bool {
		t.Helper()
		own := []store.Ownership{{ID: id, Claim: claim}}
		if h.unknown(own) != nil {
			t.Error("given back at the first look")
		}
		return len(h.unknown(own)) == 1
	}
	if !lost(1) {
		t.Error("a mail that nobody took is known")
	}
	h.take(id, 1)
	if lost(1) || !lost(2) {
		t.Error("a claim is not known under its own token alone")
	}
	h.advance(id, 1)
	h.advance(id, 2)
	if lost(1) || lost(2) || lost(3) || !lost(4) {
		t.Error("progress raises the token by one at a time")
	}
	h.take(id, 7)
	h.take(id, 5)    // an answer that came late
	h.advance(id, 3) // of the claim before
	h.let(id, 3)
	if lost(7) || !lost(3) || !lost(8) {
		t.Error("the result of an earlier claim ends a later one")
	}
	h.let(id, 7)
	if !lost(7) || len(h.mails) != 0 {
		t.Error("known after its result")
	}
}
