package api

import (
	"context"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

const (
	maxFindText     = 998 // as long as a line of a header
	maxSubjectWords = 10
	maxSubjectText  = 200
)

// findFilter checks and converts what FindMails searches for.
func findFilter(c *apierr.Check, r *pb.FindMailsRequest) (f store.FindFilter) {
	f.MailFilter, _ = filter(c, "filter.", r.Filter)
	if r.Id != "" {
		f.ID = mailID(c, "id", r.Id)
	}
	line(c, "text", r.Text, maxFindText)
	f.Text = strings.Trim(r.Text, " ")
	if to, err := message.ParseAddress(f.Text); err == nil && !strings.HasPrefix(f.Text, "<") {
		f.Text = to.Mailbox // as it is on the wire
	}
	if r.RecipientDomain != "" {
		at, err := message.ParseAddress("x@" + strings.TrimPrefix(r.RecipientDomain, "@"))
		if err != nil {
			c.Bad("recipient_domain", "is not a domain")
		}
		_, f.Domain, _ = strings.Cut(at.Mailbox, "@")
	}
	line(c, "subject", r.Subject, maxSubjectText)
	if f.Subject = strings.Fields(r.Subject); len(f.Subject) > maxSubjectWords {
		c.Bad("subject", "has more than %d words", maxSubjectWords)
	}
	if r.Failure != pb.RecipientResult_FAILURE_UNSPECIFIED {
		if f.Failure = string(failureOf[r.Failure]); f.Failure == "" {
			c.Bad("failure", "is not a class of failures")
		}
	}
	f.PossibleDuplicate = r.PossibleDuplicate
	moment := func(field string, t *timestamppb.Timestamp, into *time.Time) {
		if t == nil {
			return
		}
		if t.CheckValid() != nil {
			c.Bad(field, "is not a time")
		}
		*into = t.AsTime()
	}
	moment("finished_since", r.FinishedSince, &f.FinishedSince)
	moment("finished_until", r.FinishedUntil, &f.FinishedUntil)
	if r.FinishedSince != nil && r.FinishedUntil != nil && !f.FinishedSince.Before(f.FinishedUntil) {
		c.Bad("finished_until", "is not after finished_since")
	}
	return f
}

// FindMails implements the service.
func (a *API) FindMails(ctx context.Context, r *pb.FindMailsRequest) (*pb.FindMailsResponse, error) {
	var c apierr.Check
	f := findFilter(&c, r)
	n := pageSize(&c, r.PageSize)
	if err := c.Err(); err != nil {
		return nil, err
	}
	same := proto.CloneOf(r)
	same.PageSize, same.PageToken = 0, ""
	pos, err := a.position("find", same, r.PageToken)
	if err != nil {
		return nil, err
	}
	p, next := &mailPage{}, cursor(pos).ID
	for asked, got := 0, 0; got == asked && len(p.mails) < n; {
		asked = p.room(n - len(p.mails))
		var ms []*store.Mail
		if ms, next, err = a.Store.FindMails(ctx, a.scope(ctx), f, next, asked); err != nil {
			return nil, a.fault(err)
		}
		if p.add(viewerOf(ctx), ms) {
			next = p.last().ID
			break
		}
		if got = len(ms); next == uuid.Nil {
			break
		}
	}
	out := &pb.FindMailsResponse{Mails: p.mails}
	if next != uuid.Nil {
		out.NextPageToken = a.pageToken("find", same, cursorBytes(nil, next))
	}
	return out, nil
}
