package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// SendAll sends items over SendBatch and waits for its summary; slices.Values makes items of a
// slice. It is the fastest way in, and the one that knows strict and validate_only; Bulk is for
// those who want to hear of each item, or have more than 1,000,000.
//
// When the connection breaks it ranges over items again, up to three times, so they have to be
// the same in the same order: nothing of them is kept. An item without a request_id gets one
// that depends on its place, therefore none is doubled, and one that has become another is
// rejected (REQUEST_ID_REUSED). In the summary of a repeated call duplicates are also what the
// broken call had taken, unless no item had a request_id of its own. The batch_id is filled in
// as well. After an error some of the items may have been taken: GetBatch counts them if the
// options name the batch.
func (c *Client) SendAll(ctx context.Context, options *maildispatchv1.BatchOptions, items iter.Seq[*maildispatchv1.BatchItem], opts ...grpc.CallOption) (*maildispatchv1.SendBatchResponse, error) {
	options = withBatchID(options)
	ids := rand.Text()
	for failed := 0; ; {
		res, named, err := c.sendAll(ctx, options, items, ids, opts)
		if err == nil {
			if failed > 0 && !named { // they are our own first call's
				res.Accepted, res.Duplicates = res.Accepted+res.Duplicates, 0
			}
			return res, nil
		}
		failed++
		if !repeatable(ctx, err) || failed == followTries {
			return nil, err
		}
		if !wait(ctx, failed, err) {
			return nil, fmt.Errorf("%w, while waiting to call again after: %w", status.FromContextError(ctx.Err()).Err(), err)
		}
	}
}

// sendAll makes one call of SendBatch. named = an item had a request_id of its own.
func (c *Client) sendAll(ctx context.Context, options *maildispatchv1.BatchOptions, items iter.Seq[*maildispatchv1.BatchItem], ids string, opts []grpc.CallOption) (_ *maildispatchv1.SendBatchResponse, named bool, err error) {
	ctx, listen, heard, cancel := attentive(ctx, c.sendTimeout)
	defer cancel()
	stream, err := c.SendBatch(ctx, opts...)
	if err != nil {
		return nil, false, orSilent(ctx, "send a batch", c.sendTimeout, err)
	}
	// An error of Send says only that there is one; the answer says which.
	err = stream.Send(&maildispatchv1.SendBatchRequest{Options: options})
	req, bytes, n := &maildispatchv1.SendBatchRequest{}, 0, 0
	flush := func() {
		if err == nil && len(req.Items) > 0 {
			listen()
			err = stream.Send(req)
		}
		req, bytes = &maildispatchv1.SendBatchRequest{}, 0
	}
	heard() // the caller's own items may take their time
	for item := range items {
		if item == nil {
			item = &maildispatchv1.BatchItem{}
		}
		if item.GetRequestId() != "" {
			named = true
		} else {
			item = shallow(item.ProtoReflect()).Interface().(*maildispatchv1.BatchItem)
			item.RequestId = fmt.Sprintf("%s-%d", ids, n)
		}
		n++
		size := proto.Size(item)
		if err := fits(size); err != nil {
			return nil, named, fmt.Errorf("item %d: %w", n-1, err)
		}
		if bytes+size > requestBytes || len(req.Items) == requestItems {
			flush()
			heard()
		}
		if err != nil {
			break
		}
		req.Items = append(req.Items, item)
		bytes += size
	}
	flush()
	listen()
	res, err := stream.CloseAndRecv()
	return res, named, orSilent(ctx, "send a batch", c.sendTimeout, err)
}
