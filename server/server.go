// Package server puts the service together: configuration, store, engine, api, and the gRPC
// server with TLS, health and reflection around them. It decides the order in which things
// start and stop, and nothing else.
package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/api"
	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/server/internal/logwriter"
	"github.com/maildispatch/maildispatch/server/internal/observe"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/server/internal/quota"
	"github.com/maildispatch/maildispatch/server/internal/retention"
	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/server/internal/workload"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Server is one service process. Make it with New, run it once.
type Server struct {
	cfg       Config
	log       *slog.Logger
	store     *store.Store
	outbound  *outbound.Outbound
	keys      *seal.Ring
	lines     *logwriter.Writer
	engine    *engine.Engine
	ports     []*port
	health    *health.Server
	book      *access.Book
	local     *localSocket // nil = none
	limits    *quota.Quota
	remover   *retention.Remover
	workloads *workload.Verifier                                   // nil = none are taken
	operate   func(ctx context.Context, me func() store.ReplicaID) // carries out operations

	transport   *transport
	metrics     *observe.Metrics // nil = nobody is offered them
	traces      *observe.Traces  // nil = there are none
	metricsPort *httpPort        // nil = none
	healthPort  *httpPort        // nil = none
	webPort     *httpPort        // nil = none; web serves it
	web         *webPort
}

