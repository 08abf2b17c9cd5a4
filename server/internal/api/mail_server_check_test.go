package api

import (
	"strings"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

// TestCheckHost: a host name or an address, and nothing that a resolver, a certificate check or
// EHLO reads in a way of its own.
func TestCheckHost(t *testing.T) {
	for _, h := range []string{"x", "mail.x.example", "MAIL.x.example", "mail-1.x.example", "127.0.0.1", "::1", "[::1]", "2001:db8::1", "münchen.example", "xn--mnchen-3ya.example", strings.Repeat("a.", 126) + "a"} {
		var c apierr.Check
		if checkHost(&c, "smtp.host", h); !c.OK() {
			t.Errorf("%q: %v", h, c.Violations())
		}
	}
	var han strings.Builder
	for i := range 100_000 {
		han.WriteRune(rune(0x4e00 + i*7919%20000))
	}
	for _, h := range []string{"", " ", "x y", "x\r\nQUIT", "x\x00", "x.example.", ".x", "x..y", "-x.example", "x-.example", "x_y.example", "x/y", "x:25", "user@x.example", "127.1", "2130706433", "0177.0.0.1",
		"127.0.0.1.", "1.2.3.4.5", "[x]", "http://x", "x%zz", strings.Repeat("a.", 127) + "a", strings.Repeat("a", 64) + ".example", han.String()} {
		var c apierr.Check
		// the least of several: a busy machine holds up some
		took := time.Hour
		for n := 0; n < 20 && took > 100*time.Millisecond; n++ {
			c = apierr.Check{}
			begin := time.Now()
			checkHost(&c, "smtp.host", h)
			took = min(took, time.Since(begin))
		}
		if took > 100*time.Millisecond {
			t.Errorf("%d octets cost %v", len(h), took)
		}
		if v := c.Violations(); len(v) != 1 || v[0].Field != "smtp.host" {
			t.Errorf("%.40q: %v", h, v)
		}
	}
}
