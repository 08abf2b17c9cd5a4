package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// A row that the database cannot read or write makes the whole statement fail that meets it,
// and the error does not name the row. So every statement over many mails comes in two: which
// mails it is about, and what is done to those with given ids. Where the second meets damage,
// past repeats it for halves until the damaged rows are alone: all others have been done by
// then. A damaged mail is remembered, and left out of what the first one finds.

// ErrDamaged: the database can read or write no row of this mail.
var ErrDamaged = errors.New("the database cannot read or write this mail: it is damaged, and `maildispatchd doctor` names it")

// damageKept is for how long a damaged mail is left out before it is tried again: somebody may
// have mended it.
const damageKept = 10 * time.Minute

// damageTries is how often one mail meets damage before it is taken for damaged.
const damageTries = 3

// damageTold is for how long the database says which mails were met damaged.
const damageTold = time.Hour

// damage remembers the mails and pages that this process has found damaged. All methods may be
// called from any goroutine.
type damage struct {
	mu    sync.Mutex // guards everything below; a leaf
	known map[uuid.UUID]time.Time
	pages map[int64]time.Time // of the due-out journal
}

// list is the mails to leave out, in the order of their ids.
func (d *damage) list(now time.Time) []uuid.UUID {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := make([]uuid.UUID, 0, len(d.known))
	for id, found := range d.known {
		if now.Sub(found) >= damageKept {
			delete(d.known, id)
			continue
		}
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

// without is ids less the mails to leave out.
func (d *damage) without(ids []uuid.UUID, now time.Time) []uuid.UUID {
	out := set(d.list(now))
	return slices.DeleteFunc(slices.Clone(ids), func(id uuid.UUID) bool { return out[id] })
}

func (d *damage) add(id uuid.UUID, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = map[uuid.UUID]time.Time{}
	}
	d.known[id] = now
}

// DamagedMails is how many mails this process leaves out because the database cannot read or
// write them.
func (s *Store) DamagedMails() int { return len(s.damage.list(s.now())) }

// rowFault says whether one row may be to blame for the failure of a statement over many.
func rowFault(err error) bool { return err != nil && (damaged(err) || dataFault(err)) }

// past does a statement to the mails with ids, and goes past those that the database cannot
// read or write: they are returned, remembered and told. do is one transaction or changes
// nothing when it fails. Any other fault ends it; what was done before that stays.
func (s *Store) past(ctx context.Context, ids []uuid.UUID, do func(ids []uuid.UUID) error) (bad []uuid.UUID, err error) {
	return s.pastWith(ctx, ids, func() error { return nil }, do)
}

// pastWith is past of a statement that writes the same values to all mails. control tries them
// on no mail: where that fails too, the values are to blame and no mail is.
func (s *Store) pastWith(ctx context.Context, ids []uuid.UUID, control func() error, do func(ids []uuid.UUID) error) (bad []uuid.UUID, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	err = do(ids)
	// Not the row may be damaged but the page that was to take its new version, which is
	// another one next time.
	for try := 1; try < damageTries && len(ids) == 1 && damaged(err); try++ {
		err = do(ids)
	}
	if !rowFault(err) {
		return nil, err
	}
	// A fault of the server looks like damage to every row. Then no mail is to blame.
	if _, ill := s.q.get("damage_control").ExecContext(ctx, uuid.New()); ill != nil {
		return nil, s.fault(err)
	}
	if ill := control(); ill != nil {
		return nil, s.fault(ill)
	}
	if len(ids) == 1 {
		s.foundDamage(ctx, ids[0], err)
		return ids, nil
	}
	for _, half := range [][]uuid.UUID{ids[:len(ids)/2], ids[len(ids)/2:]} {
		found, err := s.pastWith(ctx, half, control, do)
		bad = append(bad, found...)
		if err != nil {
			return bad, err
		}
	}
	return bad, nil
}

// foundDamage remembers a mail and tells of it: the log now, the doctor out of the database.
func (s *Store) foundDamage(ctx context.Context, id uuid.UUID, why error) {
	now := s.now()
	s.damage.add(id, now)
	s.log.Error("the database cannot read or write a mail: it is left out, and nothing is done to it", "mail_id", id, "again_in", damageKept, "error", why)
	if _, err := s.q.get("damage_note").ExecContext(ctx, id, s.t(&now), storable(why.Error())); err != nil {
		s.log.Error("a damaged mail was not noted in the database", "mail_id", id, "error", err)
	}
}
