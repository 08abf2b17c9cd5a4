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
		{"connections", "connections of callers at one listening address; 0 = no limit, as with all that follow", &c.MaxConnections},
		{"connections-per-address", "the same from one address of theirs; an IPv6 network of 64 bits is one", &c.MaxConnectionsEach},
		{"calls-per-second", "calls of one caller a second in this process", &l.CallsPerSecond},
		{"php-streams", "SendStream calls in php mode that one caller may have open in this process", &l.Streams},
		{"tests-per-minute", "TestMailServer calls of one caller a minute in this process; two at once", &l.TestsPerMinute},
		{"watchers", "WatchMails calls that one caller may have open in this process", &l.Watchers},
		{"uploads", "UploadAttachment calls that one caller may have open in this process", &l.Uploads},
		{"caller-mails-per-minute", "mails of one caller a minute, over all replicas", &l.CallerMails},
		{"caller-recipients-per-minute", "recipients of one caller's mails a minute, over all replicas", &l.CallerRecipients},
		{"team-mails-per-minute", "mails of one team a minute, over all replicas", &l.TeamMails},
		{"team-recipients-per-minute", "recipients of one team's mails a minute, over all replicas", &l.TeamRecipients},
		{"queue-depth", "mails of one team in the due-out journal; beyond it daemon mode is refused", &l.Queue},
		{"disk-floor-mib", "MiB that stay free on the database's disk, of a small disk a twentieth; below it daemon mode and uploads are refused", &l.DiskMiB},
		{"guard-address-per-hour", "mails of one team to one address in to or cc an hour; beyond it they are held until somebody else releases them", &l.Guard.Address},
		{"guard-caller-per-hour", "mails of one caller an hour; beyond it they are held", &l.Guard.Caller},
		{"guard-team-per-hour", "mails of one team an hour; beyond it they are held", &l.Guard.Team},
		{"guard-batch", "mails of one batch_id a day; beyond it they are held", &l.Guard.Batch},
	}
}

func (c *Config) declareLimits(fs *flag.FlagSet) {
	c.Limits = quota.Defaults()
	c.MaxConnections, c.MaxConnectionsEach = 10_000, 1000
	for _, f := range c.limitFlags() {
		fs.IntVar(f.value, f.name, *f.value, f.usage)
	}
	fs.Var(&c.Limits.Guard.Kinds, "guard-kind-per-hour", "mails of one team an hour by kind, such as invoice=500,bulk=100000; beyond it they are held")
}

// limitLines is what --print-config says of the limits.
func (c *Config) limitLines() string {
	var b strings.Builder
	for _, f := range c.limitFlags() {
		fmt.Fprintf(&b, "%s=%d\n", f.name, *f.value)
	}
	fmt.Fprintf(&b, "guard-kind-per-hour=%s\n", c.Limits.Guard.Kinds)
	return b.String()
}
