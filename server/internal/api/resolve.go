package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// ResolveMail implements the service.
func (a *API) ResolveMail(ctx context.Context, r *pb.ResolveMailRequest) (*pb.ResolveMailResponse, error) {
	var c apierr.Check
	id := mailID(&c, "id", r.Id)
	named := addresses(&c, "recipients", r.Recipients)
	switch r.Resolution {
	case pb.Resolution_RESOLUTION_DELIVERED, pb.Resolution_RESOLUTION_NOT_DELIVERED, pb.Resolution_RESOLUTION_RESEND:
	default:
		c.Bad("resolution", "is required: RESOLUTION_DELIVERED, RESOLUTION_NOT_DELIVERED or RESOLUTION_RESEND")
	}
	if strings.TrimSpace(r.Reason) == "" {
		c.Bad("reason", "is required: how do you know?")
	}
	line(&c, "reason", r.Reason, 500)
	if err := c.Err(); err != nil {
		return nil, err
	}
	now := a.Now().UTC().Truncate(time.Microsecond)
	if r.Resolution == pb.Resolution_RESOLUTION_RESEND {
		// Before the transaction: a mail never changes its mail server, and one that is switched off in between only lets the mail wait.
		m, err := a.Store.Mail(ctx, a.scope(ctx), id)
		if err == nil {
			err = a.usable(ctx)(m.MailServer)
		}
		if err != nil && (m == nil || !m.Archived) {
			return nil, a.mailFault(err, r.Id)
		}
	}
	m, err := a.Store.ModifyMail(ctx, a.scope(ctx), id, a.audit(ctx, "ResolveMail", r.Reason), func(m *store.Mail) (*store.Change, error) {
		at, err := unknowns(m, named)
		if err != nil {
			return nil, err
		}
		if r.Resolution == pb.Resolution_RESOLUTION_RESEND && expired(m, now) {
			return nil, apierr.Precondition(pb.ReasonWrongState, r.Id, "its expire_time has passed")
		}
		return resolve(m, at, r.Resolution, r.Reason, now), nil
	})
	switch {
	case errors.Is(err, store.ErrSending), errors.Is(err, store.ErrFinished):
		reason, text := failureText(err)
		return nil, apierr.Precondition(reason, r.Id, "%s", text)
	case err != nil:
		return nil, a.mailFault(err, r.Id)
	}
	return &pb.ResolveMailResponse{Mail: mail(m)}, nil
}

// addresses reads addresses to be compared without case.
func addresses(c *apierr.Check, field string, in []string) []string {
	if len(in) > smtpx.MaxPerMail {
		c.Bad(field, "has more than %d entries", smtpx.MaxPerMail)
		return nil
	}
	out := make([]string, len(in))
	for i, s := range in {
		addr, err := smtpx.ParseAddress(s)
		if err != nil {
			c.Bad(fmt.Sprintf("%s[%d]", field, i), "%v", err)
		}
		out[i] = addr.Key()
	}
	return out
}

// unknowns finds the positions of the named recipients, or of all whose outcome is unknown.
func unknowns(m *store.Mail, named []string) (at []int, err error) {
	unknown := func(p int) bool {
		return p < len(m.Progress.Results) && m.Progress.Results[p].Status == store.RecipientUnknown
	}
	if len(named) == 0 {
		for p := range m.Recipients {
			if unknown(p) {
				at = append(at, p)
			}
		}
		if len(at) == 0 {
			return nil, apierr.Precondition(pb.ReasonWrongState, m.ID.String(), "of no recipient is the outcome unknown")
		}
		return at, nil
	}
	position := map[string]int{}
	for p, rcpt := range m.Recipients {
		position[smtpx.Address{Mailbox: rcpt.Mailbox}.Key()] = p
	}
	var c apierr.Check
	var known *apierr.Error
	for i, key := range named {
		p, is := position[key]
		if is && slices.Contains(at, p) {
			continue
		}
		switch field := fmt.Sprintf("recipients[%d]", i); {
		case !is:
			c.Bad(field, "is not a recipient of this mail")
		case !unknown(p) && known == nil:
			known = apierr.Precondition(pb.ReasonWrongState, field, "%s: the outcome of %s is not unknown", field, m.Recipients[p].Mailbox)
		}
		at = append(at, p)
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	if known != nil {
		return nil, known
	}
	return at, nil
}

// resolve applies a person's word to the recipients at the positions and finds out where that leaves the mail.
func resolve(m *store.Mail, at []int, word pb.Resolution, reason string, now time.Time) *store.Change {
	rs := append([]store.RecipientResult(nil), m.Progress.Results...)
	addressees := make([]string, len(at))
	for i, p := range at {
		addressees[i] = m.Recipients[p].Mailbox
		r := &rs[p]
		switch word {
		case pb.Resolution_RESOLUTION_DELIVERED:
			*r = store.RecipientResult{Status: store.RecipientAccepted, Detail: "a person said that it was delivered: " + reason, RemoteID: r.RemoteID, Attempt: r.Attempt, Time: now}
		case pb.Resolution_RESOLUTION_NOT_DELIVERED:
			*r = store.RecipientResult{Status: store.RecipientRejected, Detail: "a person said that it was not delivered: " + reason, Attempt: r.Attempt, Time: now}
		default:
			*r = store.RecipientResult{Status: store.RecipientPending}
		}
	}
	ch := &store.Change{Attempts: m.Attempts, PossibleDuplicate: m.PossibleDuplicate, LastError: m.LastError, Progress: &store.Progress{Results: rs, Attempts: m.Progress.Attempts},
		Detail: map[string]any{"resolution": strings.ToLower(strings.TrimPrefix(word.String(), "RESOLUTION_")), "recipients": addressees}}
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
	case word == pb.Resolution_RESOLUTION_RESEND:
		ch.Kind, ch.Status, ch.RunAt, ch.PossibleDuplicate = store.SettleRetry, waiting(m.Attempts, rs), now, true
		for i := range rs {
			// The mail becomes due for some; what the others are waiting for is still a person.
			rs[i].Held = rs[i].Status == store.RecipientUnknown
		}
	case accepted == len(rs):
		ch.Kind, ch.Status, ch.LastError = store.SettleArchive, store.MailSent, ""
	case m.Status == store.MailHeld && open+again > 0:
		ch.Kind, ch.Status = store.SettlePark, store.MailHeld
		if m.ResumeTime != nil {
			ch.ResumeAt = *m.ResumeTime
		}
	case m.DueTime != nil && open+again > 0:
		ch.Kind, ch.Status, ch.RunAt = store.SettleRetry, waiting(m.Attempts, rs), *m.DueTime
	case unknown > 0:
		ch.Kind, ch.Status = store.SettlePark, store.MailUnknown
	case accepted > 0:
		ch.Kind, ch.Status = store.SettlePark, store.MailPartiallySent
	default:
		ch.Kind, ch.Status = store.SettlePark, store.MailFailed
	}
	if ch.Kind == store.SettlePark && ch.Status != store.MailHeld {
		ch.LastError = whyNot(m.Recipients, rs)
	}
	return ch
}

// whyNot is the first result that keeps a mail from being finished.
func whyNot(to []store.Recipient, rs []store.RecipientResult) string {
	for p, r := range rs {
		switch {
		case r.Status == store.RecipientAccepted:
		case r.Code != 0:
			return fmt.Sprintf("%s: %d %s", to[p].Mailbox, r.Code, r.Detail)
		default:
			return to[p].Mailbox + ": " + r.Detail
		}
	}
	return ""
}
