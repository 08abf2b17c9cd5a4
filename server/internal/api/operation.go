package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/store"
)

// Operations is what the service Operations needs of the store.
type Operations interface {
	BeginOperation(ctx context.Context, o *store.Operation) error
	Operation(ctx context.Context, id uuid.UUID) (*store.Operation, error)
	Operations(ctx context.Context, running bool, before uuid.UUID, n int) ([]*store.Operation, error)
	StopOperation(ctx context.Context, id uuid.UUID, a store.Audit) error
	TakeOperation(ctx context.Context, r store.ReplicaID) (*store.Operation, error)
	DelayOperation(ctx context.Context, r store.ReplicaID, id uuid.UUID, why string) error
	Operate(ctx context.Context, r store.ReplicaID, id uuid.UUID, n int, decide store.Decide, explain func(error) (reason, message string)) (o *store.Operation, idle bool, err error)
}

const (
	operationPoll = 500 * time.Millisecond // how often runners and watchers look
	// Pieces are as large as take this long: mail under way waits no longer for the rows, nor,
	// on SQLite, for the writer.
	pieceTime         = 40 * time.Millisecond
	smallestPiece     = 50
	largestPiece      = 5000
	operationsScanned = 5000 // of one page, those that the caller does not see among them
)

// operationCall is an operation's Request: the control call, and who has called. The caller may
// do in it what it might when it called, also if its token ends meanwhile.
type operationCall struct {
	Action      string
	Call        json.RawMessage
	Actor, Name string
	Roles       []pb.Role
	Teams       []string
	System      bool
	Kinds       []store.Kind
	MailServers []string
}

// into reads the call: JSON text, in which an erasure finds an address. Versions before v0.3.0
// wrote the encoded message, as a string of base64.
func (c *operationCall) into(call proto.Message) error {
	if !bytes.HasPrefix(c.Call, []byte(`"`)) {
		return protojson.Unmarshal(c.Call, call)
	}
	var b []byte
	if err := json.Unmarshal(c.Call, &b); err != nil {
		return err
	}
	return proto.Unmarshal(b, call)
}

// begin answers a control call with an operation.
func (a *API) begin(ctx context.Context, s selection, dryRun bool, reason string, call proto.Message, w word) (*modified, error) {
	b, err := protojson.Marshal(call)
	if err != nil {
		return nil, err
	}
	c := access.From(ctx)
	request, err := json.Marshal(&operationCall{Action: w.action, Call: b, Actor: c.Actor, Name: c.Name, Roles: c.Roles, Teams: c.Teams, System: c.System, Kinds: c.Kinds, MailServers: c.MailServers})
	if err != nil {
		return nil, err
	}
	total, _, err := a.Store.CountMatching(ctx, a.scope(ctx), *s.filter)
	if err != nil {
		return nil, a.fault(err)
	}
	o := &store.Operation{Action: w.action, Scope: a.scope(ctx), Filter: *s.filter, Request: string(request), Audit: a.audit(ctx, w.action, reason), Dry: dryRun, Brakes: w.brakes, Total: int64(total)}
	if err := a.Store.BeginOperation(ctx, o); err != nil {
		return nil, a.fault(err)
	}
	select {
	case a.begun <- struct{}{}:
	default:
	}
	return &modified{operation: operation(o)}, nil
}

var operationState = map[store.OperationState]pb.OperationState{store.OperationRunning: pb.OperationState_OPERATION_STATE_RUNNING, store.OperationDone: pb.OperationState_OPERATION_STATE_DONE,
	store.OperationStopped: pb.OperationState_OPERATION_STATE_STOPPED, store.OperationFailed: pb.OperationState_OPERATION_STATE_FAILED}

func operation(o *store.Operation) *pb.Operation {
	p := &pb.Operation{Id: o.ID.String(), Action: o.Action, State: operationState[o.State], ValidateOnly: o.Dry, Total: o.Total, Matched: o.Matched, Changed: o.Changed, Failed: o.Failed,
		Failures: failureGroups(o.Failures), Actor: o.Audit.Actor, Reason: o.Audit.Reason, Error: o.Error, CreateTime: timestamppb.New(o.Create), UpdateTime: timestamppb.New(o.Update)}
	if !o.End.IsZero() {
		p.EndTime = timestamppb.New(o.End)
	}
	return p
}

