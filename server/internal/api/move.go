package api

import (
	"context"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// MoveMails implements the service.
func (a *API) MoveMails(ctx context.Context, r *pb.MoveMailsRequest) (*pb.MoveMailsResponse, error) {
	var c apierr.Check
	sel := selector(&c, r.Ids, r.Filter, r.Reason)
	checkServerName(&c, "mail_server", r.MailServer)
	if err := c.Err(); err != nil {
		return nil, err
	}
	m, err := a.modify(ctx, sel, r.ValidateOnly, r.Reason, r)
	if err != nil {
		return nil, err
	}
	return &pb.MoveMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures, FailureGroups: m.groups, Operation: m.operation, MailServer: r.MailServer}, nil
}

// moveWord looks at the mail server that mails are to go on through.
func (a *API) moveWord(ctx context.Context, r *pb.MoveMailsRequest, now time.Time) (word, error) {
	to, err := a.Store.Server(ctx, access.From(ctx).UseScope(), r.MailServer)
	switch {
	case err != nil:
		return word{}, a.serverFault(err, r.MailServer)
	case to.DeleteTime != nil:
		return word{}, a.fault(store.ErrDeleted)
	case to.Status != store.ServerAvailable:
		return word{}, a.fault(store.ErrServerUnavailable)
	}
	if err := access.From(ctx).Through(to.Name); err != nil {
		return word{}, err
	}
	return word{action: "MoveMails", decide: func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		c, err := lifecycle.Move(m, to, now)
		return c, firstOf(err, maySend(ctx, m.Kind, to.Name))
	}}, nil
}