// New opens everything that can fail: configuration, keys, database, port. Errors are one line
// for the person who starts it.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log, lines := cfg.logger()
	rules, err := cfg.KeepRules()
	if err != nil {
		return nil, err
	}
	keys, made, err := loadKeys(&cfg)
	if err != nil {
		return nil, err
	}
	keys.Logger(log)
	dest, err := smtpx.ParseDestinations(cfg.Destinations)
	if err != nil {
		return nil, fmt.Errorf("smtp-destinations: %w", err)
	}
	tokens, err := cfg.tokenDestinations()
	if err != nil {
		return nil, err
	}
	out, err := outbound.New(keys, cfg.LocalhostSMTP, cfg.HeloName)
	if err != nil {
		return nil, err
	}
	creds, err := newTransport(&cfg, log)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: log, lines: lines, outbound: out, keys: keys, health: health.NewServer(), transport: creds}
	s.metrics = s.newMetrics()
	if s.traces, err = observe.NewTraces(observe.TraceConfig{Endpoint: cfg.TraceEndpoint, Sample: cfg.TraceSample, Build: buildOf(), Logger: log}); err != nil {
		return nil, err
	}
	if creds.refusals != nil {
		creds.refusals.count = s.metrics.Refused
	}
	if s.ports, err = openPorts(&cfg); err != nil {
		return nil, err
	}
	for _, p := range s.ports {
		p.listener = newCrowd(p.listener, cfg.MaxConnections, cfg.MaxConnectionsEach, log, s.metrics.Crowded)
	}
	if s.metricsPort, err = openHTTP("metrics-listen", cfg.MetricsListen, "metrics"); err != nil {
		return nil, errors.Join(err, s.closePorts())
	}
	if s.healthPort, err = openHTTP("health-listen", cfg.HealthListen, "health probes"); err != nil {
		return nil, errors.Join(err, s.closePorts())
	}
	if s.webPort, err = openHTTP("web-listen", cfg.WebListen, "web page"); err != nil {
		return nil, errors.Join(err, s.closePorts())
	}
	st, err := store.Open(ctx, cfg.Database, store.Options{Logger: log, Pools: cfg.Connections, AllowUnsafe: cfg.AllowUnsafe, Observer: s.metrics, RequestKey: keys.Derive("erased requests")})
	if err != nil {
		return nil, errors.Join(err, s.closePorts())
	}
	s.store = st
	if err := checkSecrets(ctx, &cfg, st, out, keys, made, log); err != nil {
		return nil, errors.Join(err, s.closePorts(), st.Close())
	}
	out.UseTokens(st, tokens.Check, log)
	back, err := st.Remember(ctx, cfg.stateFile())
	if err != nil {
		return nil, errors.Join(err, s.closePorts(), st.Close())
	}
	if !back.Since.IsZero() {
		log.Error(wentBack(back))
	}
	// the book is there before anything is dialled
	dial := newDialers(dest, func() bool { return s.book.On() })
	host, _ := os.Hostname() // only a name for people
	eng := engine.New(engine.Config{Journal: st, Logger: log, Replica: fmt.Sprintf("%s/%d", host, os.Getpid()), BatchInterval: cfg.BatchInterval, Observer: s.metrics, Connections: s.metrics, Tracer: s.traces,
		Dial: func(ctx context.Context, s *store.MailServer) (engine.Session, error) {
			r, err := out.Relay(s)
			if err != nil {
				return nil, err
			}
			sess, err := dial.to(s).Dial(ctx, r)
			if err != nil {
				return nil, err
			}
			return sess, nil
		}})
	limits := quota.New(quota.Config{Limits: cfg.Limits, Store: st, Secret: keys.Derive("allowances"), Logger: log, Disk: st.Disk(ctx), Stopping: eng.Stopping()})
	s.limits = limits
	s.remover = retention.New(retention.Config{Store: st, Rules: rules, Logger: log, Observer: s.metrics})
	a := api.New(api.Config{Keeping: st, Rules: rules, EraseKey: keys.Derive("erasures"), Store: tellingStore{st, eng}, Quota: limits, Sender: limits.Sender(eng), Batch: eng, Outbound: out, Stopping: engine.ErrStopping, Draining: eng.Stopping(), Logger: log,
		Trace:     s.traces.Of,
		TokenKey:  keys.Derive("page tokens"),
		LookupTXT: net.DefaultResolver.LookupTXT,
		Now:       eng.Now,
		// the book is there before the first call
		SenderDomains: func(team string) []string { return s.book.SenderDomains(team) },
		Probe: func(ctx context.Context, s *store.MailServer, r smtpx.Relay, o smtpx.ProbeOptions) smtpx.ProbeResult {
			return smtpx.Probe(ctx, dial.to(s), r, o)
		}})
	s.engine, s.operate = eng, a.RunOperations
	// set where workloads are taken, so that the field is nil where none are
	var verify func(string) (string, time.Time, error)
	if s.workloads, err = cfg.workloads(log, eng.Now); err == nil && s.workloads != nil {
		verify = s.workloads.Verify
	}
	if err != nil {
		return nil, errors.Join(err, s.closePorts(), st.Close())
	}
	s.book, err = access.NewBook(ctx, access.Config{Store: st, Mode: access.Mode(cfg.Auth), Loopback: cfg.OnLoopback(), Names: cfg.ClientNames, Workload: verify, Logger: log, Now: eng.Now})
	if err != nil {
		return nil, errors.Join(err, s.closePorts(), st.Close())
	}
	admin := a.AccessAdmin(st, s.learn, s.book.On)
	guard := s.book.Guard()
	guard.Charge = func(p *access.Principal) error { return limits.Call(p.Name) }
	if err = s.offer(a, admin, guard, creds); err == nil {
		s.local, err = openSocket(&cfg, log, s.metrics, admin)
	}
	if err == nil {
		s.web, err = s.openWeb(a, admin, guard, creds)
	}
	if err != nil {
		return nil, errors.Join(err, s.closePorts(), st.Close())
	}
	return s, nil
}

// learn reads the tokens at once, after one was made or revoked here. The other replicas find
// out by themselves.
func (s *Server) learn(ctx context.Context) {
	if err := s.book.Read(ctx); err != nil {
		s.log.Warn("the tokens could not be read at once", "error", err)
	}
}

// loadKeys reads the key file. Beside an SQLite database it is made when there is none; with
// PostgreSQL, which several replicas share, each making its own would lose passwords, so it has
// to be there.
func loadKeys(cfg *Config) (keys *seal.Ring, made bool, err error) {
	if path := cfg.sqlite(); path != "" {
		if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
			// else the key file would be blamed
			return nil, false, fmt.Errorf("database: %s is not a folder", filepath.Dir(path))
		}
		return seal.LoadOrCreate(cfg.keyFile())
	}
	keys, err = readKeys(cfg)
	return keys, false, err
}

