package clienttest

import (
	"context"
	"fmt"
	"html"
	"io"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// maxRejections is how many a summary lists.
const maxRejections = 1000

// group is what a stream of items shares.
type group struct {
	s       *Server
	options *maildispatchv1.BatchOptions
	n       int64 // items that came
}

// begin checks and routes the options of a stream.
func (s *Server) begin(o *maildispatchv1.BatchOptions) (*group, error) {
	s.mu.Lock()
	defer s.unlock()
	if o == nil {
		o = &maildispatchv1.BatchOptions{}
	}
	o = proto.CloneOf(o)
	if o.Options == nil {
		o.Options = &maildispatchv1.SendOptions{}
	}
	if o.Options.Kind == maildispatchv1.Kind_KIND_UNSPECIFIED {
		o.Options.Kind = maildispatchv1.Kind_KIND_BULK
	}
	if o.Message == nil {
		o.Message = &maildispatchv1.MailMessage{}
	}
	vs := braces("options.message.", o.Message)
	if len(o.BatchId) > 64 {
		vs = append(vs, client.Violation{Field: "options.batch_id", Description: "has more than 64 characters"})
	}
	if len(o.Message.Raw) > 0 {
		vs = append(vs, client.Violation{Field: "options.message.raw", Description: "is one mail's: it cannot be shared"})
	}
	if len(o.Message.To)+len(o.Message.Cc)+len(o.Message.Bcc) > 0 {
		vs = append(vs, client.Violation{Field: "options.message.to", Description: "recipients stand in the items"})
	}
	if len(vs) > 0 {
		return nil, invalid(vs)
	}
	if _, _, err := s.route(o.Options.Team, o.Options.MailServer); err != nil {
		return nil, err
	}
	if o.BatchId == "" {
		s.batches++
		o.BatchId = fmt.Sprintf("batch-%d", s.batches)
	}
	return &group{s: s, options: o}, nil
}

// request makes of an item what Send would get.
func (g *group) request(item *maildispatchv1.BatchItem) (*maildispatchv1.SendRequest, []client.Violation) {
	own, m := item.GetMessage(), proto.CloneOf(g.options.Message)
	if own == nil {
		return nil, []client.Violation{{Field: "message", Description: "is required"}}
	}
	if len(own.GetRaw()) > 0 && proto.Size(m) > 0 {
		return nil, []client.Violation{{Field: "message.raw", Description: "is a whole message, and the options have one that the items share"}}
	}
	headers, attachments := m.Headers, m.Attachments
	own.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		m.ProtoReflect().Set(f, v)
		return true
	})
	m.Headers, m.Attachments = merged(headers, own.Headers), slices.Concat(attachments, own.Attachments)
	missing := map[string]bool{}
	m.Subject = fill(m.Subject, item.Variables, missing, func(v string) string { return v })
	m.Text = fill(m.Text, item.Variables, missing, func(v string) string { return v })
	m.Html = fill(m.Html, item.Variables, missing, html.EscapeString)
	o := proto.CloneOf(g.options.Options)
	o.UnsubscribeUrl = fill(o.UnsubscribeUrl, item.Variables, missing, inURL(o.UnsubscribeUrl))
	o.UnsubscribeMailto = fill(o.UnsubscribeMailto, item.Variables, missing, inURL(o.UnsubscribeMailto))
	var vs []client.Violation
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		vs = append(vs, client.Violation{Field: "variables." + name, Description: "is missing: the message uses it"})
	}
	o.Labels = merged(o.Labels, item.Labels)
	req := &maildispatchv1.SendRequest{Options: o, Message: m, RequestId: item.RequestId}
	return req, slices.Concat(vs, braces("message.", own), check(req))
}

// braces finds what looks like a variable and is none.
func braces(prefix string, m *maildispatchv1.MailMessage) []client.Violation {
	var vs []client.Violation
	for _, text := range []struct{ field, s string }{{"subject", m.GetSubject()}, {"text", m.GetText()}, {"html", m.GetHtml()}} {
		if strings.Contains(variable.ReplaceAllString(text.s, ""), "{{") {
			vs = append(vs, client.Violation{Field: prefix + text.field, Description: `has "{{" that begins no variable`})
		}
	}
	return vs
}

