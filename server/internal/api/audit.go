package api

import (
	"context"
	"encoding/binary"
	"encoding/hex"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/store"
)

// ListAudit implements the service.
func (a *AccessAdmin) ListAudit(ctx context.Context, r *pb.ListAuditRequest) (*pb.ListAuditResponse, error) {
	var c apierr.Check
	f := store.AuditFilter{Team: r.Team, Actor: r.Actor, Action: r.Action, Target: r.Target}
	if r.Team != nil {
		checkTeam(&c, "team", *r.Team)
	}
	line(&c, "actor", r.Actor, 200)
	line(&c, "action", r.Action, 64)
	line(&c, "target", r.Target, 200)
	if r.Since != nil {
		if r.Since.CheckValid() != nil {
			c.Bad("since", "is not a time")
		}
		f.Since = r.Since.AsTime()
	}
	if r.Until != nil {
		if r.Until.CheckValid() != nil {
			c.Bad("until", "is not a time")
		}
		f.Until = r.Until.AsTime()
	}
	n := pageSize(&c, r.PageSize)
	if err := c.Err(); err != nil {
		return nil, err
	}
	filter := proto.Clone(r).(*pb.ListAuditRequest)
	filter.PageSize, filter.PageToken = 0, ""
	at, err := a.position("audit", filter, r.PageToken)
	if err != nil {
		return nil, err
	}
	var before int64
	if len(at) == 8 {
		before = int64(binary.BigEndian.Uint64(at))
	}
	rows, err := a.Tokens.AuditRows(ctx, a.scope(ctx), f, before, n+1)
	if err != nil {
		return nil, a.fault(err)
	}
	out := &pb.ListAuditResponse{}
	for i := range rows {
		out.Rows = append(out.Rows, auditRow(&rows[i]))
	}
	if n = fits(out.Rows, n); n < len(rows) {
		out.Rows = out.Rows[:n]
		out.NextPageToken = a.pageToken("audit", filter, binary.BigEndian.AppendUint64(nil, uint64(rows[n-1].ID)))
	}
	return out, nil
}

func auditRow(r *store.AuditRow) *pb.AuditRow {
	out := &pb.AuditRow{Number: r.Seq, Time: timestamppb.New(r.Time), Actor: r.Actor, Action: r.Action, Team: r.Team, Target: r.Target, Reason: r.Reason,
		Hash: hex.EncodeToString(r.Hash)}
	if r.Detail != nil {
		out.Detail = &structpb.Struct{}
		if out.Detail.UnmarshalJSON(r.Detail) != nil {
			// what a database that was tampered with may hold
			out.Detail = nil
		}
	}
	return out
}
