package store

import (
	"cmp"
	"context"
	"encoding/json"
	"math"
	"slices"

	"github.com/google/uuid"
)

// claimedColumns is the beginning of claimedRow, from mail m and the row q of due.
const claimedColumns = `m.id, m.team, m.mail_server, m.mode, m.kind, m.priority, m.sender, m.message_id, m.size_bytes, m.utf8, m.recipients, m.create_time,
  m.expire_time, m.reference, m.caller, m.trace, m.raw, m.layout, q.claim, q.run_at, q.attempts, q.crashes`

// claimedRow is a claimed mail as the statements return it.
type claimedRow struct {
	ID                uuid.UUID
	Team              string
	MailServer        string `db:"mail_server"`
	Mode              Mode
	Kind              Kind
	Priority          int16
	Sender            string
	MessageID         string `db:"message_id"`
	SizeBytes         int64  `db:"size_bytes"`
	UTF8              bool
	Recipients        []byte
	CreateTime        dbTime `db:"create_time"`
	ExpireTime        dbTime `db:"expire_time"`
	Reference         string
	Caller            *string
	Trace             []byte
	Raw               []byte
	Layout            []byte
	Claim             int64
	RunAt             dbTime `db:"run_at"`
	Attempts          int
	Crashes           int
	Begun             bool
	PossibleDuplicate bool `db:"possible_duplicate"`
	Progress          []byte
	DataAt            dbTime `db:"data_at"`
	HoldUnknown       bool   `db:"hold_unknown"`
}

func (r *claimedRow) claimed() (*Claimed, error) {
	c := &Claimed{ID: r.ID, Team: r.Team, MailServer: r.MailServer, Mode: r.Mode, Kind: r.Kind, Priority: r.Priority, From: r.Sender,
		MessageID: r.MessageID, SizeBytes: r.SizeBytes, UTF8: r.UTF8, Attempts: r.Attempts, Crashes: r.Crashes, Begun: r.Begun, CreateTime: r.CreateTime.Time,
		RunAt: r.RunAt.Time, ExpireTime: r.ExpireTime.ptr(), PossibleDuplicate: r.PossibleDuplicate, HoldUnknown: r.HoldUnknown, Marked: !r.DataAt.IsZero(), Raw: r.Raw, Layout: r.Layout,
		Claim: r.Claim}
	c.Reference, c.Trace = r.Reference, r.Trace
	if r.Caller != nil {
		c.Caller = *r.Caller
	}
	if err := json.Unmarshal(r.Recipients, &c.Recipients); err != nil {
		return nil, err
	}
	if len(r.Progress) > 0 {
		if err := json.Unmarshal(r.Progress, &c.Progress); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// claimedOf reads the rows of mails that r has now. One that cannot be read is settled as
// failed with the reason, or as unknown when its dot may have left; the others go on.
func (s *Store) claimedOf(r ReplicaID, rows []claimedRow) []*Claimed {
	cs := make([]*Claimed, 0, len(rows))
	for i := range rows {
		c, err := rows[i].claimed()
		if err != nil {
			s.setAside(r, &rows[i], err)
			continue
		}
		cs = append(cs, c)
	}
	inOrder(cs) // RETURNING promises none
	return cs
}

func inOrder(cs []*Claimed) {
	slices.SortFunc(cs, func(a, b *Claimed) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), a.RunAt.Compare(b.RunAt), slices.Compare(a.ID[:], b.ID[:]))
	})
}

// setAside settles a mail whose row cannot be read: with an outcome, or nobody would ever look
// at it.
func (s *Store) setAside(r ReplicaID, row *claimedRow, why error) {
	st := &Settlement{ID: row.ID, Owner: r, Claim: row.Claim, Kind: settleUnreadable, Status: MailFailed, LastError: unreadable(why)}
	if !row.DataAt.IsZero() {
		st.Status = MailUnknown
	}
	s.log.Error("a mail cannot be read: set aside", "mail_id", row.ID, "status", st.Status, "error", why)
	s.Settle(st)
}

// unreadable is what the journal says of a mail whose row cannot be read.
func unreadable(why error) string {
	return "the journal's row of this mail cannot be read: " + why.Error()
}

// DueServers names the mail servers that have claimable mail now, deleted and unavailable ones
// too.
func (s *Store) DueServers(ctx context.Context) ([]string, error) {
	names, err := s.dialect.dueServers(ctx)
	if damaged(err) {
		names, err = s.dueServersPast(ctx, err)
	}
	return names, s.fault(err)
}

// Claim makes up to max due mails of a mail server r's: max when that many are due. Every team
// that waits gets an equal share of the page, its mails by priority, then by due time; where
// there are more teams than max, others take part each time. Only mails of a priority above the
// given one are looked at. No two replicas ever get the same mail, and a replica that was taken
// for dead gets none.
//
// After an error mails may be r's that it does not know of: see Owned.
func (s *Store) Claim(ctx context.Context, r ReplicaID, server string, max int, above int16) ([]*Claimed, error) {
	defer s.interactive.bulkTurn(ctx)()
	var out []*Claimed
	for want := max; want > 0; {
		rows, err := s.claimPage(ctx, r, claimPage{server, want, above, s.damage.list(s.now())})
		if err != nil && len(out) == 0 {
			return nil, err
		}
		out = append(out, s.claimedOf(r, rows)...)
		if err != nil || !moreWaits(rows, want) {
			break
		}
		want -= len(rows)
	}
	inOrder(out)
	return out, nil
}

// claimPage is what a claim is asked for: up to max mails of a mail server of a priority above
// the given one, without those in except.
type claimPage struct {
	server string
	max    int
	above  int16
	except []uuid.UUID
}

// claimPage is one page of a claim. After an error the rows that it returns are r's.
func (s *Store) claimPage(ctx context.Context, r ReplicaID, p claimPage) ([]claimedRow, error) {
	rows, err := s.dialect.claimPage(ctx, r, p)
	if !rowFault(err) {
		return rows, err
	}
	ids, err := s.dialect.claimable(ctx, r, p)
	if damaged(err) {
		ids, err = s.claimablePast(ctx, p, err)
	}
	if err != nil {
		return nil, s.fault(err)
	}
	rows = nil
	_, err = s.past(ctx, ids, func(ids []uuid.UUID) error {
		got, err := s.dialect.claimThese(ctx, r, p.server, ids)
		rows = append(rows, got...)
		return err
	})
	return rows, err
}

// moreWaits says whether a page that is not full may have left something: a team had more than
// its share, and others less.
func moreWaits(rows []claimedRow, want int) bool {
	teams, most := map[string]int{}, 0
	for i := range rows {
		teams[rows[i].Team]++
		most = max(most, teams[rows[i].Team])
	}
	return len(rows) > 0 && len(rows) < want && most >= (want+len(teams)-1)/len(teams)
}

// AnyPriority is below every priority.
const AnyPriority = math.MinInt16
