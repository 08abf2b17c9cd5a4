package server

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// TestNameOfLoopback: once callers are asked who they are, loopback is reached only through a
// mail server that says so itself, which a team's administrator cannot set.
func TestNameOfLoopback(t *testing.T) {
	dest, err := smtpx.ParseDestinations("")
	if err != nil {
		t.Fatal(err)
	}
	asked := false
	d := newDialers(dest, func() bool { return asked })
	for _, x := range []struct {
		host, address string
		open, closed  bool
	}{
		{"mx.example", "127.0.0.1:25", true, false},
		{"mx.example", "[::1]:25", true, false},
		{"mx.example", "[::ffff:127.0.0.1]:25", true, false},
		{"mx.example", "8.8.8.8:25", true, true},
		{"127.0.0.1", "127.0.0.1:2525", true, true},
		{"localhost", "[::1]:2525", true, true},
	} {
		dialer := d.to(&store.MailServer{Type: store.TypeSMTP, SMTP: &store.SMTP{Host: x.host}})
		for i, want := range []bool{x.open, x.closed} {
			asked = i == 1
			err := dialer.Allow(netip.MustParseAddrPort(x.address))
			if (err == nil) != want || err != nil && !errors.Is(err, smtpx.ErrNotAllowed) {
				t.Errorf("%s at %s, callers asked %v: got %v, want allowed %v", x.host, x.address, asked, err, want)
			}
		}
	}
}
