package clienttest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func (d dispatch) ListDueOutMails(_ context.Context, req *maildispatchv1.ListDueOutMailsRequest) (*maildispatchv1.ListDueOutMailsResponse, error) {
	d.s.mu.Lock()
	defer d.s.unlock()
	var mails []*maildispatchv1.Mail
	for _, e := range d.s.mails {
		if !archived(e.mail) && match(req.GetFilter(), e.mail) {
			mails = append(mails, e.mail)
		}
	}
	mails, next, err := page(mails, req.GetPageSize(), req.GetPageToken())
	return &maildispatchv1.ListDueOutMailsResponse{Mails: mails, NextPageToken: next}, err
}

func (d dispatch) ListArchivedMails(_ context.Context, req *maildispatchv1.ListArchivedMailsRequest) (*maildispatchv1.ListArchivedMailsResponse, error) {
	d.s.mu.Lock()
	defer d.s.unlock()
	var mails []*maildispatchv1.Mail
	for _, e := range d.s.mails {
		if archived(e.mail) && match(req.GetFilter(), e.mail) {
			mails = append(mails, e.mail)
		}
	}
	slices.SortStableFunc(mails, func(a, b *maildispatchv1.Mail) int {
		if c := b.FinishTime.AsTime().Compare(a.FinishTime.AsTime()); c != 0 {
			return c
		}
		return strings.Compare(b.Id, a.Id)
	})
	mails, next, err := page(mails, req.GetPageSize(), req.GetPageToken())
	return &maildispatchv1.ListArchivedMailsResponse{Mails: mails, NextPageToken: next}, err
}

func (d dispatch) RetryMails(_ context.Context, req *maildispatchv1.RetryMailsRequest) (*maildispatchv1.RetryMailsResponse, error) {
	matched, changed, failures, err := d.s.change(req.GetIds(), req.GetFilter(), req.GetValidateOnly(), func(m *maildispatchv1.Mail, named bool) (func(), string) {
		unknown := m.Status == maildispatchv1.MailStatus_MAIL_STATUS_UNKNOWN
		if unknown && !named {
			return nil, "its outcome is unknown: it is sent again only when its id is given"
		}
		if !d.s.usable(m.MailServer) {
			return nil, "its mail server cannot be used"
		}
		return func() {
			for _, r := range m.Recipients {
				switch {
				case r.Status == maildispatchv1.RecipientResult_STATUS_ACCEPTED:
				case r.Status != maildispatchv1.RecipientResult_STATUS_UNKNOWN:
					again(r)
				case named:
					again(r)
					m.PossibleDuplicate = true
				}
			}
			m.Status, m.DueTime = waiting(m), stamp(time.Now())
		}, ""
	})
	return &maildispatchv1.RetryMailsResponse{Matched: matched, Changed: changed, Failures: failures}, err
}

// again makes a recipient as new.
func again(r *maildispatchv1.RecipientResult) {
	to := &maildispatchv1.RecipientResult{Address: r.Address, Kind: r.Kind, Status: maildispatchv1.RecipientResult_STATUS_PENDING}
	proto.Reset(r)
	proto.Merge(r, to)
}

func (d dispatch) CancelMails(_ context.Context, req *maildispatchv1.CancelMailsRequest) (*maildispatchv1.CancelMailsResponse, error) {
	matched, changed, failures, err := d.s.change(req.GetIds(), req.GetFilter(), req.GetValidateOnly(), func(m *maildispatchv1.Mail, _ bool) (func(), string) {
		return func() {
			m.Status, m.DueTime, m.FinishTime = maildispatchv1.MailStatus_MAIL_STATUS_CANCELLED, nil, stamp(time.Now())
		}, ""
	})
	return &maildispatchv1.CancelMailsResponse{Matched: matched, Changed: changed, Failures: failures}, err
}