var variable = regexp.MustCompile(`\{\{[ \t]*([A-Za-z_][A-Za-z0-9_]{0,62})[ \t]*\}\}`)

// fill puts the variables' values into a text and notes those that are missing.
func fill(text string, values map[string]string, missing map[string]bool, escape func(string) string) string {
	return variable.ReplaceAllStringFunc(text, func(use string) string {
		name := variable.FindStringSubmatch(use)[1]
		v, is := values[name]
		if !is {
			missing[name] = true
		}
		return escape(v)
	})
}

// inURL is how values stand in a URL: percent-encoded, unless one is the whole URL.
func inURL(text string) func(string) string {
	if use := variable.FindString(text); use == text {
		return func(v string) string { return v }
	}
	return func(v string) string { return strings.ReplaceAll(url.QueryEscape(v), "+", "%20") }
}

func merged(a, b map[string]string) map[string]string {
	if len(a)+len(b) == 0 {
		return nil
	}
	m := map[string]string{}
	maps.Copy(m, a)
	maps.Copy(m, b)
	return m
}

// take takes one item as Send would, and tells a refusal as a rejection. Any other error is of
// the call. The lock is held.
func (g *group) take(item *maildispatchv1.BatchItem, how taking) (e *entry, duplicate bool, r *maildispatchv1.BatchRejection, err error) {
	position := g.n
	g.n++
	req, vs := g.request(item)
	if len(vs) > 0 {
		err = invalid(vs)
	} else {
		how.batch = g.options.BatchId
		e, duplicate, err = g.s.take(req, how)
	}
	if r := rejection(err); r != nil {
		r.Position, r.RequestId = position, item.GetRequestId()
		return nil, false, r, nil
	}
	return e, duplicate, nil, err
}

// rejection is what an error of Send means for one item; nil when it means the call.
func rejection(err error) *maildispatchv1.BatchRejection {
	r := &maildispatchv1.BatchRejection{Reason: client.ReasonOf(err), Message: status.Convert(err).Message()}
	switch r.Reason {
	case maildispatchv1.ReasonValidationFailed, maildispatchv1.ReasonRequestIDReused, maildispatchv1.ReasonMailTooLarge, maildispatchv1.ReasonUploadNotFound:
	default:
		return nil
	}
	for _, v := range client.Violations(err) {
		r.Violations = append(r.Violations, &maildispatchv1.BatchRejection_Violation{Field: v.Field, Description: v.Description})
	}
	return r
}

