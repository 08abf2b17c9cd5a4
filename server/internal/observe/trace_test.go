package observe

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/maildispatch/maildispatch/store"
)

// TestTracesOff: a service without an endpoint has no hook in its calls and pays nothing, and
// with one it pays nothing for the mail of calls that are not followed.
func TestTracesOff(t *testing.T) {
	off, err := NewTraces(TraceConfig{})
	if err != nil || off != nil || off.ServerOptions() != nil {
		t.Fatalf("got %v, %v", off, err)
	}
	if err := off.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	on, err := NewTraces(TraceConfig{Endpoint: "http://127.0.0.1:1", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = on.Stop(context.Background()) }) // there is nothing to lose
	sampled := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	for name, c := range map[string]struct {
		traces *Traces
		ctx    context.Context
		stored []byte
	}{
		"off, call is followed":                  {off, trace.ContextWithSpanContext(t.Context(), sampled), appendContext(nil, sampled)},
		"off":                                    {off, t.Context(), nil},
		"on, call is not followed":               {on, trace.ContextWithSpanContext(t.Context(), sampled.WithTraceFlags(0)), nil},
		"on, a context of a version to come":     {on, t.Context(), append([]byte{1}, make([]byte, 25)...)},
		"on, a context that somebody has cut":    {on, t.Context(), appendContext(nil, sampled)[:20]},
		"on, a context that is not followed any": {on, t.Context(), appendContext(nil, sampled.WithTraceFlags(0))},
	} {
		m := &store.Claimed{Trace: c.stored}
		if n := testing.AllocsPerRun(100, func() {
			if c.traces.Of(c.ctx) != nil {
				t.Fatalf("%s: got a context", name)
			}
			if hooks, end := c.traces.Attempt(m, 1); hooks != nil || end != nil {
				t.Fatalf("%s: got a span", name)
			}
		}); n != 0 {
			t.Errorf("%s: got %v allocations a mail, want none", name, n)
		}
	}
	if got := readContext(appendContext(nil, sampled)); !got.Equal(sampled.WithRemote(true)) {
		t.Errorf("read back: got %v, want %v", got, sampled)
	}
}

// TestTracesWithoutCollector: spans that nobody takes are told of once, keep no mail, and the
// end of the service does not wait for them.
func TestTracesWithoutCollector(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	traces, err := NewTraces(TraceConfig{Endpoint: "http://127.0.0.1:1", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	sampled := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	m := &store.Claimed{Trace: appendContext(nil, sampled)}
	began := time.Now()
	for range 3000 {
		hooks, end := traces.Attempt(m, 1)
		hooks.Step("data", "ok", 354)
		end("sent", "")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_ = traces.Stop(ctx) // says that it could not
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	if n := strings.Count(log.String(), "the collector does not take spans"); n > 1 {
		t.Errorf("told %d times: %s", n, log.String())
	}
}
