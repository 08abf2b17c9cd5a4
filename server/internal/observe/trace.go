package observe

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Traces makes spans of calls and of attempts at mails and gives them to a collector. Its
// methods may be called from any goroutine. A nil *Traces makes none, and costs nothing.
//
// Of the calls a share is followed, and those that say themselves that they are. A followed
// call's context is stored with its mail, so that the span of each attempt links to it: also in
// another process, and days later. Attempts at other mail have no spans.
type Traces struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	stats    stats.Handler
}

// TraceConfig says where spans go.
type TraceConfig struct {
	Endpoint string  // of an OTLP collector over gRPC: http://host:port or https://host:port
	Sample   float64 // share of the calls that are followed, 0 to 1
	Build    Build
	Logger   *slog.Logger
}

// Calls that are followed are those of our own services: probes and reflection are none.
const ours = "/maildispatch.v1."

// NewTraces makes a Traces, nil without an endpoint. Nothing is dialled before the first span.
func NewTraces(c TraceConfig) (*Traces, error) {
	if c.Endpoint == "" {
		return nil, nil
	}
	out, err := otlptracegrpc.New(context.Background(), otlptracegrpc.WithEndpointURL(c.Endpoint), otlptracegrpc.WithTimeout(5*time.Second))
	if err != nil {
		return nil, fmt.Errorf("trace-endpoint: %w", err)
	}
	t := &Traces{provider: sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&modest{SpanExporter: out, log: c.Logger}, sdktrace.WithBatchTimeout(2*time.Second)),
		sdktrace.WithSampler(sdktrace.ParentBased(linked{sdktrace.TraceIDRatioBased(c.Sample)})),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "maildispatch"), attribute.String("service.version", c.Build.Version))),
	)}
	t.tracer = t.provider.Tracer("github.com/maildispatch/maildispatch")
	// its own of everything: nothing is global
	t.stats = otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithMeterProvider(noop.NewMeterProvider()), otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(func(i *stats.RPCTagInfo) bool { return strings.HasPrefix(i.FullMethodName, ours) }))
	return t, nil
}

// ServerOptions make spans of a server's calls.
func (t *Traces) ServerOptions() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(t.stats)}
}

// Stop gives away what is left.
func (t *Traces) Stop(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Of is the context of the call that ctx belongs to, as it is stored with a mail: nil when the
// call is not followed.
func (t *Traces) Of(ctx context.Context) []byte {
	c := trace.SpanContextFromContext(ctx)
	if t == nil || !c.IsSampled() {
		return nil
	}
	return appendContext(nil, c)
}

// storedContext is the length of a stored context: a version, as W3C Trace Context counts them,
// then trace id, span id and flags.
const storedContext = 1 + 16 + 8 + 1

func appendContext(b []byte, c trace.SpanContext) []byte {
	id, span := c.TraceID(), c.SpanID()
	b = append(append(append(b, 0), id[:]...), span[:]...)
	return append(b, byte(c.TraceFlags()))
}

// readContext reads a stored context; one that it does not know is not valid.
func readContext(b []byte) trace.SpanContext {
	if len(b) != storedContext || b[0] != 0 {
		return trace.SpanContext{}
	}
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID(b[1:17]), SpanID: trace.SpanID(b[17:25]), TraceFlags: trace.TraceFlags(b[25]), Remote: true})
}

// Attempt implements engine.Tracer.
func (t *Traces) Attempt(m *store.Claimed, number int) (*smtpx.Trace, func(lifecycle.Outcome, smtpx.Failure)) {
	from := readContext(m.Trace)
	if t == nil || !from.IsSampled() {
		return nil, nil
	}
	// A root of its own: the caller's trace may be over for days.
	_, span := t.tracer.Start(context.Background(), "deliver", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(trace.Link{SpanContext: from}),
		trace.WithAttributes(attribute.String("mail.id", m.ID.String()), attribute.String("mail.server", m.MailServer), attribute.String("mail.kind", string(m.Kind)),
			attribute.String("mail.mode", string(m.Mode)), attribute.Int("mail.attempt", number), attribute.Int64("mail.bytes", m.SizeBytes), attribute.Int("mail.recipients", len(m.Recipients))))
	a := &attempt{span: span}
	return &smtpx.Trace{Step: a.step}, a.end
}

