package interceptor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

const secret = "hunter2-do-not-log"

// rig is a server whose handlers do what the test says, behind the real interceptors.
type rig struct {
	pb.UnimplementedMailServerAdminServer
	pb.UnimplementedDispatchServer
	do       func(context.Context) error
	log      lockedBuffer
	admin    pb.MailServerAdminClient
	dispatch pb.DispatchClient
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// lines are the log's lines so far, which must be JSON objects.
func (l *lockedBuffer) lines(t *testing.T) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []map[string]any
	for line := range strings.Lines(l.b.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		out = append(out, m)
	}
	return out
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (r *rig) TestMailServer(ctx context.Context, _ *pb.TestMailServerRequest) (*pb.TestMailServerResponse, error) {
	return &pb.TestMailServerResponse{Success: true}, r.do(ctx)
}

func (r *rig) Send(_ *pb.SendRequest, s grpc.ServerStreamingServer[pb.SendResponse]) error {
	if err := s.Send(&pb.SendResponse{MailId: "1"}); err != nil {
		return err
	}
	return r.do(s.Context())
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{do: func(context.Context) error { return nil }}
	log := slog.New(slog.NewJSONHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	srv := grpc.NewServer(grpc.ChainUnaryInterceptor(Unary(log, deaf{})), grpc.ChainStreamInterceptor(Stream(log, deaf{})), grpc.WaitForHandlers(true))
	pb.RegisterMailServerAdminServer(srv, r)
	pb.RegisterDispatchServer(srv, r)
	l := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:rig", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	r.admin, r.dispatch = pb.NewMailServerAdminClient(conn), pb.NewDispatchClient(conn)
	return r
}

// kinds calls both kinds of method, each with a request full of what must not be logged, and
// gives the response headers and the error.
func (r *rig) kinds(t *testing.T, f func(t *testing.T, call func(context.Context) (metadata.MD, error))) {
	message := &pb.MailMessage{To: []string{secret + "@y.example"}, Subject: secret, Text: secret}
	t.Run("unary", func(t *testing.T) {
		f(t, func(ctx context.Context) (metadata.MD, error) {
			var md metadata.MD
			_, err := r.admin.TestMailServer(ctx, &pb.TestMailServerRequest{MailServer: &pb.MailServer{Smtp: &pb.Smtp{Password: secret}}}, grpc.Header(&md))
			return md, err
		})
	})
	t.Run("stream", func(t *testing.T) {
		f(t, func(ctx context.Context) (metadata.MD, error) {
			s, err := r.dispatch.Send(ctx, &pb.SendRequest{Message: message})
			if err != nil {
				return nil, err
			}
			for {
				if _, err = s.Recv(); err != nil {
					break
				}
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			md, _ := s.Header()
			return md, err
		})
	})
}

func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if i, is := d.(*errdetails.ErrorInfo); is {
			return i.Reason
		}
	}
	return ""
}

// called is the one line of the last call.
func (r *rig) called(t *testing.T) map[string]any {
	t.Helper()
	var last map[string]any
	for _, l := range r.log.lines(t) {
		if l["msg"] == "call" {
			last = l
		}
	}
	return last
}

var aUUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// TestRequestID: each call has an id that is made here, which goes back to the caller. One that
// the caller gives is in the log's line beside it when it is plain.
func TestRequestID(t *testing.T) {
	r := newRig(t)
	r.kinds(t, func(t *testing.T, call func(context.Context) (metadata.MD, error)) {
		for sent, keep := range map[string]bool{"abc-1": true, "!~": true, strings.Repeat("x", 64): true, "": false, strings.Repeat("x", 65): false, "a b": false} {
			md, err := call(metadata.AppendToOutgoingContext(context.Background(), Header, sent))
			if err != nil {
				t.Fatal(err)
			}
			got := md.Get(Header)
			if len(got) != 1 || !aUUID.MatchString(got[0]) {
				t.Errorf("sent %q, got %q, want an id that was made here", sent, got)
				continue
			}
			l := r.called(t)
			if l["request"] != got[0] || l["code"] != "OK" || l["level"] != "INFO" {
				t.Errorf("sent %q, logged %v", sent, l)
			}
			if theirs, _ := l["caller_request"].(string); keep != (theirs != "") || keep && theirs != sent {
				t.Errorf("sent %q, logged %q as the caller's", sent, theirs)
			}
		}
		first, _ := call(metadata.AppendToOutgoingContext(context.Background(), Header, "same"))
		second, _ := call(metadata.AppendToOutgoingContext(context.Background(), Header, "same"))
		if len(first.Get(Header)) != 1 || !aUUID.MatchString(first.Get(Header)[0]) || first.Get(Header)[0] == second.Get(Header)[0] {
			t.Errorf("made %q and %q", first.Get(Header), second.Get(Header))
		}
	})
}

// TestPanic: a panic ends one call with the request id and nothing else; the log has the rest
// and the service goes on.
func TestPanic(t *testing.T) {
	r := newRig(t)
	r.kinds(t, func(t *testing.T, call func(context.Context) (metadata.MD, error)) {
		for _, p := range []any{"index " + secret, errors.New(secret), fmt.Sprintf, []int{7}} {
			r.do = func(context.Context) error { panic(p) }
			_, err := call(metadata.AppendToOutgoingContext(context.Background(), Header, "my-id"))
			s := status.Convert(err)
			if s.Code() != codes.Internal || !strings.HasPrefix(s.Message(), "internal error, request id ") || reason(err) != pb.ReasonInternal || len(s.Details()) != 1 {
				t.Errorf("the caller hears %v %v", err, s.Details())
			}
			if strings.Contains(fmt.Sprint(s.Proto()), secret) {
				t.Errorf("the caller hears the panic: %v", s.Proto())
			}
			var logged bool
			for _, l := range r.log.lines(t) {
				stack, _ := l["stack"].(string)
				logged = logged || l["msg"] == "panic" && s.Message() == fmt.Sprint("internal error, request id ", l["request"]) && l["level"] == "ERROR" && strings.Contains(stack, "interceptor_test.go")
			}
			if l := r.called(t); !logged || l["code"] != "Internal" || l["level"] != "ERROR" {
				t.Errorf("the log says\n%s", &r.log)
			}
		}
		r.do = func(context.Context) error { return nil }
		if _, err := call(context.Background()); err != nil {
			t.Errorf("the next call: %v", err)
		}
	})
}

// TestErrors: what callers hear and what the log keeps.
func TestErrors(t *testing.T) {
	r := newRig(t)
	cause := errors.New("pq: relation mail is broken")
	for name, c := range map[string]struct {
		err    error
		code   codes.Code
		text   string
		reason string
		level  string
		logged string // beyond what the caller hears
	}{
		"ours":             {apierr.Wrap(cause, codes.Unavailable, pb.ReasonDatabaseUnavailable, "the database is away"), codes.Unavailable, "the database is away", pb.ReasonDatabaseUnavailable, "WARN", cause.Error()},
		"ours, wrapped":    {fmt.Errorf("send: %w", apierr.NotFound(pb.ReasonMailNotFound, "mail", "7")), codes.NotFound, `mail "7" not found`, pb.ReasonMailNotFound, "INFO", ""},
		"a status":         {status.Error(codes.Aborted, "try again"), codes.Aborted, "try again", "", "INFO", ""},
		"nobody's":         {fmt.Errorf("claim: %w", cause), codes.Internal, "internal error, request id ", pb.ReasonInternal, "ERROR", cause.Error()},
		"unknown status":   {status.Error(codes.Unknown, "sql: no rows"), codes.Internal, "internal error, request id ", pb.ReasonInternal, "ERROR", "sql: no rows"},
		"cancelled":        {fmt.Errorf("wait: %w", context.Canceled), codes.Canceled, "the caller cancelled the call", "", "INFO", ""},
		"out of time":      {fmt.Errorf("wait: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "the caller's time ran out", "", "INFO", ""},
		"invalid, of many": {(func() error { var c apierr.Check; c.Bad("to", "is empty"); return c.Err() })(), codes.InvalidArgument, "to: is empty", pb.ReasonValidationFailed, "INFO", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r.do = func(context.Context) error { return c.err }
			r.kinds(t, func(t *testing.T, call func(context.Context) (metadata.MD, error)) {
				_, err := call(context.Background())
				text := c.text
				if c.code == codes.Internal {
					text += fmt.Sprint(r.called(t)["request"])
				}
				if s := status.Convert(err); s.Code() != c.code || s.Message() != text || reason(err) != c.reason {
					t.Errorf("the caller hears %v (%s)", err, reason(err))
				}
				if strings.Contains(fmt.Sprint(status.Convert(err).Proto()), cause.Error()) {
					t.Errorf("the caller hears the cause: %v", err)
				}
				if l := r.called(t); l["code"] != c.code.String() || l["level"] != c.level || c.reason != "" && l["reason"] != c.reason || l["took"] == nil || l["method"] == nil {
					t.Errorf("logged %v", l)
				}
				if !strings.Contains(r.log.String(), c.logged) {
					t.Errorf("no %q in\n%s", c.logged, &r.log)
				}
			})
		})
	}
}

// TestOneLineWithoutSecrets: a call is one line, and nothing of its request is in it.
func TestOneLineWithoutSecrets(t *testing.T) {
	r := newRig(t)
	r.kinds(t, func(t *testing.T, call func(context.Context) (metadata.MD, error)) {
		before := len(r.log.lines(t))
		ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+secret)
		if _, err := call(ctx); err != nil {
			t.Fatal(err)
		}
		if n := len(r.log.lines(t)) - before; n != 1 {
			t.Errorf("%d lines for a call", n)
		}
		if l := r.called(t); len(l) != 7 { // time, level, msg, method, code, took, request
			t.Errorf("logged %v", l)
		}
	})
	if strings.Contains(r.log.String(), secret) {
		t.Errorf("the log:\n%s", &r.log)
	}
}

// TestDeadline: a handler has a little less time than its caller, a call without time is
// refused before it begins, and a unary call always ends.
func TestDeadline(t *testing.T) {
	r := newRig(t)
	r.kinds(t, func(t *testing.T, call func(context.Context) (metadata.MD, error)) {
		var at, came time.Time
		var has, ran bool
		r.do = func(ctx context.Context) error { came = time.Now(); at, has = ctx.Deadline(); ran = true; return nil }
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		mine, _ := ctx.Deadline()
		left := time.Now()
		if _, err := call(ctx); err != nil {
			t.Fatal(err)
		}
		// The time on the wire is what is left, so the clocks of both need not agree; here they
		// are one, and the way of the call is the only difference.
		if less := mine.Sub(at); !has || less < mostShave-came.Sub(left) || less > mostShave+10*time.Second {
			t.Errorf("the handler has %v less", less)
		}
		if _, err := call(context.Background()); err != nil {
			t.Fatal(err)
		}
		unary := strings.HasSuffix(t.Name(), "/unary")
		if has != unary || unary && (time.Until(at) > unaryLimit || time.Until(at) < unaryLimit-10*time.Second) {
			t.Errorf("without a deadline of the caller: %v %v", has, time.Until(at))
		}

		ran = false
		ctx, cancel = context.WithTimeout(context.Background(), least-10*time.Millisecond)
		defer cancel()
		_, err := call(ctx)
		if status.Code(err) != codes.DeadlineExceeded || ran {
			t.Errorf("too little time: %v, ran: %v", err, ran)
		}

		// Our own word on what took too long arrives before the caller's clock ends the call.
		r.do = func(ctx context.Context) error {
			<-ctx.Done()
			return apierr.Wrap(ctx.Err(), codes.DeadlineExceeded, pb.ReasonDeadlineTooShort, "the relay is slow")
		}
		ctx, cancel = context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if _, err := call(ctx); status.Code(err) != codes.DeadlineExceeded || status.Convert(err).Message() != "the relay is slow" {
			t.Errorf("the caller hears %v", err)
		}
	})
}

// TestShave: what is kept back grows with the caller's time, between its bounds.
func TestShave(t *testing.T) {
	for left, want := range map[time.Duration]time.Duration{200 * time.Millisecond: leastShave, 2 * time.Second: 400 * time.Millisecond, time.Hour: mostShave} {
		mine := time.Now().Add(left)
		ctx, cancel := context.WithDeadline(context.Background(), mine)
		defer cancel()
		bounded, cancelBounded, err := bound(ctx, unaryLimit)
		if err != nil {
			t.Fatal(err)
		}
		defer cancelBounded()
		at, _ := bounded.Deadline()
		if less := mine.Sub(at); less > want || less < want-20*time.Millisecond && left != 200*time.Millisecond || less < leastShave {
			t.Errorf("of %v there is kept back %v, want %v", left, less, want)
		}
	}
}

// TestTooLittleTimeHasAReason: the refusal itself, without the race against the caller's clock.
func TestTooLittleTimeHasAReason(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), least/2)
	defer cancel()
	_, _, err := bound(ctx, unaryLimit)
	e, is := apierr.As(err)
	if !is || e.Code != codes.DeadlineExceeded || e.Reason != pb.ReasonDeadlineTooShort || !strings.Contains(e.Text, least.String()) {
		t.Errorf("%v", err)
	}
}

// TestOwnTime: a call that says how long it wants to last lasts so long, also without a
// deadline.
func TestOwnTime(t *testing.T) {
	for name, x := range map[string]struct {
		req  any
		want time.Duration
	}{
		"an ordinary call":           {&pb.GetMailRequest{}, unaryLimit},
		"a batch nobody waits for":   {&pb.RunBatchRequest{}, unaryLimit},
		"a batch that is waited for": {&pb.RunBatchRequest{Wait: true}, 0},
		"a test":                     {&pb.TestMailServerRequest{}, unaryLimit},
		"a long test":                {&pb.TestMailServerRequest{Timeout: durationpb.New(time.Minute)}, 65 * time.Second},
	} {
		if got := ownTime(x.req); got != x.want {
			t.Errorf("%s: got %v, want %v", name, got, x.want)
		}
	}
	ctx, cancel, err := bound(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	if _, has := ctx.Deadline(); has {
		t.Error("a call without a limit has a deadline")
	}
}
