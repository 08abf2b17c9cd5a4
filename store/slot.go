package store

import (
	"context"
)

// Slot is one of a mail server's connections over all replicas, as its holder knows it.
type Slot struct {
	MailServer string `db:"mail_server"`
	N          int
	// Token is the holder's number of the taking, higher at each. A statement that the database
	// carries out late names an old one, and so touches nothing that was taken since.
	Token int64
}

// SlotTake asks for a slot. Slots are state that their holder rewrites: what a replica has in
// the table and does not hold is free, so that an answer that was lost costs nothing.
type SlotTake struct {
	MailServer string
	Limit      int
	Token      int64 // of this taking
	// Of the replica's own slots at this mail server, those taken before Settled are free
	// unless they are in Held. Settled is not above the token of any taking that has no answer
	// yet.
	Settled int64
	Held    []int
}

// TakeSlot takes one of a mail server's connections over all replicas, false when none is free.
// On SQLite, which one process uses, that process's own count is enough and this always says
// yes.
func (s *Store) TakeSlot(ctx context.Context, r ReplicaID, t SlotTake) (n int, ok bool, err error) {
	return s.dialect.takeSlot(ctx, r, t)
}

// GiveSlot gives a slot back. When that fails, the next HoldSlots or TakeSlot does it.
func (s *Store) GiveSlot(ctx context.Context, r ReplicaID, sl Slot) error {
	return s.dialect.giveSlot(ctx, r, sl)
}

// HoldSlots writes down which slots a replica holds: those in held and, besides, only what was
// taken with the token settled or later. It returns the slots that the replica has lost,
// because it was taken for dead and another one has them now.
func (s *Store) HoldSlots(ctx context.Context, r ReplicaID, held []Slot, settled int64) (lost []Slot, err error) {
	return s.dialect.holdSlots(ctx, r, held, settled)
}
