package clienttest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func (d dispatch) ResendMail(_ context.Context, req *maildispatchv1.ResendMailRequest) (*maildispatchv1.ResendMailResponse, error) {
	d.s.mu.Lock()
	defer d.s.unlock()
	if req.GetReason() == "" {
		return nil, invalid([]client.Violation{{Field: "reason", Description: "is required"}})
	}
	first := d.s.entry(req.GetId())
	if first == nil {
		return nil, noMail(req.GetId())
	}
	if len(first.request.GetMessage().GetRaw()) > 0 {
		return nil, invalid([]client.Violation{{Field: "id", Description: "was given as a finished message (raw)"}})
	}
	old, sum := first.mail, fingerprint(req)
	e, err := d.s.replayed(old.Team, req.GetRequestId(), sum)
	if err != nil {
		return nil, err
	}
	if e != nil {
		return &maildispatchv1.ResendMailResponse{Mail: proto.CloneOf(e.mail), Duplicate: true}, nil
	}
	switch via := d.s.servers[old.MailServer]; {
	case via == nil || via.DeleteTime != nil:
		return nil, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerDeleted, fmt.Sprintf("mail server %q is deleted", old.MailServer))
	case !d.s.usable(old.MailServer):
		return nil, Error(codes.FailedPrecondition, maildispatchv1.ReasonMailServerUnavailable, fmt.Sprintf("mail server %q is unavailable", old.MailServer))
	}
	now := time.Now()
	id := d.s.nextID()
	e = &entry{request: first.request, sum: sum, mail: &maildispatchv1.Mail{StoredContent: maildispatchv1.StoredContent_STORED_CONTENT_COMPLETE,
		Id: id, Team: old.Team, MailServer: old.MailServer, Mode: old.Mode, Kind: old.Kind, Reference: old.Reference, Labels: old.Labels,
		Status: maildispatchv1.MailStatus_MAIL_STATUS_QUEUED, From: old.From, Subject: old.Subject, MessageId: "<" + id + "@example.com>",
		RequestId: req.GetRequestId(), Route: old.Route, Priority: old.Priority, CreateTime: stamp(now), DueTime: stamp(now),
		ResentFrom: old.Id, ResendReason: req.GetReason(),
	}}
	is := func(r *maildispatchv1.RecipientResult) func(string) bool {
		return func(a string) bool { return strings.EqualFold(bare(a), r.Address) }
	}
	for i, a := range req.GetOnlyRecipients() {
		if !slices.ContainsFunc(old.Recipients, func(r *maildispatchv1.RecipientResult) bool { return is(r)(a) }) {
			return nil, invalid([]client.Violation{{Field: fmt.Sprintf("only_recipients[%d]", i), Description: "is not a recipient of this mail"}})
		}
	}
	for _, r := range old.Recipients {
		if len(req.GetOnlyRecipients()) == 0 || slices.ContainsFunc(req.GetOnlyRecipients(), is(r)) {
			e.add(r.Address, r.Kind)
		}
	}
	if right := bare(req.GetToInstead()); right != "" {
		if len(e.mail.Recipients) != 1 {
			return nil, invalid([]client.Violation{{Field: "to_instead", Description: "is the right address of one recipient: name it in only_recipients"}})
		}
		wrong := e.mail.Recipients[0].Address
		e.mail.Recipients[0].Address = right
		e.request = proto.CloneOf(first.request)
		for _, list := range [][]string{e.request.Message.GetTo(), e.request.Message.GetCc(), e.request.Message.GetBcc()} {
			for i, a := range list {
				if strings.EqualFold(bare(a), wrong) {
					list[i] = right
				}
			}
		}
	}
	for _, a := range req.GetAdditionalRecipients() {
		e.add(bare(a), maildispatchv1.RecipientResult_KIND_BCC)
	}
	e.compose(now)
	d.s.mails = append(d.s.mails, e)
	return &maildispatchv1.ResendMailResponse{Mail: proto.CloneOf(e.mail)}, nil
}

func (d dispatch) GetQueueStats(_ context.Context, req *maildispatchv1.GetQueueStatsRequest) (*maildispatchv1.GetQueueStatsResponse, error) {
	d.s.mu.Lock()
	defer d.s.unlock()
	now := time.Now()
	res := &maildispatchv1.GetQueueStatsResponse{Counts: &maildispatchv1.MailCounts{}, Time: stamp(now), WatchLag: durationpb.New(0)}
	lanes := map[maildispatchv1.Priority]*maildispatchv1.GetQueueStatsResponse_Lane{}
	for p := maildispatchv1.Priority_PRIORITY_URGENT; p >= maildispatchv1.Priority_PRIORITY_LOW; p-- {
		lanes[p] = &maildispatchv1.GetQueueStatsResponse_Lane{Priority: p}
		res.Lanes = append(res.Lanes, lanes[p])
	}
	f := &maildispatchv1.MailFilter{Team: req.Team, MailServer: req.GetMailServer()}
	for _, e := range d.s.mails {
		m := e.mail
		switch {
		case !match(f, m):
		case m.Status == maildispatchv1.MailStatus_MAIL_STATUS_SENT:
			if m.FinishTime.AsTime().After(now.Add(-time.Minute)) {
				res.SentLastMinute++
			}
		case !archived(m):
			count(res.Counts, m.Status)
			if m.DueTime == nil {
				continue
			}
			if m.DueTime.AsTime().After(now) {
				res.Scheduled++
				continue
			}
			lane, age := lanes[m.Priority], durationpb.New(now.Sub(m.DueTime.AsTime()))
			res.Waiting++
			lane.Waiting++
			if lane.OldestDueTime == nil || m.DueTime.AsTime().Before(lane.OldestDueTime.AsTime()) {
				lane.OldestDueTime, lane.OldestAge = m.DueTime, age
			}
			if res.OldestDueTime == nil || m.DueTime.AsTime().Before(res.OldestDueTime.AsTime()) {
				res.OldestDueTime, res.OldestAge = m.DueTime, age
			}
		}
	}
	return proto.CloneOf(res), nil
}
