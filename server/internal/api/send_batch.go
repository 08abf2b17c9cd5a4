package api

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/store"
)

const (
	chunkItems = 500
	chunkBytes = 4 << 20
	chunkWait  = 50 * time.Millisecond // what has come waits at most so long for its commit
	commits    = 2                     // of one stream under way at once
	// items that are composed between two looks whether a caller waits
	composed = 25
	mostKept = 1000 // rejections in a summary

	strictItems = 10000
	strictBytes = 64 << 20        // of requests, and of what is kept of them
	strictIdle  = 5 * time.Minute // of Config.StrictIdle
	mostItems   = 1_000_000
)

// batch is one SendBatch under way. Its own goroutine checks and composes; commits run beside
// it.
type batch struct {
	*bulk
	ctx     context.Context
	opts    *pb.BatchOptions
	group   *errgroup.Group
	mails   []*store.NewMail // of the chunk, or with strict of the whole batch
	places  []int64
	bytes   int64       // of mails
	request int64       // strict: bytes of requests
	held    *quota.Held // strict: the larger of bytes and request
	holds   int64       // what is in held

	mu  sync.Mutex // guards what follows; commits write it, and end reads it after them
	sum *pb.SendBatchResponse
	// a limit has refused mail with it, and refuses all that come later
	refusal error
}

// SendBatch implements the service.
func (a *API) SendBatch(stream grpc.ClientStreamingServer[pb.SendBatchRequest, pb.SendBatchResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	in := newIntake(ctx, stream.Recv)
	var b *batch
	defer func() {
		if b != nil {
			_ = b.group.Wait() // nothing of a call goes on behind it; the first error was told
			b.held.Give()
		}
	}()
	caller := access.From(ctx)
	flush := time.NewTimer(chunkWait)
	defer flush.Stop()
	heard := time.Now()
	for {
		select {
		case r := <-in.c:
			if over(r.err) {
				if b == nil {
					var err error
					if b, err = a.openBatch(ctx, nil); err != nil {
						return err
					}
				}
				if err := b.end(); err != nil {
					return err
				}
				return stream.SendAndClose(b.sum)
			}
			if r.err != nil {
				return r.err
			}
			if b == nil {
				var err error
				if b, err = a.openBatch(ctx, r.msg.Options); err != nil {
					return err
				}
				flush.Reset(chunkWait)
			} else if r.msg.Options != nil {
				return errLateOptions()
			}
			err := b.take(r.msg.Items, r.size)
			in.done(r)
			heard = time.Now()
			if err != nil {
				return b.fail(err)
			}
		case <-flush.C:
			switch {
			case b == nil:
			case !b.opts.GetStrict():
				if err := b.commit(); err != nil {
					return b.fail(err)
				}
			case time.Since(heard) > a.StrictIdle:
				return apierr.New(codes.DeadlineExceeded, pb.ReasonDeadlineTooShort, "a strict batch keeps its items for at most %v without hearing of more", a.StrictIdle)
			}
			flush.Reset(chunkWait)
		case <-ctx.Done(): // the reader may say nothing of it
			if b != nil {
				return b.fail(ctx.Err())
			}
			return ctx.Err()
		case <-a.Draining:
			return a.fault(a.Stopping)
		case <-caller.Ended():
			return caller.Err()
		}
	}
}

func errLateOptions() error {
	var c apierr.Check
	c.Bad("options", "stand in the first request only")
	return c.Err()
}

func (a *API) openBatch(ctx context.Context, o *pb.BatchOptions) (*batch, error) {
	bk, err := a.openBulk(ctx, o)
	if err != nil {
		return nil, err
	}
	b := &batch{bulk: bk, opts: o, sum: &pb.SendBatchResponse{BatchId: bk.id}}
	b.group, b.ctx = errgroup.WithContext(ctx)
	b.group.SetLimit(commits)
	b.held, err = a.Quota.Hold(access.From(ctx).Name, quota.StrictBytes, 0)
	return b, err
}

// take checks and composes items, and commits what has gathered.
func (b *batch) take(items []*pb.BatchItem, size int64) error {
	if err := checkItems(items); err != nil {
		return err
	}
	strict := b.opts.GetStrict()
	if strict {
		b.request += size
		if b.request > strictBytes || b.next+int64(len(items)) > strictItems {
			return tooManyItems("a strict batch takes at most %d and %d MiB", strictItems, strictBytes>>20)
		}
		if err := b.hold(); err != nil {
			return err
		}
	}
	for _, it := range items {
		if b.next >= mostItems {
			return tooManyItems("a stream takes at most %d: begin another with the same batch_id", mostItems)
		}
		at := b.next
		m, rej, err := b.mail(b.ctx, it)
		if err != nil {
			return b.a.fault(err)
		}
		if b.sum.Received++; b.sum.Received%composed == 0 {
			if err := b.known(); err != nil {
				return err
			}
			b.a.Sender.Yield(b.ctx)
		}
		// a caller who waits goes first; composing would keep the processor for 10 ms
		runtime.Gosched()
		switch {
		case rej != nil:
			b.reject(rej)
		case b.opts.GetValidateOnly():
			b.sum.Accepted++
		default:
			b.mails, b.places = append(b.mails, m), append(b.places, at)
			if strict {
				b.bytes += m.OwnBytes() // files count as requests
			} else {
				b.bytes += b.weight(m)
			}
			if strict && b.bytes > strictBytes {
				return tooManyItems("become more than %d MiB, which is what a strict batch keeps until its end", strictBytes>>20)
			}
			if err := b.hold(); err != nil {
				return err
			}
		}
		if !strict && (len(b.mails) >= chunkItems || b.bytes >= chunkBytes) {
			if err := b.commit(); err != nil {
				return err
			}
		}
	}
	return nil
}

// hold counts what a strict batch keeps as its caller's.
func (b *batch) hold() error {
	keeps := max(b.bytes, b.request)
	if !b.opts.GetStrict() || keeps <= b.holds {
		return nil
	}
	more := keeps - b.holds
	b.holds = keeps
	return b.held.More(more)
}

func (b *batch) reject(r *pb.BatchRejection) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum.Rejected++
	if len(b.sum.Rejections) < mostKept {
		b.sum.Rejections = append(b.sum.Rejections, r)
	}
}

