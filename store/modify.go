package store

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

const (
	modifyChunk    = 500
	modifyFailures = 100
)

// Modify changes due mails by people's word: those with the ids, or those that f selects. decide says what becomes of each; nil leaves it alone, an error
// is a failure of that mail. Only mails that nobody is sending are changed; each chunk of 500 is one transaction with its audit row. dryRun counts only.
//
// failures (the first 100): ErrSending, ErrFinished (ids of the archive), ErrNotFound, or decide's error.
func (s *Store) Modify(ctx context.Context, sc Scope, ids []uuid.UUID, f *MailFilter, dryRun bool, a Audit, decide func(*Mail) (*Change, error)) (matched, changed int, failures []ModifyFailure, err error) {
	fail := func(id uuid.UUID, err error) {
		if len(failures) < modifyFailures {
			failures = append(failures, ModifyFailure{id, err})
		}
	}
	one := func(ms []*Mail) error {
		if len(ms) == 0 {
			return nil
		}
		matched += len(ms)
		n, fs, err := s.modifyChunk(ctx, ms, dryRun, a, decide)
		changed += n
		for _, x := range fs {
			fail(x.ID, x.Err)
		}
		return err
	}
	if f != nil {
		for after := (Cursor{}); ; {
			ms, err := s.ListDue(ctx, sc, *f, after, modifyChunk)
			if err == nil {
				err = one(ms)
			}
			if err != nil || len(ms) < modifyChunk {
				return matched, changed, failures, err
			}
			after.ID = ms[len(ms)-1].ID
		}
	}
	seen := map[uuid.UUID]bool{}
	var ms []*Mail
	for _, id := range ids {
		if seen[id] {
			continue
		}
		seen[id] = true
		m, err := s.Mail(ctx, sc, id)
		switch {
		case errors.Is(err, ErrNotFound):
			fail(id, ErrNotFound)
			continue
		case err != nil:
			return matched, changed, failures, err
		case m.Archived:
			matched++
			fail(id, ErrFinished)
			continue
		}
		if ms = append(ms, m); len(ms) == modifyChunk {
			if err := one(ms); err != nil {
				return matched, changed, failures, err
			}
			ms = nil
		}
	}
	err = one(ms)
	return matched, changed, failures, err
}

func (s *Store) modifyChunk(ctx context.Context, ms []*Mail, dryRun bool, a Audit, decide func(*Mail) (*Change, error)) (changed int, failures []ModifyFailure, err error) {
	for len(ms) > 0 {
		var again []*Mail
		n, fs, err := s.modifyOnce(ctx, ms, &again, dryRun, a, decide)
		changed, failures = changed+n, append(failures, fs...)
		if err != nil {
			return changed, failures, err
		}
		ms = again
	}
	return changed, failures, nil
}

// modifyOnce is one transaction. Mails that a younger transaction has changed are left for the next one.
func (s *Store) modifyOnce(ctx context.Context, ms []*Mail, again *[]*Mail, dryRun bool, a Audit, decide func(*Mail) (*Change, error)) (changed int, failures []ModifyFailure, err error) {
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		changed, failures, *again = 0, nil, nil
		for _, m := range ms {
			fresh, err := s.lockDue(ctx, tx, m.ID)
			var c *Change
			switch {
			case errors.Is(err, errOvertaken):
				*again = append(*again, m)
				continue
			case errors.Is(err, ErrNotFound):
				err = ErrFinished
			case err == nil && fresh.Owner != 0:
				err = ErrSending
			case err == nil:
				c, err = decide(fresh)
			default:
				return err
			}
			if err != nil {
				failures = append(failures, ModifyFailure{m.ID, err})
				continue
			}
			if c == nil {
				continue
			}
			changed++
			if !dryRun {
				if err := s.applyChange(ctx, tx, fresh, c); err != nil {
					return err
				}
			}
		}
		if dryRun || changed == 0 {
			return nil
		}
		return s.audit(ctx, tx, a, ms[0].Team, strconv.Itoa(changed)+" mails from "+ms[0].ID.String(), nil, nil)
	})
	return changed, failures, err
}

// ModifyMail changes one due mail by a person's word and returns it as that left it; the audit row in the same transaction names it. Errors: ErrNotFound,
// also outside the scope, ErrSending, ErrFinished, or decide's own. Nothing is written then.
func (s *Store) ModifyMail(ctx context.Context, sc Scope, id uuid.UUID, a Audit, decide func(*Mail) (*Change, error)) (*Mail, error) {
	had, err := s.Mail(ctx, sc, id)
	switch {
	case err != nil:
		return nil, err
	case had.Archived:
		return nil, ErrFinished
	}
	var out *Mail
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		m, err := s.lockDue(ctx, tx, id)
		switch {
		case errors.Is(err, ErrNotFound):
			return ErrFinished
		case err != nil:
			return err
		case m.Owner != 0:
			return ErrSending
		}
		c, err := decide(m)
		if err != nil {
			return err
		}
		if err := s.applyChange(ctx, tx, m, c); err != nil {
			return err
		}
		if err := s.auditDetail(ctx, tx, a, m.Team, id.String(), c.Detail); err != nil {
			return err
		}
		out, err = s.mailFrom(ctx, tx, Everything, id)
		return err
	})
	return out, err
}

// lockDue reads a due mail for change.
func (s *Store) lockDue(ctx context.Context, tx *sqlx.Tx, id uuid.UUID) (*Mail, error) {
	q := "select " + dueColumns + " from due d join mail m on m.id = d.id where d.id = ?"
	if s.dialect == postgres {
		q = "select " + dueColumns + ", age(d.xmin) as lead from due d join mail m on m.id = d.id where d.id = ? for update of d"
	}
	var r struct {
		mailViewRow
		Lead int64 // by how many transactions ours is younger than the one that wrote the row
	}
	if err := tx.GetContext(ctx, &r, tx.Rebind(q), id); err != nil {
		return nil, s.notFound(err)
	}
	if r.Lead < 0 {
		return nil, errOvertaken
	}
	return r.mail()
}

func (s *Store) applyChange(ctx context.Context, tx *sqlx.Tx, m *Mail, c *Change) error {
	p := c.Progress
	if p == nil {
		p = &m.Progress
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if s.dialect == postgres {
		if _, err := s.q.in(ctx, tx, "change_add").ExecContext(ctx, m.ID, c.Status); err != nil {
			return err
		}
	}
	if c.Kind == SettleArchive {
		if _, err := s.q.in(ctx, tx, "due_delete").ExecContext(ctx, m.ID); err != nil {
			return err
		}
		_, err := s.q.in(ctx, tx, "archive_insert").ExecContext(ctx, m.ID, m.Team, m.MailServer, s.nowArg(), c.Status, c.Attempts, c.PossibleDuplicate, c.LastError, string(b))
		return err
	}
	var runAt any
	if c.Kind == SettleRetry {
		runAt = s.t(&c.RunAt)
	}
	_, err = s.q.in(ctx, tx, "due_modify").ExecContext(ctx, c.Status, runAt, s.t(&c.ResumeAt), c.Attempts, string(b), c.PossibleDuplicate, c.LastError, m.ID)
	return err
}
