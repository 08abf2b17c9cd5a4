// Package budget bounds what large requests hold in memory at once. A message that streams in is kept as it came until there is room for what becomes of it:
// the decoded request, the composed mail, its way into the database and to the relay. Small messages pass without asking, so that a large one that waits
// holds up none of them.
package budget

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that decodes
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

const (
	heap    = 400 << 20 // of all large messages under way
	factor  = 16        // estimated heap for each byte of a message; measured: 6 to 8 at its peak, and as much again until it is collected
	small   = 256 << 10 // messages below are not counted
	wire    = 320 << 20 // bytes that have come and are not decoded; beyond, nothing new is read
	patient = 5 * time.Second
	retry   = 2 * time.Second
)

// Budget is one process's.
type Budget struct {
	heap    *semaphore.Weighted
	pool    pool
	patient time.Duration // how long a large message waits for room
}

// New makes a Budget.
func New() *Budget {
	return &Budget{heap: semaphore.NewWeighted(heap), pool: pool{BufferPool: mem.DefaultBufferPool()}, patient: patient}
}

// Options are what a server needs for it, beside the interceptor.
func (b *Budget) Options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")}), experimental.BufferPool(&b.pool)}
}

// Stream makes the messages of a stream wait for room. What a message takes is given back when the next one is asked for, or the call is over.
func (b *Budget) Stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	s := &stream{ServerStream: ss, b: b}
	defer s.giveBack()
	return h(srv, s)
}

type stream struct {
	grpc.ServerStream
	b      *Budget
	weight atomic.Int64 // a stream may be read by another goroutine than the handler's, which ends it
}

func (s *stream) giveBack() { s.b.heap.Release(s.weight.Swap(0)) }

func (s *stream) RecvMsg(m any) error {
	s.giveBack()
	if s.b.pool.held.Load() > wire {
		return overloaded()
	}
	var e envelope
	if err := s.ServerStream.RecvMsg(&e); err != nil {
		e.data.Free()
		return err
	}
	defer e.data.Free()
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
	return e.codec.Unmarshal(e.data, m)
}

func overloaded() error {
	e := apierr.New(codes.ResourceExhausted, pb.ReasonOverloaded, "too many large mails are being taken just now")
	e.RetryAfter = retry
	return e
}

// envelope takes a message as it came.
type envelope struct {
	codec encoding.CodecV2
	data  mem.BufferSlice
}

// codec is the ordinary one, but for envelopes.
type codec struct{ encoding.CodecV2 }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	e, ok := v.(*envelope)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	if e.codec != nil {
		return errors.New("a second message where one belongs") // grpc looks whether there is one, and says it in its own words
	}
	data.Ref()
	e.codec, e.data = c.CodecV2, data
	return nil
}

// pool counts what is out: mostly what connections have read and nobody has decoded.
type pool struct {
	mem.BufferPool
	held atomic.Int64
}

func (p *pool) Get(n int) *[]byte {
	b := p.BufferPool.Get(n)
	p.held.Add(int64(cap(*b)))
	return b
}

func (p *pool) Put(b *[]byte) {
	p.held.Add(-int64(cap(*b)))
	p.BufferPool.Put(b)
}