func readKeys(cfg *Config) (*seal.Ring, error) {
	r, err := seal.LoadKeyFile(cfg.keyFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &missingKey{cfg.keyFile()}
	}
	return r, err
}

// missingKey says what to do about it.
type missingKey struct{ path string }

func (m *missingKey) Error() string {
	return fmt.Sprintf("key-file: %s does not exist; make one with `maildispatchd key create %s` and give the same to every replica", m.path, m.path)
}

func (m *missingKey) Unwrap() error { return fs.ErrNotExist }

// Addr is the address the service listens on.
func (s *Server) Addr() net.Addr { return s.ports[0].listener.Addr() }

// WebAddr is the address of the web page, nil without one.
func (s *Server) WebAddr() net.Addr {
	if s.webPort == nil {
		return nil
	}
	return s.webPort.Addr()
}

// Run serves until ctx ends and then stops in order: health says no, nothing new begins, what
// is under way finishes or is cut before its dot, results are recorded, the lease is given
// back, the database is closed. It returns nil on a requested stop.
func (s *Server) Run(ctx context.Context) error {
	s.lines.Group()
	defer s.lines.Close()
	s.tellBuild(ctx)
	ectx, stopEngine := context.WithCancel(context.Background())
	defer stopEngine()
	engineDone := make(chan error, 1)
	go func() { engineDone <- s.engine.Run(ectx, s.cfg.ShutdownGrace) }()
	select {
	case <-s.engine.Ready():
	case err := <-engineDone:
		s.local.stop()
		return errors.Join(err, s.closePorts(), s.store.Close())
	case <-ctx.Done():
	}
	if !s.book.On() {
		s.log.Warn("nobody is asked who calls: any program on this machine may send mail and change mail servers; the first token closes the service: maildispatchd token create")
	}
	served := make(chan error, len(s.ports))
	// the port of everybody last: it tells those who wait for the line that all is there
	for _, p := range slices.Backward(s.ports) {
		go func() { served <- p.grpc.Serve(p.listener) }()
		s.log.Info(p.line, "address", p.listener.Addr().String(), "database", s.store.Dialect(), "tls", s.cfg.TLSCert != "")
	}
	hctx, stopHealth := context.WithCancel(ctx)
	defer stopHealth()
	go s.watchHealth(hctx)
	go s.tellAuditHead(hctx)
	operationsDone := make(chan struct{})
	go func() { s.operate(ctx, s.engine.Replica); close(operationsDone) }()
	removerDone := make(chan struct{})
	go func() { s.remover.Run(hctx); close(removerDone) }()
	if s.metrics != nil {
		go s.metrics.Sample(hctx, s.store)
		go s.metricsPort.serve(s, metricsPages(s.metrics))
	}
	if s.healthPort != nil {
		go s.healthPort.serve(s, s.healthPages())
	}
	go s.local.serve()
	go s.web.serve(hctx, s)
	// Calls that are under way when the service stops still end with their token.
	bctx, stopBook := context.WithCancel(context.Background())
	bookDone := make(chan struct{})
	go func() { s.book.Run(bctx); close(bookDone) }()
	workloadsDone := make(chan struct{})
	go func() {
		if s.workloads != nil {
			s.workloads.Run(bctx)
		}
		close(workloadsDone)
	}()
	limitsDone := make(chan struct{})
	go func() { s.limits.Run(bctx); close(limitsDone) }()

	var err error
	engineOver := false
	select {
	case <-ctx.Done():
		s.log.Info("stopping")
		s.health.Shutdown()
		select { // callers go elsewhere meanwhile
		case <-time.After(s.cfg.DrainDelay):
		case err = <-served:
		case err = <-engineDone:
			engineOver = true
		}
	case err = <-served:
	case err = <-engineDone:
		engineOver = true
	}
	s.health.Shutdown()
	stopEngine()
	graceful := make(chan struct{})
	go func() { s.eachPort((*grpc.Server).GracefulStop); close(graceful) }()
	if !engineOver {
		err = errors.Join(err, <-engineDone)
	}
	select {
	case <-graceful:
	case <-time.After(2 * time.Second):
		// calls that still wait for something when the engine is done wait for nothing
		s.eachPort((*grpc.Server).Stop)
		<-graceful
	}
	s.local.stop()
	s.web.stop()
	s.metricsPort.stop()
	s.healthPort.stop()
	stopBook()
	<-bookDone
	<-workloadsDone
	<-limitsDone
	stopHealth()
	<-removerDone
	<-operationsDone
	s.outbound.Wait()
	s.stopTraces()
	err = errors.Join(err, s.store.Close())
	if err == nil {
		s.log.Info("stopped")
	}
	return err
}

