package api_test

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/access"
	"github.com/maildispatch/maildispatch/server/internal/api"
	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/server/internal/interceptor"
	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest"
)

// rig is the api as callers meet it: a real database, the engine, the whole chain of
// interceptors, and a connection through memory. The relay takes what it is given.
type rig struct {
	t        testing.TB
	dsn      string
	store    *store.Store
	relay    *smtpxtest.Server
	log      *logBook
	api      *api.API
	conn     *grpc.ClientConn
	admin    pb.MailServerAdminClient
	dispatch pb.DispatchClient
	commits  *commits
	lookups  *lookups
	txt      atomic.Value // a lookupTXT: what DNS says
	keyFile  string
}

// lookups is the store, and notes how many uploads each statement asked for, and how often
// changes were looked for.
type lookups struct {
	*store.Store
	mu  sync.Mutex
	ids []int
	// looks into the log of changes
	looks atomic.Int64
	// what the next looks at a mail server meet, one after the other; mu guards it
	faults []error
}

func (l *lookups) Server(ctx context.Context, sc store.Scope, name string) (*store.MailServer, error) {
	l.mu.Lock()
	var err error
	if len(l.faults) > 0 {
		err, l.faults = l.faults[0], l.faults[1:]
	}
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return l.Store.Server(ctx, sc, name)
}

func (l *lookups) Changes(ctx context.Context, sc store.Scope, f store.MailFilter, after store.Position, n int) ([]store.MailChange, store.Position, bool, error) {
	l.looks.Add(1)
	return l.Store.Changes(ctx, sc, f, after, n)
}

func (l *lookups) Uploads(ctx context.Context, team string, ids []uuid.UUID) (map[uuid.UUID]*store.Upload, error) {
	if len(ids) > 0 {
		l.mu.Lock()
		l.ids = append(l.ids, len(ids))
		l.mu.Unlock()
	}
	return l.Store.Uploads(ctx, team, ids)
}

// take is what was noted since it was asked last.
func (l *lookups) take() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := l.ids
	l.ids = nil
	return ids
}

type lookupTXT = func(name string) ([]string, error)

// commits is the engine, and notes how many mails each commit had.
type commits struct {
	*engine.Engine
	mu    sync.Mutex
	mails []int
}

func (c *commits) Queue(ctx context.Context, ms []*store.NewMail, all bool) ([]store.Enqueued, error) {
	c.mu.Lock()
	c.mails = append(c.mails, len(ms))
	c.mu.Unlock()
	return c.Engine.Queue(ctx, ms, all)
}

func (c *commits) get() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.mails)
}

// each runs f once for each database.
func each(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Run("sqlite", func(t *testing.T) { f(t, newRig(t, storetest.SQLiteDSN(t), nil)) })
	t.Run("postgres", func(t *testing.T) { f(t, newRig(t, storetest.PostgresDSN(t), nil)) })
}

func newRig(t testing.TB, dsn string, relay *smtpxtest.Server) *rig {
	t.Helper()
	if relay == nil {
		relay = &smtpxtest.Server{}
	}
	r := &rig{t: t, dsn: dsn, store: storetest.Open(t, dsn), relay: relay.Start(t), log: &logBook{}}
	log := slog.New(slog.NewTextHandler(r.log, nil))
	ring, keyFile := testKeys(t)
	out, err := outbound.New(ring, "127.0.0.1:25", "test.example")
	if err != nil {
		t.Fatal(err)
	}
	out.UseTokens(r.store, func(netip.AddrPort) error { return nil }, log)
	eng := engine.New(engine.Config{Journal: r.store, Replica: "test", BatchInterval: time.Hour, Logger: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, s *store.MailServer) (engine.Session, error) {
			to, err := out.Relay(s)
			if err != nil {
				return nil, err
			}
			sess, err := onLoopback().Dial(ctx, to)
			if err != nil {
				return nil, err
			}
			return sess, nil
		}})
	r.commits = &commits{Engine: eng}
	r.lookups = &lookups{Store: r.store}
	a := api.New(api.Config{Store: r.lookups, Keeping: r.store, Sender: r.commits, Batch: eng, Outbound: out, TokenKey: ring.Derive("page tokens"),
		Stopping: engine.ErrStopping, Draining: eng.Stopping(), Logger: log, Now: eng.Now,
		LookupTXT: func(_ context.Context, name string) ([]string, error) { return r.txt.Load().(lookupTXT)(name) },
		Probe: func(ctx context.Context, s *store.MailServer, r smtpx.Relay, o smtpx.ProbeOptions) smtpx.ProbeResult {
			return smtpx.Probe(ctx, onLoopback(), r, o)
		}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- eng.Run(ctx, time.Minute) }()
	select {
	case <-eng.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	r.api, r.keyFile = a, keyFile
	r.conn = r.serve(access.As(access.Everybody()), func(*grpc.Server) {})
	r.admin, r.dispatch = pb.NewMailServerAdminClient(r.conn), pb.NewDispatchClient(r.conn)
	return r
}

// onLoopback dials nothing but this machine, whatever a test says, and asks no name server.
func onLoopback() *smtpx.Dialer {
	return &smtpx.Dialer{
		Allow: func(a netip.AddrPort) error {
			if a.Addr().IsLoopback() {
				return nil
			}
			return smtpx.ErrNotAllowed
		},
		Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			if strings.EqualFold(host, "localhost") {
				return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
			}
			return nil, errors.New("no such host")
		},
	}
}

