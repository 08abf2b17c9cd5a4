package web

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// calls is the service for one request of a browser: it calls with the person's token and keeps
// what was called. One goroutine uses it.
type calls struct {
	conn  grpc.ClientConnInterface
	token string
	quiet bool // of the calls that follow nothing is kept
	made  []made
}

// made is a call that was made, or that will be once the person confirms it.
type made struct {
	method string
	req    proto.Message
}

func (c *calls) servers() pb.MailServerAdminClient { return pb.NewMailServerAdminClient(c) }
func (c *calls) dispatch() pb.DispatchClient       { return pb.NewDispatchClient(c) }
func (c *calls) operations() pb.OperationsClient   { return pb.NewOperationsClient(c) }
func (c *calls) retention() pb.RetentionClient     { return pb.NewRetentionClient(c) }
func (c *calls) access() pb.AccessAdminClient      { return pb.NewAccessAdminClient(c) }

// Invoke implements grpc.ClientConnInterface.
func (c *calls) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	c.note(method, args)
	return c.conn.Invoke(c.as(ctx), method, args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface.
func (c *calls) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := c.conn.NewStream(c.as(ctx), desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &noted{ClientStream: s, calls: c, method: method}, nil
}

func (c *calls) as(ctx context.Context) context.Context {
	if c.token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// note keeps a call, without what nobody may read.
func (c *calls) note(method string, req any) {
	m, is := req.(proto.Message)
	if !is || c.quiet {
		return
	}
	m = proto.Clone(m)
	redact(m.ProtoReflect())
	c.made = append(c.made, made{method, m})
}

// noted is a stream whose first request is kept.
type noted struct {
	grpc.ClientStream
	calls  *calls
	method string
}

func (s *noted) SendMsg(m any) error {
	s.calls.note(s.method, m)
	return s.ClientStream.SendMsg(m)
}

// redacted stands where a secret was.
const redacted = "..."

// redact takes the secrets out of a message, wherever in it they are.
func redact(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		o, _ := f.Options().(*descriptorpb.FieldOptions)
		switch {
		case o.GetDebugRedact() && f.Kind() == protoreflect.StringKind && !f.IsList():
			m.Set(f, protoreflect.ValueOfString(redacted))
		case o.GetDebugRedact():
			m.Clear(f)
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { redact(v.Message()); return true })
			}
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				redact(v.List().Get(i).Message())
			}
		case f.Message() != nil:
			redact(v.Message())
		}
		return true
	})
}
