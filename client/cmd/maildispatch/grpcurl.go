package main

import (
	"context"
	"fmt"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/proto/plain"
)

// printer prints calls instead of making them. A call that is printed is answered with an empty
// message, so that a command goes on to its next one.
type printer struct {
	app     *app
	profile *profile
	out     io.Writer
}

func (p *printer) unary(_ context.Context, method string, req, _ any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
	if m, is := req.(proto.Message); is {
		p.call(method, m)
	}
	return nil
}

func (p *printer) stream(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, method string, _ grpc.Streamer, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &printed{p: p, ctx: ctx, method: method}, nil
}

// call prints one call for a shell.
func (p *printer) call(method string, reqs ...proto.Message) {
	host, _, err := net.SplitHostPort(p.profile.Address)
	ip := net.ParseIP(host)
	here := err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
	secured := p.profile.CA != "" || p.profile.Cert != ""
	t := plain.Target{Address: p.profile.Address, CA: p.profile.CA, Cert: p.profile.Cert, Key: p.profile.Key, TokenFile: p.profile.TokenFile, Plaintext: !secured && (here || p.profile.Plaintext)}
	fmt.Fprintln(p.out, t.Line(method, reqs...))
}

// printed is a stream whose requests are printed at their end, and that has no answer.
type printed struct {
	grpc.ClientStream
	p      *printer
	ctx    context.Context
	method string
	reqs   []proto.Message
}

func (s *printed) Context() context.Context { return s.ctx }

func (s *printed) SendMsg(m any) error {
	if req, is := m.(proto.Message); is {
		s.reqs = append(s.reqs, proto.Clone(req)) // the sender may use it again
	}
	return nil
}

func (s *printed) CloseSend() error {
	s.p.call(s.method, s.reqs...)
	return nil
}

// RecvMsg ends the stream in a way that nobody tries again.
func (s *printed) RecvMsg(any) error { return status.Error(codes.Canceled, "the call was printed") }
