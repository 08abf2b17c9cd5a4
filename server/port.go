package server

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/api"
	"github.com/maildispatch/maildispatch/server/internal/interceptor"
)

const (
	maxMessage = 32 << 20 // a request: a mail of 25 MiB and what stands around it
	// what administrators say has no content of mails
	maxAdminMessage = 1 << 20
)

// port is one address that is listened on, and what is offered there. It is made by New and not
// changed afterwards.
type port struct {
	line     string // of the log, when it is served
	address  string // as configured
	listener net.Listener
	grpc     *grpc.Server
}

// openPorts listens on what is configured: the address of everybody first, then that of
// administrators if they have one.
func openPorts(cfg *Config) (ports []*port, err error) {
	for _, p := range []*port{{line: "listening", address: cfg.Listen}, {line: "listening for administrators", address: cfg.AdminListen}} {
		if p.address == "" {
			continue
		}
		if p.listener, err = net.Listen("tcp", p.address); err != nil {
			flag := "listen"
			if len(ports) > 0 {
				flag = "admin-listen"
				_ = ports[0].listener.Close() // nothing came in yet
			}
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// closePorts is for a service that has not served yet.
func (s *Server) closePorts() error {
	var errs []error
	for _, p := range s.ports {
		errs = append(errs, p.listener.Close())
	}
	s.metricsPort.stop()
	s.healthPort.stop()
	s.webPort.stop()
	s.web.stop()
	return errors.Join(errs...)
}

// eachPort does f at all ports at once and waits for them.
func (s *Server) eachPort(f func(*grpc.Server)) {
	var wg sync.WaitGroup
	for _, p := range s.ports {
		wg.Go(func() { f(p.grpc) })
	}
	wg.Wait()
}

// offer says what each port serves. Where administrators have a port of their own, the other
// knows nothing of their services.
func (s *Server) offer(a *api.API, admin *api.AccessAdmin, guard *access.Guard, creds credentials.TransportCredentials) error {
	options := append(interceptor.Options(s.log, guard, creds, s.metrics),
		grpc.MaxConcurrentStreams(256),
		grpc.ConnectionTimeout(20*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 15 * time.Minute, MaxConnectionAge: 30 * time.Minute, MaxConnectionAgeGrace: 11 * time.Minute, Time: 2 * time.Minute, Timeout: 20 * time.Second}),
		// our client pings every 30 s
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	options = append(options, s.traces.ServerOptions()...)
	for i, p := range s.ports {
		most := maxMessage
		if i > 0 {
			most = maxAdminMessage
		}
		p.grpc = grpc.NewServer(append(options[:len(options):len(options)], grpc.MaxRecvMsgSize(most))...)
		if i == 0 {
			a.RegisterDispatch(p.grpc)
		}
		if i == len(s.ports)-1 {
			a.RegisterAdmin(p.grpc)
			pb.RegisterAccessAdminServer(p.grpc, admin)
		}
		healthpb.RegisterHealthServer(p.grpc, s.health)
		if s.cfg.reflect(p.address) {
			reflection.Register(p.grpc)
		}
		if err := access.CheckServices(p.grpc.GetServiceInfo()); err != nil {
			return err
		}
	}
	return nil
}
