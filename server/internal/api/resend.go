package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/smtpx/message/dkim"
	"github.com/maildispatch/maildispatch/store"
)

// ResendMail implements the service.
func (a *API) ResendMail(ctx context.Context, r *pb.ResendMailRequest) (*pb.ResendMailResponse, error) {
	var c apierr.Check
	id := mailID(&c, "id", r.Id)
	checkRequestID(&c, "request_id", r.RequestId)
	if strings.TrimSpace(r.Reason) == "" {
		c.Bad("reason", "is required: why is it sent once more?")
	}
	line(&c, "reason", r.Reason, 500)
	only := addresses(&c, "only_recipients", r.OnlyRecipients)
	instead, more := corrections(&c, r)
	if err := c.Err(); err != nil {
		return nil, err
	}
	m, err := a.Store.CopyMail(ctx, a.scope(ctx), id)
	if err != nil {
		return nil, a.mailFault(err, r.Id)
	}
	had, err := a.Store.Mail(ctx, a.scope(ctx), id)
	if err != nil {
		return nil, a.mailFault(err, r.Id)
	}
	if err := anothers(ctx, had); err != nil {
		return nil, err
	}
	if len(only) > 0 {
		m.Recipients = pick(&c, m.Recipients, only)
		if err := c.Err(); err != nil {
			return nil, err
		}
	}
	wrong, err := redirect(m, instead, more)
	if err != nil {
		return nil, err
	}
	s, err := a.Store.Server(ctx, useScope(m.Team), m.MailServer)
	switch {
	case err != nil:
		return nil, a.serverFault(err, m.MailServer)
	case s.DeleteTime != nil:
		return nil, apierr.Precondition(pb.ReasonMailServerDeleted, s.Name, "mail server %q is deleted", s.Name)
	case s.Status != store.ServerAvailable:
		return nil, apierr.Precondition(pb.ReasonMailServerUnavailable, s.Name, "mail server %q is unavailable", s.Name)
	}
	if err := firstOf(maySend(ctx, m.Kind, s.Name), a.mayBeSender(ctx, s.Team, m.From)); err != nil {
		return nil, err
	}
	m.Caller, m.Budget = access.From(ctx).Name, access.From(ctx).Budget
	m.Trace = a.traceOf(ctx)
	if len(m.Raw) > 0 && m.Raw[0].Shared != nil { // see message.Raw.Pieces
		c.Bad("id", "was given as a finished message (raw), which cannot get another Message-ID and Date: send it anew, or RetryMails")
		return nil, c.Err()
	}
	if err := a.reissue(m, wrong, instead.Mailbox); err != nil {
		return nil, fmt.Errorf("mail %s: %w", r.Id, err)
	}
	if err := a.signAnew(ctx, s, m); err != nil {
		return nil, err
	}
	m.Mode, m.Reason, m.RequestID = s.Mode, r.Reason, r.RequestId
	if r.RequestId != "" {
		same := proto.CloneOf(r)
		same.RequestId = ""
		m.Fingerprint = fingerprint(same)
	}
	audit := a.audit(ctx, "ResendMail", r.Reason)
	m.Audit = &audit
	res, err := a.Sender.Queue(ctx, []*store.NewMail{m}, true)
	if err == nil {
		err = res[0].Err
	}
	if err != nil {
		return nil, a.fault(err)
	}
	got, err := a.Store.Mail(ctx, a.scope(ctx), res[0].ID)
	if err != nil {
		return nil, a.mailFault(err, r.Id)
	}
	return &pb.ResendMailResponse{Mail: viewerOf(ctx).mail(got), Duplicate: res[0].Duplicate}, nil
}

// corrections reads who is to get the mail that did not get it before.
func corrections(c *apierr.Check, r *pb.ResendMailRequest) (instead message.Address, more []message.Address) {
	if r.ToInstead != "" {
		var err error
		if instead, err = message.ParseAddress(r.ToInstead); err != nil {
			c.Bad("to_instead", "%v", err)
		} else if instead.Name != "" {
			c.Bad("to_instead", "has a name: the name that the mail shows stays, give only the address")
		}
	}
	if len(r.AdditionalRecipients) > maxAdditional {
		c.Bad("additional_recipients", "has more than %d entries", maxAdditional)
		return instead, nil
	}
	for i, s := range r.AdditionalRecipients {
		to, err := message.ParseAddress(s)
		if err != nil {
			c.Bad(fmt.Sprintf("additional_recipients[%d]", i), "%v", err)
		}
		more = append(more, to)
	}
	return instead, more
}

const maxAdditional = 100

// redirect gives the copy of a mail its recipients: instead in place of the only one there is,
// and more of them. wrong is the mailbox whose place was taken; "" = none.
func redirect(m *store.NewMail, instead message.Address, more []message.Address) (wrong string, err error) {
	var c apierr.Check
	if instead.Mailbox != "" {
		if len(m.Recipients) != 1 {
			c.Bad("to_instead", "is the right address of one recipient, and there are %d: name it in only_recipients", len(m.Recipients))
			return "", c.Err()
		}
		r := &m.Recipients[0]
		wrong, r.Mailbox = r.Mailbox, instead.Mailbox
		m.UTF8 = m.UTF8 || instead.NeedsUTF8() && r.Kind != "bcc"
	}
	for _, to := range more {
		if !slices.ContainsFunc(m.Recipients, func(r store.Recipient) bool { return message.Address{Mailbox: r.Mailbox}.Key() == to.Key() }) {
			m.Recipients = append(m.Recipients, store.Recipient{Mailbox: to.Mailbox, Kind: "bcc"})
			m.Added++
		}
	}
	if len(m.Recipients) > message.MaxPerMail {
		c.Bad("additional_recipients", "makes more than %d recipients", message.MaxPerMail)
	}
	return wrong, c.Err()
}

// reissue makes a copy a mail of its own: its id, Message-ID and times, and where wrong is not
// empty, right in its place in To and Cc.
func (a *API) reissue(m *store.NewMail, wrong, right string) error {
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	from, err := message.ParseAddress(m.From)
	if err != nil {
		return err
	}
	if len(m.Raw) == 0 || m.Raw[0].Shared != nil {
		return errors.New("the stored message does not begin with its own header")
	}
	now := a.Now().UTC().Truncate(time.Microsecond)
	m.ID, m.MessageID, m.CreateTime, m.RunAt = id, message.NewMessageID(id.String(), from), now, now
	head, _ := dkim.Strip(m.Raw[0].Data) // it signs what is changed now
	head, err = message.Reissue(head, m.MessageID, message.Stamp(now))
	if err != nil {
		return err
	}
	if wrong != "" {
		head = message.Readdress(head, wrong, right)
	}
	m.SizeBytes += int64(len(head) - len(m.Raw[0].Data))
	m.Raw[0].Data = head
	return nil
}

// pick keeps the recipients that are named; naming somebody else is an error.
func pick(c *apierr.Check, all []store.Recipient, only []string) []store.Recipient {
	var out []store.Recipient
	known := map[string]bool{}
	for _, x := range all {
		key := message.Address{Mailbox: x.Mailbox}.Key()
		known[key] = true
		if slices.Contains(only, key) {
			out = append(out, x)
		}
	}
	for i, key := range only {
		if !known[key] {
			c.Bad(fmt.Sprintf("only_recipients[%d]", i), "is not a recipient of this mail")
		}
	}
	return out
}
