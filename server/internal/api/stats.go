package api

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/store"
)

func mailCounts(by map[store.MailStatus]int) *pb.MailCounts {
	n := func(s store.MailStatus) int64 { return int64(by[s]) }
	return &pb.MailCounts{Queued: n(store.MailQueued), Sending: n(store.MailSending), Deferred: n(store.MailDeferred), Held: n(store.MailHeld), Failed: n(store.MailFailed),
		Unknown: n(store.MailUnknown), PartiallySent: n(store.MailPartiallySent), Sent: n(store.MailSent), Cancelled: n(store.MailCancelled)}
}

// GetBatch implements the service.
func (a *API) GetBatch(ctx context.Context, r *pb.GetBatchRequest) (*pb.GetBatchResponse, error) {
	var c apierr.Check
	checkTeam(&c, "team", r.Team)
	if r.BatchId == "" {
		c.Bad("batch_id", "is required")
	}
	checkRequestID(&c, "batch_id", r.BatchId)
	if err := c.Err(); err != nil {
		return nil, err
	}
	n, err := a.Store.CountBatch(ctx, a.scope(ctx), r.Team, r.BatchId)
	if errors.Is(err, store.ErrNotFound) {
		return nil, apierr.NotFound(pb.ReasonBatchNotFound, "batch", r.BatchId)
	}
	if err != nil {
		return nil, a.fault(err)
	}
	return &pb.GetBatchResponse{Batch: &pb.Batch{BatchId: r.BatchId, Team: r.Team, Mails: int64(n.Mails), Counts: mailCounts(n.ByStatus), Waiting: int64(n.Waiting),
		PossibleDuplicates: int64(n.Doubtful), CreateTime: stampOf(n.First), FinishTime: stampOf(n.Last)}}, nil
}

// GetQueueStats implements the service.
func (a *API) GetQueueStats(ctx context.Context, r *pb.GetQueueStatsRequest) (*pb.GetQueueStatsResponse, error) {
	var c apierr.Check
	if r.Team != nil {
		checkTeam(&c, "team", *r.Team)
	}
	if r.MailServer != "" {
		checkServerName(&c, "mail_server", r.MailServer)
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	q, err := a.Store.CountQueue(ctx, a.scope(ctx), r.Team, r.MailServer)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &pb.GetQueueStatsResponse{Counts: mailCounts(q.ByStatus), Scheduled: int64(q.Scheduled), SentLastMinute: int64(q.Sent), NextBatchTime: stampOf(a.Batch.NextPass()), Time: stampOf(q.Time),
		WatchLag: durationpb.New(q.WatchLag)}
	lanes := []int16{store.PriorityUrgent, store.PriorityHigh, store.PriorityNormal, store.PriorityLow}
	for p := range q.Lanes {
		if !slices.Contains(lanes, p) {
			lanes = append(lanes, p) // of before there were priorities
		}
	}
	for i, p := range lanes {
		n := q.Lanes[p]
		out.Waiting += int64(n.Waiting)
		if i >= 4 && n.Waiting > 0 {
			last := out.Lanes[3]
			last.Waiting += int64(n.Waiting)
			continue
		}
		l := &pb.GetQueueStatsResponse_Lane{Priority: priority(p), Waiting: int64(n.Waiting)}
		if n.Waiting > 0 {
			l.OldestDueTime, l.OldestAge = stampOf(n.Oldest), durationpb.New(max(0, q.Time.Sub(n.Oldest)))
			if out.OldestDueTime == nil || n.Oldest.Before(out.OldestDueTime.AsTime()) {
				out.OldestDueTime, out.OldestAge = l.OldestDueTime, l.OldestAge
			}
		}
		out.Lanes = append(out.Lanes, l)
	}
	return out, nil
}
