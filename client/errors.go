package client

import (
	"iter"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// ReasonOf is the reason of a failed call, one of the Reason constants of package
// maildispatchv1 (or a newer one), and "" when the error is nil or does not come from the
// service: then status.Code says what there is to know. It looks through wrapped errors.
func ReasonOf(err error) string {
	for info := range details[*errdetails.ErrorInfo](err) {
		if info.GetDomain() == maildispatchv1.ErrorDomain {
			return info.GetReason()
		}
	}
	return ""
}

// Violation is one thing that is wrong with a request.
type Violation struct {
	Field       string // path in the request, such as "message.to[2]"
	Description string
}

// Violations lists what is wrong with a request that was refused with ReasonValidationFailed:
// the first 50 things. The text of the error says how many more there are.
func Violations(err error) []Violation {
	var vs []Violation
	for bad := range details[*errdetails.BadRequest](err) {
		for _, v := range bad.GetFieldViolations() {
			vs = append(vs, Violation{v.GetField(), v.GetDescription()})
		}
	}
	return vs
}

// RetryAfter is how long the service asks to wait before the call is made again; false when it
// does not say.
func RetryAfter(err error) (time.Duration, bool) {
	for info := range details[*errdetails.RetryInfo](err) {
		return info.GetRetryDelay().AsDuration(), true
	}
	return 0, false
}

// Temporary reports whether the same call, with the same request_id, may succeed later without
// anybody changing anything: the service or its database is away, the time ran out, or it asks
// to be called again after a while ([RetryAfter]).
func Temporary(err error) bool {
	if _, again := RetryAfter(err); again {
		return true
	}
	switch s, is := status.FromError(err); {
	case err == nil, !is:
		return false
	default:
		return s.Code() == codes.Unavailable || s.Code() == codes.DeadlineExceeded
	}
}

// details yields the status details of one type.
func details[T any](err error) iter.Seq[T] {
	return func(yield func(T) bool) {
		s, is := status.FromError(err)
		if !is {
			return
		}
		for _, d := range s.Details() {
			if t, is := d.(T); is && !yield(t) {
				return
			}
		}
	}
}
