package api

import (
	"context"
	"net/netip"
	"strings"

	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/store"
)

// scope is what the caller sees.
func (a *API) scope(ctx context.Context) store.Scope { return access.From(ctx).Scope() }

// useScope is what a mail of a team may go through: its own mail servers and the system's.
func useScope(team string) store.Scope { return store.Scope{Teams: []string{team, ""}} }

// audit says who does it.
func (a *API) audit(ctx context.Context, action, reason string) store.Audit {
	return store.Audit{Actor: access.From(ctx).Actor, Action: action, Reason: reason}
}

// mayHand says whether the caller may hand over such mail through a mail server, in its name.
func (a *API) mayHand(ctx context.Context, k store.Kind, s *store.MailServer) error {
	return firstOf(maySend(ctx, k, s.Name), a.mayBeSender(ctx, s.Team, s.From))
}

// maySend says whether the caller may have such mail sent through a mail server, whoever has
// handed it over.
func maySend(ctx context.Context, k store.Kind, server string) error {
	c := access.From(ctx)
	return firstOf(c.Hands(k), c.Through(server))
}

// mayConfigure says whether the caller may give a mail server the configuration that it has
// now. before is the one it had, nil for a new one: what stays as it was, a system
// administrator has allowed.
func (a *API) mayConfigure(ctx context.Context, before, s *store.MailServer) error {
	if before == nil || before.From != s.From {
		if err := a.mayBeSender(ctx, s.Team, s.From); err != nil {
			return err
		}
	}
	what := reserved(s)
	if what == "" || before != nil && sameUse(before, s) {
		return nil
	}
	return access.From(ctx).SystemAdmin(what)
}

// sameUse: mail goes the same way, in the same name. The name counts because such a mail server
// may take any sender from this machine.
func sameUse(a, b *store.MailServer) bool {
	return a.From == b.From && (a.SMTP == nil && b.SMTP == nil || sameLogin(a, b))
}

// reserved names what of a configuration only system administrators may set: what reaches this
// machine, what any sender may go through, and whom to believe. "" = nothing.
func reserved(s *store.MailServer) string {
	x := s.SMTP
	switch {
	case s.Type == store.TypeLocalhost:
		return "a mail server of TYPE_LOCALHOST"
	case x == nil:
		return ""
	case OnThisMachine(x.Host):
		return "a mail server on this machine"
	case x.CAPEM != "":
		return "a mail server with ca_pem"
	case x.Username == "":
		return "a mail server without a login"
	}
	return ""
}

// OnThisMachine knows loopback by its name or address. A name that only resolves to it is the
// business of whoever dials.
func OnThisMachine(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && (ip.Unmap().IsLoopback() || ip.Unmap().IsUnspecified())
}
