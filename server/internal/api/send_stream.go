package api

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/server/internal/delivery"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/store"
)

const (
	streamOpen = 2000 // items whose answers are open; past that nothing more is read
	streamPHP  = 16   // of them being sent in php mode
)

// itemStream is one SendStream under way. Its own goroutine reads, checks and composes; commits
// and php-mode mails run beside it, and one goroutine sends the answers.
type itemStream struct {
	*bulk
	ctx     context.Context
	end     context.CancelCauseFunc
	group   *errgroup.Group // commits
	flying  sync.WaitGroup  // php-mode mails
	slots   chan struct{}   // for them
	open    *semaphore.Weighted
	answers chan *pb.SendStreamResponse

	mails  []*store.NewMail
	places []int64
	bytes  int64
}

// SendStream implements the service.
func (a *API) SendStream(stream grpc.BidiStreamingServer[pb.SendStreamRequest, pb.SendStreamResponse]) (err error) {
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	in := newIntake(ctx, stream.Recv)
	s := &itemStream{end: end, answers: make(chan *pb.SendStreamResponse, chunkItems), slots: make(chan struct{}, streamPHP), open: semaphore.NewWeighted(streamOpen)}
	s.group, s.ctx = errgroup.WithContext(ctx)
	s.group.SetLimit(commits)
	caller := access.From(ctx)
	told := make(chan error, 1)
	go func() {
		for ans := range s.answers {
			if err := stream.Send(ans); err != nil {
				end(err)
				for range s.answers { // nobody hears these; the mails are durable all the same
					s.open.Release(1)
				}
				told <- err
				return
			}
			s.open.Release(1)
		}
		told <- nil
	}()
	defer func() { // whatever ends the stream: what was begun gets its answer first
		// before the group: the end of its wait is the end of the context that these mails live
		// by
		s.flying.Wait()
		werr := s.group.Wait()
		if werr == nil && err == nil {
			err = a.fault(context.Cause(ctx))
		}
		close(s.answers)
		err = firstOf(werr, err, <-told)
	}()
	for {
		select {
		case r := <-in.c:
			if over(r.err) {
				s.commit()
				return nil
			}
			if r.err != nil {
				return r.err
			}
			if s.bulk == nil {
				if s.bulk, err = a.openStream(ctx, r.msg.Options); err != nil {
					return err
				}
				if s.draft.server.Mode == store.ModePHP {
					held, err := a.Quota.Hold(caller.Name, quota.Streams, 1)
					if err != nil {
						return err
					}
					defer held.Give()
				}
			} else if r.msg.Options != nil {
				return errLateOptions()
			}
			err := s.take(r.msg.Items)
			in.done(r)
			if err == nil && len(in.c) == 0 {
				s.commit() // nothing more has come: whoever waits for an answer gets it now
				err = s.route(s.ctx)
			}
			if err != nil {
				return a.fault(err)
			}
		case <-s.ctx.Done():
			return a.fault(context.Cause(s.ctx))
		case <-a.Draining:
			return a.fault(a.Stopping)
		case <-caller.Ended():
			return caller.Err()
		}
	}
}

func (a *API) openStream(ctx context.Context, o *pb.BatchOptions) (*bulk, error) {
	var c apierr.Check
	if o.GetStrict() {
		c.Bad("options.strict", "is SendBatch's: here every item has its own answer")
	}
	if o.GetValidateOnly() {
		c.Bad("options.validate_only", "is SendBatch's")
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	return a.openBulk(ctx, o)
}

// take checks and composes items and has them sent or gathers them for a commit.
func (s *itemStream) take(items []*pb.BatchItem) error {
	if err := checkItems(items); err != nil {
		return err
	}
	for _, it := range items {
		if s.next >= mostItems {
			return tooManyItems("a stream takes at most %d: begin another with the same batch_id", mostItems)
		}
		if !s.open.TryAcquire(1) {
			s.commit() // the answers that are waited for may be in it
			if err := s.open.Acquire(s.ctx, 1); err != nil {
				return err
			}
		}
		runtime.Gosched() // as in a batch
		at := s.next
		m, rej, err := s.mail(s.ctx, it)
		if err != nil {
			s.open.Release(1)
			return err
		}
		switch {
		case rej != nil:
			s.answer(&pb.SendStreamResponse{Position: at, RequestId: it.GetRequestId(), BatchId: s.id, Rejection: rej})
		case m.Mode == store.ModePHP:
			if err := s.fly(m, at); err != nil {
				s.open.Release(1)
				return err
			}
		default:
			s.mails, s.places = append(s.mails, m), append(s.places, at)
			if s.bytes += s.weight(m); len(s.mails) >= chunkItems || s.bytes >= chunkBytes {
				s.commit()
				if err := s.route(s.ctx); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// answer hands an answer to the goroutine that sends them.
func (s *itemStream) answer(r *pb.SendStreamResponse) { s.answers <- r }

// commit makes the gathered mails durable beside this goroutine and answers each, waiting while
// there are enough commits.
func (s *itemStream) commit() {
	if len(s.mails) == 0 {
		return
	}
	ms, places := s.mails, s.places
	s.mails, s.places, s.bytes = nil, nil, 0
	s.group.Go(func() error {
		res, err := s.a.Sender.Queue(s.ctx, ms, false)
		for i, r := range res { // also where the rest has failed
			s.answer(s.queued(ms[i], places[i], r))
		}
		if err != nil {
			s.open.Release(int64(len(ms) - len(res)))
			return s.a.fault(err)
		}
		return nil
	})
}

// queued answers for a mail that was queued.
func (s *itemStream) queued(m *store.NewMail, at int64, r store.Enqueued) *pb.SendStreamResponse {
	out := &pb.SendStreamResponse{Position: at, RequestId: m.RequestID, BatchId: s.id}
	switch {
	case r.Err != nil:
		out.Rejection = s.a.refused(at, m.RequestID, r.Err)
		return out
	case r.Duplicate:
		out.Duplicate = true
		if had, err := s.a.Store.Mail(s.ctx, useScope(m.Team), r.ID); err == nil {
			// only for what it says of the status
			out.Status = mailStatusName[had.Status]
		}
	case m.Held != "":
		out.Status = pb.MailStatus_MAIL_STATUS_HELD
	default:
		out.Status = pb.MailStatus_MAIL_STATUS_QUEUED
	}
	out.MailId = r.ID.String()
	return out
}

// fly sends a php-mode mail beside this goroutine and answers when it is over.
func (s *itemStream) fly(m *store.NewMail, at int64) error {
	select {
	case s.slots <- struct{}{}:
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	sub := &delivery.Submission{Mail: m, Server: s.draft.server, Waits: true}
	s.flying.Go(func() {
		defer func() { <-s.slots }()
		out := &pb.SendStreamResponse{Position: at, RequestId: m.RequestID, BatchId: s.id}
		err := s.a.Sender.Send(s.ctx, sub, func(ev delivery.Event) error {
			if ev.Accepted != nil {
				out.MailId, out.Duplicate = ev.MailID.String(), ev.Accepted.Duplicate
			}
			if ev.Completed != nil {
				out.Mail = viewerOf(s.ctx).mail(ev.Completed)
				out.Status = out.Mail.Status
			}
			return nil
		})
		switch {
		case err == nil:
		case errors.Is(err, store.ErrRequestIDReused), quota.Refused(err):
			out.MailId, out.Rejection = "", s.a.refused(at, m.RequestID, err)
		default: // the stream ends with it, and the same request_id finds out
			s.end(err)
			s.open.Release(1)
			return
		}
		s.answer(out)
	})
	return nil
}
