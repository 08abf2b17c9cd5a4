package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

func (s onPostgres) takeSlot(ctx context.Context, r ReplicaID, t SlotTake) (n int, ok bool, err error) {
	held := pq.Array(t.Held)
	if t.Held == nil {
		held = pq.Array([]int{}) // not null, which nothing is unequal to
	}
	for range slotTries {
		err := s.q.get("slot_take").GetContext(ctx, &n, t.MailServer, int64(r), t.Settled, held, t.Token, t.Limit)
		switch {
		case err == nil:
			return n, true, nil
		case !errors.Is(err, sql.ErrNoRows):
			return 0, false, s.fault(err)
		}
		var free bool // or somebody was faster
		if err := s.q.get("slot_free").GetContext(ctx, &free, t.MailServer, int64(r), t.Settled, held, t.Limit); err != nil {
			return 0, false, s.fault(err)
		}
		if !free {
			return 0, false, nil
		}
	}
	return 0, false, nil
}

func (s onPostgres) giveSlot(ctx context.Context, r ReplicaID, sl Slot) error {
	_, err := s.q.get("slot_give").ExecContext(ctx, sl.MailServer, sl.N, int64(r), sl.Token)
	return s.fault(err)
}

func (s onPostgres) holdSlots(ctx context.Context, r ReplicaID, held []Slot, settled int64) (lost []Slot, err error) {
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

// slotTries: each failed one means that another replica got the slot.
const slotTries = 20
