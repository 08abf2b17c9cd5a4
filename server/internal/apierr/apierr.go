// Package apierr is the one error type that crosses the wire: code, reason and a public line,
// with the cause kept for the log. Only the packages that speak gRPC know it.
package apierr

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// A status travels in the trailers of a call, and trailers that are too large end the caller's
// whole connection with everything on it. Some clients take 8 KiB of headers in all. So a
// status has less than 6 KB as it is sent, whatever the caller gave: at most 50 violations with
// so many octets together, and short texts.
const (
	maxViolations     = 50
	maxViolationBytes = 2400 // of fields and texts of a status
	maxField          = 120  // octets of one field path
	maxText           = 256  // octets of any other text
	maxMetadata       = 8
)

// cut shortens a text to at most n octets that are valid UTF-8.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n-3] + "..."
	}
	return strings.ToValidUTF8(s, "")
}

// Error is a failed call. Text goes to the caller: one lower-case line without internals. Cause
// goes to the log.
type Error struct {
	Code       codes.Code
	Reason     string // one of the schema's Reason constants
	Text       string
	Metadata   map[string]string
	Violations []Violation // of a Check, which bounds them
	RetryAfter time.Duration
	Resource   *errdetails.ResourceInfo
	State      *errdetails.PreconditionFailure
	Cause      error
}

// Violation is one thing wrong with a request, by field path.
type Violation struct{ Field, Text string }

func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Text + ": " + e.Cause.Error()
	}
	return e.Text
}

func (e *Error) Unwrap() error { return e.Cause }

// GRPCStatus implements the interface grpc asks errors for.
func (e *Error) GRPCStatus() *status.Status {
	st := status.New(e.Code, cut(e.Text, maxText))
	info := &errdetails.ErrorInfo{Reason: e.Reason, Domain: pb.ErrorDomain}
	for _, k := range slices.Sorted(maps.Keys(e.Metadata))[:min(len(e.Metadata), maxMetadata)] {
		if info.Metadata == nil {
			info.Metadata = map[string]string{}
		}
		info.Metadata[cut(k, maxField)] = cut(e.Metadata[k], maxField)
	}
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(info)}
	if len(e.Violations) > 0 {
		br := &errdetails.BadRequest{}
		for _, v := range e.Violations {
			br.FieldViolations = append(br.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Text})
		}
		details = append(details, protoadapt.MessageV1Of(br))
	}
	if e.RetryAfter > 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)}))
	}
	if e.Resource != nil {
		r := e.Resource
		details = append(details, protoadapt.MessageV1Of(&errdetails.ResourceInfo{ResourceType: cut(r.ResourceType, maxField),
			ResourceName: cut(r.ResourceName, maxField), Owner: cut(r.Owner, maxField), Description: cut(r.Description, maxText)}))
	}
	if e.State != nil {
		state := &errdetails.PreconditionFailure{}
		for _, v := range e.State.Violations[:min(len(e.State.Violations), 1)] {
			state.Violations = append(state.Violations, &errdetails.PreconditionFailure_Violation{Type: v.Type, Subject: cut(v.Subject, maxField), Description: cut(v.Description, maxText)})
		}
		details = append(details, protoadapt.MessageV1Of(state))
	}
	if full, err := st.WithDetails(details...); err == nil { // fails only for code OK
		return full
	}
	return st
}

// New makes an error.
func New(code codes.Code, reason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Text: fmt.Sprintf(format, args...)}
}

// Wrap makes an error with its cause.
func Wrap(cause error, code codes.Code, reason, format string, args ...any) *Error {
	e := New(code, reason, format, args...)
	e.Cause = cause
	return e
}

// NotFound names what is not there. Foreign things are not there either.
func NotFound(reason, kind, name string) *Error {
	e := New(codes.NotFound, reason, "%s %q not found", kind, name)
	e.Resource = &errdetails.ResourceInfo{ResourceType: kind, ResourceName: name}
	return e
}

// Precondition is a conflict with the state of subject.
func Precondition(reason, subject, format string, args ...any) *Error {
	e := New(codes.FailedPrecondition, reason, format, args...)
	e.State = &errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{{Type: reason, Subject: subject, Description: e.Text}}}
	return e
}

// Check gathers what is wrong with a request, so that the caller hears of all at once: the
// first of them in full, and how many more there are.
type Check struct {
	vs    []Violation
	bytes int // of them
	more  int // violations that are only counted
}

// Bad notes a violation.
func (c *Check) Bad(field, format string, args ...any) {
	if len(c.vs) >= maxViolations || c.bytes >= maxViolationBytes {
		c.more++
		return
	}
	v := Violation{cut(field, maxField), cut(fmt.Sprintf(format, args...), maxText)}
	c.bytes += len(v.Field) + len(v.Text)
	if c.bytes > maxViolationBytes && len(c.vs) > 0 {
		c.more++
		return
	}
	c.vs = append(c.vs, v)
}

// OK reports whether there is none yet.
func (c *Check) OK() bool { return len(c.vs) == 0 }

// Violations are those noted so far, without those that are only counted.
func (c *Check) Violations() []Violation { return c.vs }

// Err is nil, or INVALID_ARGUMENT with the violations; the line names the first and how many
// more there are.
func (c *Check) Err() error {
	if c.OK() {
		return nil
	}
	vs := append([]Violation(nil), c.vs...)
	sort.SliceStable(vs, func(i, j int) bool { return vs[i].Field < vs[j].Field })
	text := fmt.Sprintf("%s: %s", vs[0].Field, vs[0].Text)
	if n := len(vs) - 1 + c.more; n > 0 {
		more := fmt.Sprintf(" (and %d more)", n)
		text = cut(text, maxText-len(more)) + more
	}
	return &Error{Code: codes.InvalidArgument, Reason: pb.ReasonValidationFailed, Text: text, Violations: vs}
}

// As finds an *Error.
func As(err error) (*Error, bool) {
	var e *Error
	ok := errors.As(err, &e)
	return e, ok
}
