package api

import (
	"context"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// readRaw reads a finished message into d: its recipients are those of the request, else those
// of its header. What would have to be written into it is refused.
func readRaw(c *apierr.Check, prefix string, d *draft, m *pb.MailMessage) *message.Raw {
	for _, x := range []struct {
		field string
		given bool
	}{{"reply_to", m.ReplyTo != ""}, {"subject", m.Subject != ""}, {"text", m.Text != ""}, {"html", m.Html != ""}, {"headers", len(m.Headers) > 0},
		{"attachments", len(m.Attachments) > 0}, {"alternatives", len(m.Alternatives) > 0}, {"from_name", m.FromName != ""}} {
		if x.given {
			c.Bad(prefix+x.field, "stands in raw, to which nothing is added")
		}
	}
	raw, vs := message.ParseRaw(m.Raw)
	violations(c, prefix, vs)
	if raw == nil {
		return nil
	}
	to := &pb.MailMessage{To: m.To, Cc: m.Cc, Bcc: m.Bcc}
	if len(m.To)+len(m.Cc)+len(m.Bcc) == 0 {
		to = &pb.MailMessage{To: mailboxes(raw.To), Cc: mailboxes(raw.Cc), Bcc: mailboxes(raw.Bcc)}
	}
	recipients(c, prefix, d, to)
	d.utf8 = false // its header is ASCII, whatever a recipient needs
	return raw
}

func mailboxes(as []message.Address) (out []string) {
	for _, a := range as {
		out = append(out, a.Mailbox)
	}
	return out
}

// checkRawOptions refuses options that would change a finished message.
func checkRawOptions(c *apierr.Check, prefix string, o *pb.SendOptions) {
	if !unsubscribe(o).Empty() {
		c.Bad(prefix+"raw", "cannot get the headers of unsubscribe_url and unsubscribe_mailto: put them into it")
	}
}

// carryRaw gives a mail its finished message.
func (a *API) carryRaw(ctx context.Context, m *store.NewMail, d *draft, raw *message.Raw, from message.Address) error {
	if err := d.fits(raw.Len()); err != nil {
		return err
	}
	var c apierr.Check
	violations(&c, "message.", raw.ValidateSender(from, d.server.AllowedHeaders))
	if raw.MessageID != "" {
		had, err := a.withMessageID(ctx, m.Team, raw.MessageID)
		switch {
		case err != nil:
			return a.fault(err)
		case had != nil && (m.RequestID == "" || had.RequestID != m.RequestID):
			// else it is the same call
			c.Bad("message.raw", "has the Message-ID of mail %s, and two mails may not have one", had.ID)
		}
	}
	if err := c.Err(); err != nil {
		return err
	}
	pieces, err := a.sign(ctx, d.server, m, raw.Pieces(m.MessageID), nil)
	if err != nil {
		return err
	}
	if raw.MessageID != "" {
		m.MessageID = raw.MessageID
	}
	m.Subject = raw.Subject
	carry(m, pieces, nil, func(*message.Content) bool { return false })
	return nil
}

// withMessageID is a team's mail of that Message-ID; nil = none.
func (a *API) withMessageID(ctx context.Context, team, id string) (*store.Mail, error) {
	f := store.MailFilter{Team: &team, MessageID: id}
	for _, list := range []func(context.Context, store.Scope, store.MailFilter, store.Cursor, int) ([]*store.Mail, error){a.Store.ListDue, a.Store.ListArchive} {
		ms, err := list(ctx, store.Everything, f, store.Cursor{}, 1)
		if err != nil {
			return nil, err
		}
		if len(ms) > 0 {
			return ms[0], nil
		}
	}
	return nil, nil
}
