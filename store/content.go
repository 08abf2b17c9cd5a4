package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// chunkBytes is the size of a stored piece of shared content: large enough to be fast, small enough that a 25 MiB file costs little memory.
const chunkBytes = 512 << 10

// segment is one run of a raw message: n bytes of mail.raw, or shared content.
type segment struct {
	Bytes int    `json:"n"`
	Hash  string `json:"h,omitempty"`
}

// splitRaw is what mail.raw and mail.layout hold. No layout: raw is the whole message.
func splitRaw(m *NewMail) (inline []byte, layout json.RawMessage) {
	if len(m.Raw) == 1 && !m.Raw[0].Shareable {
		return m.Raw[0].Data, nil
	}
	var segs []segment
	shared := false
	for _, p := range m.Raw {
		sg := segment{Bytes: len(p.Data)}
		if p.Shareable {
			sum := sha256.Sum256(p.Data)
			sg.Hash = hex.EncodeToString(sum[:])
			shared = true
		} else {
			inline = append(inline, p.Data...)
		}
		segs = append(segs, sg)
	}
	if shared {
		layout, _ = json.Marshal(segs) // plain structs always can be
	}
	return inline, layout
}

// shareContent stores a mail's shareable pieces that are not there yet, and marks the others as used today, before the mail refers to them. Clean-up
// leaves alone what was touched within three days, so it cannot race with this.
func (s *Store) shareContent(ctx context.Context, m *NewMail) error {
	for _, p := range m.Raw {
		if !p.Shareable {
			continue
		}
		sum := sha256.Sum256(p.Data)
		if s.cache.touchedToday(sum, s.now()) {
			continue
		}
		if err := s.putContent(ctx, sum, p.Data); err != nil {
			return fmt.Errorf("store shared content: %w", err)
		}
		s.cache.touch(sum, s.now())
	}
	return nil
}

func (s *Store) putContent(ctx context.Context, sum [32]byte, data []byte) error {
	now := s.now()
	today := s.day(now)
	return s.tx(ctx, func(tx *sqlx.Tx) error {
		res, err := s.q.in(ctx, tx, "content_insert").ExecContext(ctx, sum[:], len(data), today)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			if err == nil {
				_, err = s.q.in(ctx, tx, "content_touch").ExecContext(ctx, today, sum[:], today)
			}
			return err
		}
		for n := 0; n*chunkBytes < len(data); n++ {
			chunk := data[n*chunkBytes : min((n+1)*chunkBytes, len(data))]
			if _, err := s.q.in(ctx, tx, "chunk_insert").ExecContext(ctx, sum[:], n, chunk); err != nil {
				return err
			}
		}
		return nil
	})
}

// day is a date: a real one on PostgreSQL, days since 1970 on SQLite.
func (s *Store) day(t time.Time) any {
	if s.dialect == sqliteDia {
		return t.Unix() / 86400
	}
	return t.UTC().Format(time.DateOnly)
}

// content reads shared content through the cache.
func (s *Store) content(ctx context.Context, hash string) ([]byte, error) {
	b, err := hex.DecodeString(hash)
	if err != nil || len(b) != 32 {
		return nil, fmt.Errorf("bad content hash %q", hash)
	}
	sum := [32]byte(b)
	if d, ok := s.cache.get(sum); ok {
		return d, nil
	}
	var chunks [][]byte
	if err := s.q.get("content_chunks").SelectContext(ctx, &chunks, sum[:]); err != nil {
		return nil, s.fault(err)
	}
	var data []byte
	for _, c := range chunks {
		data = append(data, c...)
	}
	if sha256.Sum256(data) != sum {
		return nil, fmt.Errorf("content %s: %w", hash[:12], errDamaged)
	}
	s.cache.put(sum, data)
	return data, nil
}

var (
	errDamaged = errors.New("shared content is missing or damaged")
	errShort   = errors.New("the stored message is too short")
)

func (s *Store) join(ctx context.Context, inline, layout []byte, w func([]byte) error) error {
	return joinPieces(inline, layout, func(hash string) ([]byte, error) { return s.content(ctx, hash) }, w)
}

// joinPieces writes a message's pieces in their order.
func joinPieces(inline, layout []byte, content func(hash string) ([]byte, error), w func([]byte) error) error {
	if len(layout) == 0 {
		return w(inline)
	}
	var segs []segment
	if err := json.Unmarshal(layout, &segs); err != nil {
		return err
	}
	for _, sg := range segs {
		if sg.Hash == "" {
			if sg.Bytes > len(inline) {
				return fmt.Errorf("%w by %d bytes", errShort, sg.Bytes-len(inline))
			}
			if err := w(inline[:sg.Bytes]); err != nil {
				return err
			}
			inline = inline[sg.Bytes:]
			continue
		}
		d, err := content(sg.Hash)
		if err != nil {
			return err
		}
		if err := w(d); err != nil {
			return err
		}
	}
	return nil
}

// LoadRaw is the whole raw message of a claimed mail.
func (s *Store) LoadRaw(ctx context.Context, c *Claimed) ([]byte, error) {
	if len(c.Layout) == 0 {
		return c.Raw, nil
	}
	out := make([]byte, 0, c.SizeBytes)
	err := s.join(ctx, c.Raw, c.Layout, func(b []byte) error { out = append(out, b...); return nil })
	return out, err
}

// RawMail writes a mail's raw message to w. ErrNotFound, also outside the scope.
func (s *Store) RawMail(ctx context.Context, sc Scope, id uuid.UUID, w io.Writer) (int64, error) {
	var row struct {
		Raw, Layout []byte
		Team        string
	}
	if err := s.q.get("mail_raw").QueryRowxContext(ctx, id).Scan(&row.Raw, &row.Layout, &row.Team); err != nil {
		return 0, s.notFound(err)
	}
	if !sc.sees(row.Team) {
		return 0, ErrNotFound
	}
	var n int64
	err := s.join(ctx, row.Raw, row.Layout, func(b []byte) error {
		k, err := w.Write(b)
		n += int64(k)
		return err
	})
	return n, err
}

// contentCache keeps recently used shared content, so that one body for thousands of mails is read once.
type contentCache struct {
	mu      sync.Mutex
	data    map[[32]byte][]byte
	order   [][32]byte // oldest first
	bytes   int
	touched map[[32]byte]int64 // day of the last touch in the database
}

const cacheBytes = 64 << 20

func (c *contentCache) get(k [32]byte) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, ok := c.data[k]
	return d, ok
}

func (c *contentCache) put(k [32]byte, d []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.data == nil {
		c.data = map[[32]byte][]byte{}
	}
	if _, ok := c.data[k]; ok || len(d) > cacheBytes/2 {
		return
	}
	c.data[k] = d
	c.order = append(c.order, k)
	for c.bytes += len(d); c.bytes > cacheBytes; c.order = c.order[1:] {
		c.bytes -= len(c.data[c.order[0]])
		delete(c.data, c.order[0])
	}
}

func (c *contentCache) touchedToday(k [32]byte, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, ok := c.touched[k]
	return ok && d == now.Unix()/86400
}

func (c *contentCache) touch(k [32]byte, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.touched == nil || len(c.touched) > 10000 {
		c.touched = map[[32]byte]int64{}
	}
	c.touched[k] = now.Unix() / 86400
}
