package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"

	"github.com/google/uuid"
)

const (
	// rawPiece is how much of a message is in memory for one reader, who may be slow.
	rawPiece = 64 << 10
	// To cut a piece out of a row costs a look at all of the row. So a large message that lies
	// in its row, which has no files but long texts, comes in larger pieces, and never in more.
	rawPieces = 16
)

// RawMail writes a mail's raw message to w, a piece at a time, and holds neither a connection
// nor a transaction while w takes it. Shared content is compared with its sum before the first
// piece is written. ErrNotFound, also outside the scope; ErrContentRemoved.
func (s *Store) RawMail(ctx context.Context, sc Scope, id uuid.UUID, w io.Writer) (int64, error) {
	return s.rawMail(ctx, sc, id, w, nil)
}

// RemainingRaw is RawMail for a mail whose attachments may have been removed: they are empty
// files then. begin hears how many bytes will be written, before the first. ErrContentRemoved
// where more was removed.
func (s *Store) RemainingRaw(ctx context.Context, sc Scope, id uuid.UUID, begin func(bytes int64), w io.Writer) (int64, error) {
	return s.rawMail(ctx, sc, id, w, begin)
}

func (s *Store) rawMail(ctx context.Context, sc Scope, id uuid.UUID, w io.Writer, begin func(bytes int64)) (int64, error) {
	var row struct {
		Size    int
		First   []byte // of the inline part
		Layout  []byte
		Removed sql.NullString
	}
	all, teams := sc.args()
	if err := s.q.get("mail_raw").GetContext(ctx, &row, rawPiece, id, all, teams, sc.Caller); err != nil {
		return 0, s.notFound(err)
	}
	segs := []segment{{Bytes: row.Size}}
	if len(row.Layout) > 0 {
		segs = nil
		if err := json.Unmarshal(row.Layout, &segs); err != nil {
			return 0, err
		}
		row.Layout = nil
	}
	switch Removed(row.Removed.String) {
	case RemovedNothing:
	case RemovedAttachments:
		if begin == nil {
			return 0, ErrContentRemoved
		}
		segs = withoutFiles(segs)
	default:
		return 0, ErrContentRemoved
	}
	if begin != nil {
		whole := int64(0)
		for _, sg := range segs {
			whole += int64(sg.Bytes)
		}
		begin(whole)
	}
	sums, err := s.checkContents(ctx, segs)
	if err != nil {
		return 0, err
	}
	r := &rawReader{s: s, id: id, first: row.First, size: row.Size, step: max(rawPiece, row.Size/rawPieces)}
	var n int64
	var sum *[32]byte
	for i, sg := range segs {
		read, from := r.inline, r.at
		if sg.Hash != "" {
			if sums[i] != nil {
				sum = sums[i]
			}
			if sum == nil {
				return n, errShort
			}
			read, from = func(ctx context.Context, from, bytes int) ([]byte, error) {
				return s.contentPiece(ctx, *sum, from, bytes)
			}, sg.Offset
		} else {
			r.at += sg.Bytes
		}
		if from < 0 || sg.Bytes < 0 {
			return n, errShort
		}
		for end := from + sg.Bytes; from < end; {
			b, err := read(ctx, from, end-from)
			if err != nil {
				return n, err
			}
			k, err := w.Write(b)
			n += int64(k)
			if err != nil {
				return n, err
			}
			from += len(b)
		}
	}
	return n, nil
}

// rawReader reads the part of a message that lies in the mail's row. One goroutine uses it.
type rawReader struct {
	s     *Store
	id    uuid.UUID
	first []byte // what has been read, from its beginning
	size  int
	step  int
	at    int // how much of it the segments so far have had
}

// inline reads at most bytes from a place on, and at least one.
func (r *rawReader) inline(ctx context.Context, from, bytes int) ([]byte, error) {
	if from+bytes > r.size {
		return nil, fmt.Errorf("%w: it wants %d bytes from %d on, there are %d", errShort, bytes, from, r.size)
	}
	if from < len(r.first) {
		return r.first[from:min(from+bytes, len(r.first))], nil
	}
	r.first = nil
	var b []byte
	if err := r.s.q.get("mail_piece").GetContext(ctx, &b, from+1, min(bytes, r.step), r.id); err != nil {
		return nil, r.s.notFound(err)
	}
	if len(b) == 0 {
		return nil, errShort
	}
	return b, nil
}

// contentPiece reads at most bytes of shared content from a place on, and at least one.
func (s *Store) contentPiece(ctx context.Context, sum [32]byte, from, bytes int) ([]byte, error) {
	if d, ok := s.cache.get(sum); ok && from < len(d) {
		// a copy: who reads it slowly keeps a piece in memory, not all of it
		return append([]byte(nil), d[from:min(from+min(bytes, rawPiece), len(d))]...), nil
	}
	n, at := from/chunkBytes, from%chunkBytes
	var pieces [][]byte
	if err := s.q.get("content_piece").SelectContext(ctx, &pieces, at+1, min(bytes, rawPiece, chunkBytes-at), sum[:], n); err != nil {
		return nil, s.fault(err)
	}
	if len(pieces) == 0 || len(pieces[0]) == 0 {
		return nil, fmt.Errorf("content %x: %w", sum[:6], errDamaged)
	}
	return pieces[0], nil
}

// checkContents compares the contents of a message with their sums, and says by segment which
// sum begins there.
func (s *Store) checkContents(ctx context.Context, segs []segment) ([]*[32]byte, error) {
	sums := make([]*[32]byte, len(segs))
	checked := map[[32]byte]bool{}
	for i, sg := range segs {
		if sg.Hash == "" || sg.Hash == sameContent {
			continue
		}
		sum, err := contentSum(sg.Hash)
		if err != nil {
			return nil, err
		}
		sums[i] = &sum
		if _, ok := s.cache.get(sum); ok || checked[sum] {
			continue // what is in the cache was compared when it came
		}
		checked[sum] = true
		var size []int
		if err := s.q.get("content_size").SelectContext(ctx, &size, sum[:]); err != nil {
			return nil, s.fault(err)
		}
		h := sha256.New()
		for from := 0; len(size) == 1 && from < size[0]; {
			b, err := s.contentPiece(ctx, sum, from, size[0]-from)
			if err != nil {
				return nil, err
			}
			h.Write(b)
			from += len(b)
		}
		if [32]byte(h.Sum(nil)) != sum {
			return nil, fmt.Errorf("content %s: %w", sg.Hash[:12], errDamaged)
		}
	}
	return sums, nil
}