// change applies what decide returns to selected mails of the due-out journal, or lists why
// not.
func (s *Server) change(ids []string, f *maildispatchv1.MailFilter, dry bool, decide func(m *maildispatchv1.Mail, named bool) (do func(), whyNot string)) (matched, changed int32, failures []*maildispatchv1.MailFailure, err error) {
	s.mu.Lock()
	defer s.unlock()
	if (len(ids) > 0) == (f != nil && proto.Size(f) > 0) {
		return 0, 0, nil, invalid([]client.Violation{{Field: "ids", Description: "exactly one of ids and filter is required"}})
	}
	fail := func(id, reason, message string) {
		failures = append(failures, &maildispatchv1.MailFailure{Id: id, Reason: reason, Message: message})
	}
	apply := func(m *maildispatchv1.Mail, named bool) {
		do, whyNot := decide(m, named)
		if do == nil {
			fail(m.Id, maildispatchv1.ReasonWrongState, whyNot)
			return
		}
		changed++
		if !dry {
			do()
		}
	}
	for _, id := range ids {
		matched++
		switch e := s.entry(id); {
		case e == nil:
			fail(id, maildispatchv1.ReasonMailNotFound, "there is no such mail")
		case archived(e.mail):
			fail(id, maildispatchv1.ReasonWrongState, "it is finished")
		default:
			apply(e.mail, true)
		}
	}
	for _, e := range s.mails {
		if len(ids) == 0 && !archived(e.mail) && match(f, e.mail) {
			matched++
			apply(e.mail, false)
		}
	}
	return matched, changed, failures[:min(len(failures), 100)], nil
}

func archived(m *maildispatchv1.Mail) bool {
	return m.Status == maildispatchv1.MailStatus_MAIL_STATUS_SENT || m.Status == maildispatchv1.MailStatus_MAIL_STATUS_CANCELLED
}

// match reports whether a filter takes a mail.
func match(f *maildispatchv1.MailFilter, m *maildispatchv1.Mail) bool {
	if f == nil {
		return true
	}
	for k, v := range f.Labels {
		if have, is := m.Labels[k]; !is || have != v {
			return false
		}
	}
	to := func(r *maildispatchv1.RecipientResult) bool { return strings.EqualFold(r.Address, f.Recipient) }
	return (f.Team == nil || *f.Team == m.Team) &&
		(f.MailServer == "" || f.MailServer == m.MailServer) &&
		(len(f.Statuses) == 0 || slices.Contains(f.Statuses, m.Status)) &&
		(f.Kind == maildispatchv1.Kind_KIND_UNSPECIFIED || f.Kind == m.Kind) &&
		(f.Reference == "" || f.Reference == m.Reference) &&
		(f.Recipient == "" || slices.ContainsFunc(m.Recipients, to)) &&
		(f.MessageId == "" || strings.Trim(f.MessageId, "<>") == strings.Trim(m.MessageId, "<>")) &&
		(f.RequestId == "" || f.RequestId == m.RequestId) &&
		(f.BatchId == "" || f.BatchId == m.BatchId) &&
		(f.Since == nil || !m.CreateTime.AsTime().Before(f.Since.AsTime())) &&
		(f.Until == nil || m.CreateTime.AsTime().Before(f.Until.AsTime()))
}

// page cuts a page out of all and copies it. The token is the position of the page's first
// item: good enough while nothing comes or goes.
func page[M proto.Message](all []M, size int32, token string) (items []M, next string, err error) {
	from := 0
	if token != "" {
		if from, err = strconv.Atoi(token); err != nil || from < 0 || from > len(all) {
			return nil, "", Error(codes.InvalidArgument, maildispatchv1.ReasonPageTokenInvalid, "page_token is not one of ours")
		}
	}
	if size < 0 {
		return nil, "", invalid([]client.Violation{{Field: "page_size", Description: "is negative"}})
	}
	if size == 0 {
		size = 50
	}
	to := min(from+int(min(size, 500)), len(all))
	for _, m := range all[from:to] {
		items = append(items, proto.CloneOf(m))
	}
	if to < len(all) {
		next = fmt.Sprint(to)
	}
	return items, next, nil
}
