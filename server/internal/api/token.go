package api

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// Tokens is what AccessAdmin needs of the store: tokens, the audit log, and sealed secrets.
type Tokens interface {
	outbound.Listing
	Reseal(ctx context.Context, name string, a store.Audit, change func(*store.MailServer) int) (int, error)
	CreateToken(ctx context.Context, t *store.Token, a store.Audit) error
	Tokens(ctx context.Context, afterID string, ended bool, n int) ([]*store.Token, error)
	RevokeToken(ctx context.Context, id string, a store.Audit) (*store.Token, error)
	SetSenderDomains(ctx context.Context, team string, domains []string, a store.Audit) (*store.SenderDomains, error)
	SenderDomains(ctx context.Context, after string, n int) ([]store.SenderDomains, error)
	AuditRows(ctx context.Context, sc store.Scope, f store.AuditFilter, before int64, n int) ([]store.AuditRow, error)
}

// AccessAdmin implements the service of that name.
type AccessAdmin struct {
	pb.UnimplementedAccessAdminServer
	*API
	Tokens Tokens
	// Changed is called after a token was made or revoked, so that this process knows at once.
	Changed func(ctx context.Context)
	On      func() bool // callers are asked who they are
}

const (
	tokenTTL    = 90 * 24 * time.Hour
	tokenTTLMin = time.Minute
	tokenTTLMax = 366 * 24 * time.Hour
	maxBound    = 100 // teams or mail servers of a token
	maxPerDay   = 1_000_000_000
)

var (
	roleOf   = map[pb.Role]store.Role{pb.Role_ROLE_SEND: store.RoleSend, pb.Role_ROLE_READ: store.RoleRead, pb.Role_ROLE_ADMIN: store.RoleAdmin}
	roleName = flip(roleOf)
)

// CreateToken implements the service.
func (a *AccessAdmin) CreateToken(ctx context.Context, r *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	var c apierr.Check
	now := a.Now().UTC().Truncate(time.Microsecond)
	t := &store.Token{Name: r.Name, System: r.System, Teams: r.Teams, MailServers: r.MailServers, MailsPerDay: r.MailsPerDay, RecipientsPerDay: r.RecipientsPerDay, CreatedBy: access.From(ctx).Actor, CreateTime: now, ExpireTime: now.Add(tokenTTL)}
	if r.Name == "" {
		c.Bad("name", "is required: whose token is it?")
	}
	line(&c, "name", r.Name, 100)
	line(&c, "reason", r.Reason, 500)
	for _, role := range r.Roles {
		if roleOf[role] == "" {
			c.Bad("roles", "holds a number that is not a role")
			break
		}
		t.Roles = append(t.Roles, roleOf[role])
	}
	if len(r.Roles) == 0 || len(r.Roles) > len(roleOf) {
		c.Bad("roles", "is required: some of ROLE_SEND, ROLE_READ, ROLE_ADMIN")
	}
	switch {
	case r.System && len(r.Teams) > 0:
		c.Bad("teams", "give teams or system, not both")
	case !r.System && len(r.Teams) == 0:
		c.Bad("teams", "is required without system")
	case len(r.Teams) > maxBound:
		c.Bad("teams", "has more than %d entries", maxBound)
	}
	if slices.ContainsFunc(r.Teams, func(team string) bool { return !teamSlug.MatchString(team) }) {
		c.Bad("teams", "holds what is not a team: [a-z0-9][a-z0-9-]{0,62}")
	}
	for _, k := range r.Kinds {
		if kindOf[k] == "" {
			c.Bad("kinds", "holds a number that is not a kind")
			break
		}
		t.Kinds = append(t.Kinds, kindOf[k])
	}
	if len(r.Kinds) > 16 {
		c.Bad("kinds", "has more than 16 entries")
	}
	if len(r.MailServers) > maxBound {
		c.Bad("mail_servers", "has more than %d entries", maxBound)
	}
	if slices.ContainsFunc(r.MailServers, func(name string) bool { return !serverSlug.MatchString(name) }) {
		c.Bad("mail_servers", "holds what is not a mail server name: [a-z][a-z0-9-]{1,62}")
	}
	for field, n := range map[string]int64{"mails_per_day": r.MailsPerDay, "recipients_per_day": r.RecipientsPerDay} {
		if n < 0 || n > maxPerDay {
			c.Bad(field, "is not between 0 and %d; 0 = no limit of its own", maxPerDay)
		}
	}
	checkDuration(&c, "ttl", r.Ttl, tokenTTLMin, tokenTTLMax)
	if err := c.Err(); err != nil {
		return nil, err
	}
	if r.Ttl != nil {
		t.ExpireTime = now.Add(r.Ttl.AsDuration())
	}
	secret, id, hash := access.NewSecret()
	t.ID, t.Hash = id, hash
	err := a.Tokens.CreateToken(ctx, t, a.audit(ctx, "CreateToken", r.Reason))
	var old *store.OldReplicaError
	if errors.As(err, &old) {
		return nil, apierr.Precondition(pb.ReasonOldReplica, old.Replica, "%s", old)
	}
	if err != nil {
		return nil, a.fault(err)
	}
	a.Changed(ctx)
	return &pb.CreateTokenResponse{Info: tokenInfo(t), Secret: secret}, nil
}

