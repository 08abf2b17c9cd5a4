package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// BulkOptions say how a Bulk goes about its work. The zero value is right for most.
type BulkOptions struct {
	// Window is how many items may wait for their answers before Add does: 0 = 2000, as many as
	// the service takes.
	Window int
	// WindowBytes bounds the size of those items in the same way: 0 = 32 MiB. One item always
	// has room.
	WindowBytes int
	// Answer hears what became of each item, once, as the answers come. One call at a time,
	// from a goroutine of the Bulk's own; while it takes its time the service waits. It must
	// not call Add or Close.
	Answer func(item *maildispatchv1.BatchItem, answer *maildispatchv1.SendStreamResponse)
}

const (
	defaultWindow      = 2000
	defaultWindowBytes = 32 << 20
	requestItems       = 256 // in one request; more saves nothing
	requestBytes       = 1 << 20
	maxRequestBytes    = 16 << 20 // what the service takes, see MailMessage
	maxRejections      = 1000     // in a summary, as in the service's own
)

// streamItems is how many items go over one stream, which takes 1,000,000; a variable for the
// test.
var streamItems int64 = 500_000

// Bulk sends any number of mails over SendStream. It is safe for concurrent use; see
// Client.Bulk.
type Bulk struct {
	c      *Client
	ctx    context.Context
	cancel context.CancelFunc
	opts   []grpc.CallOption
	o      BulkOptions
	first  *maildispatchv1.BatchOptions
	done   chan struct{} // closed when run has returned

	mu      sync.Mutex
	changed sync.Cond
	queue   []*bulkItem // to be sent, in order
	// sent over the present stream and not answered, by their position in it
	open    map[int64]*bulkItem
	bytes   int  // of both
	hearing bool // an answer is with o.Answer
	summary *maildispatchv1.SendBatchResponse
	closed  bool  // nothing more will be added
	err     error // why it is over
}

// bulkItem is an item without an answer.
type bulkItem struct {
	item     *maildispatchv1.BatchItem
	position int64 // in the Bulk; streams count on their own
	size     int
	ours     bool // its request_id was made here, so that nobody else can have used it before
}

// Bulk begins to send many mails, which Add takes one by one. When the connection breaks, a new
// stream is opened and every item without an answer is sent again under its request_id, so that
// none is lost and none doubled: three times in a row, and from the start after every answer.
// What waits for an answer is kept in memory, nothing else, and Window bounds it. The batch is
// the one that options name, or a new one, whose name is BatchID.
//
// With grpc.WaitForReady(true) among opts it waits for a service that is away instead of giving
// up, for as long as Options.SendTimeout allows.
//
// In php mode an item whose mail had not begun to leave when the connection broke is then
// answered as FAILED, as with Follow.
//
// Close has to be called, or ctx ended, to let go of the connection. Ending ctx ends the Bulk;
// what was taken before is sent all the same.
func (c *Client) Bulk(ctx context.Context, options *maildispatchv1.BatchOptions, o BulkOptions, opts ...grpc.CallOption) *Bulk {
	b := &Bulk{c: c, opts: opts, o: o, first: withBatchID(options), open: map[int64]*bulkItem{}, done: make(chan struct{})}
	b.o.Window, b.o.WindowBytes = cmp.Or(o.Window, defaultWindow), cmp.Or(o.WindowBytes, defaultWindowBytes)
	b.summary = &maildispatchv1.SendBatchResponse{BatchId: b.first.GetBatchId()}
	b.changed.L = &b.mu
	b.ctx, b.cancel = context.WithCancel(ctx)
	context.AfterFunc(b.ctx, b.wake)
	go b.run()
	return b
}

// withBatchID returns options with a batch_id: a new one, in a copy, if there is none.
func withBatchID(options *maildispatchv1.BatchOptions) *maildispatchv1.BatchOptions {
	if options.GetBatchId() != "" {
		return options
	}
	if options == nil {
		return &maildispatchv1.BatchOptions{BatchId: rand.Text()}
	}
	with := shallow(options.ProtoReflect()).Interface().(*maildispatchv1.BatchOptions)
	with.BatchId = rand.Text()
	return with
}

