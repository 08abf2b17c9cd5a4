package ledger

import (
	"sync"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

// held is what this process knows that it has: from before a mail can be its own by a write of
// it, to the durable result. What the database says it has besides came by a write whose answer
// was lost.
type held struct {
	// mu guards both. Everybody who takes a mail writes mails, and who has its result;
	// reconcile alone writes strange.
	mu      sync.Mutex
	mails   map[uuid.UUID]tokens
	strange map[store.Ownership]struct{} // not known at the last look
}

// tokens are those under which one claim of a mail may be found: the one it was taken under, up
// to the one that its last progress raises it to.
type tokens struct{ first, last int64 }

func newHeld() *held {
	return &held{mails: map[uuid.UUID]tokens{}, strange: map[store.Ownership]struct{}{}}
}

func (h *held) take(id uuid.UUID, claim int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mails[id].first < claim { // a later claim may already be known
		h.mails[id] = tokens{claim, claim}
	}
}

// advance is called before progress is written under a token.
func (h *held) advance(id uuid.UUID, claim int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t, known := h.mails[id]; known && t.first <= claim {
		h.mails[id] = tokens{t.first, max(t.last, claim+1)}
	}
}

// let ends what was taken under this token or one before it, and leaves a later claim alone.
func (h *held) let(id uuid.UUID, claim int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mails[id].first <= claim {
		delete(h.mails, id)
	}
}

// unknown is what is owned and not known now and at the last look: an answer that is only late
// has come by then, or its token will be refused.
func (h *held) unknown(owned []store.Ownership) (lost []store.Ownership) {
	h.mu.Lock()
	defer h.mu.Unlock()
	strange := map[store.Ownership]struct{}{}
	for _, o := range owned {
		if t, known := h.mails[o.ID]; known && t.first <= o.Claim && o.Claim <= t.last {
			continue
		}
		if _, twice := h.strange[o]; twice {
			lost = append(lost, o)
		} else {
			strange[o] = struct{}{}
		}
	}
	h.strange = strange
	return lost
}
