// Package interceptor wraps every call, unary and stream alike: a request id, one log line,
// recovery from panics, a deadline, and errors that say no more to the caller than they should.
// Bodies, addresses and secrets are never logged.
package interceptor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/budget"
)

const (
	// Header carries the request id. A caller's own is logged beside ours, which is made here
	// and goes back: a caller cannot give its call the id of another's.
	Header = "x-request-id"
	// headerList is how many octets the headers of a call may have: ours and a caller's own
	// few.
	headerList = 16 << 10
	// unaryLimit is the time of a unary call whose caller sets none.
	unaryLimit = 30 * time.Second
	// A fifth of the caller's time is kept back, between these two, so that our own word on
	// what took too long arrives before the caller's clock ends the call.
	leastShave = 50 * time.Millisecond
	mostShave  = time.Second
	// least is the time a call must have left to be worth beginning.
	least = 100 * time.Millisecond
)

// probes begin the methods of health and reflection, which are of interest at debug only.
const probes = "/grpc."

// Observer hears of every call. It must not wait for anything.
type Observer interface {
	// Began: a call of the method, such as maildispatch.v1.Dispatch/Send, is under way.
	Began(method string)
	// Called: it has ended with a code.
	Called(method, code string, took time.Duration)
}

// deaf is the Observer where none is given.
type deaf struct{}

func (deaf) Began(string)                         {}
func (deaf) Called(string, string, time.Duration) {}

// call is what both kinds share. do runs the handler with the prepared context.
func call(ctx context.Context, log *slog.Logger, observe Observer, method string, limit time.Duration, setHeader func(metadata.MD) error, setTrailer func(metadata.MD), do func(context.Context) error) (err error) {
	start := time.Now()
	name := strings.TrimPrefix(method, "/")
	observe.Began(name)
	id, theirs, who := uuid.NewString(), callersID(ctx), access.Actor(ctx)
	_ = setHeader(metadata.Pairs(Header, id)) // fails only when the call is over already
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic", "method", method, "request", id, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = internal(id)
		}
		level := slog.LevelInfo
		if strings.HasPrefix(method, probes) {
			level = slog.LevelDebug
		}
		code := status.Code(err)
		observe.Called(name, code.String(), time.Since(start))
		switch code {
		case codes.Internal, codes.Unknown, codes.DataLoss:
			level = slog.LevelError
		case codes.Unavailable:
			level = slog.LevelWarn
		}
		attrs := []any{"method", method, "code", code.String(), "took", time.Since(start).Round(time.Microsecond), "request", id}
		if theirs != "" {
			attrs = append(attrs, "caller_request", theirs)
		}
		if who != "" {
			attrs = append(attrs, "caller", who)
		}
		if e, ok := apierr.As(err); ok {
			setTrailer(plain(e))
			attrs = append(attrs, "reason", e.Reason)
			if e.Cause != nil {
				attrs = append(attrs, "cause", e.Cause.Error())
			}
		}
		log.Log(ctx, level, "call", attrs...)
	}()
	ctx, cancel, err := bound(ctx, limit)
	if err != nil {
		return err
	}
	defer cancel()
	return public(do(ctx), id, method, log)
}

// plain is what an error's details say, as trailers that every language can read:
// grpc-status-details-bin takes a library that many of them lack.
func plain(e *apierr.Error) metadata.MD {
	md := metadata.Pairs(pb.TrailerReason, e.Reason)
	if e.RetryAfter > 0 {
		md.Set(pb.TrailerRetryAfter, strconv.FormatInt(e.RetryAfter.Milliseconds(), 10))
	}
	return md
}

// callersID is the id that the caller gives the call, "" if it gives none that is plain.
func callersID(ctx context.Context) string {
	v := metadata.ValueFromIncomingContext(ctx, Header)
	if len(v) == 0 || len(v[0]) > 64 {
		return ""
	}
	for _, r := range v[0] {
		if r <= ' ' || r > '~' {
			return ""
		}
	}
	return v[0]
}

