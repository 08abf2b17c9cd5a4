package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
)

// chunkBytes is the size of a stored piece of shared content: large enough to be fast, small
// enough that a 25 MiB file costs little memory.
const chunkBytes = 512 << 10

// segment is one run of a raw message: n bytes of mail.raw, or of shared content from an offset
// on.
type segment struct {
	Bytes int `json:"n"`
	// of the content; "=" is that of the last segment that had one
	Hash   string `json:"h,omitempty"`
	Offset int    `json:"o,omitempty"`
	File   bool   `json:"f,omitempty"` // an attachment
}

const sameContent = "="

// pack makes what mail.raw and mail.layout hold of the pieces. No layout: raw is the whole
// message.
func (m *NewMail) pack() {
	if m.inline != nil {
		return
	}
	if len(m.Raw) == 1 && m.Raw[0].Shared == nil {
		m.inline = m.Raw[0].Data
		return
	}
	segs := make([]segment, len(m.Raw))
	n := 0
	for _, p := range m.Raw {
		n += len(p.Data)
	}
	inline := make([]byte, 0, n)
	var last *Content
	for i, p := range m.Raw {
		if p.Shared == nil {
			segs[i].Bytes = len(p.Data)
			inline = append(inline, p.Data...)
			continue
		}
		segs[i] = segment{p.Length, sameContent, p.Offset, p.Shared.File}
		if !slices.Contains(m.contents, p.Shared.Sum) {
			m.contents = append(m.contents, p.Shared.Sum)
		}
		if p.Shared != last {
			segs[i].Hash = hex.EncodeToString(p.Shared.Sum[:])
			last = p.Shared
		}
	}
	m.inline = inline
	if last != nil {
		m.layout, _ = json.Marshal(segs) // plain structs always can be
	}
}

// unpack is the pieces of a stored message, shared content known by its sum only.
func unpack(inline, layout []byte) ([]Piece, error) {
	if len(layout) == 0 {
		return []Piece{{Data: inline}}, nil
	}
	var segs []segment
	if err := json.Unmarshal(layout, &segs); err != nil {
		return nil, err
	}
	ps := make([]Piece, len(segs))
	var last *Content
	for i, sg := range segs {
		if sg.Hash == "" {
			if sg.Bytes > len(inline) {
				return nil, fmt.Errorf("the stored message is %d bytes short", sg.Bytes-len(inline))
			}
			ps[i].Data, inline = inline[:sg.Bytes], inline[sg.Bytes:]
			continue
		}
		if sg.Hash != sameContent {
			b, err := hex.DecodeString(sg.Hash)
			if err != nil || len(b) != 32 {
				return nil, fmt.Errorf("bad content hash %q", sg.Hash)
			}
			last = &Content{Sum: [32]byte(b), File: sg.File}
		}
		ps[i] = Piece{Shared: last, Offset: sg.Offset, Length: sg.Bytes}
	}
	return ps, nil
}

// shareContent stores a mail's shared content that is not there yet, and marks the rest as used
// today, before the mail refers to it. Clean-up leaves alone what was touched within three
// days. Where a clock is wrong, and content goes between this and the mail, the mail is not
// written, and storeAgain stores it once more.
func (s *Store) shareContent(ctx context.Context, m *NewMail) error {
	var last *Content
	for _, p := range m.Raw {
		c := p.Shared
		if c == nil || c == last {
			continue
		}
		last = c
		if s.cache.touchedToday(c.Sum, s.now()) {
			continue
		}
		if err := s.putContent(ctx, c.Sum, c.Size, c.Data, true); err != nil {
			return fmt.Errorf("store shared content: %w", err)
		}
		s.cache.touch(c.Sum, s.now())
	}
	return nil
}

// storeAgain stores a mail's content though this process has done so today.
func (s *Store) storeAgain(ctx context.Context, m *NewMail) error {
	for _, sum := range m.contents {
		s.cache.drop(sum)
	}
	return s.shareContent(ctx, m)
}

// lacksContent says whether content that a packed mail needs is not there, or not marked as
// used: that might go behind the mail.
func (s *Store) lacksContent(ctx context.Context, tx *sqlx.Tx, m *NewMail) (bool, error) {
	for _, sum := range m.contents {
		var n int
		if err := s.stmt(ctx, tx, "content_used").GetContext(ctx, &n, sum[:]); err != nil || n == 0 {
			return err == nil, err
		}
	}
	return false, nil
}

