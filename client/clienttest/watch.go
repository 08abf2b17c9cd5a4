package clienttest

import (
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// change is a change of a mail's status.
type change struct {
	entry  *entry
	status maildispatchv1.MailStatus
	time   *timestamppb.Timestamp
}

// note keeps a change for watchers, if it is one; the lock is held.
func (s *Server) note(e *entry) {
	if e.told != e.mail.Status {
		e.told = e.mail.Status
		s.changes = append(s.changes, change{e, e.told, stamp(time.Now())})
	}
}

// unlock ends a call that may have changed mails, and wakes the watchers if it has.
func (s *Server) unlock() {
	defer s.mu.Unlock()
	for _, e := range s.mails {
		s.note(e)
	}
	if len(s.changes) > s.announced {
		close(s.changed)
		s.changed, s.announced = make(chan struct{}), len(s.changes)
	}
}

// WatchMails tells what has been noted since the cursor, which is a number.
func (d dispatch) WatchMails(req *maildispatchv1.WatchMailsRequest, stream grpc.ServerStreamingServer[maildispatchv1.WatchMailsResponse]) error {
	d.s.mu.Lock()
	at := len(d.s.changes)
	d.s.mu.Unlock()
	if c := req.GetCursor(); c != "" {
		n, err := strconv.Atoi(c)
		if err != nil || n < 0 || n > at {
			return Error(codes.InvalidArgument, maildispatchv1.ReasonPageTokenInvalid, "cursor is not one of ours")
		}
		at = n
	}
	of := proto.CloneOf(req.GetFilter())
	statuses := of.GetStatuses()
	if of != nil {
		of.Statuses = nil // they are those that a change leads to
	}
	answers, silent := []*maildispatchv1.WatchMailsResponse{{Cursor: strconv.Itoa(at)}}, false
	for {
		for _, a := range answers {
			if err := stream.Send(a); err != nil {
				return err
			}
		}
		answers = nil
		d.s.mu.Lock()
		wake := d.s.changed
		for ; at < len(d.s.changes); at++ {
			c := d.s.changes[at]
			if match(of, c.entry.mail) && (len(statuses) == 0 || slices.Contains(statuses, c.status)) {
				answers = append(answers, &maildispatchv1.WatchMailsResponse{Mail: proto.CloneOf(c.entry.mail), Status: c.status, ChangeTime: c.time, Cursor: strconv.Itoa(at + 1)})
			}
		}
		d.s.mu.Unlock()
		if silent && len(answers) == 0 {
			answers = append(answers, &maildispatchv1.WatchMailsResponse{Cursor: strconv.Itoa(at)})
		}
		if silent = false; len(answers) > 0 {
			continue
		}
		select {
		case <-wake:
		case <-time.After(15 * time.Second):
			silent = true
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}
