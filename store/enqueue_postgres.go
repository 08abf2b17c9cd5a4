package store

import (
	"context"
	"encoding/hex"
	"encoding/json"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// mailRow is a mail as the enqueue statement reads it.
type mailRow struct {
	ID          uuid.UUID         `json:"id"`
	Team        string            `json:"team"`
	MailServer  string            `json:"mail_server"`
	Mode        Mode              `json:"mode"`
	Kind        Kind              `json:"kind"`
	Priority    int16             `json:"priority"`
	Reference   string            `json:"reference"`
	Sender      string            `json:"sender"`
	Subject     string            `json:"subject"`
	MessageID   string            `json:"message_id"`
	SizeBytes   int64             `json:"size_bytes"`
	Recipients  []Recipient       `json:"recipients"`
	Labels      map[string]string `json:"labels,omitempty"`
	RequestID   string            `json:"request_id,omitempty"`
	Fingerprint string            `json:"fingerprint,omitempty"`
	Route       string            `json:"route"`
	UTF8        bool              `json:"utf8"`
	CreateTime  int64             `json:"create_time"`
	RunAt       int64             `json:"run_at"`
	ExpireTime  int64             `json:"expire_time,omitempty"`
	Layout      json.RawMessage   `json:"layout,omitempty"`
	Owner       ReplicaID         `json:"owner,omitempty"`
	Held        string            `json:"held,omitempty"`
	Offset      int               `json:"o"`
	Length      int               `json:"l"`
	Terms       []string          `json:"terms"`
	BatchID     string            `json:"batch_id,omitempty"`
	ResentFrom  *uuid.UUID        `json:"resent_from,omitempty"`
	Reason      string            `json:"resend_reason,omitempty"`
	Caller      string            `json:"caller,omitempty"`
	Guard       string            `json:"guard,omitempty"`
	Version     int64             `json:"server_version,omitempty"`
	RequestHash string            `json:"request_hash,omitempty"`
	Contents    []string          `json:"contents,omitempty"`
	Trace       string            `json:"trace,omitempty"`
}

// enqueueFlushers is how many write at once.
const enqueueFlushers = 2

func (onPostgres) flushers() int { return enqueueFlushers }

func (s onPostgres) packMails(ops []*enqueueOp) (packedMails, error) {
	p := packedMails{ops: ops}
	rows := make([]mailRow, len(ops))
	offset := 1
	for i, op := range ops {
		m := op.m
		r := mailRow{ID: m.ID, Team: m.Team, MailServer: m.MailServer, Mode: m.Mode, Kind: m.Kind, Priority: m.Priority, Reference: m.Reference,
			Sender: m.From, Subject: m.Subject, MessageID: m.MessageID, SizeBytes: m.SizeBytes, Recipients: m.Recipients, Labels: m.Labels,
			RequestID: m.RequestID, Fingerprint: hex.EncodeToString(m.Fingerprint), Route: m.Route, UTF8: m.UTF8, CreateTime: m.CreateTime.UnixMicro(),
			RunAt: m.RunAt.UnixMicro(), Layout: m.layout, Owner: m.Owner, Held: m.Held, Offset: offset, Length: len(m.inline), Terms: s.termsOf(m),
			BatchID: m.BatchID, Reason: m.Reason, Caller: m.Caller, Guard: m.Guard, Version: m.ServerVersion, Trace: hex.EncodeToString(m.Trace)}
		for _, sum := range m.contents {
			r.Contents = append(r.Contents, hex.EncodeToString(sum[:]))
		}
		if m.ExpireTime != nil {
			r.ExpireTime = m.ExpireTime.UnixMicro()
		}
		if m.RequestID != "" {
			r.RequestHash = hex.EncodeToString(s.requestHash(m.Team, m.RequestID))
		}
		if m.ResentFrom != uuid.Nil {
			r.ResentFrom = &m.ResentFrom
		}
		offset += len(m.inline)
		rows[i] = r
	}
	b, err := json.Marshal(rows)
	p.rows = string(b)
	return p, err
}

func (s onPostgres) insertMails(ctx context.Context, tx *sqlx.Tx, p packedMails) (map[uuid.UUID]bool, error) {
	n := 0
	for _, op := range p.ops {
		n += len(op.m.inline)
	}
	bodies := make([]byte, 0, n)
	for _, op := range p.ops {
		bodies = append(bodies, op.m.inline...)
	}
	var ids []uuid.UUID
	if err := s.stmt(ctx, tx, "enqueue").SelectContext(ctx, &ids, p.rows, bodies); err != nil {
		return nil, err
	}
	in := make(map[uuid.UUID]bool, len(ids))
	for _, id := range ids {
		in[id] = true
	}
	return in, nil
}
