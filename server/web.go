package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/proto/plain"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/api"
	"github.com/maildispatch/maildispatch/server/internal/interceptor"
	"github.com/maildispatch/maildispatch/server/internal/web"
)

// webPort is the page for people. It calls the service over connections inside this process,
// through the interceptors that every caller meets.
type webPort struct {
	*httpPort
	page  *web.Page
	calls *inside
	// what the charts count, as the service itself
	samples *inside
}

// openWeb makes the page at --web-listen; nil when there is none. Its port is open already.
func (s *Server) openWeb(a *api.API, admin *api.AccessAdmin, guard *access.Guard, creds *transport) (*webPort, error) {
	if s.webPort == nil {
		return nil, nil
	}
	calls := newInside(interceptor.Options(s.log, guard, nil, s.metrics))
	a.RegisterDispatch(calls.grpc)
	a.RegisterAdmin(calls.grpc)
	pb.RegisterAccessAdminServer(calls.grpc, admin)
	itself := &access.Principal{Actor: "maildispatchd", Name: "maildispatchd", Roles: []pb.Role{pb.Role_ROLE_READ}, System: true}
	samples := newInside(interceptor.Options(slog.New(slog.DiscardHandler), access.As(itself), nil, nil))
	a.RegisterDispatch(samples.grpc)
	w := &webPort{httpPort: s.webPort, calls: calls, samples: samples}
	secured := creds.web()
	if secured != nil {
		w.Listener = tls.NewListener(w.Listener, secured)
	}
	w.server.WriteTimeout = 2 * time.Minute // a test of a mail server takes up to one
	w.server.ReadTimeout = 30 * time.Second
	w.server.Protocols = nil
	w.server.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	_, port, _ := net.SplitHostPort(w.Addr().String()) // it is an address that is listened on
	var err error
	w.page, err = web.New(web.Config{Calls: calls.conn, Samples: samples.conn, Asks: s.book.On, Target: s.grpcurlTarget, Named: creds.named,
		Loopback: onLoopback(s.cfg.WebListen), TLS: secured != nil, Port: port, Logger: s.log, Now: s.engine.Now})
	return w, err
}

// grpcurlTarget is where the lines that the page shows call a service.
func (s *Server) grpcurlTarget(host, service string) plain.Target {
	p := s.ports[0]
	if service != pb.Dispatch_ServiceDesc.ServiceName {
		p = s.ports[len(s.ports)-1]
	}
	at, port, err := net.SplitHostPort(p.listener.Addr().String())
	if ip := net.ParseIP(at); err == nil && ip.IsUnspecified() {
		at = host
	}
	return plain.Target{Address: net.JoinHostPort(at, port), Plaintext: s.cfg.TLSCert == ""}
}

// serve ends with stop.
func (w *webPort) serve(ctx context.Context, s *Server) {
	if w == nil {
		return
	}
	w.calls.start()
	w.samples.start()
	go w.page.Run(ctx)
	w.httpPort.serve(s, http.HandlerFunc(w.page.ServeHTTP))
}

// stop ends what the page has under way.
func (w *webPort) stop() {
	if w == nil {
		return
	}
	w.httpPort.stop()
	w.calls.stop()
	w.samples.stop()
}

// inside is a gRPC server that only this process reaches.
type inside struct {
	grpc     *grpc.Server
	conn     *grpc.ClientConn
	listener net.Listener
}

func newInside(options []grpc.ServerOption) *inside {
	l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	x := &inside{grpc: grpc.NewServer(append(options, grpc.MaxRecvMsgSize(maxAdminMessage))...)}
	x.listener = l
	// It fails only with options that contradict each other.
	x.conn, _ = grpc.NewClient("passthrough:///inside", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(l.dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)), grpc.WithDisableServiceConfig())
	return x
}

// start ends with stop.
func (x *inside) start() { go func() { _ = x.grpc.Serve(x.listener) }() }

func (x *inside) stop() {
	_ = x.conn.Close() // nobody waits for an answer any more
	x.grpc.Stop()
}

// pipes is a listener whose connections are pipes in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) dial(ctx context.Context, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The server closes it once.
func (p *pipes) Close() error {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}

// Addr implements net.Listener.
func (p *pipes) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "inside" }

// named reports whether the certificate is for a host name.
func (t *transport) named(host string) bool {
	if t.pair == nil {
		return false
	}
	c, err := t.pair.get()
	return err == nil && c.Leaf != nil && !strings.ContainsAny(host, "*") && c.Leaf.VerifyHostname(host) == nil
}
