package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

const (
	maxReference = 128
	maxAhead     = 366 * 24 * time.Hour
)

// Send implements the service.
func (a *API) Send(r *pb.SendRequest, stream grpc.ServerStreamingServer[pb.SendResponse]) error {
	return a.send(stream.Context(), r, stream.Send)
}

// SendMail implements the service: Send, whose events it gathers.
func (a *API) SendMail(ctx context.Context, r *pb.SendMailRequest) (*pb.SendMailResponse, error) {
	out := &pb.SendMailResponse{}
	same := &pb.SendRequest{Options: r.Options, Message: r.Message, RequestId: r.RequestId, ValidateOnly: r.ValidateOnly}
	err := a.send(ctx, same, func(ev *pb.SendResponse) error {
		out.MailId = ev.MailId
		if x := ev.GetAccepted(); x != nil {
			out.Accepted = x
		}
		if x := ev.GetCompleted(); x != nil {
			out.Mail, out.GoesOnInBatch = x.Mail, x.GoesOnInBatch
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// send takes a mail and tells its events.
func (a *API) send(ctx context.Context, r *pb.SendRequest, tell func(*pb.SendResponse) error) error {
	for try := 0; ; try++ {
		d, err := a.draft(ctx, r, r.ValidateOnly || try > 0)
		if err != nil {
			return err
		}
		sub, err := a.compose(ctx, d, r)
		if err != nil && d.cached {
			a.servers.drop(d.server.Name)
			continue // it may be about a mail server that was changed meanwhile
		}
		if err != nil {
			return err
		}
		m := sub.Mail
		if r.ValidateOnly {
			ev := viewerOf(ctx).event(delivery.Event{Time: m.CreateTime, Accepted: &delivery.Accepted{Server: m.MailServer, Mode: m.Mode, Route: m.Route}}, m.SizeBytes)
			ev.MailId = ""
			return tell(ev)
		}
		err = a.Sender.Send(ctx, sub, func(ev delivery.Event) error { return tell(viewerOf(ctx).event(ev, m.SizeBytes)) })
		if errors.Is(err, store.ErrServerChanged) && try < routeTries {
			a.servers.drop(m.MailServer)
			continue // nothing was stored and nothing told
		}
		return a.fault(err)
	}
}

// routeTries is how often a mail is routed again because its mail server was changed in the
// moment.
const routeTries = 3

// draft is a checked and routed request.
type draft struct {
	server   *store.MailServer
	route    string
	cached   bool // server, which may have been changed
	message  *message.Message
	raw      *message.Raw // in place of message
	rcpts    []store.Recipient
	utf8     bool
	now      time.Time
	runAt    time.Time
	expire   *time.Time
	kind     store.Kind
	priority int16
	caller   access.Caller
	trace    []byte // of the call; nil = nobody follows it
}

// draft checks everything about a request at once, then finds its mail server; fresh: as the
// database has it now.
func (a *API) draft(ctx context.Context, r *pb.SendRequest, fresh bool) (*draft, error) {
	var c apierr.Check
	d := &draft{now: a.Now().UTC().Truncate(time.Microsecond), kind: store.KindOther, caller: access.From(ctx), trace: a.traceOf(ctx)}
	checkRequestID(&c, "request_id", r.RequestId)
	a.checkOptions(&c, "options.", d, r.GetOptions())
	var gone error
	switch {
	case r.Message == nil:
		c.Bad("message", "is required")
	case len(r.Message.Raw) > 0:
		d.raw = readRaw(&c, "message.", d, r.Message)
		checkRawOptions(&c, "message.", r.GetOptions())
	default:
		d.message = content(r.Message)
		d.message.Unsubscribe = unsubscribe(r.GetOptions())
		d.message.AutoSubmitted = d.kind != store.KindAgentMessage
		if d.message.Unsubscribe.HasVariables() {
			c.Bad("options.unsubscribe_url", "has a variable: only a bulk has them")
		}
		d.message.To, d.message.Cc = recipients(&c, "message.", d, r.Message)
		d.message.ReplyTo = replyTo(&c, "message.", d, r.Message.ReplyTo)
		gone = a.uploads(ctx, &c, "message.", r.GetOptions().GetTeam(), r.Message, d.message)
		violations(&c, "message.", d.message.Validate())
	}
	err := c.Err()
	if err == nil {
		err = gone
	}
	if err != nil {
		return nil, err
	}
	if !fresh {
		if d.server = a.servers.get(r.GetOptions()); d.server != nil {
			d.route, d.cached = "named", true
			return d, a.mayHand(ctx, d.kind, d.server)
		}
	}
	if d.server, d.route, err = a.route(ctx, r.GetOptions()); err != nil {
		return nil, err
	}
	a.servers.put(d.server)
	return d, a.mayHand(ctx, d.kind, d.server)
}

func violations(c *apierr.Check, prefix string, vs []message.Violation) {
	for _, v := range vs {
		c.Bad(prefix+v.Field, "%s", v.Description)
	}
}

// checkOptions checks options whose kind has been set to its default, and reads them into d.
func (a *API) checkOptions(c *apierr.Check, prefix string, d *draft, o *pb.SendOptions) {
	checkTeam(c, prefix+"team", o.GetTeam())
	if o.GetMailServer() != "" {
		checkServerName(c, prefix+"mail_server", o.GetMailServer())
	}
	if k := o.GetKind(); k != pb.Kind_KIND_UNSPECIFIED {
		if d.kind = kindOf[k]; d.kind == "" {
			c.Bad(prefix+"kind", "is not a kind")
		}
	}
	d.priority = d.kind.Priority()
	if p := o.GetPriority(); p != pb.Priority_PRIORITY_UNSPECIFIED {
		if d.priority = priorityOf[p]; d.priority == 0 {
			c.Bad(prefix+"priority", "is not a priority")
		}
	}
	line(c, prefix+"reference", o.GetReference(), maxReference)
	checkPairs(c, prefix+"labels", o.GetLabels())
	violations(c, prefix, unsubscribe(o).Validate())
	d.runAt = d.now
	if t := o.GetSendAfter(); t != nil {
		switch at := t.AsTime(); {
		case t.CheckValid() != nil || t.AsTime().Unix() <= 0:
			c.Bad(prefix+"send_after", "is not a time")
		case at.After(d.now.Add(maxAhead)):
			c.Bad(prefix+"send_after", "is more than 366 days ahead")
		case at.After(d.now):
			d.runAt = at.Truncate(time.Microsecond)
		}
	}
	if t := o.GetExpireTime(); t != nil {
		switch at := t.AsTime().Truncate(time.Microsecond); {
		case t.CheckValid() != nil || t.AsTime().Unix() <= 0:
			c.Bad(prefix+"expire_time", "is not a time")
		case !at.After(d.now):
			c.Bad(prefix+"expire_time", "lies in the past")
		case !at.After(d.runAt):
			c.Bad(prefix+"expire_time", "is not after send_after")
		default:
			d.expire = &at
		}
	}
}

// recipients turns addresses into d's recipients and returns those that are shown; one given
// twice is kept once, where it came first.
func recipients(c *apierr.Check, prefix string, d *draft, m *pb.MailMessage) (to, cc []message.Address) {
	n := len(m.To) + len(m.Cc) + len(m.Bcc)
	switch {
	case n == 0:
		c.Bad(prefix+"to", "no recipient: give at least one in to, cc or bcc")
		return nil, nil
	case n > 2*message.MaxPerMail:
		c.Bad(prefix+"to", "more than %d recipients over to, cc and bcc", message.MaxPerMail)
		return nil, nil
	}
	seen := make(map[string]bool, n)
	d.rcpts = make([]store.Recipient, 0, n)
	read := func(field, kind string, in []string) []message.Address {
		var out []message.Address
		for i, s := range in {
			if len(d.rcpts) > message.MaxPerMail {
				return out
			}
			addr, err := message.ParseAddress(s)
			if err != nil {
				c.Bad(fmt.Sprintf("%s%s[%d]", prefix, field, i), "%v", err)
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
	to, cc = read("to", "", m.To), read("cc", "cc", m.Cc)
	read("bcc", "bcc", m.Bcc)
	if len(d.rcpts) > message.MaxPerMail {
		c.Bad(prefix+"to", "more than %d recipients over to, cc and bcc", message.MaxPerMail)
	}
	return to, cc
}

func replyTo(c *apierr.Check, prefix string, d *draft, s string) []message.Address {
	if s == "" {
		return nil
	}
	as, err := message.ParseAddressList(s)
	if err != nil {
		c.Bad(prefix+"reply_to", "%v", err)
	}
	for _, addr := range as {
		d.utf8 = d.utf8 || addr.NeedsUTF8()
	}
	return as
}

func unsubscribe(o *pb.SendOptions) message.Unsubscribe {
	return message.Unsubscribe{URL: o.GetUnsubscribeUrl(), Mailto: o.GetUnsubscribeMailto()}
}

// content is what a message says, without its addresses.
func content(m *pb.MailMessage) *message.Message {
	msg := &message.Message{FromName: m.FromName, Subject: m.Subject, Text: m.Text, HTML: m.Html, Headers: m.Headers}
	for _, x := range m.Alternatives {
		msg.Alternatives = append(msg.Alternatives, message.Alternative{ContentType: x.GetContentType(), Content: x.GetContent()})
	}
	for _, x := range m.Attachments {
		msg.Attachments = append(msg.Attachments, message.Attachment{Filename: x.GetFilename(), ContentType: x.GetContentType(), ContentID: x.GetContentId(), Content: x.GetContent()})
	}
	return msg
}

// uploads puts uploaded files into the attachments that name them. The error says that one is
// not there; it comes after what is wrong with the request.
func (a *API) uploads(ctx context.Context, c *apierr.Check, prefix, team string, m *pb.MailMessage, msg *message.Message) error {
	if len(m.Attachments) > message.MaxAttachments {
		return nil // said by the check of the message; nothing is asked for
	}
	// Each is asked for once, and all with one statement.
	ids := make(map[int]uuid.UUID, len(m.Attachments)) // by place
	var ask []uuid.UUID
	asked := map[uuid.UUID]bool{}
	for i, x := range m.Attachments {
		if x.GetUploadId() == "" {
			continue
		}
		field, at := fmt.Sprintf("%sattachments[%d]", prefix, i), &msg.Attachments[i]
		id, err := uuid.Parse(x.UploadId)
		switch {
		case len(x.Content) > 0:
			c.Bad(field+".upload_id", "give content or upload_id, not both")
		case err != nil || len(x.UploadId) != 36:
			c.Bad(field+".upload_id", "is not an upload id")
		default:
			if ids[i] = id; !asked[id] {
				asked[id] = true
				ask = append(ask, id)
			}
			continue
		}
		// what it would have brought is not to be complained about
		at.Filename = cmp.Or(at.Filename, "upload")
	}
	found, err := a.Store.Uploads(ctx, team, ask)
	gone := a.fault(err)
	for i, x := range m.Attachments {
		id, named := ids[i]
		if !named {
			continue
		}
		at, u := &msg.Attachments[i], found[id]
		if u == nil {
			if gone == nil {
				gone = apierr.NotFound(pb.ReasonUploadNotFound, "upload", x.UploadId)
			}
			at.Filename = cmp.Or(at.Filename, "upload") // as above
			continue
		}
		at.Stored = &message.Content{Sum: u.Content.Sum, Size: u.Content.Size, File: true}
		at.Filename, at.ContentType = cmp.Or(at.Filename, u.Filename), cmp.Or(at.ContentType, u.ContentType)
	}
	return gone
}

// route finds the mail server: the named one, else the team's default, else the system's. A
// team's mail goes through its own mail servers and the system's; another team's do not exist
// for it. A default that is unavailable still is the default: mail that names none is refused.
// It does not leave under another sender's name, which nobody has chosen for it.
func (a *API) route(ctx context.Context, o *pb.SendOptions) (*store.MailServer, string, error) {
	if name := o.GetMailServer(); name != "" {
		s, err := a.Store.Server(ctx, useScope(o.GetTeam()), name)
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
		switch {
		case err == nil && s.Status != store.ServerAvailable:
			return nil, "", defaultUnavailable(s)
		case err == nil:
			return s, "team_default", nil
		case !errors.Is(err, store.ErrNotFound):
			return nil, "", a.fault(err)
		}
	}
	s, err := a.Store.DefaultServer(ctx, "")
	switch {
	case errors.Is(err, store.ErrNotFound) && o.GetTeam() != "":
		return nil, "", apierr.Precondition(pb.ReasonNoDefaultMailServer, o.GetTeam(), "neither team %q nor the system has a default mail server: name one", o.GetTeam())
	case errors.Is(err, store.ErrNotFound):
		return nil, "", apierr.Precondition(pb.ReasonNoDefaultMailServer, "", "the system has no default mail server: name one")
	case err != nil:
		return nil, "", a.fault(err)
	case s.Status != store.ServerAvailable:
		return nil, "", defaultUnavailable(s)
	}
	return s, "system_default", nil
}

// defaultUnavailable refuses mail that names no mail server and whose default is unavailable.
func defaultUnavailable(s *store.MailServer) error {
	of := "the system's"
	if s.Team != "" {
		of = fmt.Sprintf("team %q's", s.Team)
	}
	return apierr.Precondition(pb.ReasonMailServerUnavailable, s.Name, "%s default mail server %q is unavailable: name another, or make it available", of, s.Name)
}

// compose makes the mail: id, Message-ID, Date and bytes are made here, once.
func (a *API) compose(ctx context.Context, d *draft, r *pb.SendRequest) (*delivery.Submission, error) {
	o := r.GetOptions()
	m, from, err := d.newMail(o)
	if err != nil {
		return nil, err
	}
	m.Labels, m.RequestID, m.ServerVersion = o.GetLabels(), r.RequestId, d.server.Version
	if d.raw != nil {
		err = a.carryRaw(ctx, m, d, d.raw, from)
	} else {
		err = a.carryComposed(ctx, m, d, from)
	}
	if err != nil {
		return nil, err
	}
	if err := d.fits(m.SizeBytes); err != nil {
		return nil, err
	}
	if r.RequestId != "" {
		if o == nil {
			o = &pb.SendOptions{}
		}
		m.Fingerprint = fingerprint(o, r.Message)
	}
	return &delivery.Submission{Mail: m, Server: d.server}, nil
}

// newMail is a mail of the draft with a new id, still without content, and its sender.
func (d *draft) newMail(o *pb.SendOptions) (*store.NewMail, message.Address, error) {
	from, err := message.ParseAddress(d.server.From)
	if err != nil {
		return nil, from, fmt.Errorf("sender of mail server %s: %w", d.server.Name, err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, from, err
	}
	m := &store.NewMail{ID: id, Team: o.GetTeam(), MailServer: d.server.Name, Mode: d.server.Mode, Kind: d.kind, Priority: d.priority, Reference: o.GetReference(), From: from.Mailbox,
		MessageID: message.NewMessageID(id.String(), from), Recipients: d.rcpts, Route: d.route, UTF8: d.utf8 || from.NeedsUTF8(), CreateTime: d.now, RunAt: d.runAt, ExpireTime: d.expire, Caller: d.caller.Name, Budget: d.caller.Budget, Trace: d.trace}
	m.RetryInBatch = o.GetRetryInBatch()
	if o.GetHold() {
		m.Held = "held: its sender asked for it"
	}
	return m, from, nil
}

// limit is how many bytes the mail server takes.
func (d *draft) limit() int64 {
	if n := d.server.Limits.MaxMailBytes; n > 0 {
		return n
	}
	return message.MaxMailBytes
}

// fits says whether the mail server takes so many bytes.
func (d *draft) fits(size int64) error {
	limit := d.limit()
	if size > limit {
		return tooLarge(size, limit, d.server.Name)
	}
	return nil
}
