package smtpx_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/smtpxtest"
)

func destinations(t *testing.T, spec string) *smtpx.Destinations {
	t.Helper()
	d, err := smtpx.ParseDestinations(spec)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// neverAddresses reach something that is no mail server, whatever the policy.
var neverAddresses = []string{
	"0.0.0.0", "0.1.2.3", "::", "255.255.255.255", "240.0.0.1", "224.0.0.1", "239.255.255.255", "ff02::1", "ff05::2", "ff0e::1",
	"169.254.0.1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "fe80::a9fe:a9fe", "fec0::1",
	"fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
	// The same, carried by an address of the other family.
	"::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::ffff:0.0.0.0", "::ffff:224.0.0.1", "::ffff:169.254.169.254%eth0", "::169.254.169.254", "::a9fe:a9fe", "::ffff:0:169.254.169.254",
	"64:ff9b::169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b::0.0.0.0", "64:ff9b::100.100.100.200", "64:ff9b:1::169.254.169.254", "2002:a9fe:a9fe::1", "2002:a9fe:a9fe:1234::", "2001:0:a9fe:a9fe::1",
}

// TestNeverDialled: no policy opens these, not even one that names them.
func TestNeverDialled(t *testing.T) {
	for _, spec := range []string{"", "public:*,private:*,loopback:*", "0.0.0.0/0:*,[::]/0:*", "169.254.0.0/16:*,[fe80::]/10:*,169.254.169.254:*,[fd00:ec2::254]:*,100.100.100.200:*,[::]:*,0.0.0.0:*"} {
		d := destinations(t, spec)
		for _, a := range neverAddresses {
			for _, port := range []uint16{25, 80, 587} {
				if err := d.Check(netip.AddrPortFrom(netip.MustParseAddr(a), port)); err != smtpx.ErrNotAllowed {
					t.Errorf("%q: %s port %d: %v", spec, a, port, err)
				}
			}
		}
		if err := d.Check(netip.AddrPort{}); err != smtpx.ErrNotAllowed {
			t.Errorf("%q: no address: %v", spec, err)
		}
	}
}

// TestDestinations: who may be dialled on which port.
func TestDestinations(t *testing.T) {
	const (
		public   = "8.8.8.8 1.1.1.1 2606:4700::1111 64:ff9b::8.8.8.8 2002:808:808::1 ::ffff:8.8.8.8 172.32.0.1 100.128.0.1"
		private  = "10.0.0.1 172.16.0.1 192.168.1.1 100.64.0.1 fd12:3456::1 ::ffff:10.0.0.1"
		loopback = "127.0.0.1 127.1.2.3 ::1 ::ffff:127.0.0.1"
		// Allowed only where both what they are and what they carry is.
		overLoopback = "64:ff9b::127.0.0.1 64:ff9b:1::127.0.0.1 ::ffff:0:127.0.0.1 2002:7f00:1::1 ::127.0.0.1"
		overPrivate  = "64:ff9b::10.0.0.1 64:ff9b:1::10.0.0.1 ::ffff:0:10.0.0.1 2002:a00:1::1"
		// Addresses that belong to no host of the internet.
		nobody = "198.18.0.1 198.19.255.255 192.0.2.1 198.51.100.1 203.0.113.1 192.88.99.1 100::1 2001:db8::1 3fff::1 3fff:fff::1 5f00::1 " +
			"2606:4700::5efe:8.8.8.8 2606:4700::200:5efe:808:808 2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:7f00:1 64:ff9b::198.18.0.1 2002:c612:1::1"
	)
	ports := func(s string, p uint16) string {
		var out []string
		for _, a := range strings.Fields(s) {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(a), p).String())
		}
		return strings.Join(out, " ") + " "
	}
	each := func(s string, ps ...uint16) string {
		var out string
		for _, p := range ps {
			out += ports(s, p)
		}
		return out
	}
	mailPorts, others := []uint16{25, 465, 587, 2525}, []uint16{1, 22, 24, 26, 80, 443, 2524, 3306, 5432, 6379, 8080, 65535}
	for name, c := range map[string]struct {
		spec    string
		yes, no string
	}{
		"default":            {"", each(public+" "+private+" "+loopback+" "+overPrivate+" "+overLoopback, mailPorts...), each(public+" "+private+" "+loopback+" "+overLoopback, others...) + each(nobody, mailPorts...) + ports(public+" "+loopback, 0)},
		"public":             {"public:25", ports(public, 25), ports(private+" "+loopback+" "+overPrivate+" "+overLoopback, 25) + ports(public, 587)},
		"private":            {"private:25", ports(private, 25), ports(public+" "+loopback+" "+overPrivate+" "+overLoopback, 25)},
		"loopback":           {"loopback:25", ports(loopback+" ::127.0.0.1", 25), ports(public+" "+private, 25)},
		"an address":         {"10.1.2.3:25+587", "10.1.2.3:25 10.1.2.3:587 [::ffff:10.1.2.3]:25", "10.1.2.4:25 10.1.2.3:465 [64:ff9b::10.1.2.3]:25"},
		"a prefix":           {"10.1.0.0/16:8000-8010", "10.1.2.3:8000 10.1.255.255:8010", "10.2.0.0:8000 10.1.0.0:7999 10.1.0.0:8011"},
		"a prefix of IPv6":   {"[2001:db8::]/32:*", "[2001:db8::1]:1 [2001:db8:ffff::1]:65535", "[2001:db9::1]:25 8.8.8.8:25"},
		"prefixes of nobody": {"198.18.0.0/15:25,[3fff::]/20:25", "198.18.0.1:25 [3fff::1]:25", "198.20.0.1:25 [3fff:1000::1]:25"},
		"a tunnel's prefix":  {"[fd00::]/8:25,10.0.0.1:25", "[fd00::5efe:10.0.0.1]:25 [fd00::1]:25", "[fd00::5efe:10.0.0.2]:25 [fd00::200:5efe:7f00:1]:25"},
		"a mapped address":   {"[::ffff:10.1.2.3]:25", "10.1.2.3:25", "10.1.2.4:25"},
		"spaces":             {" public:25 , 10.0.0.0/8:26 ", "8.8.8.8:25 10.0.0.1:26", "8.8.8.8:26 10.0.0.1:25"},
	} {
		d := destinations(t, c.spec)
		for _, s := range strings.Fields(c.yes) {
			if err := d.Check(netip.MustParseAddrPort(s)); err != nil {
				t.Errorf("%s: %s is refused", name, s)
			}
		}
		for _, s := range strings.Fields(c.no) {
			if err := d.Check(netip.MustParseAddrPort(s)); err != smtpx.ErrNotAllowed {
				t.Errorf("%s: %s: %v", name, s, err)
			}
		}
	}
	if err := new(smtpx.Destinations).Check(netip.MustParseAddrPort("8.8.8.8:25")); err == nil {
		t.Error("the zero Destinations allows something")
	}
}

