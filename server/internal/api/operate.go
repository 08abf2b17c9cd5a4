package api

import (
	"context"
	"encoding/json"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/store"
)

// RunOperations carries out operations until ctx ends, one after the other. me is this process
// in the database.
func (a *API) RunOperations(ctx context.Context, me func() store.ReplicaID) {
	t := time.NewTicker(operationPoll)
	defer t.Stop()
	for {
		if err := a.runOperation(ctx, me()); err != nil && ctx.Err() == nil {
			a.Logger.Warn("an operation goes on later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-a.begun:
		}
	}
}

// runOperation carries out the oldest operation that nobody is at.
func (a *API) runOperation(ctx context.Context, me store.ReplicaID) error {
	o, err := a.Store.TakeOperation(ctx, me)
	if err != nil || o == nil {
		return err
	}
	n := smallestPiece
	for {
		a.Sender.Yield(ctx) // whoever waits for a mail goes first
		begin := time.Now()
		next, idle, err := a.operate(ctx, me, o, n)
		if err != nil || next == nil || next.State != store.OperationRunning {
			return err
		}
		if o.Dry { // whatever changes mails goes first
			first, err := a.Store.TakeOperation(ctx, me)
			if err != nil || first == nil {
				return err
			}
			if first.ID != o.ID {
				o, n = first, smallestPiece
				continue
			}
		}
		switch took := time.Since(begin); {
		case idle: // all that is left is being written to
			select {
			case <-time.After(operationPoll / 10):
			case <-ctx.Done():
				return ctx.Err()
			}
		case took < pieceTime/2:
			n = min(2*n, largestPiece)
		case took > pieceTime:
			n = max(n/2, smallestPiece)
		}
	}
}

// operate carries out one piece.
func (a *API) operate(ctx context.Context, me store.ReplicaID, o *store.Operation, n int) (*store.Operation, bool, error) {
	var c operationCall
	if err := json.Unmarshal([]byte(o.Request), &c); err != nil {
		return nil, false, err
	}
	calls := map[string]proto.Message{"RetryMails": &pb.RetryMailsRequest{}, "CancelMails": &pb.CancelMailsRequest{}, "HoldMails": &pb.HoldMailsRequest{},
		"ReleaseMails": &pb.ReleaseMailsRequest{}, "MoveMails": &pb.MoveMailsRequest{}}
	call := calls[c.Action]
	if err := c.into(call); err != nil {
		return nil, false, err
	}
	ctx = access.NewContext(ctx, &access.Principal{Actor: c.Actor, Name: c.Name, Roles: c.Roles, Teams: c.Teams, System: c.System, Kinds: c.Kinds, MailServers: c.MailServers})
	w, err := a.word(ctx, call)
	if err != nil {
		// what the whole call would hear, each mail does
		w.decide = func(*store.Mail, *store.MailServer) (*store.Change, error) { return nil, err }
	}
	return a.Store.Operate(ctx, me, o.ID, n, w.decide, failureText)
}