// serve offers the api to callers whom guard lets in, until the test ends. more registers what
// else is to be offered.
func (r *rig) serve(guard *access.Guard, more func(*grpc.Server), opts ...grpc.DialOption) *grpc.ClientConn {
	r.t.Helper()
	g := grpc.NewServer(append(interceptor.Options(slog.New(slog.NewTextHandler(r.log, nil)), guard, nil, nil), grpc.MaxRecvMsgSize(32<<20), grpc.WaitForHandlers(true))...)
	r.api.Register(g)
	more(g)
	l := bufconn.Listen(1 << 20)
	go func() { _ = g.Serve(l) }() // ends with Stop
	conn, err := grpc.NewClient("passthrough:///memory", append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = conn.Close() // nothing is asked any more
		g.Stop()
	})
	return conn
}

// testKeys is a key ring with one key, and its file.
func testKeys(t testing.TB) (*seal.Ring, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	line := "1 " + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32))) + "\n"
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	ring, err := seal.LoadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return ring, path
}

// ctx ends with the test's patience. Calls that a test expects to end at once take it too.
func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return c
}

// server saves a mail server that leads to the rig's relay.
func (r *rig) server(name string, mode pb.Mode, change ...func(*pb.MailServer)) *pb.MailServer {
	r.t.Helper()
	m := &pb.MailServer{Name: name, Type: pb.MailServer_TYPE_SMTP, From: "Shop <shop@x.example>", Mode: mode,
		Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(r.relay.Port()), Encryption: pb.Smtp_ENCRYPTION_NONE}}
	for _, c := range change {
		c(m)
	}
	res, err := r.admin.CreateMailServer(ctx(r.t), &pb.CreateMailServerRequest{MailServer: m})
	if err != nil {
		r.t.Fatal(err)
	}
	return res.MailServer
}

// message is a small mail to the recipients.
func message(to ...string) *pb.MailMessage {
	return &pb.MailMessage{To: to, Subject: "s", Text: "hello"}
}

// send sends one mail and returns its events.
func (r *rig) send(c context.Context, req *pb.SendRequest) ([]*pb.SendResponse, error) {
	st, err := r.dispatch.Send(c, req)
	if err != nil {
		return nil, err
	}
	var evs []*pb.SendResponse
	for {
		ev, err := st.Recv()
		if err == io.EOF {
			return evs, nil
		}
		if err != nil {
			return evs, err
		}
		evs = append(evs, ev)
	}
}

// queue queues n mails of one server and returns their ids.
func (r *rig) queue(server string, n int) []string {
	r.t.Helper()
	var ids []string
	for range n {
		evs, err := r.send(ctx(r.t), &pb.SendRequest{Options: &pb.SendOptions{MailServer: server}, Message: message("a@y.example")})
		if err != nil {
			r.t.Fatal(err)
		}
		ids = append(ids, evs[0].MailId)
	}
	return ids
}

// logBook keeps what was logged.
type logBook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// forget begins anew.
func (l *logBook) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}
