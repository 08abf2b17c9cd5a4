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
	p.call(method, req)
	return nil
}

func (p *printer) stream(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, method string, _ grpc.Streamer, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &printed{p: p, ctx: ctx, method: method}, nil
}

// call prints one call as a line for a shell.
func (p *printer) call(method string, req any) {
	m, is := req.(proto.Message)
	if !is {
		return
	}
	host, _, err := net.SplitHostPort(p.profile.Address)
	ip := net.ParseIP(host)
	here := err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
	secured := p.profile.CA != "" || p.profile.Cert != ""
	t := plain.Target{Address: p.profile.Address, CA: p.profile.CA, Cert: p.profile.Cert, Key: p.profile.Key, TokenFile: p.profile.TokenFile, Plaintext: !secured && (here || p.profile.Plaintext)}
	fmt.Fprintln(p.out, t.Line(method, m))
}

// printed is a stream whose first request is printed and that has no answer.
type printed struct {
	grpc.ClientStream
	p      *printer
	ctx    context.Context
	method string
	sent   bool
}

func (s *printed) Context() context.Context { return s.ctx }
func (s *printed) CloseSend() error         { return nil }

// RecvMsg ends the stream in a way that nobody tries again.
func (s *printed) RecvMsg(any) error { return status.Error(codes.Canceled, "the call was printed") }

func (s *printed) SendMsg(m any) error {
	if !s.sent {
		s.p.call(s.method, m)
	}
	s.sent = true
	return nil
}
