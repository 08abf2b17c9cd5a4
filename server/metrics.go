package server

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/observe"
)

// newMetrics makes the metrics, nil when nobody is offered them. What they read of s is there
// before the first scrape.
func (s *Server) newMetrics() *observe.Metrics {
	if s.cfg.MetricsListen == "" {
		return nil
	}
	return observe.New(observe.State{
		Build: buildOf(),
		Relays: func() []observe.Relay {
			uses := s.engine.Connections()
			relays := make([]observe.Relay, len(uses))
			for i, u := range uses {
				relays[i] = observe.Relay(u)
			}
			return relays
		},
		BatchLate:   s.batchLate,
		Serving:     func() bool { return s.notServing() == "" },
		Writers:     func() map[string]int { return s.store.Waiting() },
		Damaged:     func() (mails, pages int) { return s.store.DamagedMails(), s.store.DamagedPages() },
		Pools:       func() map[string]sql.DBStats { return s.store.PoolStats() },
		OAuth:       s.oauthTokens,
		Certificate: s.transport.expiry,
		Token:       func() time.Time { return s.book.NextExpiry() },
	})
}

// stopTraces gives the last spans away. A collector that does not answer keeps nobody.
func (s *Server) stopTraces() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := s.traces.Stop(ctx); err != nil {
		s.log.Warn("traces: the last spans are lost", "error", err)
	}
}

// oauthTokens are the lives of the access tokens that this process holds.
func (s *Server) oauthTokens() map[string]observe.OAuthToken {
	all := map[string]observe.OAuthToken{}
	for name, t := range s.outbound.TokenLives() {
		all[name] = observe.OAuthToken{Since: t.Since, Until: t.Until}
	}
	return all
}

// metricsPages is what the port of Prometheus has.
func metricsPages(m *observe.Metrics) http.Handler {
	pages := http.NewServeMux()
	pages.Handle("GET /metrics", m.Handler())
	return pages
}

// httpPort is a port for programs that watch the service. Nobody who calls comes here.
type httpPort struct {
	net.Listener
	server *http.Server
	line   string // of the log, when it is served
}

// openHTTP listens at the address of a flag, nil when it is empty.
func openHTTP(flag, address, line string) (*httpPort, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	var both http.Protocols // HTTP/2 is what gRPC probes speak
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	return &httpPort{Listener: l, line: line, server: &http.Server{Protocols: &both, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}}, nil
}

// serve ends with stop.
func (p *httpPort) serve(s *Server, h http.Handler) {
	if p == nil {
		return
	}
	p.server.Handler = h
	s.log.Info(p.line, "address", p.Listener.Addr().String())
	if err := p.server.Serve(p.Listener); !errors.Is(err, http.ErrServerClosed) {
		s.log.Error(p.line+" has ended", "error", err)
	}
}

// stop closes the port, also one that was never served.
func (p *httpPort) stop() {
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if p.server.Shutdown(ctx) != nil {
		_ = p.server.Close() // whoever still reads a page reads it again
	}
	_ = p.Listener.Close()
}
