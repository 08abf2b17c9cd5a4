package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// LegalHold keeps finished mail whatever the rules of retention say, and from being erased.
type LegalHold struct {
	ID         uuid.UUID // version 7
	Team       string
	MailID     uuid.UUID // this mail; zero = not one mail
	Reference  *string   // mail of this reference; with neither, all mail of the team
	Reason     string
	PlacedBy   string
	PlaceTime  time.Time
	LiftedBy   string
	LiftReason string
	LiftTime   time.Time // zero = it holds
}

func (h *LegalHold) target() string {
	switch {
	case h.MailID != uuid.Nil:
		return h.MailID.String()
	case h.Reference != nil:
		return "reference " + *h.Reference
	}
	return "all mail"
}

type holdRow struct {
	ID         uuid.UUID
	Team       string
	MailID     uuid.NullUUID `db:"mail_id"`
	Reference  sql.NullString
	Reason     string
	PlacedBy   string         `db:"placed_by"`
	PlaceTime  dbTime         `db:"place_time"`
	LiftedBy   sql.NullString `db:"lifted_by"`
	LiftReason sql.NullString `db:"lift_reason"`
	LiftTime   dbTime         `db:"lift_time"`
}

func (r *holdRow) hold() *LegalHold {
	h := &LegalHold{ID: r.ID, Team: r.Team, MailID: r.MailID.UUID, Reason: r.Reason, PlacedBy: r.PlacedBy, PlaceTime: r.PlaceTime.Time,
		LiftedBy: r.LiftedBy.String, LiftReason: r.LiftReason.String, LiftTime: r.LiftTime.Time}
	if r.Reference.Valid {
		h.Reference = &r.Reference.String
	}
	return h
}

// PlaceHold places a legal hold, and sets its PlacedBy, Reason and PlaceTime. When it returns,
// nothing is removed any more that the hold is about; what was removed before stays removed.
// ErrNotFound: it is about a mail that is gone, or was never there.
func (s *Store) PlaceHold(ctx context.Context, h *LegalHold, a Audit) error {
	h.PlacedBy, h.Reason, h.PlaceTime = a.Actor, a.Reason, micro(s.now())
	var mail any
	if h.MailID != uuid.Nil {
		mail = h.MailID
	}
	return s.workTx(ctx, func(tx *sqlx.Tx) error {
		var name string
		if err := s.q.in(ctx, tx, "holder_lock").GetContext(ctx, &name); err != nil {
			return err
		}
		if mail != nil { // it may have been removed until now; from here on nothing is
			var n int
			if err := s.q.in(ctx, tx, "mail_exists").GetContext(ctx, &n, h.MailID); err != nil {
				return err
			}
			if n == 0 {
				return ErrNotFound
			}
		}
		if _, err := s.q.in(ctx, tx, "hold_insert").ExecContext(ctx, h.ID, h.Team, mail, h.Reference, h.Reason, h.PlacedBy, s.t(&h.PlaceTime)); err != nil {
			return err
		}
		return s.auditDetail(ctx, tx, a, h.Team, h.target(), map[string]any{"legal_hold": h.ID})
	})
}

// LiftHold lifts a legal hold; one that was lifted stays as it is. Every rule begins anew after
// it, because mail that the hold has kept lies behind the place to which they have come.
// ErrNotFound, also outside the scope.
func (s *Store) LiftHold(ctx context.Context, sc Scope, id uuid.UUID, a Audit) (h *LegalHold, err error) {
	now := micro(s.now())
	all, teams := sc.args()
	err = s.workTx(ctx, func(tx *sqlx.Tx) error {
		get := func() error {
			var r holdRow
			if err := s.q.in(ctx, tx, "hold_get").GetContext(ctx, &r, id, all, teams); err != nil {
				return s.notFound(err)
			}
			h = r.hold()
			return nil
		}
		var name string
		if err := s.q.in(ctx, tx, "holder_lock").GetContext(ctx, &name); err != nil {
			return err
		}
		if err := get(); err != nil || !h.LiftTime.IsZero() {
			return err
		}
		if _, err := s.q.in(ctx, tx, "hold_lift").ExecContext(ctx, a.Actor, a.Reason, s.t(&now), id); err != nil {
			return err
		}
		if _, err := s.q.in(ctx, tx, "rules_again").ExecContext(ctx); err != nil {
			return err
		}
		if err := get(); err != nil {
			return err
		}
		return s.auditDetail(ctx, tx, a, h.Team, h.target(), map[string]any{"legal_hold": id})
	})
	if err != nil {
		return nil, fmt.Errorf("lift a legal hold: %w", err)
	}
	return h, nil
}

// LegalHolds lists up to n holds of the scope's teams by id, which are ordered by time, behind
// after. lifted: those too that were lifted.
func (s *Store) LegalHolds(ctx context.Context, sc Scope, team *string, lifted bool, after uuid.UUID, n int) ([]*LegalHold, error) {
	all, teams := sc.args()
	var only string
	if team != nil {
		only = *team
	}
	var rows []holdRow
	if err := s.q.get("hold_list").SelectContext(ctx, &rows, after, all, teams, team == nil, only, lifted, n); err != nil {
		return nil, s.fault(err)
	}
	out := make([]*LegalHold, len(rows))
	for i := range rows {
		out[i] = rows[i].hold()
	}
	return out, nil
}