// auditHeadEvery is how often the log is told the head of the audit chain, when it has moved.
const auditHeadEvery = time.Minute

// tellAuditHead writes the head of the audit chain to the log, which is usually kept where the
// database's owner cannot change it. `maildispatchd doctor --audit-head` compares.
func (s *Server) tellAuditHead(ctx context.Context) {
	t := time.NewTicker(auditHeadEvery)
	defer t.Stop()
	told := ""
	for {
		head, err := s.store.AuditHead(ctx)
		if text := head.String(); err == nil && head.Seq > 0 && text != told {
			s.log.Info("audit log", "head", text)
			told = text
		} else if err != nil && ctx.Err() == nil {
			s.log.Warn("audit log: its head cannot be read", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// healthEvery is how often health is looked at; healthLate is how old the last batch pass may
// be beyond its interval.
const (
	healthEvery = time.Second
	healthLate  = 30 * time.Second
)

// Liveness is the name under which health says only that the process answers. A supervisor may
// restart what does not; to restart a process whose database is away helps nobody.
const Liveness = "liveness"

// Adopted is the name under which health says whether the database is known to have gone on
// from where it was. One that was restored or copied is NOT_SERVING under it until somebody
// adopts it.
const Adopted = "adopted"

// adoptedAgain is how often the log repeats that the database waits to be adopted.
const adoptedAgain = 10 * time.Minute

// notServing is why the service does not do its work now, "" when it does.
func (s *Server) notServing() string {
	if err := s.engine.LeaseFault(); err != nil {
		return "the database does not take the renewal of the lease: " + err.Error()
	}
	if s.batchLate() > healthLate {
		return "the batch is late"
	}
	return ""
}

// batchLate is how much longer ago than its interval the batch has looked for mail.
func (s *Server) batchLate() time.Duration {
	last := s.engine.LastPass()
	if last.IsZero() {
		return 0
	}
	return max(0, s.engine.Now().Sub(last)-s.cfg.BatchInterval)
}

// watchHealth answers health from the truth: the database has taken the last renewal of the
// lease, which is a write, and the batch has looked for mail lately.
func (s *Server) watchHealth(ctx context.Context) {
	names := []string{"", pb.MailServerAdmin_ServiceDesc.ServiceName, pb.Dispatch_ServiceDesc.ServiceName}
	was := healthpb.HealthCheckResponse_UNKNOWN
	s.health.SetServingStatus(Liveness, healthpb.HealthCheckResponse_SERVING)
	t := time.NewTicker(healthEvery)
	defer t.Stop()
	told := time.Now()
	for {
		back := s.store.WentBack()
		adopted := healthpb.HealthCheckResponse_SERVING
		if !back.Since.IsZero() {
			adopted = healthpb.HealthCheckResponse_NOT_SERVING
			if time.Since(told) >= adoptedAgain {
				told = time.Now()
				s.log.Error(wentBack(back))
			}
		}
		now := healthpb.HealthCheckResponse_SERVING
		why := s.notServing()
		if why != "" {
			now = healthpb.HealthCheckResponse_NOT_SERVING
		}
		if ctx.Err() != nil {
			return
		}
		if now != was {
			s.log.Info("health", "status", now.String(), "why", why)
			was = now
		}
		for _, n := range names {
			s.health.SetServingStatus(n, now)
		}
		s.health.SetServingStatus(Adopted, adopted)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
