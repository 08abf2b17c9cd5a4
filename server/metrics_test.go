package server

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// get is the body of a page of a port for programs.
func get(t *testing.T, p *httpPort, path string) (code int, body string) {
	t.Helper()
	r, err := http.Get("http://" + p.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// TestMetricsPort: a service that is told to says what it does, and only metrics are there.
func TestMetricsPort(t *testing.T) {
	s := serve(t, "-metrics-listen=127.0.0.1:0")
	conn, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wait := grpc.WaitForReady(true)
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}, wait); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewDispatchClient(conn).GetMail(t.Context(), &pb.GetMailRequest{Id: "nonsense"}); err == nil {
		t.Fatal("got a mail of no id")
	}
	code, page := get(t, s.metricsPort, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("got %d: %s", code, page)
	}
	for _, want := range []string{
		`maildispatch_build_info{go_version="go`,
		`maildispatch_rpcs_total{code="OK",method="grpc.health.v1.Health/Check"} 1`,
		`maildispatch_rpcs_total{code="InvalidArgument",method="maildispatch.v1.Dispatch/GetMail"} 1`,
		`maildispatch_rpcs_in_flight{method="maildispatch.v1.Dispatch/GetMail"} 0`,
		`maildispatch_serving 1`,
		`maildispatch_batch_late_seconds 0`,
		`maildispatch_writer_queue{line="accept"} 0`,
		`maildispatch_database_connections_max{pool="mail"} 1`,
		`process_open_fds`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if code, _ := get(t, s.metricsPort, "/"); code != http.StatusNotFound {
		t.Errorf("/: got %d, want %d", code, http.StatusNotFound)
	}
}
