package server

import (
	"flag"
	"fmt"
	"strings"

	"github.com/maildispatch/maildispatch/server/internal/quota"
)

// limitFlag is a limit that is a number.
type limitFlag struct {
	name, usage string
	value       *int
}

func (c *Config) limitFlags() []limitFlag {
	l := &c.Limits
	return []limitFlag{
		{"calls-per-second", "calls of one caller a second in this process; 0 = no limit, as with all that follow", &l.CallsPerSecond},
		{"php-streams", "SendStream calls in php mode that one caller may have open in this process", &l.Streams},
		{"tests-per-minute", "TestMailServer calls of one caller a minute in this process; two at once", &l.TestsPerMinute},
		{"watchers", "WatchMails calls that one caller may have open in this process", &l.Watchers},
	}
}

func (c *Config) declareLimits(fs *flag.FlagSet) {
	c.Limits = quota.Defaults()
	for _, f := range c.limitFlags() {
		fs.IntVar(f.value, f.name, *f.value, f.usage)
	}
}

// limitLines is what --print-config says of the limits.
func (c *Config) limitLines() string {
	var b strings.Builder
	for _, f := range c.limitFlags() {
		fmt.Fprintf(&b, "%s=%d\n", f.name, *f.value)
	}
	return b.String()
}
