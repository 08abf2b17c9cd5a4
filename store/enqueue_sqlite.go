package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

func (onSQLite) flushers() int { return 1 }

func (onSQLite) packMails(ops []*enqueueOp) (packedMails, error) { return packedMails{ops: ops}, nil }

func (s onSQLite) insertMails(ctx context.Context, tx *sqlx.Tx, p packedMails) (in map[uuid.UUID]bool, err error) {
	if tx == nil {
		err = s.txOnce(ctx, func(tx *sqlx.Tx) (err error) {
			in, err = s.insertMails(ctx, tx, p)
			return err
		})
		return in, err
	}
	ops := p.ops
	in = make(map[uuid.UUID]bool, len(ops))
	mail, due := s.q.in(ctx, tx, "enqueue_mail"), s.q.in(ctx, tx, "enqueue_due")
	terms := []byte{'['}
	type routed struct {
		server  string
		version int64
	}
	stands := map[routed]bool{}
	var erased bool // somebody was
	if err := s.q.in(ctx, tx, "erased_requests").GetContext(ctx, &erased); err != nil {
		return nil, err
	}
	for _, op := range ops {
		m := op.m
		if m.ServerVersion != 0 {
			to := routed{m.MailServer, m.ServerVersion}
			ok, asked := stands[to]
			if !asked {
				var n int
				if err := s.q.in(ctx, tx, "server_has_version").GetContext(ctx, &n, to.server, to.version); err != nil {
					return nil, err
				}
				ok = n > 0
				stands[to] = ok
			}
			if !ok {
				continue
			}
		}
		if gone, err := s.lacksContent(ctx, tx, m); err != nil {
			return nil, err
		} else if gone {
			continue
		}
		if erased && m.RequestID != "" {
			if id, err := s.erasedRequest(ctx, tx, m); err != nil {
				return nil, err
			} else if id != uuid.Nil {
				continue
			}
		}
		rcpts, err := json.Marshal(m.Recipients)
		if err != nil {
			return nil, err
		}
		var resent any
		if m.ResentFrom != uuid.Nil {
			resent = m.ResentFrom
		}
		res, err := mail.ExecContext(ctx, m.ID, m.Team, m.MailServer, m.Mode, m.Kind, m.Priority, m.Reference, m.From, m.Subject, m.MessageID,
			m.SizeBytes, string(rcpts), nullJSON(m.Labels), nullString(m.RequestID), nullBytes(m.Fingerprint), m.Route, m.UTF8, s.t(&m.CreateTime),
			s.t(m.ExpireTime), m.inline, nullString(string(m.layout)), nullString(m.BatchID), resent, nullString(m.Reason), nullString(m.Caller), nullString(m.Guard), nullBytes(m.Trace))
		if err != nil {
			return nil, err
		}
		if n, err := res.RowsAffected(); err != nil {
			return nil, err
		} else if n == 0 {
			continue
		}
		in[m.ID] = true
		status, runAt, resumeAt := MailQueued, s.t(&m.RunAt), any(nil)
		if m.Held != "" {
			status, runAt, resumeAt = MailHeld, nil, runAt
		}
		if _, err := due.ExecContext(ctx, m.ID, m.Team, m.MailServer, m.Priority, m.Kind, nullString(m.BatchID), nullString(m.Caller), s.t(&m.CreateTime), status, runAt, resumeAt, m.Held); err != nil {
			return nil, err
		}
		if m.Owner != 0 {
			if _, err := s.q.in(ctx, tx, "enqueue_own").ExecContext(ctx, int64(m.Owner), m.ID); err != nil {
				return nil, err
			}
		}
		for _, t := range s.termsOf(m) {
			if len(terms) > 1 {
				terms = append(terms, ',')
			}
			terms = fmt.Appendf(terms, `[%s,"%s"]`, t, m.ID)
		}
	}
	if len(terms) > 1 {
		if _, err := s.q.in(ctx, tx, "enqueue_term").ExecContext(ctx, string(append(terms, ']'))); err != nil {
			return nil, err
		}
	}
	return in, nil
}
