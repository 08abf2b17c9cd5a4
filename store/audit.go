package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/jmoiron/sqlx"
)

// Audit says who does an admin write and why; the row is written in the same transaction with
// before and after, never with secrets.
type Audit struct {
	Actor  string // "" = unauthenticated local caller
	Action string // the rpc's name
	Reason string
}

// audit writes who did what, in the transaction that does it. Passwords appear only as "set" or
// not.
func (s *Store) audit(ctx context.Context, tx *sqlx.Tx, a Audit, team, target string, before, after *MailServer) error {
	var detail map[string]any
	if before != nil || after != nil {
		detail = map[string]any{"before": before.public(), "after": after.public()}
		if before != nil && after != nil {
			detail["password_changed"] = !bytes.Equal(before.sealed(), after.sealed())
			if before.clientSecret() != nil || after.clientSecret() != nil {
				detail["client_secret_changed"] = !bytes.Equal(before.clientSecret(), after.clientSecret())
			}
			if before.SealedGrant() != nil || after.SealedGrant() != nil {
				detail["grant_changed"] = !bytes.Equal(before.SealedGrant(), after.SealedGrant())
			}
		}
	}
	return s.auditDetail(ctx, tx, a, team, target, detail)
}

// Record writes an audit row by itself, for a call that changes nothing in the database. tested
// is the configuration that was used, nil if none was.
func (s *Store) Record(ctx context.Context, a Audit, team, target string, tested *MailServer) error {
	var detail map[string]any
	if tested != nil {
		detail = map[string]any{"used": tested.public()}
	}
	return s.tx(ctx, func(tx *sqlx.Tx) error { return s.auditDetail(ctx, tx, a, team, target, detail) })
}

// auditDetail writes a row and links it. What a transaction does of its own comes before it.
func (s *Store) auditDetail(ctx context.Context, tx *sqlx.Tx, a Audit, team, target string, m map[string]any) error {
	if err := s.auditInsert(ctx, tx, s.ready, a, team, target, m); err != nil {
		return err
	}
	_, err := s.linkAudit(ctx, tx, s.ready, false)
	return err
}

// auditInsert writes a row that the same transaction links later.
func (s *Store) auditInsert(ctx context.Context, tx *sqlx.Tx, in statementIn, a Audit, team, target string, m map[string]any) error {
	var detail any
	if m != nil {
		b, err := json.Marshal(m)
		if err != nil {
			return err
		}
		detail = string(b)
	}
	insert, err := in(ctx, tx, "audit_insert")
	if err != nil {
		return err
	}
	_, err = insert.ExecContext(ctx, s.nowArg(), a.Actor, a.Action, team, target, a.Reason, detail)
	return err
}

// sealed is the sealed password, which is another one each time that a password is given.
func (m *MailServer) sealed() []byte {
	if m.SMTP == nil {
		return nil
	}
	return m.SMTP.SealedPassword
}

// clientSecret is the sealed client secret, nil if there is none.
func (m *MailServer) clientSecret() []byte {
	if m.SMTP == nil || m.SMTP.OAuth == nil {
		return nil
	}
	return m.SMTP.OAuth.SealedClientSecret
}

func (m *MailServer) public() map[string]any {
	if m == nil {
		return nil
	}
	p := map[string]any{"display_name": m.DisplayName, "type": m.Type, "from": m.From, "mode": m.Mode, "status": m.Status, "is_default": m.IsDefault,
		"limits": m.Limits, "annotations": m.Annotations, "allowed_headers": m.AllowedHeaders, "hold_unknown": m.HoldUnknown, "pause_until": m.PauseUntil, "fallback": m.Fallback, "dkim": m.DKIM.public(), "version": m.Version, "deleted": m.DeleteTime != nil}
	if x := m.SMTP; x != nil {
		p["smtp"] = smtpJSON{x.Host, x.Port, x.Encryption, x.Auth, x.Username, x.HeloName, "", x.AllowPlaintextAuth, x.Timeout, x.OAuth.public()}
		if p["ca_sha256"] = ""; x.CAPEM != "" {
			p["ca_sha256"] = fmt.Sprintf("%x", sha256.Sum256([]byte(x.CAPEM)))
		}
		p["password_set"] = len(x.SealedPassword) > 0
		if x.OAuth != nil {
			p["client_secret_set"], p["grant_set"] = len(x.OAuth.SealedClientSecret) > 0, len(x.OAuth.SealedGrant) > 0
		}
	}
	return p
}

// auditHeld writes a row for each team but the mail server's own whose mails are held with it;
// the row of the deletion links them.
func (s *Store) auditHeld(ctx context.Context, tx *sqlx.Tx, a Audit, m *MailServer, held map[string]int) error {
	for _, team := range slices.Sorted(maps.Keys(held)) {
		if team == m.Team {
			continue
		}
		if err := s.auditInsert(ctx, tx, s.ready, a, team, m.Name, map[string]any{"held": held[team]}); err != nil {
			return err
		}
	}
	return nil
}

// mostAudited is how many ids a row of the audit log names: as many as one control call does. A
// piece of an operation may change more, and has several rows.
const mostAudited = 1000

// auditTeams writes a row for each team whose mails were changed, with their ids; of a team
// with more than mostAudited several.
func (s *Store) auditTeams(ctx context.Context, tx *sqlx.Tx, a Audit, changes []change) error {
	of := map[string][]*Mail{}
	var teams []string
	for _, c := range changes {
		if of[c.m.Team] == nil {
			teams = append(teams, c.m.Team)
		}
		of[c.m.Team] = append(of[c.m.Team], c.m)
	}
	for _, team := range teams {
		for some := range slices.Chunk(of[team], mostAudited) {
			target := strconv.Itoa(len(some)) + " mails from " + some[0].ID.String()
			ids := make([]string, len(some))
			for i, m := range some {
				ids[i] = m.ID.String()
			}
			detail := map[string]any{"ids": ids}
			if to := changes[0].c.MailServer; to != "" {
				detail["mail_server"] = to
			}
			if err := s.auditInsert(ctx, tx, s.ready, a, team, target, detail); err != nil {
				return err
			}
		}
	}
	_, err := s.linkAudit(ctx, tx, s.ready, false)
	return err
}
