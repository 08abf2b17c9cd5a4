package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/maildispatch/maildispatch/client"
	"github.com/maildispatch/maildispatch/client/clienttest"
	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

func TestOptionsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		target  string
		options client.Options
		want    string
	}{
		"no target":             {"", client.Options{}, "target is empty"},
		"both":                  {"localhost:1", client.Options{TLS: &tls.Config{}, Insecure: true}, "exclude each other"},
		"token in plaintext":    {"mail.internal:1", client.Options{Insecure: true, Token: "secret"}, "may not travel to mail.internal:1 in plaintext"},
		"token of two lines":    {"localhost:1", client.Options{Token: "secret\r\nx: y"}, "other than printable ASCII"},
		"token on plaintext by": {"mail.internal:1", client.Options{Token: "secret", DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}}, "transport level security"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := client.New(test.target, test.options)
			if err == nil {
				c.Close()
				t.Fatal("taken")
			}
			if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
				t.Error(err)
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{Token: "t0ken", UserAgent: "invoicing/7"})
	if _, err := c.Deliver(t.Context(), mailTo("a@example.com")); err != nil {
		t.Fatal(err)
	}
	h := srv.Requests("Send")[0].Header
	if got := h.Get("authorization"); len(got) != 1 || got[0] != "Bearer t0ken" {
		t.Errorf("authorization %v", got)
	}
	if got := h.Get("user-agent"); len(got) != 1 || !strings.HasPrefix(got[0], "invoicing/7 ") {
		t.Errorf("user-agent %v", got)
	}
}

// whoami answers GetMail with what it knows of the caller.
type whoami struct {
	maildispatchv1.UnimplementedDispatchServer
}

func (whoami) GetMail(ctx context.Context, _ *maildispatchv1.GetMailRequest) (*maildispatchv1.GetMailResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return &maildispatchv1.GetMailResponse{Mail: &maildispatchv1.Mail{Id: strings.Join(md.Get("authorization"), ",")}}, nil
}

func TestTLS(t *testing.T) {
	t.Parallel()
	certificate, roots := selfSigned(t, "mail.internal")
	l := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&certificate)))
	maildispatchv1.RegisterDispatchServer(srv, whoami{})
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(l) }() // ends with Stop
	t.Cleanup(srv.Stop)
	dial := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })
	get := func(target string, o client.Options) (string, error) {
		o.DialOptions = []grpc.DialOption{dial}
		c, err := client.New(target, o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		res, err := c.GetMail(t.Context(), &maildispatchv1.GetMailRequest{Id: "x"})
		return res.GetMail().GetId(), err
	}
	const remote = "passthrough:///mail.internal:50051"
	if who, err := get(remote, client.Options{TLS: &tls.Config{RootCAs: roots}, Token: "t0ken"}); err != nil || who != "Bearer t0ken" {
		t.Errorf("with its root: %q, %v", who, err)
	}
	if _, err := get(remote, client.Options{Token: "t0ken"}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with the system's roots, which is the default of a remote target: %v", err)
	}
	if _, err := get("passthrough:///other.internal:50051", client.Options{TLS: &tls.Config{RootCAs: roots}}); err == nil || !strings.Contains(err.Error(), "other.internal") {
		t.Errorf("a certificate for another name: %v", err)
	}
	if _, err := get(remote, client.Options{Insecure: true}); status.Code(err) != codes.Unavailable {
		t.Errorf("plaintext to a TLS port: %v", err)
	}
}

