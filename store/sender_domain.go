package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
)

// SenderDomains are the domains under which a team's own mail servers may send. A domain that
// begins with "*." stands for all below it.
type SenderDomains struct {
	Team       string
	Domains    []string
	UpdateTime time.Time
}

type senderRow struct {
	Team       string
	Domains    string
	UpdateTime dbTime `db:"update_time"`
}

func sendersOf(rows []senderRow) ([]SenderDomains, error) {
	out := make([]SenderDomains, len(rows))
	for i, r := range rows {
		out[i] = SenderDomains{Team: r.Team, UpdateTime: r.UpdateTime.Time}
		if err := json.Unmarshal([]byte(r.Domains), &out[i].Domains); err != nil {
			return nil, fmt.Errorf("sender domains of %s: %w", r.Team, err)
		}
	}
	return out, nil
}

// SetSenderDomains saves the domains of a team; none = it may send under any. It returns what
// is saved.
func (s *Store) SetSenderDomains(ctx context.Context, team string, domains []string, a Audit) (*SenderDomains, error) {
	now := s.now()
	err := s.tx(ctx, func(tx *sqlx.Tx) error {
		var had []senderRow
		if err := s.q.in(ctx, tx, "sender_get").SelectContext(ctx, &had, team); err != nil {
			return err
		}
		before, err := sendersOf(had)
		if err != nil {
			return err
		}
		was := []string{}
		if len(before) > 0 {
			was = before[0].Domains
		}
		if len(domains) == 0 {
			_, err = s.q.in(ctx, tx, "sender_delete").ExecContext(ctx, team)
		} else {
			_, err = s.q.in(ctx, tx, "sender_set").ExecContext(ctx, team, list(domains), s.t(&now))
		}
		if err != nil {
			return err
		}
		return s.auditDetail(ctx, tx, a, team, team, map[string]any{"before": was, "after": append([]string{}, domains...)})
	})
	if err != nil {
		return nil, err
	}
	return &SenderDomains{Team: team, Domains: domains, UpdateTime: now}, nil
}

// SenderDomains lists up to n teams that have such domains, after one, by name.
func (s *Store) SenderDomains(ctx context.Context, after string, n int) ([]SenderDomains, error) {
	var rows []senderRow
	if err := s.q.get("sender_list").SelectContext(ctx, &rows, after, n); err != nil {
		return nil, s.fault(err)
	}
	return sendersOf(rows)
}

// senders reads the domains of all teams.
func (s *Store) senders(ctx context.Context) (map[string][]string, error) {
	var rows []senderRow
	if err := s.q.get("senders").SelectContext(ctx, &rows); err != nil {
		return nil, s.fault(err)
	}
	all, err := sendersOf(rows)
	out := make(map[string][]string, len(all))
	for _, d := range all {
		out[d.Team] = d.Domains
	}
	return out, err
}
