package clienttest

import (
	"context"
	"slices"
	"strings"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func (d dispatch) FindMails(_ context.Context, req *maildispatchv1.FindMailsRequest) (*maildispatchv1.FindMailsResponse, error) {
	d.s.mu.Lock()
	defer d.s.unlock()
	var mails []*maildispatchv1.Mail
	for _, e := range slices.Backward(d.s.mails) {
		if match(req.GetFilter(), e.mail) && found(req, e.mail) {
			mails = append(mails, e.mail)
		}
	}
	mails, next, err := page(mails, req.GetPageSize(), req.GetPageToken())
	return &maildispatchv1.FindMailsResponse{Mails: mails, NextPageToken: next}, err
}

// found reports whether a search takes a mail, but for its filter.
func found(req *maildispatchv1.FindMailsRequest, m *maildispatchv1.Mail) bool {
	to := func(is func(*maildispatchv1.RecipientResult) bool) bool { return slices.ContainsFunc(m.Recipients, is) }
	text := strings.Trim(req.GetText(), "<> ")
	for word := range strings.FieldsSeq(strings.ToLower(req.GetSubject())) {
		if !strings.Contains(strings.ToLower(m.Subject), word) {
			return false
		}
	}
	switch {
	case req.GetId() != "" && req.GetId() != m.Id,
		req.GetPossibleDuplicate() && !m.PossibleDuplicate,
		req.FinishedSince != nil && (m.FinishTime == nil || m.FinishTime.AsTime().Before(req.FinishedSince.AsTime())),
		req.FinishedUntil != nil && (m.FinishTime == nil || !m.FinishTime.AsTime().Before(req.FinishedUntil.AsTime())):
		return false
	case req.GetRecipientDomain() != "" && !to(func(r *maildispatchv1.RecipientResult) bool {
		return strings.EqualFold(r.Address[strings.LastIndexByte(r.Address, '@')+1:], strings.TrimPrefix(req.RecipientDomain, "@"))
	}):
		return false
	case req.GetFailure() != 0 && !to(func(r *maildispatchv1.RecipientResult) bool { return r.Failure == req.Failure }):
		return false
	}
	return text == "" || slices.Contains([]string{m.Id, m.Reference, m.RequestId, strings.Trim(m.MessageId, "<>")}, text) ||
		to(func(r *maildispatchv1.RecipientResult) bool { return strings.EqualFold(r.Address, text) })
}
