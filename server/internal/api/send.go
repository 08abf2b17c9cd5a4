package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

const (
	maxReference = 128
	maxAhead     = 366 * 24 * time.Hour
)

// Send implements the service.
func (a *API) Send(r *pb.SendRequest, stream grpc.ServerStreamingServer[pb.SendResponse]) error {
	ctx := stream.Context()
	d, err := a.draft(ctx, r)
	if err != nil {
		return err
	}
	sub, err := a.compose(d, r)
	if err != nil {
		return err
	}
	m := sub.Mail
	if r.ValidateOnly {
		ev := event(delivery.Event{Time: m.CreateTime, Accepted: &delivery.Accepted{Server: m.MailServer, Mode: m.Mode, Route: m.Route}}, m.SizeBytes)
		ev.MailId = ""
		return stream.Send(ev)
	}
	return a.fault(a.Sender.Send(ctx, sub, func(ev delivery.Event) error { return stream.Send(event(ev, m.SizeBytes)) }))
}

// draft is a checked and routed request.
type draft struct {
	server   *store.MailServer
	route    string
	message  *smtpx.Message
	rcpts    []store.Recipient
	utf8     bool
	now      time.Time
	runAt    time.Time
	expire   *time.Time
	kind     store.Kind
	priority int16
}

// draft checks everything about a request at once, then finds its mail server.
func (a *API) draft(ctx context.Context, r *pb.SendRequest) (*draft, error) {
	var c apierr.Check
	d := &draft{now: a.Now().UTC().Truncate(time.Microsecond), kind: store.KindOther}
	checkRequestID(&c, r.RequestId)
	a.checkOptions(&c, d, r.GetOptions())
	if r.Message == nil {
		c.Bad("message", "is required")
	} else {
		checkMessage(&c, d, r.Message)
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	var err error
	if d.server, d.route, err = a.route(ctx, r.GetOptions()); err != nil {
		return nil, err
	}
	return d, nil
}

func (a *API) checkOptions(c *apierr.Check, d *draft, o *pb.SendOptions) {
	checkTeam(c, "options.team", o.GetTeam())
	if o.GetMailServer() != "" {
		checkServerName(c, "options.mail_server", o.GetMailServer())
	}
	if k := o.GetKind(); k != pb.Kind_KIND_UNSPECIFIED {
		if d.kind = kindOf[k]; d.kind == "" {
			c.Bad("options.kind", "is not a kind")
		}
	}
	d.priority = d.kind.Priority()
	if p := o.GetPriority(); p != pb.Priority_PRIORITY_UNSPECIFIED {
		if d.priority = priorityOf[p]; d.priority == 0 {
			c.Bad("options.priority", "is not a priority")
		}
	}
	line(c, "options.reference", o.GetReference(), maxReference)
	checkPairs(c, "options.labels", o.GetLabels())
	d.runAt = d.now
	if t := o.GetSendAfter(); t != nil {
		switch at := t.AsTime(); {
		case t.CheckValid() != nil || t.AsTime().Unix() <= 0:
			c.Bad("options.send_after", "is not a time")
		case at.After(d.now.Add(maxAhead)):
			c.Bad("options.send_after", "is more than 366 days ahead")
		case at.After(d.now):
			d.runAt = at.Truncate(time.Microsecond)
		}
	}
	if t := o.GetExpireTime(); t != nil {
		switch at := t.AsTime().Truncate(time.Microsecond); {
		case t.CheckValid() != nil || t.AsTime().Unix() <= 0:
			c.Bad("options.expire_time", "is not a time")
		case !at.After(d.now):
			c.Bad("options.expire_time", "lies in the past")
		case !at.After(d.runAt):
			c.Bad("options.expire_time", "is not after send_after")
		default:
			d.expire = &at
		}
	}
}

// checkMessage checks the content and turns addresses into recipients; one given twice is kept once, where it came first.
func checkMessage(c *apierr.Check, d *draft, m *pb.MailMessage) {
	msg := &smtpx.Message{Subject: m.Subject, Text: m.Text, HTML: m.Html, Headers: m.Headers}
	seen := map[string]bool{}
	read := func(field, kind string, in []string) []smtpx.Address {
		var out []smtpx.Address
		for i, s := range in {
			if len(d.rcpts) > smtpx.MaxPerMail {
				return out
			}
			addr, err := smtpx.ParseAddress(s)
			if err != nil {
				c.Bad(fmt.Sprintf("message.%s[%d]", field, i), "%v", err)
				continue
			}
			if seen[addr.Key()] {
				continue
			}
			seen[addr.Key()] = true
			d.utf8 = d.utf8 || addr.NeedsUTF8() && kind != "bcc"
			d.rcpts = append(d.rcpts, store.Recipient{Mailbox: addr.Mailbox, Kind: kind})
			out = append(out, addr)
		}
		return out
	}
	if n := len(m.To) + len(m.Cc) + len(m.Bcc); n == 0 {
		c.Bad("message.to", "no recipient: give at least one in to, cc or bcc")
	} else if n > 2*smtpx.MaxPerMail {
		c.Bad("message.to", "more than %d recipients over to, cc and bcc", smtpx.MaxPerMail)
	} else {
		msg.To, msg.Cc = read("to", "", m.To), read("cc", "cc", m.Cc)
		read("bcc", "bcc", m.Bcc)
		if len(d.rcpts) > smtpx.MaxPerMail {
			c.Bad("message.to", "more than %d recipients over to, cc and bcc", smtpx.MaxPerMail)
		}
	}
	if m.ReplyTo != "" {
		addr, err := smtpx.ParseAddress(m.ReplyTo)
		if err != nil {
			c.Bad("message.reply_to", "%v", err)
		}
		d.utf8 = d.utf8 || addr.NeedsUTF8()
		msg.ReplyTo = &addr
	}
	for _, x := range m.Attachments {
		msg.Attachments = append(msg.Attachments, smtpx.Attachment{Filename: x.GetFilename(), ContentType: x.GetContentType(), ContentID: x.GetContentId(), Content: x.GetContent()})
	}
	for _, v := range msg.Validate() {
		c.Bad("message."+v.Field, "%s", v.Description)
	}
	d.message = msg
}

// route finds the mail server: the named one, else the team's default, else the system's. A team's mail goes through its own mail servers and the system's;
// another team's do not exist for it.
func (a *API) route(ctx context.Context, o *pb.SendOptions) (*store.MailServer, string, error) {
	if name := o.GetMailServer(); name != "" {
		s, err := a.Store.Server(ctx, store.Scope{Teams: []string{o.GetTeam(), ""}}, name)
		if err != nil {
			return nil, "", a.serverFault(err, name)
		}
		if s.DeleteTime != nil {
			return nil, "", apierr.Precondition(pb.ReasonMailServerDeleted, name, "mail server %q is deleted", name)
		}
		if s.Status != store.ServerAvailable {
			return nil, "", apierr.Precondition(pb.ReasonMailServerUnavailable, name, "mail server %q is unavailable", name)
		}
		return s, "named", nil
	}
	if team := o.GetTeam(); team != "" {
		s, err := a.Store.DefaultServer(ctx, team)
		if err == nil {
			return s, "team_default", nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, "", a.fault(err)
		}
	}
	s, err := a.Store.DefaultServer(ctx, "")
	if errors.Is(err, store.ErrNotFound) {
		if o.GetTeam() != "" {
			return nil, "", apierr.Precondition(pb.ReasonNoDefaultMailServer, o.GetTeam(), "neither team %q nor the system has a default mail server: name one", o.GetTeam())
		}
		return nil, "", apierr.Precondition(pb.ReasonNoDefaultMailServer, "", "the system has no default mail server: name one")
	}
	return s, "system_default", a.fault(err)
}

// compose makes the mail: id, Message-ID, Date and bytes are made here, once.
func (a *API) compose(d *draft, r *pb.SendRequest) (*delivery.Submission, error) {
	from, err := smtpx.ParseAddress(d.server.From)
	if err != nil {
		return nil, fmt.Errorf("sender of mail server %s: %w", d.server.Name, err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	limit := d.server.Limits.MaxMailBytes
	if limit == 0 {
		limit = smtpx.MaxMailBytes
	}
	// Before composing, so that what is too large costs nothing: base64 makes 4 of 3.
	est := int64(len(r.Message.Text) + len(r.Message.Html))
	for _, x := range r.Message.Attachments {
		est += int64(len(x.GetContent())) * 4 / 3
	}
	if est > limit {
		return nil, tooLarge(est, limit, d.server.Name)
	}
	d.message.From, d.message.MessageID, d.message.Date = from, smtpx.NewMessageID(id.String(), from), smtpx.Stamp(d.now)
	pieces, err := smtpx.Compose(d.message)
	if err != nil {
		return nil, err
	}
	o := r.GetOptions()
	m := &store.NewMail{ID: id, Team: o.GetTeam(), MailServer: d.server.Name, Mode: d.server.Mode, Kind: d.kind, Priority: d.priority, Reference: o.GetReference(), From: from.Mailbox,
		Subject: r.Message.Subject, MessageID: d.message.MessageID, Recipients: d.rcpts, Labels: o.GetLabels(), RequestID: r.RequestId, Route: d.route,
		UTF8: d.utf8 || from.NeedsUTF8(), CreateTime: d.now, RunAt: d.runAt, ExpireTime: d.expire}
	if o.GetHold() {
		m.Held = "held: its sender asked for it"
	}
	m.SizeBytes, m.Raw = int64(smtpx.Size(pieces)), storePieces(pieces)
	if m.SizeBytes > limit {
		return nil, tooLarge(m.SizeBytes, limit, d.server.Name)
	}
	if r.RequestId != "" {
		opts := o
		if opts == nil {
			opts = &pb.SendOptions{}
		}
		m.Fingerprint = fingerprint(opts, r.Message)
	}
	return &delivery.Submission{Mail: m, Server: d.server}, nil
}

// storePieces are the pieces as the store takes them.
func storePieces(ps []smtpx.Piece) []store.Piece {
	out := make([]store.Piece, len(ps))
	var from *smtpx.Content
	var shared *store.Content
	for i, p := range ps {
		out[i] = store.Piece{Data: p.Data, Offset: p.Offset, Length: p.Length}
		if p.Shared == nil {
			continue
		}
		if p.Shared != from {
			from, shared = p.Shared, &store.Content{Sum: p.Shared.Sum, Size: p.Shared.Size, Data: p.Shared.Data}
		}
		out[i].Shared = shared
	}
	return out
}

func tooLarge(size, limit int64, server string) error {
	e := apierr.New(codes.ResourceExhausted, pb.ReasonMailTooLarge, "the mail has about %d bytes; mail server %q takes %d", size, server, limit)
	e.Metadata = map[string]string{"size_bytes": fmt.Sprint(size), "limit_bytes": fmt.Sprint(limit), "mail_server": strings.Clone(server)}
	return e
}
