package clienttest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// hold takes a mail out of the batch's reach; release lets it go on at the time it had.
func (e *entry) hold() {
	if e.mail.DueTime != nil {
		e.resume = e.mail.DueTime
	}
	e.mail.Status, e.mail.DueTime = maildispatchv1.MailStatus_MAIL_STATUS_HELD, nil
}

func (e *entry) release() {
	e.mail.Status, e.mail.DueTime, e.mail.LastError = waiting(e.mail), e.resume, ""
	if e.mail.DueTime == nil {
		e.mail.DueTime = stamp(time.Now())
	}
}

// waiting is the status of a mail that waits to be sent.
func waiting(m *maildispatchv1.Mail) maildispatchv1.MailStatus {
	accepted := func(r *maildispatchv1.RecipientResult) bool {
		return r.Status == maildispatchv1.RecipientResult_STATUS_ACCEPTED
	}
	switch {
	case slices.ContainsFunc(m.Recipients, accepted):
		return maildispatchv1.MailStatus_MAIL_STATUS_PARTIALLY_SENT
	case m.AttemptCount > 0:
		return maildispatchv1.MailStatus_MAIL_STATUS_DEFERRED
	}
	return maildispatchv1.MailStatus_MAIL_STATUS_QUEUED
}

func (s *Server) usable(server string) bool {
	via := s.servers[server]
	return via != nil && via.DeleteTime == nil && via.Status == maildispatchv1.MailServer_STATUS_AVAILABLE
}

// only narrows a filter that names no status.
func only(f *maildispatchv1.MailFilter, sts ...maildispatchv1.MailStatus) *maildispatchv1.MailFilter {
	if f == nil || proto.Size(f) == 0 || len(f.Statuses) > 0 {
		return f
	}
	f = proto.CloneOf(f)
	f.Statuses = sts
	return f
}

func (d dispatch) HoldMails(_ context.Context, req *maildispatchv1.HoldMailsRequest) (*maildispatchv1.HoldMailsResponse, error) {
	f := only(req.GetFilter(), maildispatchv1.MailStatus_MAIL_STATUS_QUEUED, maildispatchv1.MailStatus_MAIL_STATUS_DEFERRED, maildispatchv1.MailStatus_MAIL_STATUS_PARTIALLY_SENT)
	matched, changed, failures, err := d.s.change(req.GetIds(), f, req.GetValidateOnly(), func(m *maildispatchv1.Mail, _ bool) (func(), string) {
		if m.DueTime == nil {
			return nil, "it does not wait to be sent"
		}
		return func() {
			d.s.entry(m.Id).hold()
			m.LastError = "held: " + req.GetReason()
		}, ""
	})
	return &maildispatchv1.HoldMailsResponse{Matched: matched, Changed: changed, Failures: failures}, err
}

func (d dispatch) ReleaseMails(_ context.Context, req *maildispatchv1.ReleaseMailsRequest) (*maildispatchv1.ReleaseMailsResponse, error) {
	f := only(req.GetFilter(), maildispatchv1.MailStatus_MAIL_STATUS_HELD)
	matched, changed, failures, err := d.s.change(req.GetIds(), f, req.GetValidateOnly(), func(m *maildispatchv1.Mail, _ bool) (func(), string) {
		switch {
		case m.Status != maildispatchv1.MailStatus_MAIL_STATUS_HELD:
			return nil, "it is not held"
		case !d.s.usable(m.MailServer):
			return nil, "its mail server cannot be used"
		}
		return d.s.entry(m.Id).release, ""
	})
	return &maildispatchv1.ReleaseMailsResponse{Matched: matched, Changed: changed, Failures: failures}, err
}

func (d dispatch) MoveMails(_ context.Context, req *maildispatchv1.MoveMailsRequest) (*maildispatchv1.MoveMailsResponse, error) {
	d.s.mu.Lock()
	ok := d.s.usable(req.GetMailServer())
	d.s.mu.Unlock()
	if !ok {
		return nil, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerUnavailable, "the mail server cannot be used")
	}
	matched, changed, failures, err := d.s.change(req.GetIds(), req.GetFilter(), req.GetValidateOnly(), func(m *maildispatchv1.Mail, _ bool) (func(), string) {
		unknown := slices.ContainsFunc(m.Recipients, func(r *maildispatchv1.RecipientResult) bool {
			return r.Status == maildispatchv1.RecipientResult_STATUS_UNKNOWN
		})
		if unknown || m.PossibleDuplicate {
			return nil, "it may have left already: its outcome is unknown"
		}
		return func() { m.MailServer = req.GetMailServer() }, ""
	})
	return &maildispatchv1.MoveMailsResponse{Matched: matched, Changed: changed, Failures: failures, MailServer: req.GetMailServer()}, err
}

