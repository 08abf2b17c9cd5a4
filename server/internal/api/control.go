package api

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
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

type modified struct {
	matched, changed int
	failures         []*pb.MailFailure
}

func (a *API) modify(ctx context.Context, s selection, dryRun bool, action, reason string, decide func(*store.Mail) (*store.Change, error)) (*modified, error) {
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

// RetryMails implements the service.
func (a *API) RetryMails(ctx context.Context, r *pb.RetryMailsRequest) (*pb.RetryMailsResponse, error) {
	var c apierr.Check
	sel := selector(&c, r.Ids, r.Filter, r.Reason)
	if err := c.Err(); err != nil {
		return nil, err
	}
	servers := map[string]error{}
	usable := func(name string) error {
		err, known := servers[name]
		if !known {
			var m *store.MailServer
			if m, err = a.Store.Server(ctx, store.Everything, name); err == nil {
				switch {
				case m.DeleteTime != nil:
					err = fmt.Errorf("its mail server %s is deleted", name)
				case m.Status != store.ServerAvailable:
					err = fmt.Errorf("its mail server %s is unavailable", name)
				}
			}
			servers[name] = err
		}
		return err
	}
	now := a.Now().UTC()
	byID := len(sel.ids) > 0
	m, err := a.modify(ctx, sel, r.ValidateOnly, "RetryMails", r.Reason, func(m *store.Mail) (*store.Change, error) {
		if m.Status == store.MailUnknown && !byID {
			return nil, errors.New("its outcome is unknown: it may have arrived, so it is sent again only when its id is given")
		}
		if m.ExpireTime != nil && !now.Before(*m.ExpireTime) {
			return nil, errors.New("its expire_time has passed")
		}
		if err := usable(m.MailServer); err != nil {
			return nil, err
		}
		ch := &store.Change{Kind: store.SettleRetry, Status: store.MailQueued, RunAt: now, Attempts: m.Attempts, PossibleDuplicate: m.PossibleDuplicate, LastError: m.LastError}
		p := store.Progress{Attempts: m.Progress.Attempts, Results: append([]store.RecipientResult(nil), m.Progress.Results...)}
		for i := range p.Results {
			switch res := &p.Results[i]; res.Status {
			case store.RecipientAccepted:
				ch.Status = store.MailPartiallySent
			case store.RecipientUnknown:
				if !byID {
					continue
				}
				ch.PossibleDuplicate = true
				fallthrough
			default:
				*res = store.RecipientResult{Status: store.RecipientPending}
			}
		}
		if ch.Status == store.MailQueued && m.Attempts > 0 {
			ch.Status = store.MailDeferred
		}
		ch.Progress = &p
		return ch, nil
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
	m, err := a.modify(ctx, sel, r.ValidateOnly, "CancelMails", r.Reason, func(m *store.Mail) (*store.Change, error) {
		last := m.LastError
		if r.Reason != "" {
			last = "cancelled: " + r.Reason
		}
		return &store.Change{Kind: store.SettleArchive, Status: store.MailCancelled, Attempts: m.Attempts, PossibleDuplicate: m.PossibleDuplicate, LastError: last}, nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.CancelMailsResponse{Matched: int32(m.matched), Changed: int32(m.changed), Failures: m.failures}, nil
}
