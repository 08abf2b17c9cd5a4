package server

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

// spans is a collector of traces.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu   sync.Mutex // guards the rest
	all  []*otlp.Span
	wire bytes.Buffer // all that came
}

func (c *spans) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	b, err := proto.Marshal(r)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wire.Write(b)
	for _, resource := range r.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			c.all = append(c.all, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// collect starts a collector.
func collect(t *testing.T) (c *spans, endpoint string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c = &spans{}
	s := grpc.NewServer()
	collector.RegisterTraceServiceServer(s, c)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c, "http://" + l.Addr().String()
}

// named are the spans of a name so far.
func (c *spans) named(name string) []*otlp.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []*otlp.Span
	for _, s := range c.all {
		if s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

func attributes(s *otlp.Span) map[string]string {
	all := map[string]string{}
	for _, a := range s.Attributes {
		v := a.Value.GetStringValue()
		if v == "" {
			v = fmt.Sprint(a.Value.GetIntValue())
		}
		all[a.Key] = v
	}
	return all
}

// traced is a service in this process under a configuration, and what calls it.
type traced struct {
	send  pb.DispatchClient
	admin pb.MailServerAdminClient
	stop  func() // waits for its end
}

func traceRig(t *testing.T, dir string, args ...string) *traced {
	t.Helper()
	c, fs := Config{LogOutput: io.Discard}, flag.NewFlagSet("serve", flag.ContinueOnError)
	if err := errors.Join(c.Flags(fs), fs.Parse(append([]string{"-listen=127.0.0.1:0", "-database=sqlite:" + dir + "/mail.db", "-batch-interval=1h", "-smtp-destinations=loopback:*", "-admin-socket=none"}, args...))); err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	conn, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		_ = conn.Close() // nothing is asked any more
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return &traced{send: pb.NewDispatchClient(conn), admin: pb.NewMailServerAdminClient(conn), stop: stop}
}

// server makes a mail server of a mode.
func (r *traced) server(t *testing.T, name string, mode pb.Mode, port int) {
	t.Helper()
	if _, err := r.admin.CreateMailServer(t.Context(), &pb.CreateMailServerRequest{MailServer: &pb.MailServer{Name: name, DisplayName: name, Mode: mode, Type: pb.MailServer_TYPE_SMTP,
		From: "billing@secret-sender.example", Smtp: &pb.Smtp{Host: "127.0.0.1", Port: int32(port), Encryption: pb.Smtp_ENCRYPTION_NONE}}}); err != nil {
		t.Fatal(err)
	}
}

const (
	followedTrace = "0af7651916cd43dd8448eb211c80319c"
	followed      = "00-" + followedTrace + "-b7ad6b7169203331-01"
	notFollowed   = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203332-00"
)

// mail sends one mail under a trace, and returns its id.
func (r *traced) mail(t *testing.T, server, trace, to string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := r.send.SendMail(metadata.AppendToOutgoingContext(ctx, "traceparent", trace), &pb.SendMailRequest{
		Options: &pb.SendOptions{MailServer: server, Kind: pb.Kind_KIND_INVOICE, Reference: "secret-reference"},
		Message: &pb.MailMessage{To: []string{to}, Subject: "secret-subject", Text: "secret-body"}})
	if err != nil {
		t.Fatal(err)
	}
	return got.MailId
}

// TestTraces: a followed call has a span in its caller's trace, and the span of each attempt at
// its mail links to that: in php mode, in daemon mode, and when another process sends the mail.
// The steps with the relay are its events. No address, reference, subject or text leaves.
func TestTraces(t *testing.T) {
	t.Parallel()
	refused := &smtpxtest.Action{Reply: "550 5.1.1 secret-reply to <no@secret-recipient.example>\r\n", Refuse: true}
	relay := (&smtpxtest.Server{On: func(c smtpxtest.Command) *smtpxtest.Action {
		if c.Verb == "RCPT" && strings.Contains(c.Arg, "<no@") {
			return refused
		}
		return nil
	}}).Start(t)
	c, endpoint := collect(t)
	dir := t.TempDir()
	flags := []string{"-trace-endpoint=" + endpoint, "-trace-sample=0"}
	r := traceRig(t, dir, flags...)
	r.server(t, "php", pb.Mode_MODE_PHP, relay.Port())
	r.server(t, "daemon", pb.Mode_MODE_DAEMON, relay.Port())

	ids := map[string]string{
		"php":     r.mail(t, "php", followed, "a@secret-recipient.example"),
		"refused": r.mail(t, "php", followed, "no@secret-recipient.example"),
		"daemon":  r.mail(t, "daemon", followed, "b@secret-recipient.example"),
	}
	unfollowed := []string{r.mail(t, "php", notFollowed, "c@secret-recipient.example"), r.mail(t, "daemon", notFollowed, "d@secret-recipient.example")}
	if _, err := r.admin.RunBatch(t.Context(), &pb.RunBatchRequest{Wait: true}); err != nil {
		t.Fatal(err)
	}
	bad := metadata.AppendToOutgoingContext(t.Context(), "traceparent", followed)
	if _, err := r.send.SendMail(bad, &pb.SendMailRequest{Options: &pb.SendOptions{MailServer: "php"}, Message: &pb.MailMessage{To: []string{"secret-recipient.example is no address"}, Subject: "secret-subject", Text: "x"}}); err == nil {
		t.Fatal("sent to nobody")
	}
	ids["restart"] = r.mail(t, "daemon", followed, "e@secret-recipient.example")
	r.stop()

	r = traceRig(t, dir, flags...)
	if _, err := r.admin.RunBatch(t.Context(), &pb.RunBatchRequest{Wait: true}); err != nil {
		t.Fatal(err)
	}
	r.stop() // the last spans leave

	calls := map[string]bool{} // spans of calls, by their ids
	for _, s := range c.named("maildispatch.v1.Dispatch/SendMail") {
		if id := hex.EncodeToString(s.TraceId); id != followedTrace || hex.EncodeToString(s.ParentSpanId) != "b7ad6b7169203331" {
			t.Errorf("a call is in trace %s, below %x", id, s.ParentSpanId)
		}
		calls[string(s.SpanId)] = true
	}
	for name, id := range ids {
		var s *otlp.Span
		for _, d := range c.named("deliver") {
			if attributes(d)["mail.id"] == id {
				s = d
			}
		}
		if s == nil {
			t.Errorf("%s: no span", name)
			continue
		}
		if len(s.Links) != 1 || hex.EncodeToString(s.Links[0].TraceId) != followedTrace || !calls[string(s.Links[0].SpanId)] {
			t.Errorf("%s: got links %v, want one to the call", name, s.Links)
		}
		if hex.EncodeToString(s.TraceId) == followedTrace || len(s.ParentSpanId) != 0 {
			t.Errorf("%s: its span is part of the caller's trace", name)
		}
		var events []string
		for _, e := range s.Events {
			if !slices.Contains([]string{"smtp.dns", "smtp.tcp", "smtp.greeting", "smtp.ehlo"}, e.Name) {
				// of the first on a connection
				events = append(events, strings.TrimPrefix(e.Name, "smtp."))
			}
		}
		want, outcome := "mail_from rcpt_to data gate dot", "sent"
		if name == "refused" {
			want, outcome = "mail_from rcpt_to", "failed"
		}
		if got := strings.Join(events, " "); !strings.HasPrefix(got, want) || attributes(s)["mail.outcome"] != outcome {
			t.Errorf("%s: got %s, %v; want %s, %s", name, got, attributes(s), want, outcome)
		}
		if name == "php" && len(events) == len(s.Events) {
			t.Errorf("%s: nothing of the connection that was opened for it: %v", name, s.Events)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, secret := range append(unfollowed, "secret", ".example", "127.0.0.1") {
		if bytes.Contains(c.wire.Bytes(), []byte(secret)) {
			t.Errorf("%q has left the service", secret)
		}
	}
}

// TestTraceFlags: what cannot work is said at the start.
func TestTraceFlags(t *testing.T) {
	for _, c := range []Config{{TraceEndpoint: "127.0.0.1:4317"}, {TraceEndpoint: "http://user:secret@h:1"}, {TraceEndpoint: "http://h:1/v1/traces"}, {TraceSample: 1.1}, {TraceSample: -1}} {
		if err := c.checkTraces(); err == nil {
			t.Errorf("%q, %v: not refused", c.TraceEndpoint, c.TraceSample)
		}
	}
}
