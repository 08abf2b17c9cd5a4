package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/smtpx/message/dkim"
	"github.com/maildispatch/maildispatch/store"
)

// ListMailServers implements the service.
func (a *API) ListMailServers(ctx context.Context, r *pb.ListMailServersRequest) (*pb.ListMailServersResponse, error) {
	var c apierr.Check
	if r.Team != nil {
		checkTeam(&c, "team", *r.Team)
	}
	if r.Mode != pb.Mode_MODE_UNSPECIFIED && modeOf[r.Mode] == "" {
		c.Bad("mode", "is not a mode")
	}
	if r.Status != pb.MailServer_STATUS_UNSPECIFIED && statusOf[r.Status] == "" {
		c.Bad("status", "is not a status")
	}
	n := pageSize(&c, r.PageSize)
	if err := c.Err(); err != nil {
		return nil, err
	}
	filter := &pb.ListMailServersRequest{Team: r.Team, Mode: r.Mode, Status: r.Status, ShowDeleted: r.ShowDeleted}
	after, err := a.position("servers", filter, r.PageToken)
	if err != nil {
		return nil, err
	}
	ms, err := a.Store.Servers(ctx, a.scope(ctx), store.ServerFilter{Team: r.Team, Mode: modeOf[r.Mode], Status: statusOf[r.Status], ShowDeleted: r.ShowDeleted}, string(after), n+1)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &pb.ListMailServersResponse{}
	bs, err := a.Store.Breakers(ctx)
	if err != nil {
		return nil, a.fault(err)
	}
	for _, m := range ms {
		x := mailServer(m)
		x.Health = viewerOf(ctx).health(m, bs[m.Name])
		out.MailServers = append(out.MailServers, x)
	}
	if n = fits(out.MailServers, n); n < len(ms) {
		out.MailServers = out.MailServers[:n]
		out.NextPageToken = a.pageToken("servers", filter, []byte(ms[n-1].Name))
	}
	return out, nil
}

// GetMailServer implements the service.
func (a *API) GetMailServer(ctx context.Context, r *pb.GetMailServerRequest) (*pb.GetMailServerResponse, error) {
	m, err := a.server(ctx, "name", r.Name)
	if err != nil {
		return nil, err
	}
	bs, err := a.Store.Breakers(ctx)
	if err != nil {
		return nil, a.fault(err)
	}
	out := mailServer(m)
	out.Health = viewerOf(ctx).health(m, bs[m.Name])
	return &pb.GetMailServerResponse{MailServer: out}, nil
}

// server reads a mail server named by a request's field.
func (a *API) server(ctx context.Context, field, name string) (*store.MailServer, error) {
	var c apierr.Check
	checkServerName(&c, field, name)
	if err := c.Err(); err != nil {
		return nil, err
	}
	m, err := a.Store.Server(ctx, a.scope(ctx), name)
	return m, a.serverFault(err, name)
}

// CreateMailServer implements the service.
func (a *API) CreateMailServer(ctx context.Context, r *pb.CreateMailServerRequest) (*pb.CreateMailServerResponse, error) {
	var c apierr.Check
	checkRequestID(&c, "request_id", r.RequestId)
	if r.MailServer == nil {
		c.Bad("mail_server", "is required")
	} else {
		checkMailServer(&c, "mail_server.", r.MailServer)
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	m := r.MailServer
	s := &store.MailServer{Name: m.Name, Team: m.Team, Type: typeOf[m.Type], RequestID: r.RequestId}
	fill(s, m)
	if err := a.mayConfigure(ctx, nil, s); err != nil {
		return nil, err
	}
	if err := a.seal(s, given(m)); err != nil {
		return nil, err
	}
	if r.RequestId != "" {
		in := proto.Clone(m).(*pb.MailServer)
		in.Etag, in.CreateTime, in.UpdateTime, in.DeleteTime, in.Health = "", nil, nil, nil, nil
		// A hash of the password would let whoever reads the database try passwords without the
		// key, and the same request_id would say which of a caller's guesses is right.
		withoutSecrets(in)
		if in.Smtp != nil {
			in.Smtp.CaPem = certificates(in.Smtp.CaPem)
		}
		s.Fingerprint = fingerprint(in)
	}
	if r.ValidateOnly {
		if err := a.couldCreate(ctx, s); err != nil {
			return nil, err
		}
		out := mailServer(s)
		out.Etag = ""
		return &pb.CreateMailServerResponse{MailServer: out}, nil
	}
	if err := a.completeKey(s, dkim.NewKey); err != nil {
		return nil, err
	}
	saved, dup, err := a.Store.CreateServer(ctx, s, a.audit(ctx, "CreateMailServer", ""))
	if err != nil {
		return nil, a.fault(err)
	}
	return &pb.CreateMailServerResponse{MailServer: mailServer(saved), Duplicate: dup}, nil
}

// couldCreate looks for what the database would refuse.
func (a *API) couldCreate(ctx context.Context, s *store.MailServer) error {
	if taken, err := a.Store.ServerExists(ctx, s.Name); err != nil || taken {
		return a.fault(firstOf(err, store.ErrExists))
	}
	return a.couldBe(ctx, s)
}

// couldBe looks for what the other mail servers do not allow.
func (a *API) couldBe(ctx context.Context, s *store.MailServer) error {
	if err := a.Store.CheckFallback(ctx, s); err != nil {
		return a.fault(err)
	}
	return a.couldBeDefault(ctx, s)
}

func (a *API) couldBeDefault(ctx context.Context, s *store.MailServer) error {
	if !s.IsDefault {
		return nil
	}
	cur, err := a.Store.DefaultServer(ctx, s.Team)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return a.fault(err)
	case cur.Name != s.Name:
		return a.fault(&store.DefaultExistsError{Team: s.Team, Current: cur.Name})
	}
	return nil
}