func selfSigned(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

func TestUnaryDeadlines(t *testing.T) {
	t.Parallel()
	ask := func(c *client.Client, ctx context.Context) map[string]func() error {
		return map[string]func() error{
			"GetMail": func() error { _, err := c.GetMail(ctx, &maildispatchv1.GetMailRequest{Id: "x"}); return err },
			"TestMailServer": func() error {
				_, err := c.TestMailServer(ctx, &maildispatchv1.TestMailServerRequest{Name: "test"})
				return err
			},
			"TestMailServer, 50 s": func() error {
				_, err := c.TestMailServer(ctx, &maildispatchv1.TestMailServerRequest{Name: "test", Timeout: durationpb.New(50 * time.Second)})
				return err
			},
			"RunBatch": func() error { _, err := c.RunBatch(ctx, &maildispatchv1.RunBatchRequest{}); return err },
			"RunBatch, wait": func() error {
				_, err := c.RunBatch(ctx, &maildispatchv1.RunBatchRequest{Wait: true})
				return err
			},
		}
	}
	for name, test := range map[string]struct {
		call    string
		timeout time.Duration
		ctx     time.Duration
		want    time.Duration
	}{
		"default":           {"GetMail", 0, 0, 30 * time.Second},
		"from options":      {"GetMail", 3 * time.Second, 0, 3 * time.Second},
		"the caller's":      {"GetMail", 3 * time.Second, time.Minute, time.Minute},
		"a test":            {"TestMailServer", 0, 0, time.Minute},
		"a long test":       {"TestMailServer, 50 s", 0, 0, 80 * time.Second},
		"a batch":           {"RunBatch", 0, 0, 30 * time.Second},
		"a batch that ends": {"RunBatch, wait", 0, 0, 15*time.Minute + 30*time.Second},
		"none":              {"TestMailServer", -1, 2 * time.Hour, 2 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv := clienttest.New(t)
				method, _, _ := strings.Cut(test.call, ",")
				srv.Fault(method, clienttest.Fault{Hang: true})
				c := srv.Client(t, client.Options{Timeout: test.timeout})
				ctx := t.Context()
				if test.ctx > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.ctx)
					defer cancel()
				}
				begun := time.Now()
				err := ask(c, ctx)[test.call]()
				if took := time.Since(begun); status.Code(err) != codes.DeadlineExceeded || took < test.want || took > test.want+time.Second {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

func TestNegativeTimeoutIsNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.Fault("GetMail", clienttest.Fault{Hang: true})
		srv.Fault("Send", clienttest.Fault{Hang: true})
		c := srv.Client(t, client.Options{Timeout: -1, SendTimeout: -1})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 2)
		go func() { _, err := c.GetMail(ctx, &maildispatchv1.GetMailRequest{Id: "x"}); done <- err }()
		go func() { _, err := c.Deliver(ctx, mailTo("a@example.com")); done <- err }()
		<-time.After(24 * time.Hour)
		if len(done) > 0 {
			t.Fatalf("ended by itself: %v", <-done)
		}
		cancel()
		for range 2 {
			if err := <-done; status.Code(err) != codes.Canceled {
				t.Error(err)
			}
		}
	})
}

func TestWhatIsRepeated(t *testing.T) {
	t.Parallel()
	server := &maildispatchv1.MailServer{Name: "new", Type: maildispatchv1.MailServer_TYPE_LOCALHOST, From: "a@example.com", Mode: maildispatchv1.Mode_MODE_PHP}
	calls := map[string]struct {
		repeated bool
		call     func(ctx context.Context, c *client.Client) error
	}{
		"GetMailServer": {true, func(ctx context.Context, c *client.Client) error {
			_, err := c.GetMailServer(ctx, &maildispatchv1.GetMailServerRequest{Name: "test"})
			return err
		}},
		"ListMailServers": {true, func(ctx context.Context, c *client.Client) error {
			_, err := c.ListMailServers(ctx, &maildispatchv1.ListMailServersRequest{})
			return err
		}},
		"CreateMailServer": {true, func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateMailServer(ctx, &maildispatchv1.CreateMailServerRequest{MailServer: server})
			return err
		}},
		"UpdateMailServer": {false, func(ctx context.Context, c *client.Client) error {
			_, err := c.UpdateMailServer(ctx, &maildispatchv1.UpdateMailServerRequest{MailServer: &maildispatchv1.MailServer{Name: "test"}})
			return err
		}},
		"DeleteMailServer": {false, func(ctx context.Context, c *client.Client) error {
			_, err := c.DeleteMailServer(ctx, &maildispatchv1.DeleteMailServerRequest{Name: "test"})
			return err
		}},
		"SetDefaultMailServer": {false, func(ctx context.Context, c *client.Client) error {
			_, err := c.SetDefaultMailServer(ctx, &maildispatchv1.SetDefaultMailServerRequest{Name: "test"})
			return err
		}},
		"TestMailServer": {false, func(ctx context.Context, c *client.Client) error {
			_, err := c.TestMailServer(ctx, &maildispatchv1.TestMailServerRequest{Name: "test"})
			return err
		}},
		"RunBatch": {false, func(ctx context.Context, c *client.Client) error {
			_, err := c.RunBatch(ctx, &maildispatchv1.RunBatchRequest{})
			return err
		}},
		"RetryMails": {false, func(ctx context.Context, c *client.Client) error {
			_, err := c.RetryMails(ctx, &maildispatchv1.RetryMailsRequest{Ids: []string{"x"}})
			return err
		}},
		"CancelMails": {false, func(ctx context.Context, c *client.Client) error {
			_, err := c.CancelMails(ctx, &maildispatchv1.CancelMailsRequest{Ids: []string{"x"}})
			return err
		}},
	}
	for method, test := range calls {
		for _, done := range []bool{false, true} {
			t.Run(method, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					srv := clienttest.New(t)
					srv.Fault(method, clienttest.Fault{Done: done})
					c := srv.Client(t, client.Options{})
					err := test.call(t.Context(), c)
					want, tries := codes.Unavailable, 1
					if test.repeated {
						want, tries = codes.OK, 2
					}
					if n := len(srv.Requests(method)); status.Code(err) != want || n != tries {
						t.Errorf("%v after %d calls", err, n)
					}
				})
			})
		}
	}
}

