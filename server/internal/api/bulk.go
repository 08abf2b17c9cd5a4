package api

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// bulk is what holds for all items of one SendBatch or SendStream. It is used by one goroutine.
type bulk struct {
	a        *API
	send     *pb.SendOptions
	shared   *pb.MailMessage // nil: everything stands in the items
	id       string
	draft    draft             // without recipients
	base     *message.Message  // the shared message, its files encoded; nil as shared
	template *message.Template // of base
	body     signedBody        // of the mail before
	contents contents          // what the items have in common
	rawIDs   map[string]string // Message-IDs of items that are raw, and their request_id
	sum      []byte            // of the options and the shared message
	routed   time.Time
	next     int64 // position of the next item
	composed int64 // bytes of the mails that they do not share
	last     int64 // of these, what the mail before has brought
	since    int64 // of these, what was composed since bulk has yielded
}

const (
	// heavyItem is from when on an item takes a turn: what it becomes takes a processor for
	// milliseconds, and many callers would take all of them.
	heavyItem = 32 << 10
	// yieldBytes is after how much of it bulk looks whether a caller waits.
	yieldBytes = 256 << 10
)

// turn lets a call whose items are large compose only where few others do: half of the
// processors are for those who wait for one small mail. The first item of a call may be large;
// of the others the one before tells.
func (b *bulk) turn(ctx context.Context) (done func(), err error) {
	if b.next > 1 && b.last < heavyItem {
		return func() {}, nil
	}
	if b.since += b.last; b.since >= yieldBytes {
		b.since = 0
		b.a.Sender.Yield(ctx)
	}
	return b.a.heavy(ctx)
}

// heavy waits until few others do what takes a processor for long. done lets the next one in.
func (a *API) heavy(ctx context.Context) (done func(), err error) {
	select {
	case a.busy <- struct{}{}:
		return func() { <-a.busy }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// openBulk checks and routes the options. Errors are Send's.
func (a *API) openBulk(ctx context.Context, o *pb.BatchOptions) (*bulk, error) {
	var c apierr.Check
	b := &bulk{a: a, send: o.GetOptions(), shared: o.GetMessage(), id: o.GetBatchId(), contents: contents{}}
	b.draft = draft{now: a.Now().UTC().Truncate(time.Microsecond), kind: store.KindBulk, caller: access.From(ctx), trace: a.traceOf(ctx)}
	a.checkOptions(&c, "options.options.", &b.draft, b.send)
	checkRequestID(&c, "options.batch_id", b.id)
	var gone error
	if m := b.shared; m != nil {
		if len(m.To)+len(m.Cc)+len(m.Bcc) > 0 {
			c.Bad("options.message.to", "recipients stand in the items")
		}
		if len(m.Raw) > 0 {
			c.Bad("options.message.raw", "is one mail's: it cannot be shared")
		}
		msg := b.content(m)
		msg.ReplyTo = replyTo(&c, "options.message.", &b.draft, m.ReplyTo)
		gone = a.uploads(ctx, &c, "options.message.", b.send.GetTeam(), m, msg)
		msg.Common = message.NewCommon(msg)
		b.base = msg
		var vs []message.Violation
		b.template, vs = message.NewTemplate(msg)
		violations(&c, "options.message.", vs)
	}
	err := c.Err()
	if err == nil {
		err = gone
	}
	if err == nil {
		err = b.route(ctx)
	}
	if err != nil {
		return nil, err
	}
	if b.id == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, err
		}
		b.id = id.String()
	}
	opts := b.send
	if opts == nil {
		opts = &pb.SendOptions{}
	}
	shared := b.shared
	if shared == nil {
		shared = &pb.MailMessage{}
	}
	b.sum = fingerprint(opts, shared)
	return b, nil
}

// routeAgain is how long a stream goes on with the mail server it has found: it may last long,
// and a mail server can be taken out of service meanwhile.
const routeAgain = time.Second

