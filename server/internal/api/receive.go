package api

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"
)

const (
	intakeMessages = 512
	intakeBytes    = 16 << 20
)

// received is one message of a client's stream, or its end: io.EOF when the client has said
// everything.
type received[T proto.Message] struct {
	msg  T
	size int64
	err  error
}

// intake reads a client's stream ahead of its handler, a bounded number of messages and bytes:
// past that the client waits, by HTTP/2's flow control. The reader ends with the call.
type intake[T proto.Message] struct {
	c     chan received[T]
	bytes *semaphore.Weighted
}

func newIntake[T proto.Message](ctx context.Context, recv func() (T, error)) *intake[T] {
	in := &intake[T]{c: make(chan received[T], intakeMessages), bytes: semaphore.NewWeighted(intakeBytes)}
	go func() {
		for {
			m, err := recv()
			r := received[T]{msg: m, err: err}
			if err == nil {
				r.size = min(int64(proto.Size(m)), intakeBytes)
				if in.bytes.Acquire(ctx, r.size) != nil {
					return
				}
			}
			select {
			case in.c <- r:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return in
}

// done gives a message's room back.
func (in *intake[T]) done(r received[T]) { in.bytes.Release(r.size) }

// over reports whether the client has said everything.
func over(err error) bool { return errors.Is(err, io.EOF) }
