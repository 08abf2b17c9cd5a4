package server

import (
	"context"
	"flag"
	"io"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// serve runs a service over a database of its own until the test ends.
func serve(t *testing.T, args ...string) *Server {
	t.Helper()
	s, _ := serveUntil(t, args...)
	return s
}

// serveUntil is the same, and asks for the end when the test wants.
func serveUntil(t *testing.T, args ...string) (*Server, context.CancelFunc) {
	t.Helper()
	var c Config
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	err := c.Flags(fs)
	if err == nil {
		err = fs.Parse(append([]string{"-listen=127.0.0.1:0", "-database=sqlite:" + filepath.Join(t.TempDir(), "mail.db"), "-batch-interval=1h"}, args...))
	}
	if err != nil {
		t.Fatal(err)
	}
	c.LogOutput = io.Discard
	s, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, stop
}

// TestPortOfAdministrators: where administrators have an address of their own, their services
// are there and nowhere else.
func TestPortOfAdministrators(t *testing.T) {
	s := serve(t, "-admin-listen=127.0.0.1:0")
	if len(s.ports) != 2 {
		t.Fatalf("got %d ports, want 2", len(s.ports))
	}
	for i, p := range s.ports {
		conn, err := grpc.NewClient(p.listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() }) // nothing is asked any more
		wait := grpc.WaitForReady(true)
		if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}, wait); err != nil {
			t.Errorf("port %d: health: %v", i, err)
		}
		offered := map[bool]codes.Code{true: codes.OK, false: codes.Unimplemented}
		_, err = pb.NewMailServerAdminClient(conn).ListMailServers(t.Context(), &pb.ListMailServersRequest{})
		if status.Code(err) != offered[i == 1] {
			t.Errorf("port %d: MailServerAdmin: got %v, want %v", i, err, offered[i == 1])
		}
		_, err = pb.NewAccessAdminClient(conn).WhoAmI(t.Context(), &pb.WhoAmIRequest{})
		if status.Code(err) != offered[i == 1] {
			t.Errorf("port %d: AccessAdmin: got %v, want %v", i, err, offered[i == 1])
		}
		_, err = pb.NewDispatchClient(conn).ListDueOutMails(t.Context(), &pb.ListDueOutMailsRequest{})
		if status.Code(err) != offered[i == 0] {
			t.Errorf("port %d: Dispatch: got %v, want %v", i, err, offered[i == 0])
		}
	}
}

// TestReflectionByDefault: the schema is told on loopback, and elsewhere only where the flag
// says so.
func TestReflectionByDefault(t *testing.T) {
	for _, x := range []struct {
		flag, address string
		want          bool
	}{
		{"auto", "127.0.0.1:50051", true}, {"auto", "[::1]:50051", true}, {"auto", "localhost:50051", true},
		{"auto", "0.0.0.0:50051", false}, {"auto", ":50051", false}, {"auto", "10.0.0.1:50051", false}, {"auto", "mail.internal:50051", false},
		{"true", "0.0.0.0:50051", true}, {"false", "127.0.0.1:50051", false},
	} {
		if got := (&Config{Reflection: x.flag}).reflect(x.address); got != x.want {
			t.Errorf("--reflection=%s at %s: got %v, want %v", x.flag, x.address, got, x.want)
		}
	}
	for flag, want := range map[string]codes.Code{"auto": codes.OK, "false": codes.Unimplemented} {
		s := serve(t, "-reflection="+flag)
		conn, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() }) // nothing is asked any more
		stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context(), grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != want {
			t.Errorf("--reflection=%s: got %v, want %v", flag, err, want)
		}
	}
}
