package api

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/store"
)

const (
	// how often the process looks for changes
	watchPoll      = 250 * time.Millisecond
	watchHeartbeat = 15 * time.Second
	watchPage      = 500
	// a lag of more is logged, once a minute over all watchers
	watchLate = time.Minute
)

// WatchMails implements the service. Each watcher reads the log of changes at its own pace,
// when the tail says that there may be something for it: one that does not read its stream, and
// one that waits for what does not happen, cost a blocked goroutine and nothing else.
func (a *API) WatchMails(r *pb.WatchMailsRequest, stream grpc.ServerStreamingServer[pb.WatchMailsResponse]) error {
	ctx := stream.Context()
	var c apierr.Check
	f, _ := filter(&c, "filter.", r.Filter)
	if err := c.Err(); err != nil {
		return err
	}
	of := r.Filter
	if of == nil {
		of = &pb.MailFilter{}
	}
	caller := access.From(ctx)
	held, err := a.Quota.Hold(caller.Name, quota.Watchers, 1)
	if err != nil {
		return err
	}
	defer held.Give()
	token := func(p store.Position) string {
		var b []byte
		for _, n := range []int64{p.XID, p.Seq, p.Generation} {
			b = binary.BigEndian.AppendUint64(b, uint64(n))
		}
		return a.pageToken("watch", of, b)
	}
	w, at, err := a.tail.watch(ctx, mayConcern(a.scope(ctx), f))
	if err != nil {
		return a.fault(err)
	}
	defer a.tail.leave(w)
	b, err := a.position("watch", of, r.Cursor)
	switch {
	case err != nil || r.Cursor != "" && len(b) != 16 && len(b) != 24:
		return apierr.New(codes.InvalidArgument, pb.ReasonPageTokenInvalid, "cursor is not one of WatchMails with this filter")
	case r.Cursor == "":
	default:
		at = store.Position{XID: int64(binary.BigEndian.Uint64(b)), Seq: int64(binary.BigEndian.Uint64(b[8:]))}
		if len(b) == 24 { // else of a version that knew one generation only, the first
			at.Generation = int64(binary.BigEndian.Uint64(b[16:]))
		}
	}
	var told time.Time // when the caller last heard anything
	caughtUp := false  // everything up to at was read, and from then on the tail tells
	read := func() error {
		if seen := w.begin(); caughtUp && at.Generation == seen.Generation && at.Before(seen) {
			at = seen
		}
		for more := true; more; {
			if err := caller.Err(); err != nil {
				return err
			}
			var changes []store.MailChange
			var next store.Position
			var err error
			changes, next, more, err = a.Store.Changes(ctx, a.scope(ctx), f, at, watchPage)
			if errors.Is(err, store.ErrForgotten) {
				return apierr.New(codes.OutOfRange, pb.ReasonCursorExpired, "changes behind this cursor are not kept any more, or the database was restored: list the journals, and watch from now on")
			}
			if err != nil {
				return a.fault(err)
			}
			for i, ch := range changes {
				cursor := ch.Position
				if i == len(changes)-1 {
					cursor = next
				}
				if err := stream.Send(&pb.WatchMailsResponse{Mail: viewerOf(ctx).mail(ch.Mail), Status: mailStatusName[ch.Status], ChangeTime: timestamppb.New(ch.Time), Cursor: token(cursor)}); err != nil {
					return err
				}
				told = time.Now()
			}
			at = next
		}
		caughtUp = true
		return nil
	}
	if err := read(); err != nil {
		return err
	}
	beat := time.NewTimer(0)
	defer beat.Stop()
	for {
		select {
		case <-w.wake:
			if err := read(); err != nil {
				return err
			}
		case <-beat.C:
			if err := caller.Err(); err != nil {
				return err
			}
			left := watchHeartbeat - time.Since(told)
			if left <= 0 {
				lag, err := a.watchLag(ctx)
				if err != nil {
					return a.fault(err)
				}
				cursor := at
				if seen, ok := w.quiet(); ok && at.Generation == seen.Generation && at.Before(seen) {
					cursor = seen
				}
				if err := stream.Send(&pb.WatchMailsResponse{Cursor: token(cursor), Lag: durationpb.New(lag)}); err != nil {
					return err
				}
				told, left = time.Now(), watchHeartbeat
			}
			beat.Reset(left)
		case <-ctx.Done():
			return ctx.Err()
		case <-a.Draining:
			return a.fault(a.Stopping)
		case <-caller.Ended():
			return caller.Err()
		}
	}
}

// watchLag says how far watchers are behind, and logs it when that is long.
func (a *API) watchLag(ctx context.Context) (time.Duration, error) {
	lag, err := a.tail.watchLag(ctx)
	if err != nil || lag <= watchLate {
		return lag, err
	}
	before, now := a.lateLogged.Load(), a.Now().UnixNano()
	if now-before >= int64(watchLate) && a.lateLogged.CompareAndSwap(before, now) {
		a.Logger.Warn("watchers hear nothing: a transaction does not end in one of the databases of the PostgreSQL server, see pg_stat_activity and pg_prepared_xacts", "lag", lag)
	}
	return lag, nil
}
