package client

import (
	"context"
	"io"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// Watch yields every change of a mail's status but SENDING, of those mails that the filter
// takes, each once, from the request's cursor on (none: from now on), until ctx ends or the
// caller leaves the loop. A broken connection is mended by going on from the last cursor. Keep
// the cursor of what you have taken in, to go on from it after a restart; answers without a
// mail only carry one. An error is yielded last; status OUT_OF_RANGE means that the cursor is
// too old.
func (c *Client) Watch(ctx context.Context, req *maildispatchv1.WatchMailsRequest, opts ...grpc.CallOption) iter.Seq2[*maildispatchv1.WatchMailsResponse, error] {
	return func(yield func(*maildispatchv1.WatchMailsResponse, error) bool) {
		at := &maildispatchv1.WatchMailsRequest{Filter: req.GetFilter(), Cursor: req.GetCursor()}
		for failed := 0; ; {
			heard, left, err := c.watch(ctx, at, yield, opts)
			if left {
				return
			}
			if heard {
				failed = 0
			}
			failed++
			if ctx.Err() != nil || failed == followTries || err != io.EOF && !repeatable(ctx, err) {
				yield(nil, err)
				return
			}
			if !wait(ctx, failed, err) {
				yield(nil, status.FromContextError(ctx.Err()).Err())
				return
			}
		}
	}
}

// watch makes one call and moves the cursor of req. heard = something came, left = the caller
// had enough.
func (c *Client) watch(ctx context.Context, req *maildispatchv1.WatchMailsRequest, yield func(*maildispatchv1.WatchMailsResponse, error) bool, opts []grpc.CallOption) (heard, left bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.WatchMails(ctx, req, opts...)
	if err != nil {
		return false, false, err
	}
	for {
		res, err := stream.Recv()
		if err != nil {
			return heard, false, err
		}
		heard = true
		req.Cursor = res.GetCursor()
		if !yield(res, nil) {
			return heard, true, nil
		}
	}
}
