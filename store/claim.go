package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// claimedRow is a claimed mail as the statements return it.
type claimedRow struct {
	ID                uuid.UUID
	Team              string
	MailServer        string `db:"mail_server"`
	Mode              Mode
	Kind              Kind
	Priority          int16
	Sender            string
	MessageID         string `db:"message_id"`
	SizeBytes         int64  `db:"size_bytes"`
	UTF8              bool
	Recipients        []byte
	CreateTime        dbTime `db:"create_time"`
	ExpireTime        dbTime `db:"expire_time"`
	Raw               []byte
	Layout            []byte
	Claim             int64
	RunAt             dbTime `db:"run_at"`
	Attempts          int
	Crashes           int
	Begun             bool
	PossibleDuplicate bool `db:"possible_duplicate"`
	Progress          []byte
	DataAt            dbTime `db:"data_at"`
	HoldUnknown       bool   `db:"hold_unknown"`
}

func (r *claimedRow) claimed() (*Claimed, error) {
	c := &Claimed{ID: r.ID, Team: r.Team, MailServer: r.MailServer, Mode: r.Mode, Kind: r.Kind, Priority: r.Priority, From: r.Sender,
		MessageID: r.MessageID, SizeBytes: r.SizeBytes, UTF8: r.UTF8, Attempts: r.Attempts, Crashes: r.Crashes, Begun: r.Begun, CreateTime: r.CreateTime.Time,
		RunAt: r.RunAt.Time, ExpireTime: r.ExpireTime.ptr(), PossibleDuplicate: r.PossibleDuplicate, HoldUnknown: r.HoldUnknown, Marked: !r.DataAt.IsZero(), Raw: r.Raw, Layout: r.Layout,
		Claim: r.Claim}
	if err := json.Unmarshal(r.Recipients, &c.Recipients); err != nil {
		return nil, err
	}
	if len(r.Progress) > 0 {
		if err := json.Unmarshal(r.Progress, &c.Progress); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func claimedOf(rows []claimedRow) ([]*Claimed, error) {
	cs := make([]*Claimed, len(rows))
	for i := range rows {
		c, err := rows[i].claimed()
		if err != nil {
			return nil, err
		}
		cs[i] = c
	}
	// RETURNING promises no order.
	slices.SortFunc(cs, func(a, b *Claimed) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), a.RunAt.Compare(b.RunAt), slices.Compare(a.ID[:], b.ID[:]))
	})
	return cs, nil
}

// DueServers names the mail servers that have claimable mail now, deleted and unavailable ones too.
func (s *Store) DueServers(ctx context.Context) ([]string, error) {
	var names []string
	var args []any
	if s.dialect == sqliteDia {
		args = append(args, s.nowArg())
	}
	err := s.q.get("due_servers").SelectContext(ctx, &names, args...)
	return names, s.fault(err)
}

// Claim makes up to max due mails of a mail server r's. Every team that waits gets an equal share of the page, its mails by priority, then by due time;
// only mails of a priority above the given one are looked at. No two replicas ever get the same mail.
func (s *Store) Claim(ctx context.Context, r ReplicaID, server string, max int, above int16) ([]*Claimed, error) {
	defer s.interactive.bulkTurn(ctx)()
	var rows []claimedRow
	err := s.taking(ctx, r, &rows, func(tx *sqlx.Tx) error {
		if s.dialect == postgres {
			return s.q.in(ctx, tx, "claim").SelectContext(ctx, &rows, server, server, max, server, above, int64(r))
		}
		var ids []uuid.UUID
		if err := s.q.in(ctx, tx, "claim").SelectContext(ctx, &ids, server, max, s.nowArg(), above, int64(r)); err != nil || len(ids) == 0 {
			return err
		}
		return s.claimedByID(ctx, tx, ids, &rows)
	})
	if err != nil {
		return nil, err
	}
	return claimedOf(rows)
}

// AnyPriority is below every priority.
const AnyPriority = math.MinInt16

func (s *Store) claimedByID(ctx context.Context, tx *sqlx.Tx, ids []uuid.UUID, rows *[]claimedRow) error {
	b, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	return s.q.in(ctx, tx, "claimed").SelectContext(ctx, rows, string(b))
}

// taking runs f, which makes rows r's, in a transaction of its own although it is one statement: its answer is there before the commit. When the answer to
// the commit is lost, nobody else would ever find out which mails are ours: this does, however long that takes.
func (s *Store) taking(ctx context.Context, r ReplicaID, rows *[]claimedRow, f func(tx *sqlx.Tx) error) error {
	committing := false
	err := s.tx(ctx, func(tx *sqlx.Tx) error {
		*rows, committing = nil, false
		err := f(tx)
		committing = err == nil
		return err
	})
	if s.dialect == sqliteDia || !committing || len(*rows) == 0 || !errors.Is(err, ErrUnavailable) {
		return err // SQLite says whether it has committed
	}
	ids := make([]uuid.UUID, len(*rows))
	for i := range *rows {
		ids[i] = (*rows)[i].ID
	}
	b, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		var owners []struct {
			ID    uuid.UUID
			Owner *int64
		}
		err := s.tx(ctx, func(tx *sqlx.Tx) error {
			owners = nil
			return s.q.in(ctx, tx, "owners").SelectContext(ctx, &owners, string(b))
		})
		if err == nil {
			ours := map[uuid.UUID]bool{}
			for _, o := range owners {
				ours[o.ID] = o.Owner != nil && *o.Owner == int64(r)
			}
			*rows = slices.DeleteFunc(*rows, func(c claimedRow) bool { return !ours[c.ID] })
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done(): // the end of the lease gives them back
			return err
		}
	}
}
