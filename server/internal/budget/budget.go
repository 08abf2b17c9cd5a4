// Package budget bounds what large requests hold in memory at once. A message that streams in
// is kept as it came until there is room for what becomes of it: the decoded request, the
// composed mail, its way into the database and to the relay. Small messages pass without
// asking, so that a large one that waits holds up none of them.
package budget

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that decodes
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

const (
	heap = 400 << 20 // of all large messages under way
	// estimated heap for each byte of a message; measured: 6 to 8 at its peak, and as much
	// again until it is collected
	factor  = 16
	unary   = 1 << 20   // of a unary request without a mail in it
	small   = 256 << 10 // messages below are not counted
	patient = 5 * time.Second
	retry   = 2 * time.Second

	streamWindow     = 256 << 10
	connectionWindow = 4 << 20
)

// buffers hold messages, with a size for each power of two. The pool that grpc comes with has
// none between 32 KiB and 1 MiB: there a piece of 64 KiB takes 1 MiB for as long as nobody
// reads it.
var buffers = func() mem.BufferPool {
	p, err := mem.NewBinaryTieredBufferPool(8, 12, 14, 15, 16, 17, 18, 19, 20)
	if err != nil {
		panic(err) // sizes that rise
	}
	return p
}()

// Budget is one process's.
type Budget struct {
	heap    *semaphore.Weighted
	faults  sync.Map
	patient time.Duration // how long a large message waits for room
	slow    time.Duration // how long a message may take to come
	most    bounds

	held     atomic.Int64 // of messages that have come and are not taken
	mu       sync.Mutex   // guards what follows
	conns    map[*conn]bool
	accounts map[string]*account // of callers with calls, by name
}

// New makes a Budget.
func New() *Budget {
	return &Budget{heap: semaphore.NewWeighted(heap), patient: patient, slow: messageTime, most: bounds{connectionHeld, principalHeld, processHeld}, conns: map[*conn]bool{}, accounts: map[string]*account{}}
}

// Options are what a server needs for it, beside the interceptor.
func (b *Budget) Options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto"), &b.faults}), experimental.BufferPool(buffers),
		// What comes and nobody reads is bounded by these. A message that is waited for gets
		// the window that it needs.
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connectionWindow)}
}

// Stream makes the messages of a stream wait for room. What a message takes is given back when
// the next one is asked for, or the call is over.
func (b *Budget) Stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	s := &stream{ServerStream: ss, b: b, call: callOf(ss.Context())}
	defer s.giveBack()
	if s.call != nil {
		s.call.canSay(ss.Context())
	}
	err := h(srv, s)
	if s.call != nil {
		if why := s.call.why.Load(); why != nil {
			return why // whatever the handler made of it
		}
	}
	return err
}

type stream struct {
	grpc.ServerStream
	b    *Budget
	call *call // nil: nobody meters the connection
	// a stream may be read by another goroutine than the handler's, which ends it
	weight atomic.Int64
}

func (s *stream) giveBack() { s.b.heap.Release(s.weight.Swap(0)) }

func (s *stream) RecvMsg(m any) error {
	s.giveBack()
	var e envelope
	if err := s.receive(&e); err != nil {
		e.data.Free()
		return err
	}
	defer e.data.Free()
	if s.call != nil {
		// once it is decoded, or refused: until then it is there
		defer s.call.taken(int64(e.data.Len()) + int64(len(s.call.prefix)))
	}
	if n := int64(e.data.Len()); n >= small {
		n = min(n*factor, heap)
		ctx, cancel := context.WithTimeout(s.Context(), s.b.patient)
		defer cancel()
		if err := s.b.heap.Acquire(ctx, n); err != nil {
			if s.Context().Err() != nil {
				return s.Context().Err()
			}
			return overloaded()
		}
		s.weight.Store(n)
	}
	return decode(e.data, m)
}

// receive waits for the next message, and says why where the call was cut meanwhile.
func (s *stream) receive(e *envelope) error {
	if s.call == nil {
		return s.ServerStream.RecvMsg(e)
	}
	if why := s.call.why.Load(); why != nil {
		return why
	}
	s.call.wait(true)
	err := s.ServerStream.RecvMsg(e)
	s.call.wait(false)
	if why := s.call.why.Load(); err != nil && why != nil {
		return why
	}
	return err
}

