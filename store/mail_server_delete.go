package store

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// ServerVersions reads the versions of the mail servers of these names, also of deleted ones.
func (s *Store) ServerVersions(ctx context.Context, names []string) (map[string]int64, error) {
	list, err := json.Marshal(names)
	if err != nil {
		return nil, err
	}
	var rows []struct {
		Name    string
		Version int64
	}
	if err := s.q.get("server_versions").SelectContext(ctx, &rows, string(list)); err != nil {
		return nil, s.fault(err)
	}
	out := make(map[string]int64, len(rows))
	for _, r := range rows {
		out[r.Name] = r.Version
	}
	return out, nil
}

// HoldDeleted holds what waits at a mail server that is deleted, and returns how many mails
// that were. Deleting it has held what waited then; this is for what was being sent.
func (s *Store) HoldDeleted(ctx context.Context, server string) (held int, err error) {
	blocked := false
	err = s.tx(ctx, func(tx *sqlx.Tx) error {
		held, blocked = 0, false
		m, err := s.lockServer(ctx, tx, Everything, server, 0)
		if err != nil || m.DeleteTime == nil {
			return err
		}
		var teams map[string]int
		teams, blocked, err = s.holdWaiting(ctx, tx, server)
		held = sum(teams)
		return err
	})
	if err == nil && blocked {
		var taken DeletedMail
		taken, err = s.takeDeleted(ctx, server, Audit{Actor: "maildispatchd", Action: "HoldDeleted", Reason: deletedText})
		held = taken.Held
	}
	return held, err
}

// holdWaiting holds what waits at a mail server, inside tx, and tells who watches in the same
// statement. On PostgreSQL what a younger transaction wrote is left to the next hold. blocked:
// one of the mails is damaged, and none is held; takeDeleted, which goes past it, has to do
// that.
func (s *Store) holdWaiting(ctx context.Context, tx *sqlx.Tx, server string) (held map[string]int, blocked bool, err error) {
	if _, err := tx.ExecContext(ctx, "savepoint hold"); err != nil {
		return nil, false, err
	}
	var rows []struct {
		Team  string
		Mails int
	}
	err = s.q.in(ctx, tx, "server_hold").SelectContext(ctx, &rows, server, deletedText)
	if rowFault(err) {
		_, err = tx.ExecContext(ctx, "rollback to savepoint hold")
		return nil, true, err
	}
	if err != nil {
		return nil, false, err
	}
	held = map[string]int{}
	for _, r := range rows {
		held[r.Team] += r.Mails
	}
	return held, false, nil
}

func sum(of map[string]int) (n int) {
	for _, x := range of {
		n += x
	}
	return n
}

const deletedText = "held: its mail server was deleted"

// takeDeleted holds what replicas have of a mail server that was just deleted and have not
// marked, and what they gave back meanwhile. It is taken from them as a person's stop takes it.
func (s *Store) takeDeleted(ctx context.Context, server string, a Audit) (DeletedMail, error) {
	alone := map[uuid.UUID]bool{} // a mail may be decided about more than once
	f := MailFilter{MailServer: server, Statuses: []MailStatus{MailQueued, MailSending, MailDeferred, MailPartiallySent}}
	matched, held, _, err := s.Modify(ctx, Everything, nil, &f, false, a, func(m *Mail, its *MailServer) (*Change, error) {
		if m.DueTime == nil || its != nil && its.DeleteTime == nil {
			alone[m.ID] = true
			return nil, nil // it waits for a person, or somebody has taken the deletion back
		}
		return &Change{Kind: SettlePark, Status: MailHeld, ResumeAt: *m.DueTime, Attempts: m.Attempts, PossibleDuplicate: m.PossibleDuplicate,
			LastError: deletedText, Stops: true}, nil
	})
	return DeletedMail{Held: held, Leaving: max(0, matched-held-len(alone))}, err
}