func (b *bulk) route(ctx context.Context) (err error) {
	if time.Since(b.routed) < routeAgain {
		return nil
	}
	b.routed = time.Now()
	if b.draft.server, b.draft.route, err = b.a.route(ctx, b.send); err != nil {
		return err
	}
	if err := b.a.mayHand(ctx, b.draft.kind, b.draft.server); err != nil {
		return err
	}
	// that it can sign, before every item says that it cannot
	_, err = b.a.signer(b.draft.server)
	return err
}

// mail makes a mail of the next item, or says why not. An error is not the item's.
func (b *bulk) mail(ctx context.Context, it *pb.BatchItem) (*store.NewMail, *pb.BatchRejection, error) {
	at := b.next
	b.next++
	if it == nil {
		it = &pb.BatchItem{}
	}
	done, err := b.turn(ctx)
	if err != nil {
		return nil, nil, err
	}
	m, err := b.compose(ctx, it)
	done()
	if err == nil {
		b.last = m.OwnBytes()
		return m, nil, nil
	}
	e, is := apierr.As(err)
	if !is || e.Code == codes.Unavailable || e.Code == codes.Internal || e.Reason == pb.ReasonOverloaded {
		return nil, nil, err
	}
	return nil, rejection(at, it.RequestId, e), nil
}

func rejection(at int64, requestID string, e *apierr.Error) *pb.BatchRejection {
	r := &pb.BatchRejection{Position: at, RequestId: requestID, Reason: e.Reason, Message: e.Text}
	for _, v := range e.Violations {
		r.Violations = append(r.Violations, &pb.BatchRejection_Violation{Field: v.Field, Description: v.Text})
	}
	return r
}

func (b *bulk) compose(ctx context.Context, it *pb.BatchItem) (*store.NewMail, error) {
	var c apierr.Check
	d := b.draft
	d.now = b.a.Now().UTC().Truncate(time.Microsecond)
	if d.runAt.Before(d.now) {
		d.runAt = d.now
	}
	checkRequestID(&c, "request_id", it.RequestId)
	labels := b.send.GetLabels()
	if len(it.Labels) > 0 {
		if labels = maps.Clone(labels); labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, it.Labels)
		checkPairs(&c, "labels", labels) // of which those of the options are right
	}
	if d.expire != nil && !d.now.Before(*d.expire) {
		c.Bad("options.expire_time", "has passed meanwhile")
	}
	msg := it.Message
	if msg == nil {
		c.Bad("message", "is required")
		return nil, c.Err()
	}
	var to, cc, reply []message.Address
	if len(msg.Raw) > 0 {
		d.raw = b.readRaw(&c, &d, it)
		if err := c.Err(); err != nil {
			return nil, err
		}
	} else {
		to, cc = recipients(&c, "message.", &d, msg)
		reply = replyTo(&c, "message.", &d, msg.ReplyTo)
	}
	m, from, err := d.newMail(b.send)
	if err != nil {
		return nil, err
	}
	m.Labels, m.RequestID, m.BatchID = labels, it.RequestId, b.id
	if d.raw != nil {
		err = b.a.carryRaw(ctx, m, &d, d.raw, from)
	} else {
		err = b.carry(ctx, &c, m, &d, it, &message.Fill{From: from, Allowed: d.server.AllowedHeaders, To: to, Cc: cc, ReplyTo: reply, MessageID: m.MessageID, Date: message.Stamp(d.now), Variables: it.Variables, MaxBytes: d.limit()})
	}
	if err != nil {
		return nil, err
	}
	if err := d.fits(m.SizeBytes); err != nil {
		return nil, err
	}
	if b.composed += m.OwnBytes(); b.composed > maxComposed+b.next*maxComposedItem {
		return nil, tooMuchComposed()
	}
	if it.RequestId != "" {
		m.Fingerprint = b.fingerprint(it)
	}
	return m, nil
}

// content is what a message says with what the options say of all.
func (b *bulk) content(m *pb.MailMessage) *message.Message {
	msg := content(m)
	msg.Unsubscribe, msg.AutoSubmitted = unsubscribe(b.send), b.draft.kind != store.KindAgentMessage
	return msg
}

