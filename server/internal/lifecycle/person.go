package lifecycle

import (
	"fmt"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// Refusal says in a sentence for people why a mail cannot become what somebody asks for.
type Refusal string

func (r Refusal) Error() string { return string(r) }

// Expired reports whether a mail must not be sent any more.
func Expired(expireTime *time.Time, now time.Time) bool {
	return expireTime != nil && !now.Before(*expireTime)
}

// waiting is the status of a mail that waits to be sent.
func waiting(attempts int, rs []store.RecipientResult) store.MailStatus {
	for _, r := range rs {
		if r.Status == store.RecipientAccepted {
			return store.MailPartiallySent
		}
	}
	if attempts > 0 {
		return store.MailDeferred
	}
	return store.MailQueued
}

// Retry makes a mail due now, for every recipient that does not have it. A recipient whose
// outcome is unknown is tried again only when the person named the mail: it may arrive twice.
func Retry(m *store.Mail, named bool, now time.Time) (*store.Change, error) {
	if m.Status == store.MailUnknown && !named {
		return nil, Refusal("its outcome is unknown: it may have arrived, so it is sent again only when its id is given")
	}
	if Expired(m.ExpireTime, now) {
		return nil, Refusal("its expire_time has passed")
	}
	c := &store.Change{Kind: store.SettleRetry, RunAt: now, Attempts: m.Attempts, PossibleDuplicate: m.PossibleDuplicate, LastError: m.LastError,
		Unguards: m.Status == store.MailHeld && m.Guard != ""}
	p := store.Progress{Attempts: m.Progress.Attempts, Results: append([]store.RecipientResult(nil), m.Progress.Results...)}
	for i := range p.Results {
		switch r := &p.Results[i]; r.Status {
		case store.RecipientAccepted:
		case store.RecipientUnknown:
			if !named {
				continue
			}
			c.PossibleDuplicate = true
			fallthrough
		default:
			*r = store.RecipientResult{Status: store.RecipientPending}
		}
	}
	c.Status, c.Progress = waiting(m.Attempts, p.Results), &p
	return c, nil
}

// Cancel puts a mail into the archive without sending it any further. It keeps what is known of
// its recipients. A replica that has it and has not marked it loses it.
func Cancel(m *store.Mail, reason string) *store.Change {
	last := m.LastError
	if reason != "" {
		last = "cancelled: " + reason
	}
	return &store.Change{Kind: store.SettleArchive, Status: store.MailCancelled, Attempts: m.Attempts, PossibleDuplicate: m.PossibleDuplicate, LastError: last, Stops: true}
}

// Hold takes a mail that waits to be sent out of the batch's reach, and keeps its due time. A
// replica that has it and has not marked it loses it.
func Hold(m *store.Mail, reason string) (*store.Change, error) {
	if m.DueTime == nil {
		return nil, Refusal(fmt.Sprintf("it does not wait to be sent: it is %s", strings.ReplaceAll(string(m.Status), "_", " ")))
	}
	why := "held"
	if reason != "" {
		why += ": " + reason
	}
	return &store.Change{Kind: store.SettlePark, Status: store.MailHeld, ResumeAt: *m.DueTime, Attempts: m.Attempts, PossibleDuplicate: m.PossibleDuplicate, LastError: why, Stops: true}, nil
}

// Release lets a held mail wait again, for the due time it had.
func Release(m *store.Mail, now time.Time) (*store.Change, error) {
	if m.Status != store.MailHeld {
		return nil, Refusal("it is not held")
	}
	c := &store.Change{Kind: store.SettleRetry, Status: waiting(m.Attempts, m.Progress.Results), RunAt: now, Attempts: m.Attempts, PossibleDuplicate: m.PossibleDuplicate, Unguards: m.Guard != ""}
	if m.ResumeTime != nil {
		c.RunAt = *m.ResumeTime
	}
	if n := len(m.Progress.Attempts); n > 0 {
		// what it was before it said why it is held
		c.LastError = m.Progress.Attempts[n-1].Detail
	}
	return c, nil
}
