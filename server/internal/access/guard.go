package access

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

// Guard stands before every call of one server.
type Guard struct {
	// identify says who calls, from memory alone.
	identify func(ctx context.Context, md metadata.MD) (*Principal, error)
	// unsure reports that who may do what has not been read for too long.
	unsure func() bool
	// Charge counts a call of a caller who is known, from memory alone; nil = nobody counts. It
	// is set before the first call.
	Charge func(p *Principal) error
}

// Guard asks every caller who it is.
func (b *Book) Guard() *Guard { return &Guard{identify: b.identify, unsure: b.unsure} }

// As takes every caller for p.
func As(p *Principal) *Guard {
	return &Guard{identify: func(context.Context, metadata.MD) (*Principal, error) { return p, nil }, unsure: func() bool { return false }}
}

type principalKey struct{}

// Tap refuses callers who are not known or call too often, before the body of their call is
// read.
func (g *Guard) Tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	if pol, ok := policies[info.FullMethodName]; ok && pol.GetOpen() {
		return ctx, nil
	}
	p, err := g.identify(ctx, info.Header)
	if err != nil {
		return ctx, err
	}
	if g.Charge != nil {
		if err := g.Charge(p); err != nil {
			return ctx, err
		}
	}
	return context.WithValue(ctx, principalKey{}, p), nil
}

// admit decides about a call by its method.
func (g *Guard) admit(ctx context.Context, method string) (context.Context, *Policy, error) {
	pol, ok := policies[method]
	if !ok {
		return nil, nil, apierr.New(codes.PermissionDenied, pb.ReasonRoleMissing, "nobody may call this method")
	}
	if pol.GetOpen() {
		return ctx, pol, nil
	}
	p, ok := ctx.Value(principalKey{}).(*Principal)
	if !ok {
		return nil, nil, refused("the caller is not known")
	}
	own, err := p.allows(pol)
	if err != nil {
		return nil, nil, err
	}
	if pol.adminOnly() && g.unsure() {
		e := apierr.New(codes.Unavailable, pb.ReasonDatabaseUnavailable, "who may do this has not been read from the database for %v", unsureAfter)
		e.RetryAfter = readEvery
		return nil, nil, e
	}
	c := Caller{Principal: p, own: own}
	return context.WithValue(ctx, callerKey{}, c), pol, c.Err()
}

// Unary wraps unary calls.
func (g *Guard) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	ctx, pol, err := g.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if m, ok := req.(proto.Message); ok {
		if err := pol.checkTeam(From(ctx), m.ProtoReflect()); err != nil {
			return nil, err
		}
	}
	return h(ctx, req)
}

// Stream wraps streaming calls.
func (g *Guard) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	ctx, pol, err := g.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return h(srv, &stream{ServerStream: ss, ctx: ctx, pol: pol, caller: From(ctx)})
}

// stream asks again who calls while the call lasts.
type stream struct {
	grpc.ServerStream
	ctx    context.Context
	pol    *Policy
	caller Caller
	begun  bool // a request was read; only RecvMsg, which one goroutine calls, uses it
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) known() error {
	if !s.pol.GetLasting() {
		return nil
	}
	return s.caller.Err()
}

func (s *stream) RecvMsg(m any) error {
	if err := s.known(); err != nil {
		return err
	}
	err := s.ServerStream.RecvMsg(m)
	if err == nil || err == io.EOF { // it may have waited for long, and the end commits, too
		if gone := s.known(); gone != nil {
			return gone
		}
	}
	if s.begun || err != nil && err != io.EOF {
		return err
	}
	s.begun = true
	if err == io.EOF { // a stream that says nothing says no team either
		m = nil
	}
	if pm, ok := m.(proto.Message); ok {
		return s.pol.checkTeam(s.caller, pm.ProtoReflect())
	}
	if s.pol.GetOwnTeam() {
		if _, denied := s.caller.Team(""); denied != nil {
			return denied
		}
	}
	return err
}

func (s *stream) SendMsg(m any) error {
	if err := s.known(); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

// checkTeam looks at the team that a request names, and writes the caller's only one into it
// where none is named and one is needed.
func (p *Policy) checkTeam(c Caller, m protoreflect.Message) error {
	if len(p.path) == 0 {
		return nil
	}
	var made []func()
	for _, f := range p.path[:len(p.path)-1] {
		if !m.Has(f) {
			if !p.GetOwnTeam() || f.ContainingOneof() != nil {
				return nil // nothing is said, and what the caller sees decides
			}
			parent, child := m, m.NewField(f)
			made = append(made, func() { parent.Set(f, child) })
			m = child.Message()
			continue
		}
		m = m.Get(f).Message()
	}
	f := p.path[len(p.path)-1]
	named := m.Get(f).String()
	if named == "" && !(f.HasPresence() && m.Has(f)) && !p.GetOwnTeam() {
		return nil
	}
	if f.HasPresence() && named == "" && !c.ActsFor("") {
		return apierr.New(codes.PermissionDenied, pb.ReasonTeamNotYours, "only system administrators act for the system")
	}
	team, err := c.Team(named)
	if err != nil || team == named {
		return err
	}
	m.Set(f, protoreflect.ValueOfString(team))
	for _, set := range made {
		set()
	}
	return nil
}
