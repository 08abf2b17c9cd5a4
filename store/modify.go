package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

const (
	// ids that a filter selects at a time: what it searches through is searched again for each
	modifyPage     = 10000
	modifyChunk    = 500 // mails of one transaction
	modifyFailures = 1000
	// between looks at mails that a replica is writing to, at most
	modifyPause = 100 * time.Millisecond
)

// Decide says what a person's word makes of a mail. server is the mail's own mail server, nil
// if there is none of that name. A nil Change leaves the mail alone. An error is a failure of
// that mail only.
//
// It is called inside a transaction, while a connection of the pool is held. It must not ask
// the store: callers that hold one connection each and wait for a second one stop the whole
// service. That is why it is given everything it may look at, and no context.
//
// A mail that a replica has and has not marked comes as it would be without its owner, and with
// Owner set. Only a Change that Stops is done to it.
type Decide func(m *Mail, server *MailServer) (*Change, error)

// Modify changes due mails by people's word: those with the ids, or those that f selects.
// decide says what becomes of each. Mail whose dot is marked is left alone, and so is whatever
// a replica has unless the Change stops it: then the replica's token ends in the same
// transaction, so that its mark is refused and nothing that it writes later counts. Each chunk
// of 500 is one transaction, with an audit row for each team that it touches. dryRun counts
// only, in the same way. When ctx ends, the chunks before stay changed, and the same call again
// goes on where decide or f leaves alone what has been changed.
//
// failures (the first 1000): ErrSending, ErrFinished (ids of the archive), ErrNotFound,
// ErrDamaged, or decide's error.
func (s *Store) Modify(ctx context.Context, sc Scope, ids []uuid.UUID, f *MailFilter, dryRun bool, a Audit, decide Decide) (matched, changed int, failures []ModifyFailure, err error) {
	fail := func(id uuid.UUID, err error) {
		if len(failures) < modifyFailures {
			failures = append(failures, ModifyFailure{id, err})
		}
	}
	all := func(ids []uuid.UUID) error {
		for chunk := range slices.Chunk(ids, modifyChunk) {
			n, fs, err := s.modifyChunk(ctx, chunk, dryRun, a, decide)
			changed += n
			for _, x := range fs {
				fail(x.ID, x.Err)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if f != nil {
		for after := (Cursor{}); ; {
			q, args := s.dueSelect("d.id", sc, f, after, modifyPage)
			var ids []uuid.UUID
			err := s.fault(s.read.SelectContext(ctx, &ids, s.read.Rebind(q), args...))
			if err == nil {
				matched += len(ids)
				err = all(ids)
			}
			if err != nil || len(ids) < modifyPage {
				return matched, changed, failures, err
			}
			after.ID = ids[len(ids)-1]
		}
	}
	had, err := s.filtered(ctx, sc, MailFilter{}, set(ids))
	if err != nil {
		return 0, 0, nil, err
	}
	var due []uuid.UUID
	seen := map[uuid.UUID]bool{}
	for _, id := range ids {
		switch m := had[id]; {
		case seen[id]:
		case m == nil:
			fail(id, ErrNotFound)
		case m.Archived:
			matched++
			fail(id, ErrFinished)
		default:
			matched++
			due = append(due, id)
		}
		seen[id] = true
	}
	err = all(due)
	return matched, changed, failures, err
}

func set(ids []uuid.UUID) map[uuid.UUID]bool {
	m := make(map[uuid.UUID]bool, len(ids))
	for _, id := range ids {
		m[id] = true
	}
	return m
}

// modifyChunk changes due mails in one transaction, and in further ones those that could not be
// had in it.
func (s *Store) modifyChunk(ctx context.Context, ids []uuid.UUID, dryRun bool, a Audit, decide Decide) (changed int, failures []ModifyFailure, err error) {
	for pause := time.Duration(0); ; pause = min(2*pause+time.Millisecond, modifyPause) {
		var left []uuid.UUID
		var tried []change
		// Around one transaction: what an earlier one has done is not done again.
		bad, err := s.pastWith(ctx, ids, func() error { return s.tryChanges(ctx, a, tried) }, func(ids []uuid.UUID) error {
			cs, fs, rest, err := s.modifyOnce(ctx, ids, dryRun, a, decide)
			if tried = cs; err != nil {
				return err // it was rolled back
			}
			changed, failures, left = changed+len(cs), append(failures, fs...), append(left, rest...)
			return nil
		})
		for _, id := range bad {
			failures = append(failures, ModifyFailure{id, ErrDamaged})
		}
		if err != nil {
			return changed, failures, err
		}
		if len(left) == 0 {
			return changed, failures, nil
		}
		now, err := s.filtered(ctx, Everything, MailFilter{}, set(left))
		if err != nil {
			return changed, failures, err
		}
		ids = ids[:0:0]
		for _, id := range left {
			switch m := now[id]; {
			case m == nil, m.Archived:
				failures = append(failures, ModifyFailure{id, ErrFinished})
			case m.Marked:
				failures = append(failures, ModifyFailure{id, ErrSending})
			default:
				ids = append(ids, id)
			}
		}
		if len(ids) == 0 {
			return changed, failures, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return changed, failures, ctx.Err()
		}
	}
}

// serversOf reads the mail servers of mails in one statement, inside tx.
func (s *Store) serversOf(ctx context.Context, tx *sqlx.Tx, ms []*Mail) (map[string]*MailServer, error) {
	servers := map[string]*MailServer{}
	var names []string
	for _, m := range ms {
		if _, known := servers[m.MailServer]; !known {
			servers[m.MailServer] = nil
			names = append(names, m.MailServer)
		}
	}
	if len(names) == 0 {
		return servers, nil
	}
	b, err := json.Marshal(names)
	if err != nil {
		return nil, err
	}
	var rows []serverRow
	if err := s.q.in(ctx, tx, "modify_servers").SelectContext(ctx, &rows, string(b)); err != nil {
		return nil, s.fault(err)
	}
	for i := range rows {
		if servers[rows[i].Name], err = rows[i].server(); err != nil {
			return nil, err
		}
	}
	return servers, nil
}

// change is what is to become of a mail.
type change struct {
	m *Mail
	c *Change
}

func decideAll(ms []*Mail, servers map[string]*MailServer, decide Decide) (changes []change, failures []ModifyFailure) {
	for _, m := range ms {
		if m.Unreadable != nil {
			failures = append(failures, ModifyFailure{m.ID, m.Unreadable})
			continue
		}
		switch c, err := decide(m, servers[m.MailServer]); {
		case m.Owner != 0 && (c == nil || !c.Stops):
			failures = append(failures, ModifyFailure{m.ID, ErrSending})
		case err != nil:
			failures = append(failures, ModifyFailure{m.ID, err})
		case c != nil:
			changes = append(changes, change{m, c})
		}
	}
	return changes, failures
}

// modifyOnce is one transaction: it locks the mails, decides, writes and audits. left are those
// that it could not lock: they are marked or finished, a replica is writing to them just now,
// or a younger transaction has changed them.
func (s *Store) modifyOnce(ctx context.Context, ids []uuid.UUID, dryRun bool, a Audit, decide Decide) (changes []change, failures []ModifyFailure, left []uuid.UUID, err error) {
	err = s.workTx(ctx, func(tx *sqlx.Tx) error {
		changes, failures, left = nil, nil, nil
		locked, err := s.lockDue(ctx, tx, ids, true)
		if err != nil {
			return err
		}
		fresh := make([]*Mail, 0, len(ids))
		for _, id := range ids {
			if m := locked[id]; m != nil {
				fresh = append(fresh, m)
			} else {
				left = append(left, id)
			}
		}
		servers, err := s.serversOf(ctx, tx, fresh)
		if err != nil {
			return err
		}
		changes, failures = decideAll(fresh, servers, decide)
		if len(changes) == 0 || dryRun {
			return nil
		}
		if err := s.applyChanges(ctx, tx, changes); err != nil {
			return err
		}
		return s.auditTeams(ctx, tx, a, changes)
	})
	return changes, failures, left, err
}

// errTried takes back what was only tried.
var errTried = errors.New("only tried")

// tryChanges writes what changes have in common to a mail that is not there, with the audit
// row, and takes it back. Its error says that the values are to blame and not a mail.
func (s *Store) tryChanges(ctx context.Context, a Audit, changes []change) error {
	if len(changes) == 0 {
		return nil
	}
	err := s.workTx(ctx, func(tx *sqlx.Tx) error {
		c := *changes[0].c
		c.Progress, c.MailServer, c.Unguards = &Progress{}, "", false
		// another fault is that no such mail is there
		if err := s.dialect.writeChanges(ctx, tx, []change{{&Mail{ID: uuid.New()}, &c}}); rowFault(err) {
			return err
		}
		if err := s.auditInsert(ctx, tx, s.ready, a, changes[0].m.Team, "", nil); err != nil {
			return err
		}
		return errTried
	})
	if errors.Is(err, errTried) {
		return nil
	}
	return err
}

// ModifyMail changes one due mail by a person's word and returns it as that left it; the audit
// row in the same transaction names it. Errors: ErrNotFound, also outside the scope,
// ErrSending, ErrFinished, ErrDamaged, or decide's own. Nothing is written then.
func (s *Store) ModifyMail(ctx context.Context, sc Scope, id uuid.UUID, a Audit, decide Decide) (*Mail, error) {
	had, err := s.Mail(ctx, sc, id)
	switch {
	case err != nil:
		return nil, err
	case had.Archived:
		return nil, ErrFinished
	}
	var out *Mail
	err = s.workTx(ctx, func(tx *sqlx.Tx) error {
		locked, err := s.lockDue(ctx, tx, []uuid.UUID{id}, false)
		if err != nil {
			return err
		}
		m := locked[id]
		if m == nil {
			return s.whyNotLocked(ctx, tx, id)
		}
		servers, err := s.serversOf(ctx, tx, []*Mail{m})
		if err != nil {
			return err
		}
		if m.Unreadable != nil {
			return m.Unreadable
		}
		c, err := decide(m, servers[m.MailServer])
		if err != nil {
			return err
		}
		if err := s.applyChanges(ctx, tx, []change{{m, c}}); err != nil {
			return err
		}
		if err := s.auditDetail(ctx, tx, a, m.Team, id.String(), c.Detail); err != nil {
			return err
		}
		out, err = s.mailFrom(ctx, tx, Everything, id)
		return err
	})
	if damaged(err) {
		s.foundDamage(ctx, id, err)
		return nil, ErrDamaged
	}
	return out, err
}

func (s *Store) whyNotLocked(ctx context.Context, tx *sqlx.Tx, id uuid.UUID) error {
	switch m, err := s.mailFrom(ctx, tx, Everything, id); {
	case errors.Is(err, ErrNotFound), err == nil && m.Archived:
		return ErrFinished
	case err != nil:
		return err
	case m.Owner != 0:
		return ErrSending
	}
	return errOvertaken // or let go just now: to be had in the next transaction
}

// lockDue reads mails for change: those that nobody has, with owned also those that a replica
// has and has not marked, and of both those that no younger transaction has changed. For what a
// replica has it never waits: the replica's writes wait for us, and both would wait for ever.
func (s *Store) lockDue(ctx context.Context, tx *sqlx.Tx, ids []uuid.UUID, owned bool) (map[uuid.UUID]*Mail, error) {
	b, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	statements := []string{"modify_lock"}
	if owned {
		statements = append(statements, "modify_lock_owned")
	}
	locked := make(map[uuid.UUID]*Mail, len(ids))
	for _, name := range statements {
		var rows []struct {
			mailViewRow
			// PostgreSQL: by how many transactions ours is younger than the one that wrote the
			// row
			Lead int64
		}
		if err := s.q.in(ctx, tx, name).SelectContext(ctx, &rows, string(b)); err != nil {
			return nil, err
		}
		for i := range rows {
			if rows[i].Lead < 0 {
				continue
			}
			owner := rows[i].Owner.Int64
			rows[i].Owner = sql.NullInt64{}
			m, err := rows[i].mail()
			if err != nil {
				return nil, err
			}
			m.Owner = ReplicaID(owner)
			locked[m.ID] = m
		}
	}
	return locked, nil
}

// applyChanges writes the changes of locked mails.
func (s *Store) applyChanges(ctx context.Context, tx *sqlx.Tx, changes []change) error {
	for i, x := range changes {
		if x.c.Progress == nil {
			c := *x.c
			c.Progress = &x.m.Progress
			changes[i].c = &c
		}
	}
	if err := s.dialect.writeChanges(ctx, tx, changes); err != nil {
		return err
	}
	if err := s.unguard(ctx, tx, changes); err != nil {
		return err
	}
	return s.applyMoves(ctx, tx, changes)
}

// unguard forgets that the guard has held mails which are let go.
func (s *Store) unguard(ctx context.Context, tx *sqlx.Tx, changes []change) error {
	var ids []uuid.UUID
	for _, x := range changes {
		if x.c.Unguards {
			ids = append(ids, x.m.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	b, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	_, err = s.q.in(ctx, tx, "unguard").ExecContext(ctx, string(b))
	return err
}

// applyMoves lets mails go on through other mail servers.
func (s *Store) applyMoves(ctx context.Context, tx *sqlx.Tx, changes []change) error {
	to := map[string][]uuid.UUID{}
	for _, x := range changes {
		if x.c.MailServer != "" {
			to[x.c.MailServer] = append(to[x.c.MailServer], x.m.ID)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(to)) {
		var locked string
		err := s.q.in(ctx, tx, "move_target").GetContext(ctx, &locked, name)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrServerUnavailable
		}
		if err != nil {
			return err
		}
		b, err := json.Marshal(to[name])
		if err != nil {
			return err
		}
		for _, st := range []string{"move_due", "move_mail"} {
			if _, err := s.q.in(ctx, tx, st).ExecContext(ctx, name, string(b)); err != nil {
				return err
			}
		}
	}
	return nil
}
