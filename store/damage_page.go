package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// A page of the due-out journal that PostgreSQL cannot read ends every statement that an index
// leads to it. A statement that looks for mail is then done in another way: it reads the rows
// in their places, page after page and not by an index, and goes round the pages that cannot be
// read. They are found by halves, as damaged mails are. What is done to the mails so found goes
// by their ids and meets no other row.
//
// This is slower: it reads the whole journal. Mails on such a page wait until it is mended.

// duePages are pages of the due-out journal, from first to before last.
type duePages struct{ first, last int64 }

// tids are the places of the first row of the range and of the first one behind it.
func (r duePages) tids() (first, last string) {
	return fmt.Sprintf("(%d,0)", r.first), fmt.Sprintf("(%d,0)", r.last)
}

// damagedPagesMost is with how many damaged pages a statement goes on. Where there are more,
// the disk is at fault and somebody has to look.
const damagedPagesMost = 1000

// knownPages are the pages to go round, in their order.
func (d *damage) knownPages(now time.Time) []int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	pages := make([]int64, 0, len(d.pages))
	for page, found := range d.pages {
		if now.Sub(found) >= damageKept {
			delete(d.pages, page)
			continue
		}
		pages = append(pages, page)
	}
	slices.Sort(pages)
	return pages
}

func (d *damage) addPage(page int64, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pages == nil {
		d.pages = map[int64]time.Time{}
	}
	d.pages[page] = now
}

// DamagedPages is how many pages of the due-out journal this process goes round because the
// database cannot read them.
func (s *Store) DamagedPages() int { return len(s.damage.knownPages(s.now())) }

// pastPages does a statement that failed with why to ranges of pages of the due-out journal,
// and goes round those that cannot be read: they are remembered and told. do only reads. Any
// other fault ends it.
func (s *Store) pastPages(ctx context.Context, why error, do func(r duePages) error) error {
	n, err := s.dialect.duePages(ctx)
	if err != nil {
		return err
	}
	if n == 0 { // this database has no pages to go round
		return why
	}
	first := int64(0)
	for _, page := range append(s.damage.knownPages(s.now()), n) {
		if err := s.pastPagesIn(ctx, duePages{first, min(page, n)}, do); err != nil {
			return err
		}
		first = page + 1
	}
	return nil
}

func (s *Store) pastPagesIn(ctx context.Context, r duePages, do func(r duePages) error) error {
	if r.first >= r.last {
		return nil
	}
	err := do(r)
	if !damaged(err) {
		return err
	}
	if middle := (r.first + r.last) / 2; middle > r.first {
		for _, half := range []duePages{{r.first, middle}, {middle, r.last}} {
			if err := s.pastPagesIn(ctx, half, do); err != nil {
				return err
			}
		}
		return nil
	}
	// A fault of the server looks like damage to every page, and to none at all too.
	if do(duePages{r.first, r.first}) != nil || s.DamagedPages() == damagedPagesMost {
		return err
	}
	now := s.now()
	s.damage.addPage(r.first, now)
	s.log.Error("the database cannot read a page of the due-out journal: the mails on it are left out, the others go on", "page", r.first, "again_in", damageKept, "error", err)
	if _, ill := s.q.get("damaged_page_note").ExecContext(ctx, r.first, s.t(&now), storable(err.Error())); ill != nil {
		s.log.Error("a damaged page was not noted in the database", "page", r.first, "error", ill)
	}
	if ill := s.dialect.dueRoom(ctx, true); ill != nil {
		s.log.Error("new mail may meet the damaged page and be refused", "page", r.first, "error", ill)
	}
	return nil
}

// forgetDamage forgets what nobody has met since.
func (s *Store) forgetDamage(ctx context.Context, before time.Time) error {
	if _, err := s.q.get("damage_forget").ExecContext(ctx, s.t(&before)); err != nil {
		return s.fault(err)
	}
	res, err := s.q.get("damaged_page_forget").ExecContext(ctx, s.t(&before))
	if err != nil {
		return s.fault(err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	var left int
	if err := s.q.get("damaged_page_count").GetContext(ctx, &left); err != nil || left > 0 {
		return s.fault(err)
	}
	return s.fault(s.dialect.dueRoom(ctx, false))
}

// dueServersPast is DueServers where a page cannot be read.
func (s *Store) dueServersPast(ctx context.Context, why error) (names []string, err error) {
	err = s.pastPages(ctx, why, func(r duePages) error {
		some, err := s.dialect.dueServersOn(ctx, r)
		names = append(names, some...)
		return err
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

// dueRow is where a mail stands in the order of a claim.
type dueRow struct {
	ID       uuid.UUID
	Team     string
	Priority int16
	RunAt    dbTime `db:"run_at"`
	Rank     int    // in its team
}

// claimablePast is claimable where a page cannot be read: each team's first, then each team's
// second, and so on, until there are enough.
func (s *Store) claimablePast(ctx context.Context, p claimPage, why error) ([]uuid.UUID, error) {
	var all []dueRow
	err := s.pastPages(ctx, why, func(r duePages) error {
		some, err := s.dialect.claimableOn(ctx, r, p)
		all = append(all, some...)
		return err
	})
	if err != nil {
		return nil, err
	}
	inTurn(all)
	ids := make([]uuid.UUID, min(p.max, len(all)))
	for i := range ids {
		ids[i] = all[i].ID
	}
	return ids, nil
}

// inTurn sets ranks and sorts by them.
func inTurn(all []dueRow) {
	slices.SortFunc(all, func(a, b dueRow) int {
		if a.Priority != b.Priority {
			return int(b.Priority) - int(a.Priority)
		}
		return a.RunAt.Compare(b.RunAt.Time)
	})
	had := map[string]int{}
	for i := range all {
		had[all[i].Team]++
		all[i].Rank = had[all[i].Team]
	}
	slices.SortStableFunc(all, func(a, b dueRow) int { return a.Rank - b.Rank })
}

// ownedPast is Owned where a page cannot be read.
func (s *Store) ownedPast(ctx context.Context, r ReplicaID, why error) (out []Ownership, err error) {
	err = s.pastPages(ctx, why, func(pages duePages) error {
		some, err := s.dialect.ownedOn(ctx, pages, r)
		out = append(out, some...)
		return err
	})
	return out, err
}

// ownerlessPast is ownerless where a page cannot be read.
func (s *Store) ownerlessPast(ctx context.Context, me ReplicaID, why error) (gone []int64, ids []uuid.UUID, err error) {
	if err := s.tx(ctx, func(tx *sqlx.Tx) error { return s.dialect.bury(ctx, tx, me) }); err != nil {
		return nil, nil, err
	}
	err = s.pastPages(ctx, why, func(pages duePages) error {
		some, err := s.dialect.ownerlessOn(ctx, pages)
		for _, x := range some {
			gone, ids = append(gone, x.Owner), append(ids, x.ID)
		}
		return err
	})
	slices.Sort(gone)
	return slices.Compact(gone), ids, err
}

// ownerlessRow is a mail of a replica that is gone.
type ownerlessRow struct {
	ID    uuid.UUID
	Owner int64
}
