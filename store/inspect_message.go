package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// contents hashes shared content, the newest first.
func (l *look) contents(most int64, inv *Invariant) error {
	var rows []struct {
		Hash []byte
		Size int64
	}
	if err := l.get(&rows, "contents"); err != nil {
		return err
	}
	for _, row := range rows {
		if most >= 0 && l.r.BytesRead+row.Size > most {
			continue
		}
		l.r.BytesRead += row.Size
		d, err := l.content(row.Hash)
		if err != nil {
			return err
		}
		if d == nil {
			inv.Breaches = append(inv.Breaches, Breach{"content " + hex.EncodeToString(row.Hash), "does not hash to its name"})
		}
	}
	return nil
}

// content reads one shared content, nil if it is not what its name says.
func (l *look) content(hash []byte) ([]byte, error) {
	if len(hash) == sha256.Size {
		if d, ok := l.in.s.cache.get([32]byte(hash)); ok {
			return d, nil
		}
	}
	var chunks [][]byte
	if err := l.get(&chunks, "chunks", hash); err != nil {
		return nil, err
	}
	d := bytes.Join(chunks, nil)
	sum := sha256.Sum256(d)
	if !bytes.Equal(sum[:], hash) {
		return nil, nil
	}
	l.in.s.cache.put(sum, d)
	return d, nil
}

// messages reads whole messages, the newest first, and compares them with what is said of them.
func (l *look) messages(most int, inv *Invariant) error {
	for before := uuid.Max; most < 0 || l.r.Messages < most; {
		page := messagePage
		if most >= 0 {
			page = min(page, most-l.r.Messages)
		}
		var ms []storedMessage
		if err := l.get(&ms, "newest", before, page); err != nil {
			return err
		}
		for i := range ms {
			problem, err := "", error(nil)
			if !ms[i].Removed {
				problem, err = l.message(&ms[i])
			}
			if err != nil {
				return err
			}
			if problem != "" {
				inv.Breaches = append(inv.Breaches, Breach{ms[i].ID.String(), problem})
			}
			before = ms[i].ID
		}
		l.r.Messages += len(ms)
		if len(ms) < page {
			return nil
		}
	}
	return nil
}

type storedMessage struct {
	ID         uuid.UUID
	Recipients []byte
	Labels     []byte
	Reference  string
	MessageID  string `db:"message_id"`
	SizeBytes  int64  `db:"size_bytes"`
	Layout     []byte
	Removed    bool // some of its content was, by retention or erasure
}

// message says what is wrong with one stored message, "" if nothing is.
func (l *look) message(m *storedMessage) (string, error) {
	var raw []byte
	if err := l.tx.GetContext(l.ctx, &raw, l.in.st["raw"], m.ID); err != nil {
		return "", err
	}
	var size int64
	var head []byte // its header, and perhaps more
	err := joinPieces(raw, m.Layout, func(hash string) ([]byte, error) {
		h, err := hex.DecodeString(hash)
		if err != nil {
			return nil, fmt.Errorf("bad content hash %q", hash)
		}
		d, err := l.content(h)
		if err == nil && d == nil {
			err = errDamaged
		}
		return d, err
	}, func(b []byte) error {
		if len(head) < headerMost {
			head = append(head, b[:min(len(b), headerMost)]...)
		}
		size += int64(len(b))
		return nil
	})
	var n NewMail
	switch {
	case errors.Is(err, errDamaged), errors.Is(err, errShort):
		return err.Error(), nil
	case err != nil:
		return "", err
	case size != m.SizeBytes:
		return fmt.Sprintf("is said to have %d bytes and has %d", m.SizeBytes, size), nil
	}
	head, _, _ = bytes.Cut(head, []byte("\r\n\r\n"))
	if !bytes.Contains(head, []byte("Message-ID: <"+m.MessageID+">")) {
		return "is not the message of its Message-ID", nil
	}
	if err := json.Unmarshal(m.Recipients, &n.Recipients); err != nil {
		return "has recipients that cannot be read", nil
	}
	if err := json.Unmarshal([]byte(cmp.Or(string(m.Labels), "null")), &n.Labels); err != nil {
		return "has labels that cannot be read", nil
	}
	n.Reference = m.Reference
	terms, err := json.Marshal(termsOf(&n))
	if err != nil {
		return "", err
	}
	var missing int
	if err := l.tx.GetContext(l.ctx, &missing, l.in.st["terms"], string(terms), m.ID); err != nil {
		return "", err
	}
	if missing > 0 {
		return fmt.Sprintf("cannot be found by %d of its recipients, labels and reference", missing), nil
	}
	return "", nil
}
