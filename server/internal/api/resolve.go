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
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// resolutions are the words of the wire in the words of the rules.
var resolutions = map[pb.Resolution]lifecycle.Resolution{
	pb.Resolution_RESOLUTION_DELIVERED:     lifecycle.Delivered,
	pb.Resolution_RESOLUTION_NOT_DELIVERED: lifecycle.NotDelivered,
	pb.Resolution_RESOLUTION_RESEND:        lifecycle.Resend,
}

// ResolveMail implements the service.
func (a *API) ResolveMail(ctx context.Context, r *pb.ResolveMailRequest) (*pb.ResolveMailResponse, error) {
	var c apierr.Check
	id := mailID(&c, "id", r.Id)
	named := addresses(&c, "recipients", r.Recipients)
	word, known := resolutions[r.Resolution]
	if !known {
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
	m, err := a.Store.ModifyMail(ctx, a.scope(ctx), id, a.audit(ctx, "ResolveMail", r.Reason), func(m *store.Mail, its *store.MailServer) (*store.Change, error) {
		if word == lifecycle.Resend {
			if err := firstOf(maySend(ctx, m.Kind, m.MailServer), usable(m.MailServer, its)); err != nil {
				return nil, err
			}
		}
		at, err := unknowns(m, named)
		if err != nil {
			return nil, err
		}
		return lifecycle.Resolve(m, at, word, r.Reason, now)
	})
	var refused lifecycle.Refusal
	switch {
	case errors.As(err, &refused):
		return nil, apierr.Precondition(pb.ReasonWrongState, r.Id, "%s", refused)
	case errors.Is(err, store.ErrSending), errors.Is(err, store.ErrFinished), errors.Is(err, store.ErrDamaged):
		reason, text := failureText(err)
		return nil, apierr.Precondition(reason, r.Id, "%s", text)
	case err != nil:
		return nil, a.mailFault(err, r.Id)
	}
	return &pb.ResolveMailResponse{Mail: viewerOf(ctx).mail(m)}, nil
}

// addresses reads addresses to be compared without case.
func addresses(c *apierr.Check, field string, in []string) []string {
	if len(in) > message.MaxPerMail {
		c.Bad(field, "has more than %d entries", message.MaxPerMail)
		return nil
	}
	out := make([]string, len(in))
	for i, s := range in {
		addr, err := message.ParseAddress(s)
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
		position[message.Address{Mailbox: rcpt.Mailbox}.Key()] = p
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