// fingerprint is the hash by which the same content is known again: equal messages, whatever
// the order of their maps.
func fingerprint(ms ...proto.Message) []byte {
	h := sha256.New()
	for _, m := range ms {
		// a message that came over the wire always can be
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		sum := sha256.Sum256(b)
		h.Write(sum[:])
	}
	return h.Sum(nil)
}

// UpdateMailServer implements the service.
func (a *API) UpdateMailServer(ctx context.Context, r *pb.UpdateMailServerRequest) (*pb.UpdateMailServerResponse, error) {
	var c apierr.Check
	if r.MailServer == nil {
		c.Bad("mail_server", "is required")
	} else {
		checkServerName(&c, "mail_server.name", r.MailServer.Name)
	}
	line(&c, "reason", r.Reason, 500)
	if err := c.Err(); err != nil {
		return nil, err
	}
	name := r.MailServer.Name
	v, ok := version(r.MailServer.Etag)
	if !ok {
		return nil, a.fault(store.ErrVersion)
	}
	change := func(s *store.MailServer) error {
		if s.DeleteTime != nil {
			return store.ErrDeleted
		}
		before := *s
		if s.SMTP != nil {
			smtp := *s.SMTP
			before.SMTP = &smtp
		}
		_, err := a.change(s, r.MailServer, r.UpdateMask)
		return firstOf(err, a.mayConfigure(ctx, &before, s))
	}
	if r.ValidateOnly {
		s, err := a.server(ctx, "mail_server.name", name)
		if err == nil && v != 0 && v != s.Version {
			err = store.ErrVersion
		}
		if err == nil {
			err = change(s)
		}
		if err == nil {
			err = a.couldBe(ctx, s)
		}
		if err != nil {
			return nil, a.serverFault(err, name)
		}
		return &pb.UpdateMailServerResponse{MailServer: mailServer(s)}, nil
	}
	newKey := a.keyAhead(ctx, r)
	complete := func(s *store.MailServer) error {
		if err := change(s); err != nil {
			return err
		}
		return a.completeKey(s, newKey)
	}
	s, err := a.Store.UpdateServer(ctx, a.scope(ctx), name, v, a.audit(ctx, "UpdateMailServer", r.Reason), complete)
	if err != nil {
		return nil, a.serverFault(err, name)
	}
	return &pb.UpdateMailServerResponse{MailServer: mailServer(s)}, nil
}

// change applies changes to s and checks the result whole. It returns the new secrets in clear,
// those that were given; s keeps its stored ones only while the login stays the same.
func (a *API) change(s *store.MailServer, changes *pb.MailServer, mask *fieldmaskpb.FieldMask) (outbound.Secrets, error) {
	var c apierr.Check
	m := mailServer(s)
	overlay(&c, m, changes, mask)
	checkMailServer(&c, "mail_server.", m)
	if err := c.Err(); err != nil {
		return outbound.Secrets{}, err
	}
	before := *s
	fill(s, m)
	dropSecrets(s, &before, mask)
	return given(m), a.seal(s, given(m))
}

