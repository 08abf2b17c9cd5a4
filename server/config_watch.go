package server

import (
	"flag"
	"fmt"
	"net"
)

// declareWatch declares the flags by which the service is watched.
func (c *Config) declareWatch(fs *flag.FlagSet) {
	fs.StringVar(&c.MetricsListen, "metrics-listen", "", "address for Prometheus, such as 127.0.0.1:9090: /metrics over plain HTTP, without a login; empty: none")
}

// checkWatch finds what cannot work of them.
func (c *Config) checkWatch() error {
	for _, a := range [][2]string{{"metrics-listen", c.MetricsListen}} {
		if _, _, err := net.SplitHostPort(a[1]); err != nil && a[1] != "" {
			return fmt.Errorf("%s: %q is not host:port", a[0], a[1])
		}
	}
	return nil
}

// watchLines is what --print-config says of them.
func (c *Config) watchLines() string {
	return fmt.Sprintf("metrics-listen=%s\n", c.MetricsListen)
}