func (d dispatch) ResolveMail(_ context.Context, req *maildispatchv1.ResolveMailRequest) (*maildispatchv1.ResolveMailResponse, error) {
	d.s.mu.Lock()
	defer d.s.unlock()
	if req.GetReason() == "" {
		return nil, invalid([]client.Violation{{Field: "reason", Description: "is required"}})
	}
	e := d.s.entry(req.GetId())
	if e == nil {
		return nil, noMail(req.GetId())
	}
	m := e.mail
	state := func(format string, args ...any) error {
		return Error(codes.FailedPrecondition, maildispatchv1.ReasonWrongState, fmt.Sprintf(format, args...))
	}
	if archived(m) {
		return nil, state("the mail is finished")
	}
	var about []*maildispatchv1.RecipientResult
	named := make([]bool, len(req.GetRecipients()))
	for _, r := range m.Recipients {
		i := slices.IndexFunc(req.GetRecipients(), func(a string) bool { return strings.EqualFold(bare(a), r.Address) })
		unknown := r.Status == maildispatchv1.RecipientResult_STATUS_UNKNOWN
		if i >= 0 && !unknown {
			return nil, state("the outcome of %s is not unknown", r.Address)
		}
		if i >= 0 {
			named[i] = true
		}
		if i >= 0 || len(named) == 0 && unknown {
			about = append(about, r)
		}
	}
	if i := slices.Index(named, false); i >= 0 {
		return nil, invalid([]client.Violation{{Field: fmt.Sprintf("recipients[%d]", i), Description: "is not a recipient of this mail"}})
	}
	if len(about) == 0 {
		return nil, state("of no recipient is the outcome unknown")
	}
	to := maildispatchv1.RecipientResult_STATUS_PENDING
	switch req.GetResolution() {
	case maildispatchv1.Resolution_RESOLUTION_DELIVERED:
		to = maildispatchv1.RecipientResult_STATUS_ACCEPTED
	case maildispatchv1.Resolution_RESOLUTION_NOT_DELIVERED:
		to = maildispatchv1.RecipientResult_STATUS_REJECTED
	case maildispatchv1.Resolution_RESOLUTION_RESEND:
		if !d.s.usable(m.MailServer) {
			return nil, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerUnavailable, "its mail server cannot be used")
		}
	default:
		return nil, invalid([]client.Violation{{Field: "resolution", Description: "is required"}})
	}
	now := stamp(time.Now())
	for _, r := range about {
		r.Status, r.SmtpCode, r.EnhancedCode, r.Detail, r.Time = to, 0, "", "a person said so: "+req.GetReason(), now
		r.Failure, r.Hint = maildispatchv1.RecipientResult_FAILURE_UNSPECIFIED, ""
	}
	seen := map[maildispatchv1.RecipientResult_Status]int{}
	next := 0 // recipients that the batch is about to try
	for _, r := range m.Recipients {
		seen[r.Status]++
		switch r.Status {
		case maildispatchv1.RecipientResult_STATUS_PENDING, maildispatchv1.RecipientResult_STATUS_DEFERRED:
			next++
		case maildispatchv1.RecipientResult_STATUS_UNKNOWN:
			if m.PossibleDuplicate && !e.left[r] {
				next++
			}
		}
	}
	switch held := m.Status == maildispatchv1.MailStatus_MAIL_STATUS_HELD; {
	case to == maildispatchv1.RecipientResult_STATUS_PENDING:
		m.Status, m.DueTime, m.PossibleDuplicate = waiting(m), now, true
		e.left = map[*maildispatchv1.RecipientResult]bool{}
		for _, r := range m.Recipients {
			e.left[r] = r.Status == maildispatchv1.RecipientResult_STATUS_UNKNOWN
		}
	case seen[maildispatchv1.RecipientResult_STATUS_ACCEPTED] == len(m.Recipients):
		m.Status, m.DueTime, m.FinishTime, m.LastError = maildispatchv1.MailStatus_MAIL_STATUS_SENT, nil, now, ""
	case held && next > 0:
	case m.DueTime != nil && next > 0:
		m.Status = waiting(m)
	default:
		m.DueTime = nil
		switch {
		case seen[maildispatchv1.RecipientResult_STATUS_UNKNOWN] > 0:
			m.Status = maildispatchv1.MailStatus_MAIL_STATUS_UNKNOWN
		case seen[maildispatchv1.RecipientResult_STATUS_ACCEPTED] > 0:
			m.Status = maildispatchv1.MailStatus_MAIL_STATUS_PARTIALLY_SENT
		default:
			m.Status = maildispatchv1.MailStatus_MAIL_STATUS_FAILED
		}
	}
	return &maildispatchv1.ResolveMailResponse{Mail: proto.CloneOf(m)}, nil
}

// priority is what a request asks for, or what its kind gets.
func priority(o *maildispatchv1.SendOptions) maildispatchv1.Priority {
	if p := o.GetPriority(); p != maildispatchv1.Priority_PRIORITY_UNSPECIFIED {
		return p
	}
	switch o.GetKind() {
	case maildispatchv1.Kind_KIND_AGENT_MESSAGE:
		return maildispatchv1.Priority_PRIORITY_URGENT
	case maildispatchv1.Kind_KIND_INVOICE, maildispatchv1.Kind_KIND_WORK_ORDER:
		return maildispatchv1.Priority_PRIORITY_HIGH
	case maildispatchv1.Kind_KIND_BULK:
		return maildispatchv1.Priority_PRIORITY_LOW
	}
	return maildispatchv1.Priority_PRIORITY_NORMAL
}
