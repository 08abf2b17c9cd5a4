package client

import (
	"context"
	"crypto/rand"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// bound gives unary calls without a deadline one.
func (c *Client) bound(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	d := timeoutOf(req, c.timeout)
	if _, is := req.(*maildispatchv1.SendMailRequest); is {
		d = c.sendTimeout // it waits for the mail server
	}
	ctx, cancel := bounded(ctx, d)
	defer cancel()
	return invoke(ctx, method, req, reply, cc, opts...)
}

// timeoutOf adds to d what a request asks the service to take; 0 stays none.
func timeoutOf(req any, d time.Duration) time.Duration {
	if d == 0 {
		return 0
	}
	switch r := req.(type) {
	case *maildispatchv1.TestMailServerRequest:
		if r.GetTimeout() == nil {
			return d + 30*time.Second // the service's default
		}
		return d + r.GetTimeout().AsDuration()
	case *maildispatchv1.RunBatchRequest:
		if r.GetWait() {
			return d + 15*time.Minute
		}
	}
	return d
}

// fillRequestID makes creating calls safe to repeat.
func fillRequestID(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, withRequestID(req), reply, cc, opts...)
}

// fillRequestIDInStream does the same for streams that begin with one request.
func fillRequestIDInStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil || desc.ClientStreams {
		return s, err
	}
	return requestIDStream{s}, nil
}

type requestIDStream struct{ grpc.ClientStream }

func (s requestIDStream) SendMsg(m any) error { return s.ClientStream.SendMsg(withRequestID(m)) }

// withRequestID returns req, or if it is one of ours with an empty request_id a copy with a new
// one. The caller's own stays as it is, because sent again it means a new thing. The copy is
// shallow: a mail may be large, and nobody writes to it.
func withRequestID(req any) any {
	m, is := req.(proto.Message)
	if !is {
		return req
	}
	r := m.ProtoReflect()
	f := requestIDField(r.Descriptor())
	if f == nil || !r.IsValid() || r.Get(f).String() != "" {
		return req
	}
	c := shallow(r)
	c.Set(f, protoreflect.ValueOfString(rand.Text()))
	return c.Interface()
}

// requestIDField is the field that makes a request repeatable, nil if it has none.
func requestIDField(d protoreflect.MessageDescriptor) protoreflect.FieldDescriptor {
	if d.ParentFile().Package() != "maildispatch.v1" {
		return nil
	}
	f := d.Fields().ByName("request_id")
	if f == nil || f.Kind() != protoreflect.StringKind || f.IsList() {
		return nil
	}
	return f
}

// shallow copies the fields of a message and shares what they hold.
func shallow(r protoreflect.Message) protoreflect.Message {
	c := r.New()
	r.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		c.Set(f, v)
		return true
	})
	c.SetUnknown(r.GetUnknown())
	return c
}