// common reports whether content is the bulk's, not one item's own.
func (b *bulk) common(c *message.Content) bool { return c.Common || b.template.Holds(c) }

// weight is what a mail brings with it that the others of the bulk do not have.
func (b *bulk) weight(m *store.NewMail) int64 {
	n := m.OwnBytes()
	var last *store.Content
	for _, p := range m.Raw {
		if c := p.Shared; c != nil && c != last {
			if last = c; !b.contents.has(c) {
				n += int64(len(c.Data))
			}
		}
	}
	return n
}

// pieces composes an item: through the shared template where the item brings no body or file of
// its own, else as a mail of its own.
func (b *bulk) pieces(ctx context.Context, c *apierr.Check, d *draft, msg *pb.MailMessage, f *message.Fill) ([]message.Piece, string, error) {
	if b.template != nil && msg.Text == "" && msg.Html == "" && len(msg.Attachments)+len(msg.Alternatives) == 0 {
		f.Subject, f.Headers, f.FromName = msg.Subject, msg.Headers, msg.FromName
		return through(c, b.template, f)
	}
	own := b.content(msg)
	gone := b.a.uploads(ctx, c, "message.", b.send.GetTeam(), msg, own)
	shared := b.over(own)
	if err := d.fits(estimate(own)); err != nil {
		return nil, "", err
	}
	own.From, own.Allowed = f.From, f.Allowed
	if !own.HasVariables() {
		violations(c, "message.", ofItem(own.Validate(), shared))
		if err := c.Err(); err != nil || gone != nil {
			return nil, "", firstOf(err, gone)
		}
		own.To, own.Cc, own.MessageID, own.Date = f.To, f.Cc, f.MessageID, f.Date
		if len(f.ReplyTo) > 0 {
			own.ReplyTo = f.ReplyTo
		}
		pieces, err := message.Compose(own)
		if err != nil {
			// nothing that was checked makes one; whatever does is about this item alone
			c.Bad("message", "%v", err)
		}
		return pieces, own.Subject, c.Err()
	}
	t, vs := message.NewTemplate(own)
	violations(c, "message.", ofItem(vs, shared))
	if err := c.Err(); err != nil || gone != nil {
		return nil, "", firstOf(err, gone)
	}
	pieces, subject, err := through(c, t, f)
	return message.Own(pieces), subject, err
}

// over lays an item's own content over the shared message, and says how many of the files are
// shared: they come first.
func (b *bulk) over(own *message.Message) (files int) {
	base := b.base
	if base == nil {
		return 0
	}
	own.Subject, own.FromName = cmp.Or(own.Subject, base.Subject), cmp.Or(own.FromName, base.FromName)
	if len(own.Alternatives) == 0 {
		own.Alternatives = base.Alternatives
	}
	own.Text, own.HTML = cmp.Or(own.Text, base.Text), cmp.Or(own.HTML, base.HTML)
	own.ReplyTo, own.Common = base.ReplyTo, base.Common
	own.Headers = message.MergeHeaders(base.Headers, own.Headers)
	own.Attachments = slices.Concat(base.Attachments, own.Attachments)
	return len(base.Attachments)
}

var fileField = regexp.MustCompile(`^attachments\[(\d+)\]`)

