package web

import (
	"context"
	"net/url"
	"time"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

const (
	// batchesLook is how many of the newest mails are looked at for the batches they came with.
	batchesLook = 200
	// batchesShown is how many of these are counted, within batchesTime together.
	batchesShown = 10
	batchesTime  = 5 * time.Second
)

// batchesBody is what the view of batches shows.
type batchesBody struct {
	Batches []batchRow
	Look    int
}

// batchRow is a batch in short; Batch is nil where it was not counted in time.
type batchRow struct {
	ID, Team string
	Batch    *progress
}

// progress is a batch as a bar.
type progress struct {
	*pb.Batch
	Sent, Waiting, Bad int // of 1000
}

func progressOf(b *pb.Batch) *progress {
	if b == nil {
		return nil
	}
	of := func(n int64) int { return int(1000 * n / max(b.Mails, 1)) }
	c := b.Counts
	return &progress{b, of(c.GetSent() + c.GetPartiallySent()), of(b.Waiting + c.GetHeld()), of(c.GetFailed() + c.GetUnknown() + c.GetCancelled())}
}

// WaitX and BadX are where the parts of the bar begin.
func (p *progress) WaitX() int { return p.Sent }
func (p *progress) BadX() int  { return p.Sent + p.Waiting }

// batches shows the batches of the newest mails.
func batches(v *view) error {
	res, err := v.dispatch().FindMails(v.ctx(), &pb.FindMailsRequest{PageSize: batchesLook})
	if err != nil {
		return err
	}
	b := batchesBody{Look: batchesLook}
	seen := map[[2]string]bool{}
	for _, m := range res.Mails {
		k := [2]string{m.Team, m.BatchId}
		if m.BatchId == "" || seen[k] || len(b.Batches) == batchesShown {
			continue
		}
		seen[k] = true
		b.Batches = append(b.Batches, batchRow{ID: m.BatchId, Team: m.Team})
	}
	ctx, cancel := context.WithTimeout(v.ctx(), batchesTime)
	defer cancel()
	for i := range b.Batches {
		x := &b.Batches[i]
		got, err := v.dispatch().GetBatch(ctx, &pb.GetBatchRequest{Team: x.Team, BatchId: x.ID})
		if err != nil {
			if ctx.Err() != nil && v.ctx().Err() == nil {
				break // the rest is shown without counts
			}
			return err
		}
		x.Batch = progressOf(got.Batch)
	}
	return v.render("batches", "Batches", b)
}

// batchBody is what the view of one batch shows.
type batchBody struct {
	*progress
	States []state
	Acts   []link
}

// batch shows one batch.
func batch(v *view) error {
	q := v.r.URL.Query()
	res, err := v.dispatch().GetBatch(v.ctx(), &pb.GetBatchRequest{Team: q.Get("team"), BatchId: q.Get("id")})
	if err != nil {
		return err
	}
	b := batchBody{progress: progressOf(res.Batch)}
	b.States = append([]state{{pb.MailStatus_MAIL_STATUS_SENT, res.Batch.Counts.GetSent()}}, states(res.Batch.Counts)...)
	b.States = append(b.States, state{pb.MailStatus_MAIL_STATUS_CANCELLED, res.Batch.Counts.GetCancelled()})
	b.Acts = v.actsOnFilter(url.Values{"batch": {res.Batch.BatchId}, "team": {res.Batch.Team}})
	return v.render("batch", "Batch "+res.Batch.BatchId, b)
}
