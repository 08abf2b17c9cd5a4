package clienttest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// Principal is a caller who is known by a token.
type Principal struct {
	Roles  []maildispatchv1.Role
	Teams  []string // for which teams
	System bool     // for all teams, and for the system itself
}

// Allow lets callers with a token in as p, and from the first one on nobody without. They are
// refused as the service refuses them: who is not known with UNAUTHENTICATED (TOKEN_REFUSED),
// who lacks the role with PERMISSION_DENIED (ROLE_MISSING), who names a team that is not theirs
// with PERMISSION_DENIED (TEAM_NOT_YOURS). An absent team is the caller's only one where the
// service takes it so. What a request does not say is not looked at: a mail of another team is
// found by its id.
func (s *Server) Allow(token string, p Principal) {
	s.mu.Lock()
	defer s.unlock()
	if s.principals == nil {
		s.principals = map[string]*Principal{}
	}
	s.principals[token] = &p
}

// Revoke ends a token. Calls that go on with it are not ended.
func (s *Server) Revoke(token string) {
	s.mu.Lock()
	defer s.unlock()
	delete(s.principals, token)
}

// caller is who calls; nil where everybody may call.
func (s *Server) caller(ctx context.Context) (*Principal, error) {
	s.mu.Lock()
	defer s.unlock()
	if s.principals == nil {
		return nil, nil
	}
	given := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(given) == 1 && len(given[0]) > len("bearer ") && strings.EqualFold(given[0][:len("bearer ")], "bearer ") {
		if p := s.principals[given[0][len("bearer "):]]; p != nil {
			return p, nil
		}
	}
	return nil, Error(codes.Unauthenticated, maildispatchv1.ReasonTokenRefused, "the token is not known")
}

// policyOf is the line of a method; nil = everybody who is known may call it.
func policyOf(method string) *maildispatchv1.Policy {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")))
	if err != nil {
		return nil
	}
	p, _ := proto.GetExtension(d.Options(), maildispatchv1.E_Policy).(*maildispatchv1.Policy)
	return p
}

// admit decides by role.
func (p *Principal) admit(pol *maildispatchv1.Policy) error {
	may := len(pol.GetRoles()) == 0 || slices.Contains(p.Roles, maildispatchv1.Role_ROLE_ADMIN) ||
		slices.ContainsFunc(p.Roles, func(r maildispatchv1.Role) bool { return slices.Contains(pol.GetRoles(), r) })
	if !may || pol.GetSystem() && !p.System {
		return Error(codes.PermissionDenied, maildispatchv1.ReasonRoleMissing, "the caller lacks the role that this call needs")
	}
	return nil
}

// team looks at the team that a request names, and writes the caller's only one into it where
// none is named and one is needed.
func (p *Principal) team(pol *maildispatchv1.Policy, m protoreflect.Message) error {
	if pol.GetTeam() == "" {
		return nil
	}
	var made []func()
	path := strings.Split(pol.GetTeam(), ".")
	for _, name := range path[:len(path)-1] {
		f := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if !m.Has(f) {
			if !pol.GetOwnTeam() || f.ContainingOneof() != nil {
				return nil
			}
			parent, child := m, m.NewField(f)
			made = append(made, func() { parent.Set(f, child) })
			m = child.Message()
			continue
		}
		m = m.Get(f).Message()
	}
	f := m.Descriptor().Fields().ByName(protoreflect.Name(path[len(path)-1]))
	named := m.Get(f).String()
	switch {
	case p.System, slices.Contains(p.Teams, named):
		return nil
	case named == "" && !pol.GetOwnTeam() && !(f.HasPresence() && m.Has(f)):
		return nil
	case named != "", f.HasPresence() && m.Has(f), len(p.Teams) != 1:
		return Error(codes.PermissionDenied, maildispatchv1.ReasonTeamNotYours, fmt.Sprintf("team %q is not yours", named))
	}
	m.Set(f, protoreflect.ValueOfString(p.Teams[0]))
	for _, set := range made {
		set()
	}
	return nil
}

func (s *Server) guardUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if _, is := ours(info.FullMethod); !is {
		return handle(ctx, req)
	}
	p, err := s.caller(ctx)
	if err == nil && p != nil {
		pol := policyOf(info.FullMethod)
		if err = p.admit(pol); err == nil {
			err = p.team(pol, req.(proto.Message).ProtoReflect())
		}
	}
	if err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (s *Server) guardStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if _, is := ours(info.FullMethod); !is {
		return handle(srv, ss)
	}
	p, err := s.caller(ss.Context())
	if err != nil || p == nil {
		if err != nil {
			return err
		}
		return handle(srv, ss)
	}
	pol := policyOf(info.FullMethod)
	if err := p.admit(pol); err != nil {
		return err
	}
	return handle(srv, &guardedStream{ServerStream: ss, caller: p, policy: pol})
}

// guardedStream looks at the team of a stream's first request. Its handler's goroutine alone
// uses it.
type guardedStream struct {
	grpc.ServerStream
	caller *Principal
	policy *maildispatchv1.Policy
	begun  bool
}

func (g *guardedStream) RecvMsg(m any) error {
	if err := g.ServerStream.RecvMsg(m); err != nil || g.begun {
		return err
	}
	g.begun = true
	return g.caller.team(g.policy, m.(proto.Message).ProtoReflect())
}