// DeleteMailServer implements the service.
func (a *API) DeleteMailServer(ctx context.Context, r *pb.DeleteMailServerRequest) (*pb.DeleteMailServerResponse, error) {
	var c apierr.Check
	checkServerName(&c, "name", r.Name)
	line(&c, "reason", r.Reason, 500)
	if err := c.Err(); err != nil {
		return nil, err
	}
	v, ok := version(r.Etag)
	if !ok {
		return nil, a.fault(store.ErrVersion)
	}
	m, n, err := a.Store.DeleteServer(ctx, a.scope(ctx), r.Name, v, r.Force, a.audit(ctx, "DeleteMailServer", r.Reason))
	if err != nil {
		return nil, a.serverFault(err, r.Name)
	}
	return &pb.DeleteMailServerResponse{MailServer: mailServer(m), HeldMails: int32(n.Held), LeavingMails: int32(n.Leaving)}, nil
}

// UndeleteMailServer implements the service.
func (a *API) UndeleteMailServer(ctx context.Context, r *pb.UndeleteMailServerRequest) (*pb.UndeleteMailServerResponse, error) {
	var c apierr.Check
	line(&c, "reason", r.Reason, 500)
	if err := c.Err(); err != nil {
		return nil, err
	}
	if _, err := a.server(ctx, "name", r.Name); err != nil {
		return nil, err
	}
	m, err := a.Store.UndeleteServer(ctx, a.scope(ctx), r.Name, a.audit(ctx, "UndeleteMailServer", r.Reason))
	if err != nil {
		return nil, a.serverFault(err, r.Name)
	}
	return &pb.UndeleteMailServerResponse{MailServer: mailServer(m)}, nil
}

// SetDefaultMailServer implements the service.
func (a *API) SetDefaultMailServer(ctx context.Context, r *pb.SetDefaultMailServerRequest) (*pb.SetDefaultMailServerResponse, error) {
	var c apierr.Check
	line(&c, "reason", r.Reason, 500)
	if err := c.Err(); err != nil {
		return nil, err
	}
	if _, err := a.server(ctx, "name", r.Name); err != nil {
		return nil, err
	}
	m, prev, err := a.Store.SetDefault(ctx, a.scope(ctx), r.Name, a.audit(ctx, "SetDefaultMailServer", r.Reason))
	if err != nil {
		return nil, a.serverFault(err, r.Name)
	}
	return &pb.SetDefaultMailServerResponse{MailServer: mailServer(m), PreviousDefault: mailServer(prev)}, nil
}

// fallbackTakes says whether the mail of a mail server that is switched off can go through its
// fallback now.
func (a *API) fallbackTakes(ctx context.Context, m *store.MailServer) bool {
	if m.Fallback == "" {
		return false
	}
	f, err := a.Store.Server(ctx, store.Everything, m.Fallback)
	return err == nil && f.DeleteTime == nil && f.Status == store.ServerAvailable && !f.Paused(a.Now())
}

// RunBatch implements the service.
func (a *API) RunBatch(ctx context.Context, r *pb.RunBatchRequest) (*pb.RunBatchResponse, error) {
	team := ""
	if r.MailServer != "" {
		m, err := a.server(ctx, "mail_server", r.MailServer)
		switch {
		case err != nil:
			return nil, err
		case m.DeleteTime != nil:
			return nil, a.fault(store.ErrDeleted)
		case m.Paused(a.Now()):
			return nil, apierr.Precondition(pb.ReasonMailServerUnavailable, m.Name, "mail server %q sends nothing until %s", m.Name, m.PauseUntil.Format(time.RFC3339))
		case m.Status != store.ServerAvailable && !a.fallbackTakes(ctx, m):
			return nil, a.serverFault(store.ErrServerUnavailable, m.Name)
		}
		team = m.Team
	}
	if r.MailServer == "" {
		if err := access.From(ctx).SystemAdmin("RunBatch without a mail server"); err != nil {
			return nil, err
		}
	}
	if err := a.Store.Record(ctx, a.audit(ctx, "RunBatch", ""), team, r.MailServer, nil); err != nil {
		return nil, a.fault(err)
	}
	n, err := a.Batch.RunBatch(ctx, r.MailServer, r.Wait)
	if err != nil {
		return nil, a.serverFault(err, r.MailServer)
	}
	return &pb.RunBatchResponse{Claimed: int32(n.Claimed), Sent: int32(n.Sent), PartiallySent: int32(n.Partial), Deferred: int32(n.Deferred),
		Failed: int32(n.Failed), Unknown: int32(n.Unknown), Expired: int32(n.Expired), Released: int32(n.Released)}, nil
}