// BatchID is the batch that the items belong to: see Dispatch.GetBatch.
func (b *Bulk) BatchID() string { return b.first.GetBatchId() }

// Add sends an item, with a request_id if it has none. It waits while the window is full. The
// item is the Bulk's until it is answered: change nothing in it. An error means that the item
// was not added; it is the last one unless the item is larger than the 16 MiB that one request
// may have.
func (b *Bulk) Add(item *maildispatchv1.BatchItem) error {
	if item == nil {
		item = &maildispatchv1.BatchItem{}
	}
	with := withRequestID(item).(*maildispatchv1.BatchItem)
	x := &bulkItem{item: with, size: proto.Size(with), ours: with != item}
	if err := fits(x.size); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.err == nil && !b.closed && b.ctx.Err() == nil && b.full(x.size) {
		b.changed.Wait()
	}
	switch {
	case b.err != nil:
		return b.err
	case b.closed:
		return errors.New("maildispatch: Add after Close")
	case b.ctx.Err() != nil:
		return status.FromContextError(b.ctx.Err()).Err()
	}
	x.position = b.summary.Received
	b.summary.Received++
	b.queue = append(b.queue, x)
	b.bytes += x.size
	b.changed.Broadcast()
	return nil
}

// fits refuses an item that would end the stream: a request has up to 16 MiB, of which a few
// bytes are not the item's.
func fits(size int) error {
	if size > maxRequestBytes-64 {
		return status.Errorf(codes.ResourceExhausted, "the item has %d bytes, and one request takes %d", size, maxRequestBytes)
	}
	return nil
}

func (b *Bulk) full(size int) bool {
	n := len(b.queue) + len(b.open)
	return n >= b.o.Window || n > 0 && b.bytes+size > b.o.WindowBytes
}

// Close waits for the last answer and sums up. With an error the summary counts what was
// answered before it, and Unanswered has the rest.
func (b *Bulk) Close() (*maildispatchv1.SendBatchResponse, error) {
	b.mu.Lock()
	b.closed = true
	b.changed.Broadcast()
	b.mu.Unlock()
	<-b.done
	return proto.CloneOf(b.summary), b.err
}

// Unanswered lists, after Close, the items that were added and not answered, with their
// request_ids. They may have been taken or not: sent again in the same batch, they are not
// doubled.
func (b *Bulk) Unanswered() []*maildispatchv1.BatchItem {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := make([]*maildispatchv1.BatchItem, len(b.queue))
	for i, x := range b.queue {
		items[i] = x.item
	}
	return items
}

// requeue puts back what was sent over a stream that is gone; the lock is held.
func (b *Bulk) requeue() {
	again := slices.SortedFunc(maps.Values(b.open), func(x, y *bulkItem) int { return cmp.Compare(x.position, y.position) })
	b.queue = append(again, b.queue...)
	clear(b.open)
}

func (b *Bulk) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed.Broadcast()
}

// run opens one stream after the other until everything is answered or nothing helps.
func (b *Bulk) run() {
	defer close(b.done)
	defer b.cancel()
	for failed := 0; b.more(); {
		heard, err := b.stream()
		if heard {
			failed = 0
		}
		failed++
		switch {
		case err == nil:
		case !repeatable(b.ctx, err) || failed == followTries:
			b.end(err)
			return
		case !wait(b.ctx, failed, err):
			b.end(fmt.Errorf("%w, while waiting to call again after: %w", status.FromContextError(b.ctx.Err()).Err(), err))
			return
		}
	}
}

// more waits until there is something to send. False when there will not be.
func (b *Bulk) more() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requeue()
	for len(b.queue) == 0 && !b.closed && b.ctx.Err() == nil {
		b.changed.Wait()
	}
	if b.ctx.Err() != nil && !(b.closed && len(b.queue) == 0) {
		b.err = status.FromContextError(b.ctx.Err()).Err()
	}
	return len(b.queue) > 0 && b.err == nil
}

func (b *Bulk) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requeue()
	b.err = err
	b.changed.Broadcast()
}

