package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
)

// Role is what the holder of a token may do for its teams.
type Role string

const (
	RoleSend  Role = "send"
	RoleRead  Role = "read"
	RoleAdmin Role = "admin"
)

// Token is a caller's token as it is kept: without its secret.
type Token struct {
	ID          string
	Name        string   // whose it is; NewMail.Caller names it
	Hash        [32]byte // SHA-256 of the secret
	Roles       []Role
	Teams       []string
	System      bool     // for all teams and the system itself
	Kinds       []Kind   // mail only of these; empty = of all
	MailServers []string // mail only through these; empty = through all
	// in any 24 hours, over all replicas; 0 = without a limit of its own
	MailsPerDay, RecipientsPerDay int64

	CreatedBy  string
	CreateTime time.Time
	ExpireTime time.Time
	UseTime    *time.Time // nil = never
	RevokeTime *time.Time // nil = not revoked
}

// Access is what a process has to know to ask callers who they are.
type Access struct {
	On      bool // the first token has been made
	Tokens  []*Token
	Senders map[string][]string // by team: under which domains it may send
}

// OldReplicaError refuses the first token while a replica runs that would not ask for it.
type OldReplicaError struct{ Replica string }

func (e *OldReplicaError) Error() string {
	return fmt.Sprintf("replica %s runs an older version, which would go on to serve everybody: stop it first", e.Replica)
}

type tokenRow struct {
	ID          string
	Name        string
	Hash        []byte
	Roles       string
	Teams       string
	Kinds       string
	MailServers string `db:"mail_servers"`
	System      bool
	Mails       int64  `db:"mails_per_day"`
	Recipients  int64  `db:"recipients_per_day"`
	CreatedBy   string `db:"created_by"`
	CreateTime  dbTime `db:"create_time"`
	ExpireTime  dbTime `db:"expire_time"`
	UseTime     dbTime `db:"use_time"`
	RevokeTime  dbTime `db:"revoke_time"`
}

func (r *tokenRow) token() (*Token, error) {
	t := &Token{ID: r.ID, Name: r.Name, System: r.System, MailsPerDay: r.Mails, RecipientsPerDay: r.Recipients, CreatedBy: r.CreatedBy, CreateTime: r.CreateTime.Time, ExpireTime: r.ExpireTime.Time,
		UseTime: r.UseTime.ptr(), RevokeTime: r.RevokeTime.ptr()}
	if copy(t.Hash[:], r.Hash) != len(t.Hash) || len(r.Hash) != len(t.Hash) {
		return nil, fmt.Errorf("token %s: its sum has %d bytes", r.ID, len(r.Hash))
	}
	err := json.Unmarshal([]byte(r.Roles), &t.Roles)
	for _, l := range []struct {
		text string
		to   any
	}{{r.Teams, &t.Teams}, {r.Kinds, &t.Kinds}, {r.MailServers, &t.MailServers}} {
		err = errors.Join(err, json.Unmarshal([]byte(l.text), l.to))
	}
	return t, err
}

