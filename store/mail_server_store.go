package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	sqlite "modernc.org/sqlite"
)

func (sc Scope) sees(team string) bool { return sc.All || slices.Contains(sc.Teams, team) }

// notFound turns "no rows" into ErrNotFound.
func (s *Store) notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return s.fault(err)
}

const serverColumns = `name, team, display_name, type, mode, status, is_default, sender, smtp, password, limits, annotations, hold_unknown, pause_until, fallback, version,
  request_id, fingerprint, create_time, update_time, delete_time, allowed_headers, dkim`

type serverRow struct {
	Name        string
	Team        string
	DisplayName string `db:"display_name"`
	Type        ServerType
	Mode        Mode
	Status      ServerStatus
	IsDefault   bool `db:"is_default"`
	Sender      string
	SMTP        []byte
	Password    []byte
	Limits      []byte
	Annotations []byte
	HoldUnknown bool   `db:"hold_unknown"`
	PauseUntil  dbTime `db:"pause_until"`
	Fallback    sql.NullString
	Version     int64
	RequestID   sql.NullString `db:"request_id"`
	Fingerprint []byte
	CreateTime  dbTime `db:"create_time"`
	UpdateTime  dbTime `db:"update_time"`
	DeleteTime  dbTime `db:"delete_time"`
	Allowed     []byte `db:"allowed_headers"`
	DKIM        []byte
}

// smtpJSON is SMTP as stored; the password has a column of its own.
type smtpJSON struct {
	Host               string        `json:"host"`
	Port               int           `json:"port"`
	Encryption         string        `json:"encryption"`
	Auth               string        `json:"auth,omitempty"`
	Username           string        `json:"username,omitempty"`
	HeloName           string        `json:"helo_name,omitempty"`
	CAPEM              string        `json:"ca_pem,omitempty"`
	AllowPlaintextAuth bool          `json:"allow_plaintext_auth,omitempty"`
	Timeout            time.Duration `json:"timeout,omitempty"`
	OAuth              *OAuth        `json:"oauth,omitempty"`
}