// SendBatch takes the items when the stream is over, so that a stream that breaks has done
// nothing.
func (d dispatch) SendBatch(stream grpc.ClientStreamingServer[maildispatchv1.SendBatchRequest, maildispatchv1.SendBatchResponse]) error {
	var g *group
	var items []*maildispatchv1.BatchItem
	for {
		req, err := stream.Recv()
		if g == nil && (err == nil || err == io.EOF) {
			var no error
			if g, no = d.s.begin(req.GetOptions()); no != nil {
				return no
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		items = append(items, req.GetItems()...)
	}
	res, err := g.all(items)
	if err != nil {
		return err
	}
	return stream.SendAndClose(res)
}

// all takes the items of a SendBatch.
func (g *group) all(items []*maildispatchv1.BatchItem) (*maildispatchv1.SendBatchResponse, error) {
	g.s.mu.Lock()
	defer g.s.unlock()
	n := len(g.s.mails)
	res, err := g.each(items, taking{queue: true, dry: g.options.ValidateOnly})
	if err != nil {
		g.s.mails = g.s.mails[:n]
	}
	return res, err
}

func (g *group) each(items []*maildispatchv1.BatchItem, how taking) (*maildispatchv1.SendBatchResponse, error) {
	res := &maildispatchv1.SendBatchResponse{BatchId: g.options.BatchId, Received: int64(len(items))}
	var strict []client.Violation
	for _, item := range items {
		_, duplicate, r, err := g.take(item, how)
		switch {
		case err != nil:
			return nil, err
		case r == nil && duplicate:
			res.Duplicates++
		case r == nil:
			res.Accepted++
		case g.options.Strict && r.Reason != maildispatchv1.ReasonValidationFailed:
			return nil, Error(map[string]codes.Code{maildispatchv1.ReasonRequestIDReused: codes.AlreadyExists, maildispatchv1.ReasonMailTooLarge: codes.ResourceExhausted,
				maildispatchv1.ReasonUploadNotFound: codes.NotFound}[r.Reason], r.Reason, fmt.Sprintf("items[%d]: %s", r.Position, r.Message))
		case g.options.Strict:
			for _, v := range r.Violations {
				strict = append(strict, client.Violation{Field: fmt.Sprintf("items[%d].%s", r.Position, v.Field), Description: v.Description})
			}
		default:
			res.Rejected++
			if len(res.Rejections) < maxRejections {
				res.Rejections = append(res.Rejections, r)
			}
		}
	}
	if len(strict) > 0 {
		return nil, invalid(strict)
	}
	return res, nil
}

// SendStream answers every item before it reads the next.
func (d dispatch) SendStream(stream grpc.BidiStreamingServer[maildispatchv1.SendStreamRequest, maildispatchv1.SendStreamResponse]) error {
	var g *group
	for {
		req, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if g == nil {
			if o := req.GetOptions(); o.GetStrict() || o.GetValidateOnly() {
				return invalid([]client.Violation{{Field: "options", Description: "strict and validate_only are SendBatch's"}})
			}
			if g, err = d.s.begin(req.GetOptions()); err != nil {
				return err
			}
		}
		for _, item := range req.GetItems() {
			a, err := g.answer(item)
			if err != nil {
				return err
			}
			if err := stream.Send(a); err != nil {
				return err
			}
		}
	}
}

// answer takes an item of a SendStream.
func (g *group) answer(item *maildispatchv1.BatchItem) (*maildispatchv1.SendStreamResponse, error) {
	g.s.mu.Lock()
	defer g.s.unlock()
	a := &maildispatchv1.SendStreamResponse{Position: g.n, RequestId: item.GetRequestId(), BatchId: g.options.BatchId}
	e, duplicate, r, err := g.take(item, taking{})
	a.Duplicate, a.Rejection = duplicate, r
	if e != nil {
		a.MailId, a.Status = e.mail.Id, e.mail.Status
		if e.mail.Mode == maildispatchv1.Mode_MODE_PHP {
			a.Mail = proto.CloneOf(e.mail)
		}
	}
	return a, err
}

func (d dispatch) GetBatch(_ context.Context, req *maildispatchv1.GetBatchRequest) (*maildispatchv1.GetBatchResponse, error) {
	if req.GetBatchId() == "" {
		return nil, invalid([]client.Violation{{Field: "batch_id", Description: "is required"}})
	}
	d.s.mu.Lock()
	defer d.s.unlock()
	b := &maildispatchv1.Batch{BatchId: req.GetBatchId(), Team: req.GetTeam(), Counts: &maildispatchv1.MailCounts{}}
	for _, e := range d.s.mails {
		m := e.mail
		if m.BatchId != req.GetBatchId() || m.Team != req.GetTeam() {
			continue
		}
		count(b.Counts, m.Status)
		if b.Mails++; b.Mails == 1 {
			b.CreateTime = m.CreateTime
		}
		if m.DueTime != nil {
			b.Waiting++
		}
		if m.PossibleDuplicate {
			b.PossibleDuplicates++
		}
		if f := m.FinishTime; f != nil && (b.FinishTime == nil || f.AsTime().After(b.FinishTime.AsTime())) {
			b.FinishTime = f
		}
	}
	if b.Mails == 0 {
		return nil, Error(codes.NotFound, maildispatchv1.ReasonBatchNotFound, fmt.Sprintf("there is no batch %q", req.GetBatchId()))
	}
	return &maildispatchv1.GetBatchResponse{Batch: proto.CloneOf(b)}, nil
}

// count adds a mail to the field that has its status's name.
func count(c *maildispatchv1.MailCounts, st maildispatchv1.MailStatus) {
	r := c.ProtoReflect()
	f := r.Descriptor().Fields().ByName(protoreflect.Name(strings.ToLower(strings.TrimPrefix(st.String(), "MAIL_STATUS_"))))
	r.Set(f, protoreflect.ValueOfInt64(r.Get(f).Int()+1))
}