func TestBadDestinations(t *testing.T) {
	for _, spec := range []string{"public", "public:", "public:x", "public:0", "public:65536", "public:25-", "public:-25", "public:30-20", "public:25+", "public:25,", ",", "mail.example.com:25", "everything:25", "10.0.0.0/33:25", "10.0.0/8:25",
		"::1:25x", "[::1]", "127.1:25", "0x7f.0.0.1:25", "010.0.0.1:25", "public:25 587", "public:25;private:25", "fe80::1%eth0/64:25"} {
		if d, err := smtpx.ParseDestinations(spec); err == nil {
			t.Errorf("%q was taken: %+v", spec, d)
		} else if strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("%q: %q", spec, err)
		}
	}
}

// TestSSRF: whatever way an address on this machine is written or resolved, a policy without
// loopback makes no connection to it, and the error is one and the same.
func TestSSRF(t *testing.T) {
	four := (&smtpxtest.Server{}).Start(t)
	dials := func(allow func(netip.AddrPort) error, host string, lookup func(context.Context, string) ([]netip.Addr, error)) error {
		d := &smtpx.Dialer{Allow: allow, Lookup: lookup}
		s, err := d.Dial(context.Background(), smtpx.Relay{Host: host, Port: four.Port(), Encryption: smtpx.EncryptionNone, Timeouts: short})
		if err == nil {
			_ = s.Close()
		}
		return err
	}
	// What the C library's resolver makes of a number.
	asC := func(addrs ...string) func(context.Context, string) ([]netip.Addr, error) {
		return func(context.Context, string) ([]netip.Addr, error) {
			var out []netip.Addr
			for _, a := range addrs {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		}
	}
	outside := destinations(t, "public:*,private:*").Check
	for _, host := range []string{"127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.000.000.001", "localhost", "innocent.example"} {
		if err := dials(outside, host, asC("127.0.0.1")); !errors.Is(err, smtpx.ErrNotAllowed) {
			t.Errorf("%s: %v", host, err)
		}
	}
	uniform := ""
	for _, host := range append([]string{"127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1", "[::ffff:7f00:1]", "::127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::"}, neverAddresses...) {
		err := dials(outside, host, nil)
		if !errors.Is(err, smtpx.ErrNotAllowed) {
			t.Errorf("%s: %v", host, err)
			continue
		}
		if uniform == "" {
			uniform = err.Error()
		}
		if err.Error() != uniform {
			t.Errorf("%s: %q, and others %q: errors tell addresses apart", host, err, uniform)
		}
	}
	if n := four.Conns(); n != 0 {
		t.Fatalf("%d connections", n)
	}

	// A name with two addresses: the one that is not allowed is left out, wherever it stands,
	// and tells nothing.
	only := destinations(t, "127.0.0.1:*").Check
	for _, addrs := range [][]string{{"169.254.169.254", "127.0.0.1"}, {"127.0.0.1", "169.254.169.254"}, {"127.0.0.2", "::1", "127.0.0.1"}} {
		var asked []string
		allow := func(ap netip.AddrPort) error {
			err := only(ap)
			if err == nil {
				asked = append(asked, ap.Addr().String())
			}
			return err
		}
		if err := dials(allow, "two.example", asC(addrs...)); err != nil || len(asked) != 1 || asked[0] != "127.0.0.1" {
			t.Errorf("%v: %v, allowed %v", addrs, err, asked)
		}
	}
	if n := four.Conns(); n != 3 { // and so the listener does count
		t.Fatalf("%d connections", n)
	}

	// A name that answers differently the second time: what was checked is what is dialled, and
	// it is asked once.
	var asked atomic.Int32
	rebinding := func(context.Context, string) ([]netip.Addr, error) {
		if asked.Add(1) == 1 {
			return []netip.Addr{netip.MustParseAddr("127.0.0.2")}, nil // nobody listens there
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	second := destinations(t, "127.0.0.2:*").Check
	if err := dials(second, "rebinding.example", rebinding); err == nil || asked.Load() != 1 || four.Conns() != 3 {
		t.Errorf("%v, asked %d times, %d connections", err, asked.Load(), four.Conns())
	}

	// Ports of other services, on this machine and under the default policy.
	for _, port := range []int{22, 80, 5432, 6379} {
		_, err := (&smtpx.Dialer{Allow: destinations(t, "").Check}).Dial(context.Background(), smtpx.Relay{Host: "127.0.0.1", Port: port, Encryption: smtpx.EncryptionNone, Timeouts: short})
		if !errors.Is(err, smtpx.ErrNotAllowed) || err.Error() != uniform {
			t.Errorf("port %d: %v", port, err)
		}
	}
}

// TestProbeTellsNothingAboutTheNetwork: a probe goes through the same check, and its steps say
// no more than the error.
func TestProbeTellsNothingAboutTheNetwork(t *testing.T) {
	open := (&smtpxtest.Server{}).Start(t)
	d := &smtpx.Dialer{Allow: destinations(t, "public:*").Check}
	var first string
	for _, r := range []smtpx.Relay{{Host: "127.0.0.1", Port: open.Port()}, {Host: "127.0.0.1", Port: 1}, {Host: "169.254.169.254", Port: 80}, {Host: "10.0.0.1", Port: 25}, {Host: "::ffff:10.0.0.1", Port: 6379}} {
		r.Encryption, r.Timeouts = smtpx.EncryptionNone, short
		res := smtpx.Probe(context.Background(), d, r, smtpx.ProbeOptions{})
		report := fmt.Sprint(res.Success, res.Err)
		for _, s := range res.Steps {
			s.Elapsed = 0
			report += fmt.Sprintf("\n%+v", s)
		}
		if first == "" {
			first = report
		}
		if res.Success || report != first || strings.Contains(report, r.Host) {
			t.Errorf("%s port %d:\n%s\nthe first:\n%s", r.Host, r.Port, report, first)
		}
	}
	if n := open.Conns(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// TestProbeCutsAtLetters: a report is UTF-8 however long the relay's words are, else it could
// not be answered.
func TestProbeCutsAtLetters(t *testing.T) {
	for n := range 4 {
		long := strings.Repeat("x", n) + strings.Repeat("語", 300)
		for _, verb := range []string{"EHLO", "MAIL", "RCPT"} {
			for _, code := range []string{"250 ", "550 "} {
				srv := (&smtpxtest.Server{On: on(verb, 1, smtpxtest.Action{Reply: code + long + "\r\n"})}).Start(t)
				res := smtpx.Probe(context.Background(), new(smtpx.Dialer), relay(srv), smtpx.ProbeOptions{From: "a@x.example", Recipient: "b@y.example"})
				for _, s := range res.Steps {
					if !utf8.ValidString(s.Detail) || len(s.Detail) > 200 {
						t.Errorf("%s %s%d: %d octets %q", verb, code, n, len(s.Detail), s.Detail)
					}
				}
			}
		}
	}
}