func failureGroups(groups []store.FailureGroup) (out []*pb.FailureGroup) {
	for _, g := range groups {
		p := &pb.FailureGroup{Reason: g.Reason, Message: g.Message, Count: g.Count}
		for _, id := range g.IDs {
			p.Ids = append(p.Ids, id.String())
		}
		out = append(out, p)
	}
	return out
}

// sees says whether an operation is over mails that a scope lets see, all of them.
func sees(sc store.Scope, o *store.Operation) bool {
	over := o.Scope.Teams
	switch {
	case sc.Caller != "" && sc.Caller != o.Scope.Caller:
		return false
	case sc.All:
		return true
	case o.Filter.Team != nil:
		over = []string{*o.Filter.Team}
	case o.Scope.All:
		return false
	}
	return len(over) > 0 && !slices.ContainsFunc(over, func(t string) bool { return !slices.Contains(sc.Teams, t) })
}

func (a *API) operationOf(ctx context.Context, text string) (*store.Operation, error) {
	id, err := uuid.Parse(text)
	if err != nil {
		var c apierr.Check
		c.Bad("id", "is not the id of an operation")
		return nil, c.Err()
	}
	o, err := a.Store.Operation(ctx, id)
	if err == nil && !sees(a.scope(ctx), o) {
		err = store.ErrNotFound
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil, apierr.NotFound(pb.ReasonOperationNotFound, "operation", text)
	}
	return o, a.fault(err)
}

// GetOperation implements the service.
func (a *API) GetOperation(ctx context.Context, r *pb.GetOperationRequest) (*pb.GetOperationResponse, error) {
	o, err := a.operationOf(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	return &pb.GetOperationResponse{Operation: operation(o)}, nil
}

// WatchOperation implements the service.
func (a *API) WatchOperation(r *pb.WatchOperationRequest, stream grpc.ServerStreamingServer[pb.WatchOperationResponse]) error {
	ctx := stream.Context()
	t := time.NewTicker(operationPoll)
	defer t.Stop()
	var last []byte
	for {
		o, err := a.operationOf(ctx, r.Id)
		if err != nil {
			return err
		}
		p := operation(o)
		now, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
		if err != nil {
			return err
		}
		if !bytes.Equal(now, last) {
			if err := stream.Send(&pb.WatchOperationResponse{Operation: p}); err != nil {
				return err
			}
			last = now
		}
		if o.State != store.OperationRunning {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-a.Draining:
			return a.fault(a.Stopping)
		case <-access.From(ctx).Ended():
			return access.From(ctx).Err()
		}
	}
}

// StopOperation implements the service.
func (a *API) StopOperation(ctx context.Context, r *pb.StopOperationRequest) (*pb.StopOperationResponse, error) {
	o, err := a.operationOf(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	if err := a.Store.StopOperation(ctx, o.ID, a.audit(ctx, "StopOperation", "")); err != nil {
		return nil, a.fault(err)
	}
	if o, err = a.operationOf(ctx, r.Id); err != nil {
		return nil, err
	}
	return &pb.StopOperationResponse{Operation: operation(o)}, nil
}

// ListOperations implements the service.
func (a *API) ListOperations(ctx context.Context, r *pb.ListOperationsRequest) (*pb.ListOperationsResponse, error) {
	var c apierr.Check
	n := pageSize(&c, r.PageSize)
	if r.Team != nil {
		checkTeam(&c, "team", *r.Team)
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	of := &pb.ListOperationsRequest{Running: r.Running, Team: r.Team}
	pos, err := a.position("operations", of, r.PageToken)
	if err != nil {
		return nil, err
	}
	before := uuid.Max
	if len(pos) == len(before) {
		before = uuid.UUID(pos)
	}
	out := &pb.ListOperationsResponse{}
	for read, weight := 0, 0; read < operationsScanned; {
		os, err := a.Store.Operations(ctx, r.Running, before, largestPage)
		if err != nil {
			return nil, a.fault(err)
		}
		for _, o := range os {
			if named := o.Filter.Team; sees(a.scope(ctx), o) && (r.Team == nil || named != nil && *named == *r.Team) {
				p := operation(o)
				weight += proto.Size(p)
				if len(out.Operations) == n || weight > pageWeight && len(out.Operations) > 0 {
					out.NextPageToken = a.pageToken("operations", of, before[:])
					return out, nil
				}
				out.Operations = append(out.Operations, p)
			}
			before = o.ID
		}
		if read += len(os); len(os) < largestPage {
			return out, nil
		}
	}
	out.NextPageToken = a.pageToken("operations", of, before[:])
	return out, nil
}
