package server

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// TestHealthPort: probes of either kind are answered in plaintext, and nothing else is offered
// there. After the end was asked for the service goes on for a while, and says that it is not
// the place for calls any more.
func TestHealthPort(t *testing.T) {
	s, stop := serveUntil(t, "-health-listen=127.0.0.1:0", "-drain-delay=1m")
	conn, err := grpc.NewClient(s.healthPort.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(service string) healthpb.HealthCheckResponse_ServingStatus {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		a, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
		// a name is not known before the first look
		if err != nil && status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
		return a.GetStatus()
	}
	until(t, "all names serve", func() bool {
		for _, name := range []string{"", pb.Dispatch_ServiceDesc.ServiceName, pb.MailServerAdmin_ServiceDesc.ServiceName, Liveness} {
			if ask(name) != healthpb.HealthCheckResponse_SERVING {
				return false
			}
		}
		return true
	})
	for path, want := range map[string]int{"/healthz": http.StatusOK, "/readyz": http.StatusOK, "/metrics": http.StatusNotFound} {
		if code, _ := get(t, s.healthPort, path); code != want {
			t.Errorf("%s: got %d, want %d", path, code, want)
		}
	}
	if _, err := pb.NewDispatchClient(conn).GetMail(t.Context(), &pb.GetMailRequest{}); err == nil {
		t.Error("mail is told at the port of probes")
	}
	stop()
	until(t, "not ready", func() bool { code, _ := get(t, s.healthPort, "/readyz"); return code == http.StatusServiceUnavailable })
	if code, _ := get(t, s.healthPort, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: got %d, want %d", code, http.StatusOK)
	}
	s.ports[0].grpc.Stop() // a port that ends ends the delay
}

// until waits for something that has to come.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestCallersDoNotFillTheHealthPort: the bound of connections is each port's own, so that
// callers who take all of theirs do not make probes fail.
func TestCallersDoNotFillTheHealthPort(t *testing.T) {
	s, _ := serveUntil(t, "-health-listen=127.0.0.1:0", "-connections=2")
	for i := range 3 {
		c, err := net.Dial("tcp", s.ports[0].listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		// The server's settings come first to who is let in.
		if _, err := c.Read(make([]byte, 1)); (err == nil) != (i < 2) {
			t.Fatalf("connection %d of two that there may be: %v", i+1, err)
		}
	}
	until(t, "alive", func() bool { code, _ := get(t, s.healthPort, "/healthz"); return code == http.StatusOK })
	for range 5 {
		if code, _ := get(t, s.healthPort, "/healthz"); code != http.StatusOK {
			t.Errorf("got %d while the callers' port is full, want %d", code, http.StatusOK)
		}
	}
}
