package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
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
	if s.dialect == sqliteDia {
		return 0, true, nil
	}
	held := pq.Array(t.Held)
	if t.Held == nil {
		held = pq.Array([]int{}) // not null, which nothing is unequal to
	}
	for range slotTries {
		err := s.q.get("slot_take").GetContext(ctx, &n, t.MailServer, int64(r), t.Settled, held, t.MailServer, int64(r), t.Token, t.Limit, t.Limit, t.Settled, held)
		switch {
		case err == nil:
			return n, true, nil
		case !errors.Is(err, sql.ErrNoRows):
			return 0, false, s.fault(err)
		}
		var free bool // or somebody was faster
		if err := s.q.get("slot_free").GetContext(ctx, &free, t.MailServer, int64(r), t.Settled, held, t.Limit, t.Limit); err != nil {
			return 0, false, s.fault(err)
		}
		if !free {
			return 0, false, nil
		}
	}
	return 0, false, nil
}

// slotTries: each failed one means that another replica got the slot.
const slotTries = 20

// GiveSlot gives a slot back. When that fails, the next HoldSlots or TakeSlot does it.
func (s *Store) GiveSlot(ctx context.Context, r ReplicaID, sl Slot) error {
	if s.dialect == sqliteDia {
		return nil
	}
	_, err := s.q.get("slot_give").ExecContext(ctx, sl.MailServer, sl.N, int64(r), sl.Token)
	return s.fault(err)
}

// HoldSlots writes down which slots a replica holds: those in held and, besides, only what was
// taken with the token settled or later. It returns the slots that the replica has lost,
// because it was taken for dead and another one has them now.
func (s *Store) HoldSlots(ctx context.Context, r ReplicaID, held []Slot, settled int64) (lost []Slot, err error) {
	if s.dialect == sqliteDia {
		return nil, nil
	}
	servers, ns, tokens := make([]string, len(held)), make([]int, len(held)), make([]int64, len(held))
	for i, sl := range held {
		servers[i], ns[i], tokens[i] = sl.MailServer, sl.N, sl.Token
	}
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		lost = nil
		if _, err := s.q.in(ctx, tx, "slot_drop").ExecContext(ctx, int64(r), settled, pq.Array(servers), pq.Array(ns)); err != nil {
			return err
		}
		if _, err := s.q.in(ctx, tx, "slot_keep").ExecContext(ctx, int64(r), pq.Array(servers), pq.Array(ns), pq.Array(tokens)); err != nil {
			return err
		}
		var mine []Slot
		if err := s.q.in(ctx, tx, "slot_mine").SelectContext(ctx, &mine, int64(r)); err != nil {
			return err
		}
		type key struct {
			server string
			n      int
		}
		have := make(map[key]bool, len(mine))
		for _, sl := range mine {
			have[key{sl.MailServer, sl.N}] = true
		}
		for _, sl := range held {
			if !have[key{sl.MailServer, sl.N}] {
				lost = append(lost, sl)
			}
		}
		return nil
	})
	return lost, err
}
