package apierr

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestWire: what of an error crosses the wire, and that its cause does not.
func TestWire(t *testing.T) {
	cause := errors.New("pq: password authentication failed")
	info := func(reason string) proto.Message {
		return &errdetails.ErrorInfo{Reason: reason, Domain: "maildispatch"}
	}
	for name, c := range map[string]struct {
		err     error
		code    codes.Code
		text    string
		details []proto.Message
	}{
		"plain":   {New(codes.ResourceExhausted, pb.ReasonMailTooLarge, "%d octets", 7), codes.ResourceExhausted, "7 octets", []proto.Message{info("MAIL_TOO_LARGE")}},
		"wrapped": {Wrap(cause, codes.Unavailable, pb.ReasonDatabaseUnavailable, "the database is away"), codes.Unavailable, "the database is away", []proto.Message{info("DATABASE_UNAVAILABLE")}},
		"with metadata": {&Error{Code: codes.Aborted, Reason: pb.ReasonETagMismatch, Text: "changed", Metadata: map[string]string{"etag": "2"}}, codes.Aborted, "changed",
			[]proto.Message{&errdetails.ErrorInfo{Reason: "ETAG_MISMATCH", Domain: "maildispatch", Metadata: map[string]string{"etag": "2"}}}},
		"not found": {NotFound(pb.ReasonMailServerNotFound, "mail server", `a"b`), codes.NotFound, `mail server "a\"b" not found`,
			[]proto.Message{info("MAIL_SERVER_NOT_FOUND"), &errdetails.ResourceInfo{ResourceType: "mail server", ResourceName: `a"b`}}},
		"precondition": {Precondition(pb.ReasonMailsPending, "main", "%d mails wait", 3), codes.FailedPrecondition, "3 mails wait",
			[]proto.Message{info("MAILS_PENDING"), &errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{{Type: "MAILS_PENDING", Subject: "main", Description: "3 mails wait"}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			s, ok := status.FromError(c.err)
			if !ok || s.Code() != c.code || s.Message() != c.text || len(s.Details()) != len(c.details) {
				t.Fatalf("%v: %v", s, s.Details())
			}
			for i, d := range s.Details() {
				if m, is := d.(proto.Message); !is || !proto.Equal(m, c.details[i]) {
					t.Errorf("detail %d is %v, want %v", i, d, c.details[i])
				}
			}
			if strings.Contains(fmt.Sprint(s.Proto()), cause.Error()) {
				t.Errorf("the cause crosses the wire: %v", s.Proto())
			}
		})
	}
	e := Wrap(cause, codes.Unavailable, pb.ReasonDatabaseUnavailable, "the database is away")
	if !errors.Is(e, cause) || !strings.Contains(e.Error(), cause.Error()) { // for the log
		t.Errorf("the cause is lost: %v", e)
	}
	e.RetryAfter = 1500 * time.Millisecond
	var delay time.Duration
	for _, d := range e.GRPCStatus().Details() {
		if r, is := d.(*errdetails.RetryInfo); is {
			delay = r.RetryDelay.AsDuration()
		}
	}
	if delay != e.RetryAfter {
		t.Errorf("retry after %v", delay)
	}
}

// TestCheck: a request hears of all that is wrong with it, by field; its line names the first.
func TestCheck(t *testing.T) {
	var c Check
	if err := c.Err(); err != nil || !c.OK() || len(c.Violations()) != 0 {
		t.Fatalf("nothing is wrong: %v", err)
	}
	c.Bad("to[1]", "is %s", "empty")
	if s := status.Convert(c.Err()); c.OK() || s.Code() != codes.InvalidArgument || s.Message() != "to[1]: is empty" {
		t.Errorf("one: %v", s)
	}
	c.Bad("subject", "is too long")
	c.Bad("from", "has no @")
	c.Bad("from", "is yours")
	s := status.Convert(c.Err())
	if s.Message() != "from: has no @ (and 3 more)" {
		t.Errorf("four: %q", s.Message())
	}
	var got []string
	reason := ""
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.BadRequest:
			for _, v := range d.FieldViolations {
				got = append(got, v.Field+" "+v.Description)
			}
		case *errdetails.ErrorInfo:
			reason = d.Reason
		}
	}
	if want := "from has no @|from is yours|subject is too long|to[1] is empty"; strings.Join(got, "|") != want || reason != pb.ReasonValidationFailed {
		t.Errorf("%s: %q", reason, got)
	}
	if v := c.Violations(); v[0].Field != "to[1]" {
		t.Errorf("asking for the error reordered what was noted: %v", v)
	}
}

// TestStatusIsSmall: whatever a caller gives and whoever puts it into an error, the status
// stays below what the most modest client takes as trailers.
func TestStatusIsSmall(t *testing.T) {
	long := strings.Repeat("\xff\u00fc", 50_000)
	metadata := map[string]string{}
	for i := range 100 { // 15 MB
		metadata[fmt.Sprint(i, long)] = long
	}
	var many, few Check
	for i := range 100_000 {
		many.Bad(fmt.Sprintf("message.to[%d]", i), "%s", long)
	}
	few.Bad(long, "%s", long)
	var short Check
	for i := range 1000 {
		short.Bad(fmt.Sprintf("a[%d]", i), "is bad")
	}
	whole := NotFound(pb.ReasonMailServerNotFound, long, long)
	whole.State, whole.Metadata, whole.RetryAfter = Precondition(pb.ReasonMailsPending, long, "%s", long).State, metadata, time.Hour
	for name, err := range map[string]error{"many violations": many.Err(), "few": few.Err(), "short ones": short.Err(), "everything": whole} {
		st := status.Convert(err)
		b, err := proto.Marshal(st.Proto())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := 3*len(st.Message()) + 4*len(b)/3; n >= 6000 || len(st.Details()) == 0 {
			t.Errorf("%s: %d octets with %d details, want less than 6000 and some", name, n, len(st.Details()))
		}
	}
	if n := len(short.Violations()); n != 50 || !strings.HasSuffix(short.Err().Error(), "(and 999 more)") {
		t.Errorf("got %d violations and %q, want 50 and how many more", n, short.Err())
	}
}

func TestAs(t *testing.T) {
	mine := New(codes.Aborted, pb.ReasonETagMismatch, "changed")
	for _, err := range []error{mine, fmt.Errorf("update: %w", mine), errors.Join(errors.New("x"), mine)} {
		if e, ok := As(err); !ok || e != mine {
			t.Errorf("%v: %v", err, e)
		}
	}
	for _, err := range []error{nil, errors.New("x"), status.Error(codes.Aborted, "x")} {
		if e, ok := As(err); ok {
			t.Errorf("%v is taken for %v", err, e)
		}
	}
}
