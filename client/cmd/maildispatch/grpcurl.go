package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
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
	words := []string{"grpcurl"}
	host, _, err := net.SplitHostPort(p.profile.Address)
	ip := net.ParseIP(host)
	here := err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
	switch {
	case p.profile.CA != "" || p.profile.Cert != "":
		if p.profile.CA != "" {
			words = append(words, "-cacert", quote(p.profile.CA))
		}
		if p.profile.Cert != "" {
			words = append(words, "-cert", quote(p.profile.Cert), "-key", quote(p.profile.Key))
		}
	case here || p.profile.Plaintext:
		words = append(words, "-plaintext")
	}
	if p.profile.TokenFile != "" {
		words = append(words, "-H", `"authorization: Bearer $(cat `+quote(p.profile.TokenFile)+`)"`)
	}
	words = append(words, "-d", quote(grpcurlJSON(m)), p.profile.Address, strings.TrimPrefix(method, "/"))
	fmt.Fprintln(p.out, strings.Join(words, " "))
}

// quote makes one word of a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

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

// grpcurlJSON is a request as grpcurl reads it: a field mask is a message like any other there.
func grpcurlJSON(m proto.Message) string {
	text := jsonText(m)
	u, is := m.(*maildispatchv1.UpdateMailServerRequest)
	if !is || u.GetUpdateMask() == nil {
		return text
	}
	rest := proto.CloneOf(u)
	rest.UpdateMask = nil
	text = jsonText(rest)
	paths := make([]string, len(u.UpdateMask.Paths))
	for i, p := range u.UpdateMask.Paths {
		paths[i] = fmt.Sprintf("%q", p)
	}
	return strings.TrimSuffix(text, "}") + `,"update_mask":{"paths":[` + strings.Join(paths, ",") + "]}}"
}
