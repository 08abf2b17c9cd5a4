package access

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/store"
)

// Principal is somebody who is known. It does not change once it was made; what may do less or
// more is another one.
type Principal struct {
	Actor       string // as the audit log names it; "" = nobody was asked
	Name        string // whose its mails are
	Roles       []pb.Role
	Teams       []string
	System      bool          // all teams, and the system itself
	Kinds       []store.Kind  // hands over only these; empty = all
	MailServers []string      // hands over only through these; empty = all
	Budget      *store.Budget // hands over no more; nil = without a limit of its own
	Expire      time.Time     // zero = never

	now   func() time.Time
	ended chan struct{} // closed by the Book when the principal is known no more; nil = never
	// made for one call, and kept nowhere
	fleeting bool
}

// Everybody is who calls while nobody is asked.
func Everybody() *Principal {
	return &Principal{Roles: []pb.Role{pb.Role_ROLE_ADMIN}, System: true}
}

// Caller is a principal in a call.
type Caller struct {
	*Principal
	own bool // sees only its own mails in this call
}

type callerKey struct{}

// From is the caller of a context. A context without one has a caller who sees nothing and may
// do nothing.
func From(ctx context.Context) Caller {
	if c, ok := ctx.Value(callerKey{}).(Caller); ok {
		return c
	}
	return Caller{Principal: &Principal{}, own: true}
}

// Scope is what the caller sees: its teams, or what it has handed over itself.
func (c Caller) Scope() store.Scope {
	switch {
	case !c.own:
		return store.Scope{All: c.System, Teams: c.Teams}
	case c.Name == "":
		return store.Scope{} // whose mails would they be?
	}
	return store.Scope{All: c.System, Teams: c.Teams, Caller: c.Name}
}

// UseScope is what the caller may send through: its teams' mail servers and the system's.
func (c Caller) UseScope() store.Scope {
	if !c.System && len(c.Teams) == 0 {
		return store.Scope{}
	}
	return store.Scope{All: c.System, Teams: append([]string{""}, c.Teams...)}
}

// ActsFor reports whether a team is the caller's; "" is the system.
func (c Caller) ActsFor(team string) bool {
	return c.System || team != "" && slices.Contains(c.Teams, team)
}

// Team is the team that is meant where the caller names one or none.
func (c Caller) Team(named string) (string, error) {
	switch {
	case c.ActsFor(named):
		return named, nil
	case named == "" && len(c.Teams) == 1:
		return c.Teams[0], nil
	case named == "":
		return "", apierr.New(codes.PermissionDenied, pb.ReasonTeamNotYours, "name one of your teams: only system administrators act for the system")
	}
	return "", notYours(named)
}

func notYours(team string) error {
	return apierr.New(codes.PermissionDenied, pb.ReasonTeamNotYours, "team %q is not yours", team)
}

// Admin reports whether the caller is an administrator of what it sees.
func (c Caller) Admin() bool { return slices.Contains(c.Roles, pb.Role_ROLE_ADMIN) }

// SeesNetwork reports whether the caller may read what happened between the service and the
// host of a mail server, which tells what listens there.
func (c Caller) SeesNetwork() bool { return c.System && c.Admin() }

// SystemAdmin is nil for a system administrator. what names the thing that only one may do.
func (c Caller) SystemAdmin(what string) error {
	if c.SeesNetwork() {
		return nil
	}
	return apierr.New(codes.PermissionDenied, pb.ReasonRoleMissing, "%s: only system administrators may", what)
}

// Hands says whether the caller may hand over mail of a kind.
func (c Caller) Hands(k store.Kind) error {
	if len(c.Kinds) == 0 || slices.Contains(c.Kinds, k) {
		return nil
	}
	return apierr.New(codes.PermissionDenied, pb.ReasonTokenBound, "the token hands over no mail of kind %s", k)
}

// Through says whether the caller may hand over mail through a mail server that its team may
// use.
func (c Caller) Through(server string) error {
	if len(c.MailServers) == 0 || slices.Contains(c.MailServers, server) {
		return nil
	}
	return apierr.New(codes.PermissionDenied, pb.ReasonTokenBound, "the token hands over no mail through mail server %q", server)
}

// Ended is closed when the caller is known no more, nil when that never happens.
func (c Caller) Ended() <-chan struct{} { return c.ended }

// Err is nil while the caller is known. Calls that last ask for every piece of their work.
func (c Caller) Err() error {
	select {
	case <-c.ended:
		return refused("the caller is known no more: its token was revoked or has expired")
	default:
	}
	if !c.Expire.IsZero() && c.now != nil && !c.now().Before(c.Expire) {
		return refused("the token has expired")
	}
	return nil
}

func refused(text string) error {
	return apierr.New(codes.Unauthenticated, pb.ReasonTokenRefused, "%s", text)
}

// allows decides by role; own: only over what the caller has handed over itself.
func (p *Principal) allows(pol *Policy) (own bool, err error) {
	if pol.GetSystem() && !p.System {
		return false, apierr.New(codes.PermissionDenied, pb.ReasonRoleMissing, "only system administrators may")
	}
	has := func(r pb.Role) bool { return slices.Contains(p.Roles, r) }
	needs := func(r pb.Role) bool { return slices.Contains(pol.GetRoles(), r) }
	switch {
	case len(pol.GetRoles()) == 0, has(pb.Role_ROLE_ADMIN):
		return false, nil
	case has(pb.Role_ROLE_READ) && needs(pb.Role_ROLE_READ):
		return false, nil
	case has(pb.Role_ROLE_SEND) && needs(pb.Role_ROLE_SEND):
		return true, nil
	}
	return false, apierr.New(codes.PermissionDenied, pb.ReasonRoleMissing, "the caller lacks the role that this call needs")
}

// Actor names who calls, for the log; empty where nobody was asked. It is known as soon as the
// headers were read.
func Actor(ctx context.Context) string {
	if p, ok := ctx.Value(principalKey{}).(*Principal); ok {
		return p.Actor
	}
	return ""
}

// NewContext is a context with a caller, for whoever calls without a connection.
func NewContext(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, callerKey{}, Caller{Principal: p})
}

// Local is who has this process's user on this machine: a system administrator.
func Local() *Principal {
	p := Everybody()
	p.Actor = fmt.Sprintf("user %d on this machine", os.Getuid())
	p.Name = p.Actor
	return p
}