// The answer of the first call was lost: the second says what it would have said.
func TestCreateTwiceIsOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		srv.Fault("CreateMailServer", clienttest.Fault{Done: true})
		c := srv.Client(t, client.Options{})
		req := &maildispatchv1.CreateMailServerRequest{MailServer: &maildispatchv1.MailServer{
			Name: "new", Type: maildispatchv1.MailServer_TYPE_LOCALHOST, From: "a@example.com", Mode: maildispatchv1.Mode_MODE_PHP}}
		res, err := c.CreateMailServer(t.Context(), req)
		if err != nil || res.GetMailServer().GetName() != "new" {
			t.Errorf("%v, %v", res, err)
		}
		if req.GetRequestId() != "" {
			t.Error("the caller's request was written to")
		}
		if _, err := c.CreateMailServer(t.Context(), req); client.ReasonOf(err) != maildispatchv1.ReasonMailServerExists {
			t.Errorf("a second call of the caller: %v", err)
		}
	})
}

func TestLargeMails(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c := srv.Client(t, client.Options{})
	req := mailTo("a@example.com")
	req.Message.Attachments = []*maildispatchv1.Attachment{{Filename: "scan.tiff", Content: make([]byte, 20<<20)}}
	if _, err := c.Deliver(t.Context(), req); err != nil {
		t.Error(err)
	}
}

func TestNotServing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := clienttest.New(t)
		c := srv.Client(t, client.Options{})
		if _, err := c.Deliver(t.Context(), mailTo("a@example.com")); err != nil {
			t.Fatal(err)
		}
		srv.SetServing(false)
		synctest.Wait()
		if _, err := c.GetMailServer(t.Context(), &maildispatchv1.GetMailServerRequest{Name: "test"}); status.Code(err) != codes.Unavailable {
			t.Errorf("not serving: %v", err)
		}
		if n := len(srv.Requests("GetMailServer")); n != 0 {
			t.Errorf("%d calls arrived", n)
		}
		srv.SetServing(true)
		synctest.Wait()
		if _, err := c.GetMailServer(t.Context(), &maildispatchv1.GetMailServerRequest{Name: "test"}); err != nil {
			t.Errorf("serving again: %v", err)
		}
	})
}

func TestConn(t *testing.T) {
	t.Parallel()
	srv := clienttest.New(t)
	c, err := srv.Connect(client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := maildispatchv1.NewDispatchClient(c.Conn()).ListDueOutMails(t.Context(), &maildispatchv1.ListDueOutMailsRequest{}); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Deliver(t.Context(), mailTo("a@example.com")); status.Code(err) != codes.Canceled {
		t.Errorf("after Close: %v", err)
	}
}
