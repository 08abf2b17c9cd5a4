// Package clienttest is a maildispatch in memory, for tests of programs that send mail through
// it.
//
//	srv := clienttest.New(t)
//	srv.Answer("nobody@example.com", clienttest.Refused)
//	c := srv.Client(t, client.Options{})
//	... code under test uses c ...
//	mails := srv.Mails()
//
// It speaks the real protocol over a pipe, through the real client, and keeps mails and mail
// servers as the service does: route, request_id, both journals, batch. What the mail server
// says to an address is scripted with Answer, what is wrong with a mail server as a whole with
// Suspend, what happens to a call with Fault, what a test of a mail server finds with
// AnswerTest, and who may do what with Allow. A server begins with one mail server, "test": php
// mode, default of the system.
//
// Mail of SendBatch, SendStream and ResendMail is kept in the same way, the items' variables
// filled in, and Uploaded gives back what UploadAttachment took.
//
// It does not check requests as strictly as the service, sends nothing, keeps nothing after
// Close, and its page tokens are plain.
package clienttest

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/maildispatch/maildispatch/client"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// Server is a maildispatch in memory. It is safe for concurrent use.
type Server struct {
	listener *bufconn.Listener
	grpc     *grpc.Server
	health   *health.Server
	served   chan struct{} // closed when the listener's goroutine is gone

	mu         sync.Mutex // guards what follows
	servers    map[string]*maildispatchv1.MailServer
	created    map[createID]*maildispatchv1.MailServer // as CreateMailServer was asked for it
	mails      []*entry                                // in the order they were taken
	uploads    []*upload
	batches    int // that the server has named
	answers    map[string]Outcome
	suspended  map[string]Outcome // by mail server
	tests      map[string]*maildispatchv1.TestStep
	faults     map[string][]Fault
	requests   []Request
	principals map[string]*Principal // by token; nil = nobody is asked who calls
	changes    []change              // of the mails' status, the oldest first
	announced  int                   // of them, to the watchers
	changed    chan struct{}         // closed when there is another, and replaced
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := Start()
	t.Cleanup(s.Close)
	return s
}

// Start starts a server that ends with Close: for examples and programs.
func Start() *Server {
	s := &Server{
		listener: bufconn.Listen(1 << 20),
		health:   health.NewServer(),
		served:   make(chan struct{}),
		servers:  map[string]*maildispatchv1.MailServer{},
		created:  map[createID]*maildispatchv1.MailServer{},
		answers:  map[string]Outcome{}, suspended: map[string]Outcome{},
		tests:   map[string]*maildispatchv1.TestStep{},
		faults:  map[string][]Fault{},
		changed: make(chan struct{}),
	}
	s.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(32<<20), grpc.WaitForHandlers(true),
		// the service's own
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 30 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.guardUnary, s.interceptUnary), grpc.ChainStreamInterceptor(s.guardStream, s.interceptStream))
	maildispatchv1.RegisterMailServerAdminServer(s.grpc, admin{s: s})
	maildispatchv1.RegisterDispatchServer(s.grpc, dispatch{s: s})
	healthpb.RegisterHealthServer(s.grpc, s.health)
	s.AddMailServer(&maildispatchv1.MailServer{Name: "test", IsDefault: proto.Bool(true)})
	go func() {
		defer close(s.served)
		_ = s.grpc.Serve(s.listener) // ends with Close
	}()
	return s
}

// Close ends every call and the server.
func (s *Server) Close() {
	s.grpc.Stop()
	<-s.served
}

// Client gives a client of this server that ends with the test.
func (s *Server) Client(t testing.TB, o client.Options) *client.Client {
	t.Helper()
	c, err := s.Connect(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Connect gives a client of this server; the caller closes it. Without o.TLS the pipe counts as
// loopback, so that a Token may be used.
func (s *Server) Connect(o client.Options) (*client.Client, error) {
	o.DialOptions = append([]grpc.DialOption{s.DialOption()}, o.DialOptions...)
	return client.New(Target, o)
}

// Target is what to give client.New together with DialOption.
const Target = "passthrough:///localhost"

// DialOption leads every connection to this server.
func (s *Server) DialOption() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) })
}

// SetServing is what the health service says from now on. A client calls nobody that is not
// serving.
func (s *Server) SetServing(serving bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
}

// AddMailServer saves a mail server as it is, or replaces the one of that name; absent type,
// mode, status and from get values that work.
func (s *Server) AddMailServer(m *maildispatchv1.MailServer) {
	s.mu.Lock()
	defer s.unlock()
	m = proto.CloneOf(m)
	if m.Type == maildispatchv1.MailServer_TYPE_UNSPECIFIED {
		m.Type = maildispatchv1.MailServer_TYPE_LOCALHOST
	}
	if m.Mode == maildispatchv1.Mode_MODE_UNSPECIFIED {
		m.Mode = maildispatchv1.Mode_MODE_PHP
	}
	if m.From == "" {
		m.From = "maildispatch@example.com"
	}
	s.save(m)
}

// Mail is a mail as it was taken, with what became of it.
type Mail struct {
	Request *maildispatchv1.SendRequest
	Mail    *maildispatchv1.Mail
}

// Mails is every mail that was taken, the oldest first.
func (s *Server) Mails() []Mail {
	s.mu.Lock()
	defer s.unlock()
	all := make([]Mail, len(s.mails))
	for i, m := range s.mails {
		all[i] = Mail{Request: proto.CloneOf(m.request), Mail: proto.CloneOf(m.mail)}
	}
	return all
}

// RunBatch sends everything in the due-out journal that is due, as the service does every
// minute.
func (s *Server) RunBatch() *maildispatchv1.RunBatchResponse {
	s.mu.Lock()
	defer s.unlock()
	return s.batch("", time.Now())
}

// save stores a mail server with its output fields; the lock is held.
func (s *Server) save(m *maildispatchv1.MailServer) {
	now := stamp(time.Now())
	version := 1
	if old := s.servers[m.Name]; old != nil {
		m.CreateTime = old.CreateTime
		if _, err := fmt.Sscanf(old.Etag, "%d", &version); err == nil {
			version++
		}
	} else {
		m.CreateTime = now
	}
	m.UpdateTime, m.Etag = now, fmt.Sprint(version)
	if m.Status == maildispatchv1.MailServer_STATUS_UNSPECIFIED {
		m.Status = maildispatchv1.MailServer_STATUS_AVAILABLE
	}
	if m.IsDefault == nil {
		m.IsDefault = proto.Bool(false)
	}
	hide(m)
	s.servers[m.Name] = m
}