func tokensOf(rows []tokenRow) ([]*Token, error) {
	out := make([]*Token, len(rows))
	for i := range rows {
		var err error
		if out[i], err = rows[i].token(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// list is a JSON list; nil is an empty one.
func list[T ~string](v []T) string {
	if len(v) == 0 {
		return "[]"
	}
	b, _ := json.Marshal(v) // strings always can be
	return string(b)
}

// CreateToken saves a token. The first one switches access on, for all processes of this
// database and for good. Errors: *OldReplicaError, before the first one; ErrNobody.
func (s *Store) CreateToken(ctx context.Context, t *Token, a Audit) error {
	now, err := s.Now(ctx)
	if err != nil {
		return err
	}
	return s.tx(ctx, func(tx *sqlx.Tx) error {
		var on bool
		if err := s.q.in(ctx, tx, "access_lock").GetContext(ctx, &on); err != nil {
			return err
		}
		if on && a.Actor == "" {
			return ErrNobody
		}
		if !on {
			var old []string
			if err := s.q.in(ctx, tx, "replica_old").SelectContext(ctx, &old, s.t(&now)); err != nil {
				return err
			}
			if len(old) > 0 {
				return &OldReplicaError{old[0]}
			}
			if _, err := s.q.in(ctx, tx, "access_switch").ExecContext(ctx, true); err != nil {
				return err
			}
		}
		_, err := s.q.in(ctx, tx, "token_insert").ExecContext(ctx, t.ID, t.Name, t.Hash[:], list(t.Roles), list(t.Teams), list(t.Kinds),
			list(t.MailServers), t.System, t.MailsPerDay, t.RecipientsPerDay, t.CreatedBy, s.t(&t.CreateTime), s.t(&t.ExpireTime))
		if err != nil {
			return err
		}
		return s.auditDetail(ctx, tx, a, "", t.ID, t.detail())
	})
}

// detail is what the audit log says of a token.
func (t *Token) detail() map[string]any {
	return map[string]any{"name": t.Name, "roles": t.Roles, "teams": t.Teams, "system": t.System, "kinds": t.Kinds, "mail_servers": t.MailServers,
		"mails_per_day": t.MailsPerDay, "recipients_per_day": t.RecipientsPerDay, "expire_time": t.ExpireTime}
}

// Budget is what the token may hand over; nil = without a limit of its own.
func (t *Token) Budget() *Budget {
	if t.MailsPerDay == 0 && t.RecipientsPerDay == 0 {
		return nil
	}
	return &Budget{t.ID, t.MailsPerDay, t.RecipientsPerDay}
}

// Budget is what a token may hand over in any 24 hours, over all replicas; 0 = without a limit.
type Budget struct {
	Token             string // its id
	Mails, Recipients int64
}

// tokenRemembered is how long an expired token is told from one that never was.
const tokenRemembered = 24 * time.Hour

// Access reads whether callers are asked, under which domains teams may send, and all tokens
// that have not been expired for long. The switch comes last: who sees it set sees the token
// that set it, or a later reading does.
func (s *Store) Access(ctx context.Context) (*Access, error) {
	before := s.now().Add(-tokenRemembered)
	var rows []tokenRow
	if err := s.q.get("tokens").SelectContext(ctx, &rows, s.t(&before)); err != nil {
		return nil, s.fault(err)
	}
	out := &Access{}
	if err := s.q.get("access_on").GetContext(ctx, &out.On); err != nil {
		return nil, s.fault(err)
	}
	var err error
	if out.Senders, err = s.senders(ctx); err != nil {
		return nil, err
	}
	out.Tokens, err = tokensOf(rows)
	return out, err
}

// Tokens lists up to n tokens by id, after afterID; ended: also those that were revoked or have
// expired.
func (s *Store) Tokens(ctx context.Context, afterID string, ended bool, n int) ([]*Token, error) {
	now := s.now()
	var rows []tokenRow
	if err := s.q.get("token_list").SelectContext(ctx, &rows, afterID, ended, s.t(&now), n); err != nil {
		return nil, s.fault(err)
	}
	return tokensOf(rows)
}

// RevokeToken ends a token and returns it. One that is revoked already stays as it is.
// ErrNotFound, ErrNobody.
func (s *Store) RevokeToken(ctx context.Context, id string, a Audit) (*Token, error) {
	var out *Token
	err := s.tx(ctx, func(tx *sqlx.Tx) error {
		var on bool
		if err := s.q.in(ctx, tx, "access_on").GetContext(ctx, &on); err != nil {
			return err
		}
		if on && a.Actor == "" {
			return ErrNobody
		}
		res, err := s.q.in(ctx, tx, "token_revoke").ExecContext(ctx, s.nowArg(), id)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return err
		}
		var r tokenRow
		if err := s.q.in(ctx, tx, "token_get").GetContext(ctx, &r, id); err != nil {
			return s.notFound(err)
		}
		if out, err = r.token(); err != nil || n == 0 {
			return err
		}
		return s.auditDetail(ctx, tx, a, "", id, map[string]any{"name": out.Name})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// TouchToken notes that a token was used at a time.
func (s *Store) TouchToken(ctx context.Context, id string, at time.Time) error {
	_, err := s.q.get("token_use").ExecContext(ctx, s.t(&at), id)
	return s.fault(err)
}