func overloaded() error {
	e := apierr.New(codes.ResourceExhausted, pb.ReasonOverloaded, "too many large mails are being taken just now")
	e.RetryAfter = retry
	return e
}

// envelope takes a message as it came.
type envelope struct {
	taken bool
	data  mem.BufferSlice
}

// codec is the ordinary one, but that its buffers have the size of a message, that it cuts off
// what lies beyond the limits of repeated fields, and that it keeps a fault for the
// interceptor: grpc's own word for a unary request that cannot be decoded is INTERNAL, which is
// a fault of the service.
type codec struct {
	encoding.CodecV2
	faults *sync.Map // of errors by unary request, until the interceptor asks
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	size := proto.Size(m)
	if mem.IsBelowBufferPoolingThreshold(size) {
		return c.CodecV2.Marshal(v)
	}
	b := buffers.Get(size)
	if _, err := (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend((*b)[:0], m); err != nil {
		buffers.Put(b)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(b, buffers)}, nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if e, ok := v.(*envelope); ok {
		if e.taken {
			// grpc looks whether there is one, and says it in its own words
			return errors.New("a second message where one belongs")
		}
		data.Ref()
		e.taken, e.data = true, data
		return nil
	}
	err := error(nil)
	if data.Len() > unary && holdsMail(v) {
		data.Ref()
		c.faults.Store(v, waiting(data)) // until there is room for it
		return nil
	}
	if data.Len() > unary {
		err = apierr.New(codes.InvalidArgument, pb.ReasonValidationFailed, "the request has %d bytes; at most %d are taken where there is no content", data.Len(), unary)
	} else {
		err = decode(data, v)
	}
	if err != nil {
		c.faults.Store(v, err)
	}
	return nil
}

// decode reads a message of a caller.
func decode(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("a %T is no message", v)
	}
	buf := data.MaterializeToBuffer(buffers)
	defer buf.Free()
	b := buf.ReadOnlyData()
	if p := planOf(m.ProtoReflect().Descriptor()); p != nil && !p.within(b) {
		b = p.cut(b)
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return apierr.Wrap(err, codes.InvalidArgument, pb.ReasonValidationFailed, "the request is not a %s", m.ProtoReflect().Descriptor().Name())
	}
	return nil
}

// waiting is a large unary request as it came.
type waiting mem.BufferSlice

// holdsMail says whether a request has a mail in it, with its content.
func holdsMail(v any) bool {
	m, ok := v.(proto.Message)
	if !ok {
		return false
	}
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if of := fields.Get(i).Message(); of != nil && of.FullName() == mailMessage {
			return true
		}
	}
	return false
}

var mailMessage = (*pb.MailMessage)(nil).ProtoReflect().Descriptor().FullName()

// Admit lets a large unary request wait for room and decodes it, which comes before anybody
// looks at it. Others pass. The room is kept until release is called.
func (b *Budget) Admit(ctx context.Context, req any) (release func(), err error) {
	kept, _ := b.faults.Load(req)
	w, is := kept.(waiting)
	if !is {
		return func() {}, nil
	}
	b.faults.Delete(req)
	data := mem.BufferSlice(w)
	defer data.Free()
	n := min(int64(data.Len())*factor, heap)
	patience, cancel := context.WithTimeout(ctx, b.patient)
	defer cancel()
	if err := b.heap.Acquire(patience, n); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, overloaded()
	}
	if err := decode(data, req); err != nil {
		b.faults.Store(req, err)
	}
	return func() { b.heap.Release(n) }, nil
}

// Unary refuses requests that could not be decoded.
func (b *Budget) Unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if c := callOf(ctx); c != nil {
		c.taken(c.held.Load()) // its only request was decoded
	}
	if err, bad := b.faults.LoadAndDelete(req); bad {
		return nil, err.(error)
	}
	return h(ctx, req)
}

// Forget drops what is known of a unary request that was refused before Unary saw it.
func (b *Budget) Forget(req any) {
	if kept, _ := b.faults.LoadAndDelete(req); kept != nil {
		if w, is := kept.(waiting); is {
			mem.BufferSlice(w).Free()
		}
	}
}