func (r *serverRow) server() (*MailServer, error) {
	m := &MailServer{Name: r.Name, Team: r.Team, DisplayName: r.DisplayName, Type: r.Type, From: r.Sender, Mode: r.Mode, Status: r.Status,
		IsDefault: r.IsDefault, HoldUnknown: r.HoldUnknown, Version: r.Version, CreateTime: r.CreateTime.Time, UpdateTime: r.UpdateTime.Time, DeleteTime: r.DeleteTime.ptr(),
		RequestID: r.RequestID.String, Fingerprint: r.Fingerprint, PauseUntil: r.PauseUntil.ptr(), Fallback: r.Fallback.String}
	if len(r.SMTP) > 0 {
		var j smtpJSON
		if err := json.Unmarshal(r.SMTP, &j); err != nil {
			return nil, err
		}
		m.SMTP = &SMTP{Host: j.Host, Port: j.Port, Encryption: j.Encryption, Auth: j.Auth, Username: j.Username, SealedPassword: r.Password,
			HeloName: j.HeloName, CAPEM: j.CAPEM, AllowPlaintextAuth: j.AllowPlaintextAuth, Timeout: j.Timeout, OAuth: j.OAuth}
	}
	if len(r.DKIM) > 0 {
		if err := json.Unmarshal(r.DKIM, &m.DKIM); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(r.Limits, &m.Limits); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(r.Allowed, &m.AllowedHeaders); err != nil {
		return nil, err
	}
	return m, json.Unmarshal(r.Annotations, &m.Annotations)
}

// allowed is the column of the allowed headers.
func (m *MailServer) allowed() string {
	if len(m.AllowedHeaders) == 0 {
		return "[]"
	}
	b, _ := json.Marshal(m.AllowedHeaders) // strings always can be
	return string(b)
}

// dkim is the column of the signing key.
func (m *MailServer) dkim() any {
	if m.DKIM == nil {
		return nil
	}
	b, _ := json.Marshal(m.DKIM) // strings always can be
	return string(b)
}

// columns are the JSON columns of a mail server.
func (m *MailServer) columns() (smtp, password, limits, annotations any, err error) {
	if x := m.SMTP; x != nil {
		b, err := json.Marshal(smtpJSON{x.Host, x.Port, x.Encryption, x.Auth, x.Username, x.HeloName, x.CAPEM, x.AllowPlaintextAuth, x.Timeout, x.OAuth})
		if err != nil {
			return nil, nil, nil, nil, err
		}
		smtp, password = string(b), nullBytes(x.SealedPassword)
	}
	l, err := json.Marshal(m.Limits)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	a, err := json.Marshal(m.Annotations)
	return smtp, password, string(l), string(a), err
}

// uniqueFault names the unique rule that an error is about; "" if it is about none.
func uniqueFault(err error) string {
	var pe *pq.Error
	if errors.As(err, &pe) && pe.Code == "23505" {
		return pe.Constraint
	}
	var se *sqlite.Error
	if errors.As(err, &se) && se.Code()&0xff == 19 {
		switch msg := se.Error(); {
		case strings.Contains(msg, "mail_server.name"):
			return "mail_server_pkey"
		case strings.Contains(msg, "mail_server.request_id"):
			return "mail_server_request"
		case strings.Contains(msg, "UNIQUE") && strings.Contains(msg, "mail_server.team"):
			return "mail_server_default"
		}
	}
	return ""
}

// CreateServer saves a mail server. duplicate: the same RequestID and Fingerprint had been used
// in its team, and that server is answered. Errors: ErrExists (the name is taken, also by a
// deleted one), ErrRequestIDReused, *DefaultExistsError, *FallbackError.
func (s *Store) CreateServer(ctx context.Context, m *MailServer, a Audit) (out *MailServer, duplicate bool, err error) {
	if m.RequestID != "" {
		had, err := s.serverBy(ctx, nil, "server_by_request", m.Team, m.RequestID)
		if err == nil {
			// Of mail servers that the first versions made the content is not known any more:
			// their fingerprints covered the password and were taken away.
			if bytes.Equal(had.Fingerprint, m.Fingerprint) || had.Fingerprint == nil && had.Name == m.Name {
				return had, true, nil
			}
			return nil, false, ErrRequestIDReused
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, false, err
		}
	}
	smtp, password, limits, annotations, err := m.columns()
	if err != nil {
		return nil, false, err
	}
	now := micro(s.now())
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		if err := s.checkFallback(ctx, tx, m); err != nil {
			return err
		}
		_, err := s.q.in(ctx, tx, "server_insert").ExecContext(ctx, m.Name, m.Team, m.DisplayName, m.Type, m.Mode, m.Status, m.IsDefault, m.From, smtp,
			password, limits, annotations, m.HoldUnknown, s.t(m.PauseUntil), nullString(m.Fallback), nullString(m.RequestID), nullBytes(m.Fingerprint), s.t(&now), s.t(&now), m.allowed(), m.dkim())
		if err != nil {
			return err
		}
		return s.audit(ctx, tx, a, m.Team, m.Name, nil, m)
	})
	switch uniqueFault(err) {
	case "mail_server_pkey":
		return nil, false, ErrExists
	case "mail_server_request":
		// somebody else was faster; the first look finds theirs now
		return s.CreateServer(ctx, m, a)
	case "mail_server_default":
		return nil, false, s.defaultExists(ctx, m.Team)
	}
	if err != nil {
		return nil, false, err
	}
	out, err = s.serverBy(ctx, nil, "server_get", m.Name)
	return out, false, err
}

func (s *Store) defaultExists(ctx context.Context, team string) error {
	cur, err := s.serverBy(ctx, nil, "server_default", team)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	e := &DefaultExistsError{Team: team}
	if cur != nil {
		e.Current = cur.Name
	}
	return e
}

// serverBy reads one mail server, inside tx if there is one.
func (s *Store) serverBy(ctx context.Context, tx *sqlx.Tx, statement string, args ...any) (*MailServer, error) {
	st := s.q.get(statement)
	if tx != nil {
		st = s.q.in(ctx, tx, statement)
	}
	var r serverRow
	if err := st.GetContext(ctx, &r, args...); err != nil {
		return nil, s.notFound(err)
	}
	return r.server()
}

// Server reads one mail server, also a deleted one. ErrNotFound, also outside the scope.
func (s *Store) Server(ctx context.Context, sc Scope, name string) (*MailServer, error) {
	m, err := s.serverBy(ctx, nil, "server_get", name)
	if err == nil && !sc.sees(m.Team) {
		return nil, ErrNotFound
	}
	return m, err
}

