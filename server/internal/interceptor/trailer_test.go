package interceptor

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

// TestReasonIsATrailer: a caller whose library does not read grpc-status-details-bin finds the
// reason, and when to call again, as plain trailers; a call that went well has none.
func TestReasonIsATrailer(t *testing.T) {
	r := newRig(t)
	calls := map[string]func() (metadata.MD, error){
		"unary": func() (md metadata.MD, err error) {
			_, err = r.admin.TestMailServer(t.Context(), &pb.TestMailServerRequest{}, grpc.Trailer(&md))
			return md, err
		},
		"stream": func() (metadata.MD, error) {
			s, err := r.dispatch.Send(t.Context(), &pb.SendRequest{})
			for err == nil {
				_, err = s.Recv()
			}
			return s.Trailer(), err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				err           error
				reason, after string
			}{
				{nil, "[]", "[]"},
				{apierr.New(codes.NotFound, pb.ReasonMailNotFound, "no such mail"), "[MAIL_NOT_FOUND]", "[]"},
				{&apierr.Error{Code: codes.ResourceExhausted, Reason: pb.ReasonOverloaded, Text: "later", RetryAfter: 1500 * time.Millisecond}, "[OVERLOADED]", "[1500]"},
				{fmt.Errorf("nobody put this into words"), "[INTERNAL]", "[]"},
			} {
				r.do = func(context.Context) error { return c.err }
				md, err := call()
				if reason, after := fmt.Sprint(md.Get("maildispatch-reason")), fmt.Sprint(md.Get("maildispatch-retry-after-ms")); reason != c.reason || after != c.after {
					t.Errorf("after %v (heard %v): got reason %s and %s, want %s and %s", c.err, err, reason, after, c.reason, c.after)
				}
			}
		})
	}
}
