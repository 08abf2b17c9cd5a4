package client

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// Result is what became of one mail, as far as it was heard.
type Result struct {
	// RequestID the mail was sent with. In a further request it attaches to the same mail.
	RequestID string
	// MailID is set as soon as the mail is accepted, which means durable. Empty with
	// validate_only.
	MailID string
	// Accepted says which mail server was taken and why.
	Accepted *maildispatchv1.SendResponse_Accepted
	// Recipients is the last word on each: the mail server's answers in php mode, PENDING for
	// mail that waits for the batch.
	Recipients []*maildispatchv1.RecipientResult
	// Mail is the mail as the journal had it at the end; nil with validate_only and after an
	// error.
	Mail *maildispatchv1.Mail
}

// Sent reports whether every recipient was accepted by the mail server.
func (r *Result) Sent() bool { return r.Mail.GetStatus() == maildispatchv1.MailStatus_MAIL_STATUS_SENT }

// NotAccepted lists the recipients that the mail server has not taken: refused, deferred, of
// unknown outcome, or not tried yet.
func (r *Result) NotAccepted() []*maildispatchv1.RecipientResult {
	var rs []*maildispatchv1.RecipientResult
	for _, rcpt := range r.Recipients {
		if rcpt.GetStatus() != maildispatchv1.RecipientResult_STATUS_ACCEPTED {
			rs = append(rs, rcpt)
		}
	}
	return rs
}

// Refused lists the recipients that the mail server refused for good. Nobody sends to them
// again unless RetryMails or ResendMail is called.
func (r *Result) Refused() []*maildispatchv1.RecipientResult {
	return r.in(maildispatchv1.RecipientResult_STATUS_REJECTED)
}

// Unknown lists the recipients that may or may not have the mail: no reply came after its end.
// Do not send it again by yourself. A mail of status UNKNOWN waits for ResolveMail; another one
// is sent again by the service, and says possible_duplicate.
func (r *Result) Unknown() []*maildispatchv1.RecipientResult {
	return r.in(maildispatchv1.RecipientResult_STATUS_UNKNOWN)
}

// Waiting lists the recipients whose turn has not come, or that the mail server put off. See
// WillRetry for whether somebody sends to them.
func (r *Result) Waiting() []*maildispatchv1.RecipientResult {
	return r.in(maildispatchv1.RecipientResult_STATUS_PENDING, maildispatchv1.RecipientResult_STATUS_DEFERRED)
}

// WillRetry reports whether the service goes on by itself: the mail has a time at which it is
// due, or is being sent. False for a mail that is finished, held or given up, and where nothing
// was heard of it.
func (r *Result) WillRetry() bool {
	return r.Mail.GetDueTime() != nil || r.Mail.GetStatus() == maildispatchv1.MailStatus_MAIL_STATUS_SENDING
}

// in lists the recipients of these statuses.
func (r *Result) in(statuses ...maildispatchv1.RecipientResult_Status) []*maildispatchv1.RecipientResult {
	var rs []*maildispatchv1.RecipientResult
	for _, rcpt := range r.Recipients {
		if slices.Contains(statuses, rcpt.GetStatus()) {
			rs = append(rs, rcpt)
		}
	}
	return rs
}

// add folds one event in; events of a newer service are passed over.
func (r *Result) add(e *maildispatchv1.SendResponse) {
	if id := e.GetMailId(); id != "" {
		r.MailID = id
	}
	switch e := e.GetEvent().(type) {
	case *maildispatchv1.SendResponse_Accepted_:
		r.Accepted = e.Accepted
	case *maildispatchv1.SendResponse_Recipient:
		for i, known := range r.Recipients {
			if keyOf(known) == keyOf(e.Recipient) {
				r.Recipients[i] = e.Recipient
				return
			}
		}
		r.Recipients = append(r.Recipients, e.Recipient)
	case *maildispatchv1.SendResponse_Completed_:
		r.Mail = e.Completed.GetMail()
		if rs := r.Mail.GetRecipients(); len(rs) > 0 {
			// all of them, in the order they were given
			r.Recipients = rs
		}
	}
}

// Deliver sends one mail and waits for the last event of Send: in php mode until the mail
// server has answered for every recipient, in daemon mode until the mail is queued. It is Send
// folded into one result, and unlike Send it survives broken connections, also with mails of
// any size: see Follow. The stub's Send is still there for those who want the stream itself.
//
// The result is never nil. With a nil error it is complete, whatever became of the mail; with
// an error it holds what was heard before.
func (c *Client) Deliver(ctx context.Context, req *maildispatchv1.SendRequest, opts ...grpc.CallOption) (*Result, error) {
	req, ours := identified(req)
	r := &Result{RequestID: req.GetRequestId()}
	for e, err := range c.follow(ctx, req, ours, opts) {
		if err != nil {
			return r, err
		}
		r.add(e)
	}
	return r, nil
}

// Follow sends one mail and yields the events of Send as they come, each once. When the
// connection breaks it calls again with the same request_id and goes on where it was: three
// times in a row, and from the start after every new event. An error is yielded last.
//
// A break looks to the service like a caller who went away, so a php-mode mail that had not
// begun to leave is then told as FAILED; it stays in the due-out journal and RetryMails sends
// it. To leave the loop early is to go away as well: a mail that has begun to leave is not
// stopped by it, a php-mode attempt before that point is. Ranging over the result again tells
// the story of the same mail.
func (c *Client) Follow(ctx context.Context, req *maildispatchv1.SendRequest, opts ...grpc.CallOption) iter.Seq2[*maildispatchv1.SendResponse, error] {
	req, ours := identified(req)
	return c.follow(ctx, req, ours, opts)
}

