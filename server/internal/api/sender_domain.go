package api

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

const maxSenderDomains = 100

// SetSenderDomains implements the service.
func (a *AccessAdmin) SetSenderDomains(ctx context.Context, r *pb.SetSenderDomainsRequest) (*pb.SetSenderDomainsResponse, error) {
	var c apierr.Check
	if r.Team == "" {
		c.Bad("team", "is required: the system's senders are bound to nothing")
	}
	checkTeam(&c, "team", r.Team)
	line(&c, "reason", r.Reason, 500)
	if len(r.Domains) > maxSenderDomains {
		c.Bad("domains", "has more than %d entries", maxSenderDomains)
	}
	var domains []string
	for _, given := range r.Domains[:min(len(r.Domains), maxSenderDomains)] {
		d, ok := senderDomain(given)
		if !ok {
			c.Bad("domains", "holds what is neither a domain nor *. and a domain")
			break
		}
		if !slices.Contains(domains, d) {
			domains = append(domains, d)
		}
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	saved, err := a.Tokens.SetSenderDomains(ctx, r.Team, domains, a.audit(ctx, "SetSenderDomains", r.Reason))
	if err != nil {
		return nil, a.fault(err)
	}
	a.Changed(ctx)
	return &pb.SetSenderDomainsResponse{SenderDomains: senderDomains(saved)}, nil
}

// ListSenderDomains implements the service.
func (a *AccessAdmin) ListSenderDomains(ctx context.Context, r *pb.ListSenderDomainsRequest) (*pb.ListSenderDomainsResponse, error) {
	var c apierr.Check
	n := pageSize(&c, r.PageSize)
	if err := c.Err(); err != nil {
		return nil, err
	}
	filter := &pb.ListSenderDomainsRequest{}
	after, err := a.position("senders", filter, r.PageToken)
	if err != nil {
		return nil, err
	}
	ds, err := a.Tokens.SenderDomains(ctx, string(after), n+1)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &pb.ListSenderDomainsResponse{}
	for i := range ds {
		out.SenderDomains = append(out.SenderDomains, senderDomains(&ds[i]))
	}
	if n = fits(out.SenderDomains, n); n < len(ds) {
		out.SenderDomains = out.SenderDomains[:n]
		out.NextPageToken = a.pageToken("senders", filter, []byte(ds[n-1].Team))
	}
	return out, nil
}

func senderDomains(d *store.SenderDomains) *pb.SenderDomains {
	return &pb.SenderDomains{Team: d.Team, Domains: d.Domains, UpdateTime: timestamppb.New(d.UpdateTime)}
}

// senderDomain is a domain as addresses have it, or all below one.
func senderDomain(s string) (string, bool) {
	host, below := strings.CutPrefix(s, "*.")
	at, err := message.ParseAddress("x@" + host)
	if err != nil || at.Name != "" || at.Local() != "x" {
		return "", false
	}
	if below {
		return "*." + at.Domain(), true
	}
	return at.Domain(), true
}

// mayBeSender says whether the caller may have a mail server of a team send as from: a team's
// own ones keep to the team's domains, unless a system administrator asks.
func (a *API) mayBeSender(ctx context.Context, team, from string) error {
	if team == "" || a.SenderDomains == nil {
		return nil
	}
	allowed := a.SenderDomains(team)
	if len(allowed) == 0 || access.From(ctx).SeesNetwork() {
		return nil
	}
	at, err := message.ParseAddress(from)
	if err == nil && within(at.Domain(), allowed) {
		return nil
	}
	return apierr.New(codes.PermissionDenied, pb.ReasonRoleMissing, "mail_server.from: %s is outside the domains of team %q (%s): only system administrators may",
		at.Mailbox, team, strings.Join(allowed[:min(len(allowed), 10)], ", "))
}

// within says whether a domain is one of those that are allowed.
func within(domain string, allowed []string) bool {
	for _, d := range allowed {
		if below, is := strings.CutPrefix(d, "*"); d == domain || is && strings.HasSuffix(domain, below) {
			return true
		}
	}
	return false
}