func tokenInfo(t *store.Token) *pb.Token {
	out := &pb.Token{Id: t.ID, Name: t.Name, Teams: t.Teams, System: t.System, MailServers: t.MailServers, MailsPerDay: t.MailsPerDay, RecipientsPerDay: t.RecipientsPerDay, CreatedBy: t.CreatedBy,
		CreateTime: timestamppb.New(t.CreateTime), ExpireTime: timestamppb.New(t.ExpireTime), LastUseTime: stamp(t.UseTime), RevokeTime: stamp(t.RevokeTime)}
	for _, r := range t.Roles {
		out.Roles = append(out.Roles, roleName[r])
	}
	for _, k := range t.Kinds {
		out.Kinds = append(out.Kinds, kindName[k])
	}
	return out
}

// ListTokens implements the service.
func (a *AccessAdmin) ListTokens(ctx context.Context, r *pb.ListTokensRequest) (*pb.ListTokensResponse, error) {
	var c apierr.Check
	n := pageSize(&c, r.PageSize)
	if err := c.Err(); err != nil {
		return nil, err
	}
	filter := &pb.ListTokensRequest{ShowEnded: r.ShowEnded}
	after, err := a.position("tokens", filter, r.PageToken)
	if err != nil {
		return nil, err
	}
	ts, err := a.Tokens.Tokens(ctx, string(after), r.ShowEnded, n+1)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &pb.ListTokensResponse{}
	for _, t := range ts {
		out.Tokens = append(out.Tokens, tokenInfo(t))
	}
	if n = fits(out.Tokens, n); n < len(ts) {
		out.Tokens = out.Tokens[:n]
		out.NextPageToken = a.pageToken("tokens", filter, []byte(ts[n-1].ID))
	}
	return out, nil
}

// RevokeToken implements the service.
func (a *AccessAdmin) RevokeToken(ctx context.Context, r *pb.RevokeTokenRequest) (*pb.RevokeTokenResponse, error) {
	var c apierr.Check
	if r.Id == "" || len(r.Id) > 64 {
		c.Bad("id", "is required: the id of the token, not the token")
	}
	line(&c, "reason", r.Reason, 500)
	if err := c.Err(); err != nil {
		return nil, err
	}
	t, err := a.Tokens.RevokeToken(ctx, r.Id, a.audit(ctx, "RevokeToken", r.Reason))
	if errors.Is(err, store.ErrNotFound) {
		// the id may be the whole token, by mistake: it is not told back
		return nil, apierr.New(codes.NotFound, pb.ReasonTokenNotFound, "no token has this id")
	}
	if err != nil {
		return nil, a.fault(err)
	}
	a.Changed(ctx)
	return &pb.RevokeTokenResponse{Info: tokenInfo(t)}, nil
}

// WhoAmI implements the service.
func (a *AccessAdmin) WhoAmI(ctx context.Context, _ *pb.WhoAmIRequest) (*pb.WhoAmIResponse, error) {
	c := access.From(ctx)
	out := &pb.WhoAmIResponse{Actor: c.Actor, Name: c.Name, Roles: c.Roles, Teams: c.Teams, System: c.System}
	if !c.Expire.IsZero() {
		out.ExpireTime = timestamppb.New(c.Expire)
	}
	left, err := a.Quota.Left(ctx, c.Name, c.Budget, c.Teams)
	if err != nil {
		return nil, a.fault(err)
	}
	for _, l := range left {
		out.Allowances = append(out.Allowances, &pb.Allowance{Limit: l.Limit, Team: l.Team, Value: l.Value, Left: l.Left})
	}
	return out, nil
}

// GetServiceInfo implements the service.
func (a *AccessAdmin) GetServiceInfo(context.Context, *pb.GetServiceInfoRequest) (*pb.GetServiceInfoResponse, error) {
	return &pb.GetServiceInfoResponse{Version: pb.Version, AccessOn: a.On(), MaxRecipientsPerMail: message.MaxPerMail, MaxMailBytes: message.MaxMailBytes,
		MaxUploadBytes: mostUpload, MaxIdsPerCall: maxIDs, Limits: a.Quota.Limits().ByName()}, nil
}
