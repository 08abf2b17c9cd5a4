package client

import (
	"context"
	"crypto/tls"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // the client's side of healthCheckConfig
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	maildispatchv1 "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

const (
	defaultTimeout     = 30 * time.Second
	defaultSendTimeout = 5 * time.Minute
	maxMessageBytes    = 32 << 20
)

// serviceConfig balances over all addresses of the target, leaves out replicas that say they
// are not serving, and repeats what is safe to repeat.
//
//go:embed service_config.json
var serviceConfig string

// Options say how to reach the service. The zero value is right for a service on this machine.
type Options struct {
	// TLS is used when set. When nil, a target on this machine (loopback, unix socket) is
	// reached in plaintext and any other with the system's roots.
	TLS *tls.Config
	// Insecure speaks plaintext to any target. It excludes TLS, and a Token unless the target
	// is on this machine.
	Insecure bool
	// Token is sent with every call as "authorization: Bearer <token>". Empty = none.
	Token string
	// TokenFile is a file with the token, for one that is replaced while the program runs. It
	// is looked at once a second. It excludes Token.
	TokenFile string

	// Timeout of a unary call, and of the silence of a download or upload, when the context has
	// no deadline: 0 = 30 s, negative = none. TestMailServer and a RunBatch that waits get what
	// they were asked to take on top.
	Timeout time.Duration
	// SendTimeout of Deliver, Follow and SendMail, over all their tries, when the context has
	// no deadline: 0 = 5 min, negative = none. It bounds the attempt of a php-mode mail as
	// well: see Dispatch.Send. SendAll and Bulk may take as long as they like, but the service
	// may not be silent for longer than this while it owes an answer.
	SendTimeout time.Duration

	// UserAgent names the calling program in the service's log.
	UserAgent string
	// DialOptions come after the client's own and win over them.
	DialOptions []grpc.DialOption
}

// Client is a connection to maildispatch. It is safe for concurrent use; a program needs one.
type Client struct {
	maildispatchv1.MailServerAdminClient
	maildispatchv1.DispatchClient

	conn        *grpc.ClientConn
	timeout     time.Duration // 0 = none, as below
	sendTimeout time.Duration
}

// New gives a client of the service at target, a grpc target such as "mail.internal:50051" or
// "dns:///mail.internal:50051". It does not connect: the first call does, and an unreachable
// service is that call's UNAVAILABLE.
func New(target string, o Options) (*Client, error) {
	if target == "" {
		return nil, errors.New("maildispatch: target is empty")
	}
	if o.TLS != nil && o.Insecure {
		return nil, errors.New("maildispatch: Options.TLS and Options.Insecure exclude each other")
	}
	c := &Client{timeout: withDefault(o.Timeout, defaultTimeout), sendTimeout: withDefault(o.SendTimeout, defaultSendTimeout)}
	here := local(target)
	plaintext := o.TLS == nil && (o.Insecure || here)
	opts := []grpc.DialOption{
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 60 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
		grpc.WithChainUnaryInterceptor(c.bound, fillRequestID),
		grpc.WithChainStreamInterceptor(fillRequestIDInStream),
	}
	if plaintext {
		opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	} else {
		opts = append(opts, grpc.WithTransportCredentials(credentials.NewTLS(o.TLS)))
	}
	token, err := o.source()
	if err != nil {
		return nil, err
	}
	if token != nil {
		if plaintext && !here {
			return nil, fmt.Errorf("maildispatch: a token may not travel to %s in plaintext", target)
		}
		opts = append(opts, grpc.WithPerRPCCredentials(bearer{token: token, plaintext: plaintext}))
	}
	if o.UserAgent != "" {
		opts = append(opts, grpc.WithUserAgent(o.UserAgent))
	}
	conn, err := grpc.NewClient(target, append(opts, o.DialOptions...)...)
	if err != nil {
		return nil, fmt.Errorf("maildispatch: %w", err)
	}
	c.conn = conn
	c.MailServerAdminClient = maildispatchv1.NewMailServerAdminClient(conn)
	c.DispatchClient = maildispatchv1.NewDispatchClient(conn)
	return c, nil
}

// Conn is the connection, for stubs of other services such as health.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Close ends the connection and every call on it.
func (c *Client) Close() error { return c.conn.Close() }

// withDefault reads a timeout of Options: 0 stands for the default, negative (returned as 0)
// for none.
func withDefault(d, ifZero time.Duration) time.Duration {
	if d == 0 {
		return ifZero
	}
	return max(d, 0)
}

// bounded gives ctx a deadline if it has none; d = 0 is none.
func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has || d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// errSilent ends a call that stands still.
var errSilent = errors.New("nothing came")

// attentive bounds how long a call may stand still rather than how long it takes: when d passes
// after listen and nothing was heard, the context ends with errSilent. It listens at first. A
// context with a deadline has its own, and d = 0 is none.
func attentive(ctx context.Context, d time.Duration) (_ context.Context, listen, heard, cancel func()) {
	_, has := ctx.Deadline()
	ctx, end := context.WithCancelCause(ctx)
	if has || d == 0 {
		return ctx, func() {}, func() {}, func() { end(nil) }
	}
	silence := time.AfterFunc(d, func() { end(errSilent) })
	return ctx, func() { silence.Reset(d) }, func() { silence.Stop() }, func() { silence.Stop(); end(nil) }
}

// orSilent is the error of an attentive call, in words of its own if silence was why.
func orSilent(ctx context.Context, what string, d time.Duration, err error) error {
	if err != nil && context.Cause(ctx) == errSilent {
		return status.Errorf(codes.DeadlineExceeded, "%s: %v for %v", what, errSilent, d)
	}
	return err
}
