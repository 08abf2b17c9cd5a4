package server

import (
	"net/http"
	"strings"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// healthPages is what the port of probes has: /healthz says whether the process answers,
// /readyz whether calls may go here, and gRPC health answers as it does at the other ports.
func (s *Server) healthPages() http.Handler {
	calls := grpc.NewServer(grpc.MaxConcurrentStreams(64), grpc.MaxRecvMsgSize(4<<10))
	healthpb.RegisterHealthServer(calls, s.health)
	pages := http.NewServeMux()
	pages.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("SERVING\n")) // who does not read it asks again
	})
	pages.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		a, err := s.health.Check(r.Context(), &healthpb.HealthCheckRequest{})
		if err != nil || a.Status != healthpb.HealthCheckResponse_SERVING {
			http.Error(w, "NOT_SERVING", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("SERVING\n"))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			calls.ServeHTTP(w, r)
			return
		}
		pages.ServeHTTP(w, r)
	})
}
