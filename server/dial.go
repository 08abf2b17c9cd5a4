package server

import (
	"net/netip"

	"github.com/maildispatch/maildispatch/server/internal/api"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// dialers are how mail servers are reached. They do not change once made.
type dialers struct {
	// The mail program of this machine is reached on purpose, whatever the destinations say
	// about loopback.
	local *smtpx.Dialer
	// A host that is this machine by its own spelling, which only system administrators set.
	here *smtpx.Dialer
	// Any other host. A team's administrator may set it, and say what its name resolves to.
	elsewhere *smtpx.Dialer
}

// newDialers makes the dialers. asked reports whether callers are asked who they are: while
// nobody is, every caller may reach loopback anyway.
func newDialers(dest *smtpx.Destinations, asked func() bool) *dialers {
	return &dialers{local: &smtpx.Dialer{}, here: &smtpx.Dialer{Allow: dest.Check}, elsewhere: &smtpx.Dialer{Allow: func(ap netip.AddrPort) error {
		if asked() {
			return dest.CheckElsewhere(ap)
		}
		return dest.Check(ap)
	}}}
}

func (d *dialers) to(s *store.MailServer) *smtpx.Dialer {
	switch {
	case s.Type == store.TypeLocalhost:
		return d.local
	case s.SMTP != nil && api.OnThisMachine(s.SMTP.Host):
		return d.here
	}
	return d.elsewhere
}