// stream makes one call of SendStream. heard = an answer came.
func (b *Bulk) stream() (heard bool, err error) {
	ctx, listen, hush, cancel := attentive(b.ctx, b.c.sendTimeout)
	defer cancel()
	stream, err := b.c.SendStream(ctx, b.opts...)
	if err != nil {
		return false, orSilent(ctx, "send in bulk", b.c.sendTimeout, err)
	}
	var sending sync.WaitGroup
	context.AfterFunc(ctx, b.wake)
	sending.Go(func() { b.send(ctx, stream, listen) })
	defer sending.Wait() // the items are its as long as it runs
	defer cancel()
	for {
		answer, err := stream.Recv()
		switch {
		case err != nil && b.finished(): // whatever comes after the last word
			return heard, nil
		case err == io.EOF && heard && b.owed() == 0: // it was long enough
			return heard, nil
		case err == io.EOF: // somebody on the way closed it politely
			return heard, status.Error(codes.Unavailable, "the stream of SendStream ended before its last answer")
		case err != nil:
			return heard, orSilent(ctx, "send in bulk", b.c.sendTimeout, err)
		}
		x := b.answered(answer, hush)
		if x == nil {
			return heard, status.Errorf(codes.Internal, "the service answered item %d, which it was not asked about", answer.GetPosition())
		}
		heard = true
		if b.o.Answer != nil {
			b.o.Answer(x.item, answer)
		}
		b.listen(listen)
	}
}

// listen goes on waiting for the service, if it owes an answer. It does not count while Answer
// has the last one.
func (b *Bulk) listen(listen func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hearing = false
	if len(b.open) > 0 {
		listen()
	}
}

// owed counts the items that the service has to answer.
func (b *Bulk) owed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.open)
}

func (b *Bulk) finished() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed && len(b.open)+len(b.queue) == 0
}

// send writes what is queued to a stream until nothing more comes, it is long enough, or it is
// gone, which its reader is told.
func (b *Bulk) send(ctx context.Context, stream grpc.BidiStreamingClient[maildispatchv1.SendStreamRequest, maildispatchv1.SendStreamResponse], listen func()) {
	if stream.Send(&maildispatchv1.SendStreamRequest{Options: b.first}) != nil {
		return
	}
	for at := int64(0); at < streamItems; {
		items := b.take(ctx, at, listen)
		if len(items) == 0 {
			break
		}
		at += int64(len(items))
		if stream.Send(&maildispatchv1.SendStreamRequest{Items: items}) != nil {
			return
		}
	}
	_ = stream.CloseSend() // never fails
}

// take waits for items and moves a request's worth of them from the queue to the stream, where
// the first has position at. None = there are no more.
func (b *Bulk) take(ctx context.Context, at int64, listen func()) []*maildispatchv1.BatchItem {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.queue) == 0 && !b.closed && ctx.Err() == nil {
		b.changed.Wait()
	}
	if ctx.Err() != nil || len(b.queue) == 0 {
		return nil
	}
	if len(b.open) == 0 && !b.hearing {
		listen()
	}
	var items []*maildispatchv1.BatchItem
	bytes := 0
	for _, x := range b.queue {
		if len(items) == requestItems || len(items) > 0 && bytes+x.size > requestBytes {
			break
		}
		b.open[at+int64(len(items))] = x
		items = append(items, x.item)
		bytes += x.size
	}
	clear(b.queue[:len(items)])
	b.queue = b.queue[len(items):]
	return items
}

// answered takes an item out of the window, counts it, and makes the answer say its position in
// the Bulk.
func (b *Bulk) answered(a *maildispatchv1.SendStreamResponse, hush func()) *bulkItem {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hearing = true
	hush()
	x := b.open[a.GetPosition()]
	if x == nil {
		return nil
	}
	delete(b.open, a.GetPosition())
	b.bytes -= x.size
	b.changed.Broadcast()
	a.Position = x.position
	if x.ours {
		a.Duplicate = false // it was our own first call, whose answer was lost
	}
	s := b.summary
	switch r := a.GetRejection(); {
	case r != nil:
		r.Position = x.position
		s.Rejected++
		if len(s.Rejections) < maxRejections {
			s.Rejections = append(s.Rejections, r)
		}
	case a.GetDuplicate():
		s.Duplicates++
	default:
		s.Accepted++
	}
	return x
}
