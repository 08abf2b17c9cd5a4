package api

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// carryComposed gives a mail the bytes that are made of its message.
func (a *API) carryComposed(ctx context.Context, m *store.NewMail, d *draft, from message.Address) error {
	msg := d.message
	if err := d.fits(estimate(msg)); err != nil {
		return err // before composing, so that what is too large costs nothing
	}
	msg.From, msg.Allowed, msg.MessageID, msg.Date = from, d.server.AllowedHeaders, m.MessageID, message.Stamp(m.CreateTime)
	var c apierr.Check
	violations(&c, "message.", msg.ValidateSender())
	if err := c.Err(); err != nil {
		return err
	}
	pieces, err := message.Compose(msg)
	if err == nil {
		pieces, err = a.sign(ctx, d.server, m, pieces, nil)
	}
	if err != nil {
		return err
	}
	m.Subject = msg.Subject
	carry(m, pieces, nil, func(*message.Content) bool { return false })
	return nil
}

// estimate is about how large a message becomes: base64 makes 4 of 3.
func estimate(m *message.Message) int64 {
	n := int64(len(m.Text) + len(m.HTML))
	for _, x := range m.Alternatives {
		n += int64(len(x.Content))
	}
	for _, x := range m.Attachments {
		n += int64(len(x.Content)) * 4 / 3
		if x.Stored != nil {
			n += int64(x.Stored.Size)
		}
	}
	return n
}

// contents are the store's view of content that many mails share: one for each, so that it is
// there once.
type contents map[*message.Content]*store.Content

func (cs contents) has(c *store.Content) bool {
	for _, known := range cs {
		if known == c {
			return true
		}
	}
	return false
}

// carry gives a mail its bytes, and keeps in shared what other mails have too.
func carry(m *store.NewMail, pieces []message.Piece, shared contents, common func(*message.Content) bool) {
	m.Raw = make([]store.Piece, len(pieces))
	for i, p := range pieces {
		m.SizeBytes += int64(p.Len())
		if p.Shared == nil {
			m.Raw[i].Data = p.Data
			continue
		}
		c := shared[p.Shared]
		if c == nil {
			c = &store.Content{Sum: p.Shared.Sum, Size: p.Shared.Size, Data: p.Shared.Data, File: p.Shared.File}
			if common(p.Shared) {
				shared[p.Shared] = c
			}
		}
		m.Raw[i] = store.Piece{Shared: c, Offset: p.Offset, Length: p.Length}
	}
}

func tooLarge(size, limit int64, server string) error {
	e := apierr.New(codes.ResourceExhausted, pb.ReasonMailTooLarge, "the mail has about %d bytes; mail server %q takes %d", size, server, limit)
	e.Metadata = map[string]string{"size_bytes": fmt.Sprint(size), "limit_bytes": fmt.Sprint(limit), "mail_server": strings.Clone(server)}
	return e
}