// attempt is the span of an attempt. Its fields belong to whoever sends the mail; the steps of
// opening a connection, which come on a goroutine of their own, touch only the span.
type attempt struct {
	span            trace.Span
	taken, refused  int // recipients since the last MAIL
	lastRefusedCode int
}

// step makes an event of a step. The replies to RCPT become one event, since a mail may have
// hundreds.
func (a *attempt) step(kind smtpx.StepKind, outcome smtpx.StepOutcome, code int) {
	switch kind {
	case smtpx.StepMailFrom:
		a.taken, a.refused, a.lastRefusedCode = 0, 0, 0
	case smtpx.StepRcptTo:
		if outcome == smtpx.StepOK {
			a.taken++
		} else {
			a.refused++
			a.lastRefusedCode = code
		}
		return
	case smtpx.StepData:
		a.recipients()
	}
	attrs := []attribute.KeyValue{attribute.String("outcome", string(outcome))}
	if code != 0 {
		attrs = append(attrs, attribute.Int("smtp.code", code))
	}
	a.span.AddEvent("smtp."+string(kind), trace.WithAttributes(attrs...))
}

// recipients tells what came of RCPT, once for each MAIL.
func (a *attempt) recipients() {
	if a.taken+a.refused == 0 {
		return
	}
	attrs := []attribute.KeyValue{attribute.Int("taken", a.taken), attribute.Int("refused", a.refused)}
	if a.refused > 0 {
		attrs = append(attrs, attribute.Int("smtp.code", a.lastRefusedCode))
	}
	a.span.AddEvent("smtp."+string(smtpx.StepRcptTo), trace.WithAttributes(attrs...))
	a.taken, a.refused = 0, 0
}

func (a *attempt) end(o lifecycle.Outcome, f smtpx.Failure) {
	a.recipients() // where DATA was not asked
	a.span.SetAttributes(attribute.String("mail.outcome", string(o)), attribute.String("mail.failure", failureLabel(f)))
	if o != lifecycle.Sent && o != lifecycle.Partial {
		a.span.SetStatus(codes.Error, "")
	}
	a.span.End()
}

// linked samples what links to something that is sampled, and asks another sampler about the
// rest.
type linked struct{ sdktrace.Sampler }

func (s linked) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	for _, l := range p.Links {
		if l.SpanContext.IsSampled() {
			return sdktrace.SamplingResult{Decision: sdktrace.RecordAndSample}
		}
	}
	return s.Sampler.ShouldSample(p)
}

// modest keeps to itself what a collector need not know: the texts of errors, which may name an
// address, and attributes that are not in told. A collector that does not answer is told of in
// the log, once a minute.
type modest struct {
	sdktrace.SpanExporter
	log    *slog.Logger
	logged atomic.Int64 // Unix nanoseconds
}

// told are the attributes of calls that leave; those of attempts begin with "mail.".
var told = map[attribute.Key]bool{"rpc.system": true, "rpc.system.name": true, "rpc.service": true, "rpc.method": true, "rpc.response.status_code": true, "rpc.grpc.status_code": true}

func (m *modest) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	out := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		out[i] = modestSpan{s}
	}
	err := m.SpanExporter.ExportSpans(ctx, out)
	if now, last := time.Now().UnixNano(), m.logged.Load(); err != nil && now-last > int64(time.Minute) && m.logged.CompareAndSwap(last, now) {
		m.log.Warn("traces: the collector does not take spans, and they are lost", "spans", len(spans), "error", err)
	}
	return nil // the library would tell its global handler
}

type modestSpan struct{ sdktrace.ReadOnlySpan }

func (s modestSpan) Attributes() []attribute.KeyValue {
	all := s.ReadOnlySpan.Attributes()
	kept := make([]attribute.KeyValue, 0, len(all))
	for _, a := range all {
		if told[a.Key] || strings.HasPrefix(string(a.Key), "mail.") {
			kept = append(kept, a)
		}
	}
	return kept
}

func (s modestSpan) Status() sdktrace.Status {
	st := s.ReadOnlySpan.Status()
	st.Description = ""
	return st
}