// known is nil while the caller is: a message takes long to compose.
func (b *batch) known() error { return access.From(b.ctx).Err() }

// commit hands the chunk to a commit beside this goroutine, waiting while there are enough.
func (b *batch) commit() error {
	if err := b.known(); err != nil {
		return err
	}
	if len(b.mails) == 0 {
		return b.a.fault(b.ctx.Err())
	}
	ms, places := b.mails, b.places
	b.mails, b.places, b.bytes = nil, nil, 0
	b.group.Go(func() error { return b.write(ms, places, false) })
	if b.ctx.Err() != nil {
		return b.a.fault(b.ctx.Err())
	}
	return b.route(b.ctx)
}

// write makes mails durable and counts the answers. Where a limit refuses mail, it is rejected,
// and so is all mail of the batch after it: the caller hears what was taken before.
func (b *batch) write(ms []*store.NewMail, places []int64, all bool) error {
	b.mu.Lock()
	refusal := b.refusal
	b.mu.Unlock()
	if refusal != nil {
		for i, m := range ms {
			b.reject(b.a.refused(places[i], m.RequestID, refusal))
		}
		return nil
	}
	res, err := b.a.Sender.Queue(b.ctx, ms, all)
	if err != nil {
		return b.a.fault(err)
	}
	accepted, duplicates := int64(0), int64(0)
	for i, r := range res {
		switch {
		case r.Err != nil:
			if quota.Refused(r.Err) {
				refusal = r.Err
			}
			b.reject(b.a.refused(places[i], ms[i].RequestID, r.Err))
		case r.Duplicate:
			duplicates++
		default:
			accepted++
		}
	}
	b.mu.Lock()
	b.sum.Accepted += accepted
	b.sum.Duplicates += duplicates
	if refusal != nil {
		b.refusal = refusal
	}
	b.mu.Unlock()
	return nil
}

// refused is the rejection of an item that the store did not take.
func (a *API) refused(at int64, requestID string, err error) *pb.BatchRejection {
	if e, is := apierr.As(a.fault(err)); is {
		return rejection(at, requestID, e)
	}
	a.Logger.Error("item refused by the database", "position", at, "error", err)
	return rejection(at, requestID, apierr.New(codes.Internal, pb.ReasonInternal, "the database refuses this item"))
}

// fail ends the batch; a fault of a commit is the cause of what follows it.
func (b *batch) fail(err error) error {
	if werr := b.group.Wait(); werr != nil && errors.Is(err, context.Canceled) {
		return werr
	}
	return err
}

// end commits what is left, and with strict everything.
func (b *batch) end() error {
	if err := b.known(); err != nil {
		return err
	}
	if b.opts.GetStrict() {
		if len(b.sum.Rejections) == 0 && len(b.mails) > 0 {
			if err := b.write(b.mails, b.places, true); err != nil {
				return err
			}
		}
		if len(b.sum.Rejections) > 0 {
			return allRejected(b.sum.Rejections)
		}
		return nil
	}
	err := b.commit()
	if err = firstOf(b.group.Wait(), err); err == nil && b.sum.Accepted+b.sum.Duplicates == 0 {
		err = b.a.fault(b.refusal) // nothing was taken: the error says when to come again
	}
	return err
}
