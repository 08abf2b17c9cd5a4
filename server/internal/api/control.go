package api

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

const maxIDs = 1000

// selection is what a control call picks: ids or a filter, never nothing.
type selection struct {
	ids    []uuid.UUID
	filter *store.MailFilter
}

func selector(c *apierr.Check, ids []string, f *pb.MailFilter, reason string) selection {
	var s selection
	line(c, "reason", reason, 500)
	sf, empty := filter(c, "filter.", f)
	switch {
	case len(ids) > 0 && f != nil:
		c.Bad("filter", "give ids or a filter, not both")
	case len(ids) > maxIDs:
		c.Bad("ids", "has more than %d entries", maxIDs)
	case len(ids) > 0:
		for i, id := range ids {
			s.ids = append(s.ids, mailID(c, fmt.Sprintf("ids[%d]", i), id))
		}
	case f == nil:
		c.Bad("ids", "nothing is selected: give ids or a filter")
	case empty:
		c.Bad("filter", "nothing is set in it, which never means everything")
	default:
		s.filter = &sf
	}
	return s
}

// only narrows a filter that names no status: what a call can do nothing with is no failure of
// it then.
func (s *selection) only(sts ...store.MailStatus) {
	if s.filter != nil && len(s.filter.Statuses) == 0 {
		s.filter.Statuses = sts
	}
}

type modified struct {
	matched, changed int
	failures         []*pb.MailFailure
}

func (a *API) modify(ctx context.Context, s selection, dryRun bool, action, reason string, decide store.Decide) (*modified, error) {
	matched, changed, fails, err := a.Store.Modify(ctx, a.scope(ctx), s.ids, s.filter, dryRun, a.audit(ctx, action, reason), decide)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &modified{matched: matched, changed: changed}
	for _, f := range fails {
		reason, text := failureText(f.Err)
		out.failures = append(out.failures, &pb.MailFailure{Id: f.ID.String(), Reason: reason, Message: text})
	}
	return out, nil
}

// usable says whether mail may go through a mail server now.
func usable(name string, s *store.MailServer) error {
	switch {
	case s == nil:
		return apierr.NotFound(pb.ReasonMailServerNotFound, "mail server", name)
	case s.DeleteTime != nil:
		return apierr.Precondition(pb.ReasonMailServerDeleted, name, "its mail server %s is deleted", name)
	case s.Status != store.ServerAvailable:
		return apierr.Precondition(pb.ReasonMailServerUnavailable, name, "its mail server %s is unavailable", name)
	}
	return nil
}

// anothers says whether somebody else has handed over a mail that the guard holds. Where nobody
// was asked who calls, that is not known, and everybody may release it.
//
// A release clears Guard: a mail that has it was never released, and where it is cancelled, the
// word of a second person is missing as well.
func anothers(ctx context.Context, m *store.Mail) error {
	if m.Status != store.MailHeld && m.Status != store.MailCancelled || m.Guard == "" || m.Caller == "" || m.Caller != access.From(ctx).Name {
		return nil
	}
	return apierr.Precondition(pb.ReasonOwnRelease, m.ID.String(), "the guard has held it, and you have handed it over: somebody else has to release it or send it again")
}

// RetryMails implements the service.
func (a *API) RetryMails(ctx context.Context, r *pb.RetryMailsRequest) (*pb.RetryMailsResponse, error) {
	var c apierr.Check
	sel := selector(&c, r.Ids, r.Filter, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	now := a.Now().UTC()
	byID, admin := len(sel.ids) > 0, access.From(ctx).Admin()
	m, err := a.modify(ctx, sel, r.ValidateOnly, "RetryMails", r.Reason, func(m *store.Mail, its *store.MailServer) (*store.Change, error) {
		if m.Status == store.MailHeld && !admin {
			return nil, lifecycle.Refusal("it is held, and only an administrator releases it")
		}
		c, err := lifecycle.Retry(m, byID, now)
		return c, firstOf(err, anothers(ctx, m), maySend(ctx, m.Kind, m.MailServer), usable(m.MailServer, its))
	})
	if err != nil {
		return nil, err
	}
	return &pb.RetryMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures}, nil
}

// CancelMails implements the service.
func (a *API) CancelMails(ctx context.Context, r *pb.CancelMailsRequest) (*pb.CancelMailsResponse, error) {
	var c apierr.Check
	sel := selector(&c, r.Ids, r.Filter, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	m, err := a.modify(ctx, sel, r.ValidateOnly, "CancelMails", r.Reason, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		return lifecycle.Cancel(m, r.Reason), nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.CancelMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures}, nil
}

// HoldMails implements the service.
func (a *API) HoldMails(ctx context.Context, r *pb.HoldMailsRequest) (*pb.HoldMailsResponse, error) {
	var c apierr.Check
	sel := selector(&c, r.Ids, r.Filter, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	sel.only(store.MailQueued, store.MailSending, store.MailDeferred, store.MailPartiallySent)
	m, err := a.modify(ctx, sel, r.ValidateOnly, "HoldMails", r.Reason, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		return lifecycle.Hold(m, r.Reason)
	})
	if err != nil {
		return nil, err
	}
	return &pb.HoldMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures}, nil
}

// ReleaseMails implements the service.
func (a *API) ReleaseMails(ctx context.Context, r *pb.ReleaseMailsRequest) (*pb.ReleaseMailsResponse, error) {
	var c apierr.Check
	sel := selector(&c, r.Ids, r.Filter, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	sel.only(store.MailHeld)
	now := a.Now().UTC()
	m, err := a.modify(ctx, sel, r.ValidateOnly, "ReleaseMails", r.Reason, func(m *store.Mail, its *store.MailServer) (*store.Change, error) {
		c, err := lifecycle.Release(m, now)
		return c, firstOf(err, anothers(ctx, m), maySend(ctx, m.Kind, m.MailServer), usable(m.MailServer, its))
	})
	if err != nil {
		return nil, err
	}
	return &pb.ReleaseMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures}, nil
}