// ServerExists says whether a name is taken, in whatever team and also by a deleted mail
// server: names belong to all teams together.
func (s *Store) ServerExists(ctx context.Context, name string) (bool, error) {
	_, err := s.serverBy(ctx, nil, "server_get", name)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// DefaultServer is a team's default mail server, "" for the system's, whether it is available
// or not. ErrNotFound.
func (s *Store) DefaultServer(ctx context.Context, team string) (*MailServer, error) {
	return s.serverBy(ctx, nil, "server_default", team)
}

// Servers lists up to n mail servers by name, after afterName.
func (s *Store) Servers(ctx context.Context, sc Scope, f ServerFilter, afterName string, n int) ([]*MailServer, error) {
	w := newWhere(s)
	w.add("name > ?", afterName)
	w.scope("team", sc, f.Team)
	if f.Mode != "" {
		w.add("mode = ?", f.Mode)
	}
	if f.Status != "" {
		w.add("status = ?", f.Status)
	}
	if !f.ShowDeleted {
		w.add("delete_time is null")
	}
	var rows []serverRow
	q := "select " + serverColumns + " from mail_server where " + w.sql() + " order by name limit ?"
	if err := s.read.SelectContext(ctx, &rows, s.read.Rebind(q), append(w.args, n)...); err != nil {
		return nil, s.fault(err)
	}
	out := make([]*MailServer, len(rows))
	for i := range rows {
		m, err := rows[i].server()
		if err != nil {
			return nil, err
		}
		out[i] = m
	}
	return out, nil
}

// lockServer reads a mail server for change inside tx.
func (s *Store) lockServer(ctx context.Context, tx *sqlx.Tx, sc Scope, name string, ifVersion int64) (*MailServer, error) {
	q := "select " + serverColumns + " from mail_server where name = ?" + s.dialect.lockRow()
	var r serverRow
	if err := tx.GetContext(ctx, &r, tx.Rebind(q), name); err != nil {
		return nil, s.notFound(err)
	}
	m, err := r.server()
	if err != nil {
		return nil, err
	}
	if !sc.sees(m.Team) {
		return nil, ErrNotFound
	}
	if ifVersion != 0 && ifVersion != m.Version {
		return nil, ErrVersion
	}
	return m, nil
}

func (s *Store) writeServer(ctx context.Context, tx *sqlx.Tx, m *MailServer) error {
	smtp, password, limits, annotations, err := m.columns()
	if err != nil {
		return err
	}
	_, err = s.q.in(ctx, tx, "server_update").ExecContext(ctx, m.DisplayName, m.Mode, m.Status, m.IsDefault, m.From, smtp, password, limits, annotations,
		m.HoldUnknown, s.t(m.PauseUntil), nullString(m.Fallback), m.Version, s.t(&m.UpdateTime), s.t(m.DeleteTime), m.allowed(), m.dkim(), m.Name)
	return err
}

// UpdateServer reads, changes and writes a mail server in one transaction. ifVersion 0 = any
// version. change's error is returned as it is and nothing is written. Errors: ErrNotFound,
// ErrVersion, *DefaultExistsError, *FallbackError.
func (s *Store) UpdateServer(ctx context.Context, sc Scope, name string, ifVersion int64, a Audit, change func(*MailServer) error) (*MailServer, error) {
	var out *MailServer
	team := ""
	err := s.tx(ctx, func(tx *sqlx.Tx) error {
		m, err := s.lockServer(ctx, tx, sc, name, ifVersion)
		if err != nil {
			return err
		}
		team = m.Team
		before := m.clone()
		if err := change(m); err != nil {
			return err
		}
		if m.Fallback != before.Fallback {
			if err := s.checkFallback(ctx, tx, m); err != nil {
				return err
			}
		}
		m.Version = before.Version + 1
		m.UpdateTime = micro(s.now())
		out = m
		if err := s.writeServer(ctx, tx, m); err != nil {
			return err
		}
		return s.audit(ctx, tx, a, m.Team, m.Name, before, m)
	})
	if uniqueFault(err) == "mail_server_default" {
		return nil, s.defaultExists(ctx, team)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteServer hides a mail server. With unfinished mail it is refused (*PendingError) unless
// forced: then its mail is held, also what replicas have and have not marked; what is behind
// its mark may still leave. Failed and unknown mail does not count as unfinished: it waits for
// a person, not for the mail server. So is a mail server that is the fallback of others
// (*InUseError) unless forced: then those have none any more.
func (s *Store) DeleteServer(ctx context.Context, sc Scope, name string, ifVersion int64, force bool, a Audit) (out *MailServer, n DeletedMail, err error) {
	err = s.workTx(ctx, func(tx *sqlx.Tx) error {
		n = DeletedMail{}
		m, err := s.lockServer(ctx, tx, sc, name, ifVersion)
		if err != nil {
			return err
		}
		if m.DeleteTime != nil {
			return ErrDeleted
		}
		var pending int
		if err := s.q.in(ctx, tx, "server_pending").GetContext(ctx, &pending, name); err != nil {
			return err
		}
		if pending > 0 && !force {
			return &PendingError{Count: pending}
		}
		if pending > 0 {
			held, _, err := s.holdWaiting(ctx, tx, name)
			if err != nil {
				return err
			}
			n.Held = sum(held)
			if err := s.auditHeld(ctx, tx, a, m, held); err != nil {
				return err
			}
		}
		if err := s.detachFallback(ctx, tx, name, force, a); err != nil {
			return err
		}
		before := m.clone()
		now := micro(s.now())
		m.DeleteTime, m.UpdateTime, m.IsDefault, m.Version = &now, now, false, m.Version+1
		out = m
		if err := s.writeServer(ctx, tx, m); err != nil {
			return err
		}
		return s.audit(ctx, tx, a, m.Team, m.Name, before, m)
	})
	if err != nil {
		return nil, DeletedMail{}, err
	}
	if force {
		// Also what changed while the transaction was under way. What this leaves or cannot do,
		// the brake and the engine's next pass do.
		taken, err := s.takeDeleted(ctx, name, a)
		n.Held, n.Leaving = n.Held+taken.Held, taken.Leaving
		if err != nil {
			s.log.Warn("mail of a deleted mail server is not yet taken from its replicas", "mail_server", name, "error", err)
		}
	}
	return out, n, nil
}

// DeletedMail counts the mail of a mail server that is deleted by force.
type DeletedMail struct {
	Held int // it is held now
	// It was behind its mark, or left meanwhile. What the mail server says decides about it;
	// whatever comes back is held too. So no more than Held and Leaving are held in the end.
	Leaving int
}

// UndeleteServer takes a deletion back. ErrNotDeleted.
func (s *Store) UndeleteServer(ctx context.Context, sc Scope, name string, a Audit) (*MailServer, error) {
	return s.UpdateServer(ctx, sc, name, 0, a, func(m *MailServer) error {
		if m.DeleteTime == nil {
			return ErrNotDeleted
		}
		m.DeleteTime = nil
		return nil
	})
}

// SetDefault makes a mail server the default of its team and takes that from the one before, in
// one transaction. previous is nil if there was none or it was this one. A default may become
// unavailable, but none is taken away in favour of one that is: mail would be refused at once.
// Errors: ErrNotFound, ErrDeleted, ErrServerUnavailable.
func (s *Store) SetDefault(ctx context.Context, sc Scope, name string, a Audit) (now, previous *MailServer, err error) {
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		previous = nil
		m, err := s.lockServer(ctx, tx, sc, name, 0)
		switch {
		case err != nil:
			return err
		case m.DeleteTime != nil:
			return ErrDeleted
		case m.Status != ServerAvailable:
			return ErrServerUnavailable
		}
		before := m.clone()
		at := micro(s.now())
		// First clear, then set: one statement for both could break the unique rule on its way.
		old, err := s.serverBy(ctx, tx, "server_default", m.Team)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if old != nil && old.Name != name {
			if _, err := s.q.in(ctx, tx, "server_clear_default").ExecContext(ctx, false, s.t(&at), m.Team, name); err != nil {
				return err
			}
			if previous, err = s.serverBy(ctx, tx, "server_get", old.Name); err != nil {
				return err
			}
		}
		if !m.IsDefault {
			m.IsDefault, m.Version, m.UpdateTime = true, m.Version+1, at
			if err := s.writeServer(ctx, tx, m); err != nil {
				return err
			}
		}
		now = m
		return s.audit(ctx, tx, a, m.Team, m.Name, before, m)
	})
	if uniqueFault(err) == "mail_server_default" {
		return s.SetDefault(ctx, sc, name, a) // another swap won; this one comes after it
	}
	if err != nil {
		return nil, nil, err
	}
	return now, previous, nil
}

// clone copies what change functions may write.
func (m *MailServer) clone() *MailServer {
	c := *m
	if m.SMTP != nil {
		x := *m.SMTP
		if x.OAuth != nil {
			o := *x.OAuth
			x.OAuth = &o
		}
		c.SMTP = &x
	}
	c.Annotations = make(map[string]string, len(m.Annotations))
	for k, v := range m.Annotations {
		c.Annotations[k] = v
	}
	return &c
}
