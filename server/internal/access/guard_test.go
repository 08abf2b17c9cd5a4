package access

import (
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

// slowStream is a stream whose caller ends while RecvMsg waits.
type slowStream struct {
	grpc.ServerStream
	caller *Principal
	err    error
}

func (s slowStream) RecvMsg(any) error {
	close(s.caller.ended)
	return s.err
}

// TestLastWordOfAnEndedCaller: the end of a stream commits what has come, and so it counts only
// from a caller who is still known.
func TestLastWordOfAnEndedCaller(t *testing.T) {
	t.Parallel()
	for _, said := range []error{nil, io.EOF} {
		p := &Principal{ended: make(chan struct{})}
		s := &stream{ServerStream: slowStream{caller: p, err: said}, pol: &Policy{Policy: &pb.Policy{Lasting: true}}, caller: Caller{Principal: p}, begun: true}
		err := s.RecvMsg(&pb.SendBatchRequest{})
		if e, is := apierr.As(err); !is || e.Code != codes.Unauthenticated {
			t.Errorf("it says %v: got %v, want UNAUTHENTICATED", said, err)
		}
	}
}