// ownTime is how long a unary call lasts whose caller sets no deadline; 0 = as long as it
// needs.
func ownTime(req any) time.Duration {
	switch r := req.(type) {
	case *pb.SendMailRequest:
		return 0 // as Send
	case *pb.RunBatchRequest:
		if r.Wait {
			return 0
		}
	case *pb.TestMailServerRequest:
		// the rest is for its own steps
		return max(unaryLimit, r.Timeout.AsDuration()+5*time.Second)
	}
	return unaryLimit
}

// bound gives the handler a little less time than the caller has, and limit to one whose caller
// says nothing; 0 is no limit.
func bound(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc, error) {
	t, ok := ctx.Deadline()
	if !ok {
		if limit > 0 {
			ctx, cancel := context.WithTimeout(ctx, limit)
			return ctx, cancel, nil
		}
		return ctx, func() {}, nil
	}
	left := time.Until(t)
	if left < least {
		return nil, nil, apierr.New(codes.DeadlineExceeded, pb.ReasonDeadlineTooShort, "less than %v are left for this call", least)
	}
	ctx, cancel := context.WithDeadline(ctx, t.Add(-min(mostShave, max(leastShave, left/5))))
	return ctx, cancel, nil
}

// public turns an error into what the caller may see. What nobody has put into words is
// INTERNAL with the request id; the log has the rest.
func public(err error, id, method string, log *slog.Logger) error {
	if err == nil {
		return nil
	}
	if e, ok := apierr.As(err); ok {
		return e
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the caller cancelled the call")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the caller's time ran out")
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return err
	}
	log.Error("internal error", "method", method, "request", id, "error", err.Error())
	return internal(id)
}

func internal(id string) error {
	return apierr.New(codes.Internal, pb.ReasonInternal, "internal error, request id %s", id)
}

// Options are the whole chain of a server, in its order: what wraps every call, who may call,
// and what bounds the memory of large messages. Tests use it too, so that they meet what
// callers meet.
//
// Of a unary call the message has been read when the guard decides; it decides before anybody
// says what is wrong with it. A stream's messages pass the budget before the guard sees them.
//
// creds are those of the connections, nil for plaintext.
//
// observe hears of every call; nil = nobody does.
func Options(log *slog.Logger, guard *access.Guard, creds credentials.TransportCredentials, observe Observer) []grpc.ServerOption {
	if observe == nil {
		observe = deaf{}
	}
	large := budget.New()
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	tap := func(ctx context.Context, info *tap.Info) (context.Context, error) {
		ctx, err := guard.Tap(ctx, info)
		if err != nil {
			return ctx, err
		}
		return large.Tap(ctx, info.FullMethodName, access.Actor(ctx)), nil
	}
	// outermost: also of a call that has no time left
	forget := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		defer large.Forget(req)
		return h(ctx, req)
	}
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		release, err := large.Admit(ctx, req)
		if err != nil {
			return nil, err
		}
		defer release()
		return guard.Unary(ctx, req, info, h)
	}
	return append(large.Options(), grpc.MaxHeaderListSize(headerList), grpc.InTapHandle(tap), grpc.Creds(large.Credentials(creds)),
		grpc.ChainUnaryInterceptor(forget, Unary(log, observe), unary, large.Unary), grpc.ChainStreamInterceptor(Stream(log, observe), large.Stream, guard.Stream))
}

// Unary wraps unary calls.
func Unary(log *slog.Logger, observe Observer) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
		err = call(ctx, log, observe, info.FullMethod, ownTime(req), func(md metadata.MD) error { return grpc.SetHeader(ctx, md) }, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) }, func(ctx context.Context) error {
			var err error
			resp, err = h(ctx, req)
			return err
		})
		return resp, err
	}
}

// Stream wraps streaming calls.
func Stream(log *slog.Logger, observe Observer) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		return call(ss.Context(), log, observe, info.FullMethod, 0, ss.SetHeader, ss.SetTrailer, func(ctx context.Context) error {
			return h(srv, stream{ss, ctx})
		})
	}
}

// stream is a stream with the prepared context.
type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }
