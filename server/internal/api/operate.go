package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/store"
)

// RunOperations carries out operations until ctx ends, one after the other. me is this process
// in the database.
func (a *API) RunOperations(ctx context.Context, me func() store.ReplicaID) {
	t := time.NewTicker(operationPoll)
	defer t.Stop()
	told := ""
	for {
		err := a.runOperation(ctx, me())
		now := ""
		if err != nil && ctx.Err() == nil {
			now = err.Error()
		}
		if now != "" && now != told { // a lasting fault is met twice a second
			a.Logger.Warn("an operation goes on later", "error", err)
		}
		told = now
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-a.begun:
		}
	}
}

// runOperation carries out the oldest operation that nobody is at, until it ends or meets a
// fault. Then the others go on before it is tried again, and whoever asks is told.
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
		if err != nil && ctx.Err() == nil {
			return errors.Join(fmt.Errorf("operation %s: %w", o.ID, err), a.Store.DelayOperation(ctx, me, o.ID, delayText(err)))
		}
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

// delayText is what callers are told of a fault that an operation has met.
func delayText(err error) string {
	switch e, is := apierr.As(err); {
	case errors.Is(err, store.ErrUnavailable):
		return "the database is away: it is tried again"
	case is:
		return e.Text + ": it is tried again"
	}
	return "the service or its database has met a fault, which the service's log names: it is tried again"
}

// refuses says whether an error is an answer that trying again does not change.
func refuses(err error) bool {
	e, is := apierr.As(err)
	return is && slices.Contains([]codes.Code{codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.FailedPrecondition, codes.Unauthenticated}, e.Code)
}

// operate carries out one piece.
func (a *API) operate(ctx context.Context, me store.ReplicaID, o *store.Operation, n int) (*store.Operation, bool, error) {
	var c operationCall
	if err := json.Unmarshal([]byte(o.Request), &c); err != nil {
		return nil, false, err
	}
	calls := map[string]proto.Message{"RetryMails": &pb.RetryMailsRequest{}, "CancelMails": &pb.CancelMailsRequest{}, "HoldMails": &pb.HoldMailsRequest{},
		"ReleaseMails": &pb.ReleaseMailsRequest{}, "MoveMails": &pb.MoveMailsRequest{}}
	call, known := calls[c.Action]
	if !known {
		return nil, false, fmt.Errorf("%q is no control call", c.Action)
	}
	if err := c.into(call); err != nil {
		return nil, false, err
	}
	ctx = access.NewContext(ctx, &access.Principal{Actor: c.Actor, Name: c.Name, Roles: c.Roles, Teams: c.Teams, System: c.System, Kinds: c.Kinds, MailServers: c.MailServers})
	w, err := a.word(ctx, call)
	switch {
	case refuses(err):
		// what the whole call would hear, each mail does
		w.decide = func(*store.Mail, *store.MailServer) (*store.Change, error) { return nil, err }
	case err != nil:
		return nil, false, err // no mail is to blame: the piece is tried again
	}
	return a.Store.Operate(ctx, me, o.ID, n, a.guarded(w.decide), failureText)
}

// guarded is decide, for which a mail that nobody foresaw is a damaged one. A call has the
// interceptor for that; here the panic would end the process, and then the next replica that
// takes the operation.
func (a *API) guarded(decide store.Decide) store.Decide {
	return func(m *store.Mail, s *store.MailServer) (c *store.Change, err error) {
		defer func() {
			if p := recover(); p != nil {
				a.Logger.Error("panic", "mail", m.ID, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				c, err = nil, store.ErrDamaged
			}
		}()
		return decide(m, s)
	}
}