// ErrContentGone: a mail refers to content that is not stored, and brings no bytes of it.
var ErrContentGone = errors.New("shared content is not stored")

// putContent stores content, or marks it as touched today where it is there; used: a mail
// refers to it. data may be nil for content that has to be there.
func (s *Store) putContent(ctx context.Context, sum [32]byte, size int, data []byte, used bool) error {
	return s.tx(ctx, func(tx *sqlx.Tx) error { return s.putContentTx(ctx, tx, sum, size, data, used) })
}

func (s *Store) putContentTx(ctx context.Context, tx *sqlx.Tx, sum [32]byte, size int, data []byte, used bool) error {
	now, err := s.dialect.clock(ctx, tx)
	if err != nil {
		return err
	}
	today := s.dialect.date(now)
	exec := func(name string, args ...any) (bool, error) {
		res, err := s.q.in(ctx, tx, name).ExecContext(ctx, args...)
		if err != nil {
			return false, err
		}
		n, err := res.RowsAffected()
		return n > 0, err
	}
	// Clean-up may take it away between the two: then the other one succeeds.
	for range 3 {
		if touched, err := exec("content_touch", today, used, sum[:]); touched || err != nil {
			return err
		}
		if data == nil {
			return ErrContentGone
		}
		inserted, err := exec("content_insert", sum[:], size, today, used)
		if err != nil {
			return err
		}
		if !inserted {
			continue
		}
		if used { // no mail needs it yet, and perhaps none will: then clean-up finds it
			if _, err := exec("loose_insert", sum[:], today); err != nil {
				return err
			}
		}
		for n := 0; n*chunkBytes < len(data); n++ {
			if _, err := exec("chunk_insert", sum[:], n, data[n*chunkBytes:min((n+1)*chunkBytes, len(data))]); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("content %x comes and goes", sum[:6])
}

// contentSum reads a hash as it stands in a layout.
func contentSum(hash string) ([32]byte, error) {
	b, err := hex.DecodeString(hash)
	if err != nil || len(b) != 32 {
		return [32]byte{}, fmt.Errorf("bad content hash %q", hash)
	}
	return [32]byte(b), nil
}

// content reads shared content through the cache, with the statement of the engine; many who
// want the same at once read it once.
func (s *Store) content(ctx context.Context, hash string) ([]byte, error) {
	sum, err := contentSum(hash)
	if err != nil {
		return nil, err
	}
	if d, ok := s.cache.get(sum); ok {
		return d, nil
	}
	d, err, _ := s.reading.Do(hash, func() (any, error) {
		var chunks [][]byte
		if err := s.q.get("content_chunks").SelectContext(ctx, &chunks, sum[:]); err != nil {
			return nil, s.fault(err)
		}
		data := bytes.Join(chunks, nil)
		if sha256.Sum256(data) != sum {
			return nil, fmt.Errorf("content %s: %w", hash[:12], errDamaged)
		}
		s.cache.put(sum, data)
		return data, nil
	})
	if err != nil {
		return nil, err
	}
	return d.([]byte), nil
}

var (
	errDamaged = errors.New("shared content is missing or damaged")
	errShort   = errors.New("the stored message is too short")
)

// Content is stored content, for who has to read a message before it is sent.
func (s *Store) Content(ctx context.Context, sum [32]byte) ([]byte, error) {
	return s.content(ctx, hex.EncodeToString(sum[:]))
}

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
	var shared []byte
	for _, sg := range segs {
		from, offset := shared, sg.Offset
		switch sg.Hash {
		case "":
			from, offset = inline, 0
		case sameContent:
		default:
			var err error
			if shared, err = content(sg.Hash); err != nil {
				return err
			}
			from = shared
		}
		if offset < 0 || sg.Bytes < 0 || offset+sg.Bytes > len(from) {
			return fmt.Errorf("%w: it wants %d bytes from %d on, there are %d", errShort, sg.Bytes, offset, len(from))
		}
		if err := w(from[offset : offset+sg.Bytes]); err != nil {
			return err
		}
		if sg.Hash == "" {
			inline = inline[sg.Bytes:]
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

// contentCache keeps recently used shared content, so that one body for thousands of mails is
// read once.
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

// drop forgets one content, which is stored no longer.
func (c *contentCache) drop(k [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes -= len(c.data[k])
	delete(c.data, k)
	delete(c.touched, k)
	c.order = slices.DeleteFunc(c.order, func(o [32]byte) bool { return o == k })
}

// forget is for a database that may not have what it had.
func (c *contentCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touched = nil
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
