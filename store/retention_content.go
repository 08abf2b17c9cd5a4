package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Shared content goes when no mail needs it any more. A term for each content of each mail says
// so. It is written in the statement that writes the mail, so no clock and no order decides
// about it. A mail that was written before there were such terms is marked as one that lacks
// them, and gets them from [Store.WalkContents]; until the last one has its own, no content is
// removed at all.

// walkPage is how many mails one step of the walk looks at.
const walkPage = 500

func contentTerm(sum [32]byte) string { return term("content", string(sum[:])) }

// segmentsOf reads a layout; what cannot be read has none.
func segmentsOf(layout []byte) (segs []segment) {
	if len(layout) == 0 || json.Unmarshal(layout, &segs) != nil {
		return nil
	}
	return segs
}

// contentsOf are the sums of all shared content of a layout.
func contentsOf(layout []byte) []([32]byte) {
	return sums(segmentsOf(layout), func(segment) bool { return true })
}

// neededOf are the sums that a mail still needs when a part of it is gone.
func neededOf(layout []byte, removed Removed) [][32]byte {
	return sums(segmentsOf(layout), func(sg segment) bool { return removed != RemovedAttachments || !sg.File })
}

// filesOf are those of its attachments.
func filesOf(layout []byte) [][32]byte {
	return sums(segmentsOf(layout), func(sg segment) bool { return sg.File })
}

func sums(segs []segment, wanted func(segment) bool) (out [][32]byte) {
	for _, sg := range segs {
		if b, err := hex.DecodeString(sg.Hash); err == nil && len(b) == 32 && wanted(sg) && !slices.Contains(out, [32]byte(b)) {
			out = append(out, [32]byte(b))
		}
	}
	return out
}

// withoutFiles is a layout whose attachments are empty.
func withoutFiles(segs []segment) []segment {
	return slices.DeleteFunc(segs, func(sg segment) bool { return sg.File })
}

// loosen notes content that a mail has ceased to need.
func (s *Store) loosen(ctx context.Context, tx *sqlx.Tx, sums map[[32]byte]bool) error {
	for sum := range sums {
		if _, err := s.q.in(ctx, tx, "loose_insert").ExecContext(ctx, sum[:], s.dialect.date(s.now())); err != nil {
			return err
		}
	}
	return nil
}

// WalkContents is one step of the walk over mail that a program of before has written, without
// the terms of its content. through: there is none left that the database can read.
func (s *Store) WalkContents(ctx context.Context, me string) (through bool, err error) {
	var page []uuid.UUID
	if err := s.q.get("unlisted_page").SelectContext(ctx, &page, walkPage); err != nil {
		return false, s.fault(err)
	}
	ids := s.damage.without(page, s.now())
	_, err = s.past(ctx, ids, func(ids []uuid.UUID) error {
		return s.workTx(ctx, func(tx *sqlx.Tx) error {
			if err := s.holdPurge(ctx, tx, me); err != nil {
				return err
			}
			return s.listContents(ctx, tx, ids)
		})
	})
	return len(ids) == 0 || len(page) < walkPage, err
}

// listContents writes the terms of mails that lack them. It reads them anew: behind holdPurge
// nobody removes a part of them.
func (s *Store) listContents(ctx context.Context, tx *sqlx.Tx, ids []uuid.UUID) error {
	var rows []struct {
		ID      uuid.UUID
		Layout  []byte
		Removed Removed
	}
	if err := s.q.in(ctx, tx, "unlisted_mails").SelectContext(ctx, &rows, idList(ids)); err != nil {
		return err
	}
	var terms []mailTerm
	for _, r := range rows {
		for _, sum := range neededOf(r.Layout, r.Removed) {
			terms = append(terms, mailTerm{contentTerm(sum), r.ID})
		}
	}
	if len(terms) > 0 {
		b, err := json.Marshal(terms)
		if err != nil {
			return err
		}
		if _, err := s.q.in(ctx, tx, "walk_terms").ExecContext(ctx, string(b)); err != nil {
			return err
		}
	}
	_, err := s.q.in(ctx, tx, "mail_listed").ExecContext(ctx, idList(ids))
	return err
}

// CollectContents removes content that no mail needs any more, at most so many, each in a
// transaction of its own: none while a mail lacks its terms, and none that an upload needs.
// looked is how many it has decided about.
//
// It locks the content first, and looks for terms with a statement behind that. A mail that is
// accepted at the same moment has the content locked until its terms are there.
func (s *Store) CollectContents(ctx context.Context, me string, most int) (looked, contents int, bytes int64, err error) {
	now, err := s.Now(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	// A mercy for those who are about to refer to it, not what keeps it.
	rest := s.dialect.date(now.Add(-contentRest))
	var unlisted []uuid.UUID
	if err := s.q.get("unlisted_page").SelectContext(ctx, &unlisted, 1); err != nil || len(unlisted) > 0 {
		return 0, 0, 0, s.fault(err)
	}
	var loose [][]byte
	if err := s.q.get("loose_page").SelectContext(ctx, &loose, rest, most); err != nil {
		return 0, 0, 0, s.fault(err)
	}
	for _, sum := range loose {
		if len(sum) != 32 {
			continue
		}
		var size []int64
		err := s.workTx(ctx, func(tx *sqlx.Tx) error {
			size = nil
			if err := s.holdPurge(ctx, tx, me); err != nil {
				return err
			}
			var locked [][]byte
			if err := s.q.in(ctx, tx, "content_lock").SelectContext(ctx, &locked, sum); err != nil {
				return err
			}
			term := contentTerm([32]byte(sum))
			if err := s.q.in(ctx, tx, "loose_content").SelectContext(ctx, &size, sum, term, rest); err != nil {
				return err
			}
			if len(size) > 0 {
				if _, err := s.q.in(ctx, tx, "chunk_delete").ExecContext(ctx, sum); err != nil {
					return err
				}
			}
			_, err := s.q.in(ctx, tx, "loose_delete").ExecContext(ctx, sum, term)
			return err
		})
		if err != nil {
			return looked, contents, bytes, err
		}
		looked++
		if len(size) > 0 {
			contents, bytes = contents+1, bytes+size[0]
			s.cache.drop([32]byte(sum))
		}
	}
	return looked, contents, bytes, nil
}