// ofItem names the item's own files by their place in the item, before which so many shared
// ones stand.
func ofItem(vs []message.Violation, shared int) []message.Violation {
	for i, v := range vs {
		if m := fileField.FindStringSubmatch(v.Field); m != nil {
			at, _ := strconv.Atoi(m[1]) // digits
			vs[i].Field = fmt.Sprintf("attachments[%d]%s", at-shared, v.Field[len(m[0]):])
		}
	}
	return vs
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// through composes by a template.
func through(c *apierr.Check, t *message.Template, f *message.Fill) ([]message.Piece, string, error) {
	pieces, vs, err := t.Compose(f)
	for _, v := range vs {
		field := v.Field
		if !strings.HasPrefix(field, "variables") {
			field = "message." + field
		}
		c.Bad(field, "%s", v.Description)
	}
	if bad := c.Err(); bad != nil {
		return nil, "", bad
	}
	if err != nil {
		return nil, "", apierr.Wrap(err, codes.ResourceExhausted, pb.ReasonMailTooLarge, "%v", err)
	}
	return pieces, t.Subject(f), nil
}

// carry gives a mail the bytes that are made of its item.
func (b *bulk) carry(ctx context.Context, c *apierr.Check, m *store.NewMail, d *draft, it *pb.BatchItem, f *message.Fill) error {
	pieces, subject, err := b.pieces(ctx, c, d, it.Message, f)
	if err != nil {
		return err
	}
	if pieces, err = b.a.sign(ctx, d.server, m, pieces, &b.body); err != nil {
		return err
	}
	m.Subject = subject
	carry(m, pieces, b.contents, b.common)
	return nil
}

// readRaw reads an item that is a finished message.
func (b *bulk) readRaw(c *apierr.Check, d *draft, it *pb.BatchItem) *message.Raw {
	if b.shared != nil {
		c.Bad("message.raw", "is a whole message, and the options have one that the items share")
	}
	if len(it.Variables) > 0 {
		c.Bad("variables", "are for messages that are composed here, not for raw")
	}
	checkRawOptions(c, "message.", b.send)
	raw := readRaw(c, "message.", d, it.Message)
	if raw == nil || raw.MessageID == "" {
		return raw
	}
	if at, is := b.rawIDs[raw.MessageID]; is && (it.RequestId == "" || at != it.RequestId) {
		c.Bad("message.raw", "has the Message-ID of an earlier item")
		return raw
	}
	if b.rawIDs == nil {
		b.rawIDs = map[string]string{}
	}
	b.rawIDs[raw.MessageID] = it.RequestId
	return raw
}

// fingerprint is of what an item is, by whatever batch and place it comes.
func (b *bulk) fingerprint(it *pb.BatchItem) []byte {
	id := it.RequestId
	it.RequestId = ""
	// a message that came over the wire always can be
	body, _ := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b.sum[:len(b.sum):len(b.sum)], it)
	it.RequestId = id
	sum := sha256.Sum256(body)
	return sum[:]
}

// What a call may make of its items, beyond what they share: values that stand in many places
// make gigabytes of a few kilobytes.
const (
	maxComposed     = 256 << 20
	maxComposedItem = 64 << 10 // more for each item
)

// tooMuchComposed ends a call, as an error that is not the item's.
func tooMuchComposed() error {
	return apierr.New(codes.ResourceExhausted, pb.ReasonOverloaded, "the items of this call become more than %d MiB and %d KiB for each: begin another call",
		maxComposed>>20, maxComposedItem>>10)
}

// tooManyItems ends a call: sent again, the same items would be too many again.
func tooManyItems(format string, args ...any) error {
	var c apierr.Check
	c.Bad("items", format, args...)
	return c.Err()
}

// maxMessageItems is how many items one message of a stream may bring.
const maxMessageItems = 10_000

func checkItems(items []*pb.BatchItem) error {
	if len(items) > maxMessageItems {
		return tooManyItems("has more than %d entries in one message", maxMessageItems)
	}
	return nil
}

// inItem turns a rejection into the error of a call that takes all or nothing.
func inItem(r *pb.BatchRejection) *apierr.Error {
	code := codes.InvalidArgument
	switch r.Reason {
	case pb.ReasonRequestIDReused:
		code = codes.AlreadyExists
	case pb.ReasonMailTooLarge:
		code = codes.ResourceExhausted
	case pb.ReasonUploadNotFound:
		code = codes.NotFound
	}
	return apierr.New(code, r.Reason, "items[%d]: %s", r.Position, r.Message)
}

// allRejected is the error of a strict batch: every violation of every item where there are
// such, else the first item's fault.
func allRejected(rs []*pb.BatchRejection) error {
	var c apierr.Check
	for _, r := range rs {
		for _, v := range r.Violations {
			c.Bad(fmt.Sprintf("items[%d].%s", r.Position, v.Field), "%s", v.Description)
		}
	}
	if err := c.Err(); err != nil {
		return err
	}
	return inItem(rs[0])
}
