package server

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
)

// declareWatch declares the flags by which the service is watched.
func (c *Config) declareWatch(fs *flag.FlagSet) {
	fs.StringVar(&c.MetricsListen, "metrics-listen", "", "address for Prometheus, such as 127.0.0.1:9090: /metrics over plain HTTP, without a login; empty: none")
	fs.StringVar(&c.HealthListen, "health-listen", "", "address for probes such as Kubernetes' in plaintext, without a login: /healthz, /readyz and the gRPC health service; empty: none")
	fs.StringVar(&c.WebListen, "web-listen", "", "address of a page for people, such as 127.0.0.1:8080: mail servers, journals, queues, audit; it asks for a token where callers are asked; beyond loopback only with --tls-cert; empty: none")
	fs.StringVar(&c.TraceEndpoint, "trace-endpoint", "", "OpenTelemetry collector that gets traces by OTLP over gRPC, such as http://127.0.0.1:4317, or https://; empty: none")
	fs.Float64Var(&c.TraceSample, "trace-sample", 0.01, "with --trace-endpoint: share of the calls that are followed, 0 to 1; a call that comes with a trace of its own is followed when its caller follows it")
	fs.DurationVar(&c.DrainDelay, "drain-delay", 0, "how long the service goes on after SIGTERM while health says NOT_SERVING, so that callers go elsewhere; --shutdown-grace begins after it")
}

// checkWatch finds what cannot work of them.
func (c *Config) checkWatch() error {
	for _, a := range [][2]string{{"metrics-listen", c.MetricsListen}, {"health-listen", c.HealthListen}, {"web-listen", c.WebListen}} {
		if _, _, err := net.SplitHostPort(a[1]); err != nil && a[1] != "" {
			return fmt.Errorf("%s: %q is not host:port", a[0], a[1])
		}
	}
	if c.DrainDelay < 0 {
		return errors.New("drain-delay: is negative")
	}
	return c.checkTraces()
}

// checkTraces finds what cannot work of --trace-endpoint and --trace-sample.
func (c *Config) checkTraces() error {
	if !(c.TraceSample >= 0 && c.TraceSample <= 1) {
		return fmt.Errorf("trace-sample: %v is not between 0 and 1", c.TraceSample)
	}
	if c.TraceEndpoint == "" {
		return nil
	}
	u, err := url.Parse(c.TraceEndpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("trace-endpoint: %q is not http://host:port or https://host:port", c.TraceEndpoint)
	}
	return nil
}

// watchLines is what --print-config says of them.
func (c *Config) watchLines() string {
	return fmt.Sprintf("metrics-listen=%s\nhealth-listen=%s\nweb-listen=%s\ntrace-endpoint=%s\ntrace-sample=%v\ndrain-delay=%v\n", c.MetricsListen, c.HealthListen, c.WebListen, c.TraceEndpoint, c.TraceSample, c.DrainDelay)
}
