package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Shared content goes when no mail needs it any more. Which mails need it stands only in their
// layouts, so a walk over all mail writes a term for each: [Store.WalkContents]. It runs behind
// the intake, which is not slowed by it, and only where something is removed at all. Content
// that was touched after the place where the walk stands is left alone.

// walkLag is how far the walk stays behind: longer than mail may be on its way into the
// database, and longer than clocks of replicas may differ.
const walkLag = 24 * time.Hour

// walkPage is how many mails one step of the walk looks at.
const walkPage = 2000

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

// WalkContents is one step of the walk that writes down which mail needs which content.
// through: it has come as far as it may.
func (s *Store) WalkContents(ctx context.Context, me string) (through bool, err error) {
	st, err := s.ruleState(ctx, "contents")
	if err != nil {
		return false, err
	}
	until := idAt(s.now().Add(-walkLag))
	var rows []struct {
		ID      uuid.UUID
		Layout  []byte
		Removed Removed
	}
	if err := s.q.get("walk_page").SelectContext(ctx, &rows, st.MailID.UUID, until, walkPage); err != nil {
		return false, s.fault(err)
	}
	last := until
	if len(rows) == walkPage {
		last = rows[len(rows)-1].ID
	} else if through = true; slices.Compare(st.MailID.UUID[:], until[:]) >= 0 {
		return true, nil
	}
	var terms []mailTerm
	for _, r := range rows {
		of := contentsOf(r.Layout)
		if r.Removed == RemovedAttachments {
			files := filesOf(r.Layout)
			of = slices.DeleteFunc(of, func(sum [32]byte) bool { return slices.Contains(files, sum) })
		}
		for _, sum := range of {
			terms = append(terms, mailTerm{contentTerm(sum), r.ID})
		}
	}
	b, err := json.Marshal(terms)
	if err != nil {
		return false, err
	}
	return through, s.workTx(ctx, func(tx *sqlx.Tx) error {
		if err := s.holdPurge(ctx, tx, me); err != nil {
			return err
		}
		if len(terms) > 0 {
			if _, err := s.q.in(ctx, tx, "walk_terms").ExecContext(ctx, string(b)); err != nil {
				return err
			}
		}
		_, err := s.q.in(ctx, tx, "rule_moved").ExecContext(ctx, "contents", nil, last, 0, st.MailID)
		return err
	})
}

// CollectContents removes content that no mail needs any more, at most so many, each in a
// transaction of its own. It leaves alone what the walk has not come to, and what an upload
// needs. looked is how many it has decided about.
func (s *Store) CollectContents(ctx context.Context, me string, most int) (looked, contents int, bytes int64, err error) {
	st, err := s.ruleState(ctx, "contents")
	if err != nil || !st.MailID.Valid {
		return 0, 0, 0, err
	}
	// A mail refers to content on the day on which it touched it, or on the next.
	walked := timeOf(st.MailID.UUID).Add(-2 * 24 * time.Hour)
	if rest := s.now().Add(-contentRest); walked.After(rest) {
		walked = rest
	}
	var loose [][]byte
	if err := s.q.get("loose_page").SelectContext(ctx, &loose, s.dialect.date(walked), most); err != nil {
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
			if err := s.q.in(ctx, tx, "loose_content").SelectContext(ctx, &size, sum, contentTerm([32]byte(sum)), s.dialect.date(walked)); err != nil {
				return err
			}
			if len(size) > 0 {
				if _, err := s.q.in(ctx, tx, "chunk_delete").ExecContext(ctx, sum); err != nil {
					return err
				}
			}
			_, err := s.q.in(ctx, tx, "loose_delete").ExecContext(ctx, sum)
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

// timeOf is the time of an id (RFC 9562, 5.7).
func timeOf(id uuid.UUID) time.Time {
	var ms int64
	for _, b := range id[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}
