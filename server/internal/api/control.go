package api

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

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

// maxAtOnce is how many mails a control call changes before it answers. More are an operation.
const maxAtOnce = 1000

// maxFailures is how many mails an answer lists that could not be changed.
const maxFailures = 100

type modified struct {
	matched, changed int
	failures         []*pb.MailFailure
	groups           []*pb.FailureGroup
	operation        *pb.Operation
}

// modify carries out a control call, or begins the operation that does.
func (a *API) modify(ctx context.Context, s selection, dryRun bool, reason string, call proto.Message) (*modified, error) {
	w, err := a.word(ctx, call)
	if err != nil {
		return nil, err
	}
	if s.filter != nil {
		n, err := a.Store.CountUpTo(ctx, a.scope(ctx), *s.filter, maxAtOnce+1)
		if err != nil {
			return nil, a.fault(err)
		}
		if n > maxAtOnce {
			return a.begin(ctx, s, dryRun, reason, call, w)
		}
	}
	matched, changed, fails, err := a.Store.Modify(ctx, a.scope(ctx), s.ids, s.filter, dryRun, a.audit(ctx, w.action, reason), w.decide)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &modified{matched: matched, changed: changed}
	var groups []store.FailureGroup
	for i, f := range fails {
		reason, text := failureText(f.Err)
		if i < maxFailures {
			out.failures = append(out.failures, &pb.MailFailure{Id: f.ID.String(), Reason: reason, Message: text})
		}
		groups = store.AddFailure(groups, reason, text, f.ID)
	}
	out.groups = failureGroups(groups)
	return out, nil
}

// word is what a control call does to a mail.
type word struct {
	action string
	decide store.Decide
	brakes bool // what it selects leaves no more
}

// word is called once for a call, and for each piece of an operation.
func (a *API) word(ctx context.Context, call proto.Message) (word, error) {
	now := a.Now().UTC()
	switch r := call.(type) {
	case *pb.RetryMailsRequest:
		byID, admin := len(r.Ids) > 0, access.From(ctx).Admin()
		return word{action: "RetryMails", decide: func(m *store.Mail, its *store.MailServer) (*store.Change, error) {
			if m.Status == store.MailHeld && !admin {
				return nil, lifecycle.Refusal("it is held, and only an administrator releases it")
			}
			c, err := lifecycle.Retry(m, byID, now)
			return c, firstOf(err, anothers(ctx, m), maySend(ctx, m.Kind, m.MailServer), usable(m.MailServer, its))
		}}, nil
	case *pb.CancelMailsRequest:
		return word{action: "CancelMails", brakes: true, decide: func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return lifecycle.Cancel(m, r.Reason), nil
		}}, nil
	case *pb.HoldMailsRequest:
		return word{action: "HoldMails", brakes: true, decide: func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
			return lifecycle.Hold(m, r.Reason)
		}}, nil
	case *pb.ReleaseMailsRequest:
		return word{action: "ReleaseMails", decide: func(m *store.Mail, its *store.MailServer) (*store.Change, error) {
			c, err := lifecycle.Release(m, now)
			return c, firstOf(err, anothers(ctx, m), maySend(ctx, m.Kind, m.MailServer), usable(m.MailServer, its))
		}}, nil
	case *pb.MoveMailsRequest:
		return a.moveWord(ctx, r, now)
	}
	return word{}, fmt.Errorf("%T is no control call", call)
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
	m, err := a.modify(ctx, sel, r.ValidateOnly, r.Reason, r)
	if err != nil {
		return nil, err
	}
	return &pb.RetryMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures, FailureGroups: m.groups, Operation: m.operation}, nil
}

// CancelMails implements the service.
func (a *API) CancelMails(ctx context.Context, r *pb.CancelMailsRequest) (*pb.CancelMailsResponse, error) {
	var c apierr.Check
	sel := selector(&c, r.Ids, r.Filter, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	m, err := a.modify(ctx, sel, r.ValidateOnly, r.Reason, r)
	if err != nil {
		return nil, err
	}
	return &pb.CancelMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures, FailureGroups: m.groups, Operation: m.operation}, nil
}

// HoldMails implements the service.
func (a *API) HoldMails(ctx context.Context, r *pb.HoldMailsRequest) (*pb.HoldMailsResponse, error) {
	var c apierr.Check
	sel := selector(&c, r.Ids, r.Filter, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	sel.only(store.MailQueued, store.MailSending, store.MailDeferred, store.MailPartiallySent)
	m, err := a.modify(ctx, sel, r.ValidateOnly, r.Reason, r)
	if err != nil {
		return nil, err
	}
	return &pb.HoldMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures, FailureGroups: m.groups, Operation: m.operation}, nil
}

// ReleaseMails implements the service.
func (a *API) ReleaseMails(ctx context.Context, r *pb.ReleaseMailsRequest) (*pb.ReleaseMailsResponse, error) {
	var c apierr.Check
	sel := selector(&c, r.Ids, r.Filter, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	sel.only(store.MailHeld)
	m, err := a.modify(ctx, sel, r.ValidateOnly, r.Reason, r)
	if err != nil {
		return nil, err
	}
	return &pb.ReleaseMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures, FailureGroups: m.groups, Operation: m.operation}, nil
}
