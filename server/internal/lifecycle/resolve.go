package lifecycle

import (
	"fmt"
	"time"

	"github.com/maildispatch/maildispatch/store"
)

// Resolution is a person's word on recipients whose outcome is unknown.
type Resolution string

const (
	Delivered    Resolution = "delivered"
	NotDelivered Resolution = "not_delivered"
	Resend       Resolution = "resend" // send to them again, at the risk of a second copy
)

// Resolve applies a person's word to the recipients at the positions, and finds out where that
// leaves the mail. Their outcome has to be unknown.
func Resolve(m *store.Mail, at []int, word Resolution, reason string, now time.Time) (*store.Change, error) {
	if word == Resend && Expired(m.ExpireTime, now) {
		return nil, Refusal("its expire_time has passed")
	}
	rs := append([]store.RecipientResult(nil), m.Progress.Results...)
	addressees := make([]string, len(at))
	for i, p := range at {
		addressees[i] = m.Recipients[p].Mailbox
		r := &rs[p]
		switch word {
		case Delivered:
			*r = store.RecipientResult{Status: store.RecipientAccepted, Detail: "a person said that it was delivered: " + reason, RemoteID: r.RemoteID, Attempt: r.Attempt, Time: now}
		case NotDelivered:
			*r = store.RecipientResult{Status: store.RecipientRejected, Detail: "a person said that it was not delivered: " + reason, Attempt: r.Attempt, Time: now}
		case Resend:
			*r = store.RecipientResult{Status: store.RecipientPending}
		}
	}
	c := &store.Change{Attempts: m.Attempts, PossibleDuplicate: m.PossibleDuplicate, LastError: m.LastError, Progress: &store.Progress{Results: rs, Attempts: m.Progress.Attempts},
		Detail: map[string]any{"resolution": string(word), "recipients": addressees}}
	var accepted, open, again, unknown int
	for _, r := range rs {
		switch r.Status {
		case store.RecipientAccepted:
			accepted++
		case store.RecipientUnknown:
			unknown++
			if m.PossibleDuplicate && !r.Held {
				again++ // the batch may be about to send to it once more, flagged
			}
		case store.RecipientRejected:
		default:
			open++
		}
	}
	switch {
	case word == Resend:
		c.Kind, c.Status, c.RunAt, c.PossibleDuplicate = store.SettleRetry, waiting(m.Attempts, rs), now, true
		for i := range rs {
			// The mail becomes due for some; what the others are waiting for is still a person.
			rs[i].Held = rs[i].Status == store.RecipientUnknown
		}
	case accepted == len(rs):
		c.Kind, c.Status, c.LastError = store.SettleArchive, store.MailSent, ""
	case m.Status == store.MailHeld && open+again > 0:
		c.Kind, c.Status = store.SettlePark, store.MailHeld
		if m.ResumeTime != nil {
			c.ResumeAt = *m.ResumeTime
		}
	case m.DueTime != nil && open+again > 0:
		c.Kind, c.Status, c.RunAt = store.SettleRetry, waiting(m.Attempts, rs), *m.DueTime
	case unknown > 0:
		c.Kind, c.Status = store.SettlePark, store.MailUnknown
	case accepted > 0:
		c.Kind, c.Status = store.SettlePark, store.MailPartiallySent
	default:
		c.Kind, c.Status = store.SettlePark, store.MailFailed
	}
	if c.Kind == store.SettlePark && c.Status != store.MailHeld {
		c.LastError = whyNot(m.Recipients, rs)
	}
	return c, nil
}

// whyNot is the first result that keeps a mail from being finished.
func whyNot(to []store.Recipient, rs []store.RecipientResult) string {
	for p, r := range rs {
		switch {
		case r.Status == store.RecipientAccepted:
		case r.Code != 0:
			return fmt.Sprintf("%s: %s", to[p].Mailbox, said(r))
		default:
			return to[p].Mailbox + ": " + r.Detail
		}
	}
	return ""
}