// identified returns the request with a request_id, and whether that is ours.
func identified(req *maildispatchv1.SendRequest) (*maildispatchv1.SendRequest, bool) {
	if req == nil {
		req = &maildispatchv1.SendRequest{}
	}
	with := withRequestID(req).(*maildispatchv1.SendRequest)
	return with, with != req
}

const (
	// in a row without a new event; as many as service_config.json gives the stubs
	followTries = 4
	firstWait   = 100 * time.Millisecond
	longestWait = 2 * time.Second
)

func (c *Client) follow(ctx context.Context, req *maildispatchv1.SendRequest, ours bool, opts []grpc.CallOption) iter.Seq2[*maildispatchv1.SendResponse, error] {
	// grpc would repeat small mails by itself, and its tries would multiply with these.
	opts = append([]grpc.CallOption{grpc.MaxRetryRPCBufferSize(0)}, opts...)
	return func(yield func(*maildispatchv1.SendResponse, error) bool) {
		ctx, cancel := bounded(ctx, c.sendTimeout)
		defer cancel()
		s := &story{ours: ours, results: map[recipientKey]outcome{}}
		for failed := 0; ; {
			heard, left, err := c.tell(ctx, req, s, yield, opts)
			if left || err == nil {
				return
			}
			if heard {
				failed = 0
			}
			failed++
			if !repeatable(ctx, err) || failed == followTries {
				yield(nil, err)
				return
			}
			if !wait(ctx, failed, err) {
				yield(nil, fmt.Errorf("%w, while waiting to call again after: %w", status.FromContextError(ctx.Err()).Err(), err))
				return
			}
		}
	}
}

// tell makes one call of Send and yields what is new. heard = something was, left = the caller
// had enough.
func (c *Client) tell(ctx context.Context, req *maildispatchv1.SendRequest, s *story, yield func(*maildispatchv1.SendResponse, error) bool, opts []grpc.CallOption) (heard, left bool, err error) {
	ctx, cancel := context.WithCancel(ctx) // ends a stream that is not read to its end
	defer cancel()
	stream, err := c.Send(ctx, req, opts...)
	if err != nil {
		return false, false, err
	}
	for {
		e, err := stream.Recv()
		switch {
		case err != nil && s.completed, err == io.EOF && req.GetValidateOnly():
			// whatever comes after the last word
			return heard, false, nil
		case err == io.EOF: // somebody on the way closed it politely
			return heard, false, status.Error(codes.Unavailable, "the stream of Send ended before the completed event")
		case err != nil:
			return heard, false, err
		case !s.isNew(e):
			continue
		}
		heard = true
		if !yield(e, nil) {
			return heard, true, nil
		}
	}
}

// repeatable reports whether a helper makes the same call again: the service is away, or asks
// to be called again after a while, which ctx lasts for.
func repeatable(ctx context.Context, err error) bool {
	after, asked := RetryAfter(err)
	if end, has := ctx.Deadline(); asked && has && time.Until(end) < after {
		return false
	}
	return status.Code(err) == codes.Unavailable || asked && status.Code(err) == codes.ResourceExhausted
}

// wait sleeps before call n+1: doubling, less a random part of up to a fifth, or for as long as
// err asks for and up to a fifth more, so that not all who were asked come back at once. False
// when ctx ended first.
func wait(ctx context.Context, n int, err error) bool {
	d := min(firstWait<<(n-1), longestWait)
	d -= rand.N(d / 5)
	if asked, is := RetryAfter(err); is && asked > d {
		d = asked + rand.N(asked/5+1)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// story knows what the caller has heard of a mail, because a repeated call is told from the
// beginning.
type story struct {
	ours      bool // the request_id was made here, so that nobody else can have used it before
	accepted  bool
	attempt   int32
	results   map[recipientKey]outcome
	completed bool
}

type recipientKey struct {
	address string
	kind    maildispatchv1.RecipientResult_Kind
}

func keyOf(r *maildispatchv1.RecipientResult) recipientKey {
	return recipientKey{r.GetAddress(), r.GetKind()}
}

type outcome struct {
	attempt int32
	status  maildispatchv1.RecipientResult_Status
}

// isNew reports whether the event is not a repetition, and remembers it.
func (s *story) isNew(e *maildispatchv1.SendResponse) bool {
	switch e := e.GetEvent().(type) {
	case *maildispatchv1.SendResponse_Accepted_:
		if s.accepted {
			return false
		}
		s.accepted = true
		if s.ours {
			e.Accepted.Duplicate = false // it was our own first call, whose answer was lost
		}
	case *maildispatchv1.SendResponse_Attempt:
		if e.Attempt.GetNumber() <= s.attempt {
			return false
		}
		s.attempt = e.Attempt.GetNumber()
	case *maildispatchv1.SendResponse_Recipient:
		now := outcome{e.Recipient.GetAttempt(), e.Recipient.GetStatus()}
		if s.results[keyOf(e.Recipient)] == now {
			return false
		}
		s.results[keyOf(e.Recipient)] = now
	case *maildispatchv1.SendResponse_Completed_:
		if s.completed {
			return false
		}
		s.completed = true
	}
	return true
}
