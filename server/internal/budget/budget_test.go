package budget

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// fake answers Send with the size of the text, once the test lets it, and SendStream with an
// answer a request.
type fake struct {
	pb.UnimplementedDispatchServer
	began, let chan struct{}
}

func (f *fake) Send(r *pb.SendRequest, s grpc.ServerStreamingServer[pb.SendResponse]) error {
	if r.RequestId == "waits" {
		f.began <- struct{}{}
		<-f.let
	}
	return s.Send(&pb.SendResponse{Event: &pb.SendResponse_Accepted_{Accepted: &pb.SendResponse_Accepted{SizeBytes: int64(len(r.Message.Text))}}})
}

func (f *fake) SendStream(s grpc.BidiStreamingServer[pb.SendStreamRequest, pb.SendStreamResponse]) error {
	for {
		if _, err := s.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := s.Send(&pb.SendStreamResponse{}); err != nil {
			return err
		}
	}
}

func TestBudget(t *testing.T) {
	b := New()
	b.patient = 200 * time.Millisecond
	f := &fake{began: make(chan struct{}), let: make(chan struct{})}
	l := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(append(b.Options(), grpc.MaxRecvMsgSize(32<<20), grpc.ChainStreamInterceptor(b.Stream))...)
	pb.RegisterDispatchServer(srv, f)
	go func() { _ = srv.Serve(l) }() // it ends by Stop
	t.Cleanup(srv.Stop)
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := pb.NewDispatchClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	send := func(ctx context.Context, id string, size int) error {
		s, err := c.Send(ctx, &pb.SendRequest{RequestId: id, Message: &pb.MailMessage{Text: strings.Repeat("x", size)}})
		if err != nil {
			return err
		}
		ev, err := s.Recv()
		if err == nil && ev.GetAccepted().SizeBytes != int64(size) {
			t.Errorf("%d bytes arrived as %d", size, ev.GetAccepted().SizeBytes)
		}
		return err
	}

	first := make(chan error, 1)
	go func() { first <- send(ctx, "waits", heap/factor) }() // takes everything
	<-f.began
	if err := send(ctx, "small", small/2); err != nil {
		t.Errorf("a small message beside it: %v", err)
	}
	err = send(ctx, "large", 2*small)
	var info *errdetails.RetryInfo
	reason := ""
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.RetryInfo:
			info = d
		case *errdetails.ErrorInfo:
			reason = d.Reason
		}
	}
	if status.Code(err) != codes.ResourceExhausted || reason != pb.ReasonOverloaded || info.GetRetryDelay().AsDuration() <= 0 {
		t.Errorf("a large message beside it: %v, %v", err, info)
	}
	b.patient = time.Minute
	gone, leave := context.WithCancel(ctx)
	second := make(chan error, 1)
	go func() { second <- send(gone, "large", 2*small) }()
	leave()
	if err := <-second; status.Code(err) != codes.Canceled {
		t.Errorf("a caller that goes away while it waits: %v", err)
	}
	go func() { second <- send(ctx, "large", 2*small) }()
	close(f.let)
	if err := errors.Join(<-first, <-second); err != nil {
		t.Errorf("when there is room: %v", err)
	}

	// A stream gives back what the message before took.
	s, err := c.SendStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Send(&pb.SendStreamRequest{Items: []*pb.BatchItem{{Message: &pb.MailMessage{Text: strings.Repeat("x", heap/factor)}}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err := b.heap.Acquire(ctx, heap); err != nil {
		t.Errorf("something was not given back: %v", err)
	}
	b.heap.Release(heap)
}
