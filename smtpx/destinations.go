package smtpx

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Destinations says where the service may connect. The zero Destinations allows nothing.
type Destinations struct {
	rules []destination
}

type destination struct {
	class    string // public, private, loopback, or "" for prefix
	prefix   netip.Prefix
	from, to uint16
}

// defaultPorts are those mail is submitted or relayed on.
const defaultPorts = "25+465+587+2525"

// ParseDestinations reads a comma list of TARGET:PORTS.
//
// TARGET is public, private, loopback, an address, or a CIDR prefix (IPv6 in brackets:
// [2001:db8::]/32). PORTS is * or ports and ranges joined by +, such as 25+465+8000-8010. The
// empty spec means
//
//	public:25+465+587+2525,private:25+465+587+2525,loopback:25+465+587+2525
//
// Whatever the spec says, link-local, metadata, multicast, broadcast and unspecified addresses
// are never allowed. Addresses that no host of the internet has, such as those of examples, are
// not public; a prefix can name them.
func ParseDestinations(spec string) (*Destinations, error) {
	if strings.TrimSpace(spec) == "" {
		spec = "public:" + defaultPorts + ",private:" + defaultPorts + ",loopback:" + defaultPorts
	}
	d := &Destinations{}
	for _, item := range strings.Split(spec, ",") {
		item = strings.TrimSpace(item)
		rs, err := parseDestination(item)
		if err != nil {
			return nil, fmt.Errorf("destination %q: %w", item, err)
		}
		d.rules = append(d.rules, rs...)
	}
	return d, nil
}

func parseDestination(item string) ([]destination, error) {
	i := strings.LastIndexByte(item, ':')
	if i < 0 || strings.HasSuffix(item, "]") {
		return nil, errors.New("has no port: write TARGET:PORTS")
	}
	target, ports := item[:i], item[i+1:]
	var r destination
	switch target {
	case "public", "private", "loopback":
		r.class = target
	default:
		t := strings.NewReplacer("[", "", "]", "").Replace(target)
		if !strings.Contains(t, "/") {
			a, err := netip.ParseAddr(t)
			if err != nil {
				return nil, errors.New("is neither public, private, loopback, an address nor a prefix")
			}
			r.prefix = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		} else {
			p, err := netip.ParsePrefix(t)
			if err != nil {
				return nil, errors.New("is not a prefix")
			}
			r.prefix = p.Masked()
		}
	}
	var out []destination
	for _, p := range strings.Split(ports, "+") {
		q := r
		if p == "*" {
			q.from, q.to = 1, 65535
		} else {
			lo, hi, isRange := strings.Cut(p, "-")
			a, err := strconv.ParseUint(lo, 10, 16)
			b := a
			if err == nil && isRange {
				b, err = strconv.ParseUint(hi, 10, 16)
			}
			if err != nil || a == 0 || b < a {
				return nil, fmt.Errorf("has the bad port %q", p)
			}
			q.from, q.to = uint16(a), uint16(b)
		}
		out = append(out, q)
	}
	return out, nil
}

// Check says whether the address may be dialled. The error is always the same, so that a caller
// learns nothing about the network.
func (d *Destinations) Check(ap netip.AddrPort) error {
	for _, a := range unwrap(ap.Addr()) {
		if never(a) || !d.allows(a, ap.Port()) {
			return ErrNotAllowed
		}
	}
	return nil
}

// CheckElsewhere is Check for an address of another machine: never loopback, whatever the spec
// says.
func (d *Destinations) CheckElsewhere(ap netip.AddrPort) error {
	if slices.ContainsFunc(unwrap(ap.Addr()), netip.Addr.IsLoopback) {
		return ErrNotAllowed
	}
	return d.Check(ap)
}

func (d *Destinations) allows(a netip.Addr, port uint16) bool {
	return slices.ContainsFunc(d.rules, func(r destination) bool {
		if port < r.from || port > r.to {
			return false
		}
		switch r.class {
		case "loopback":
			return a.IsLoopback()
		case "private":
			return isPrivate(a)
		case "public":
			return isPublic(a)
		}
		return r.prefix.Contains(a)
	})
}

var (
	shared = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	nat64  = netip.MustParsePrefix("64:ff9b::/96")  // RFC 6052
	// RFC 8215; the last 32 bits, as every translator is set up
	nat64own  = netip.MustParsePrefix("64:ff9b:1::/48")
	siit      = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 7915, IPv4-translated
	sixToFour = netip.MustParsePrefix("2002::/16")       // RFC 3056

	// notPublic are no hosts of the internet. A prefix of the spec that names them opens them.
	notPublic = []netip.Prefix{
		netip.MustParsePrefix("198.18.0.0/15"),   // RFC 2544, benchmarks
		netip.MustParsePrefix("192.0.2.0/24"),    // RFC 5737, documentation
		netip.MustParsePrefix("198.51.100.0/24"), //
		netip.MustParsePrefix("203.0.113.0/24"),  //
		netip.MustParsePrefix("192.88.99.0/24"),  // RFC 7526, relays of 6to4
		netip.MustParsePrefix("100::/64"),        // RFC 6666, discards what it gets
		netip.MustParsePrefix("2001:db8::/32"),   // RFC 3849, documentation
		netip.MustParsePrefix("3fff::/20"),       // RFC 9637, documentation
		netip.MustParsePrefix("5f00::/16"),       // RFC 9602, segment identifiers
	}

	neverHosts = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),   // this network
		netip.MustParsePrefix("240.0.0.0/4"), // reserved, broadcast
		// protocol assignments; a metadata service at 192.0.0.192
		netip.MustParsePrefix("192.0.0.0/24"),
		netip.MustParsePrefix("2001::/32"), // Teredo: hides an IPv4 address
		netip.MustParsePrefix("fec0::/10"), // site-local, given up
		// metadata services of clouds, from here on
		netip.MustParsePrefix("fd00:ec2::/32"),
		netip.MustParsePrefix("fd20:ce::254/128"),   //
		netip.MustParsePrefix("100.100.100.200/32"), //
		netip.MustParsePrefix("168.63.129.16/32"),   //
	}
)

func isPrivate(a netip.Addr) bool { return a.IsPrivate() || shared.Contains(a) }

func isPublic(a netip.Addr) bool {
	return !a.IsLoopback() && !isPrivate(a) && !isISATAP(a) && !slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(a) })
}

// isISATAP reports whether the interface's part of the address is one of RFC 5214: a tunnel to
// the IPv4 address in its last 32 bits, in whatever network.
func isISATAP(a netip.Addr) bool {
	b := a.As16()
	return a.Is6() && b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// never: addresses that no mail server has.
func never(a netip.Addr) bool {
	return !a.IsValid() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsInterfaceLocalMulticast() ||
		slices.ContainsFunc(neverHosts, func(p netip.Prefix) bool { return p.Contains(a) })
}

// unwrap gives the address and, where it carries an IPv4 address that the network would unpack,
// that one too: both must be allowed.
func unwrap(a netip.Addr) []netip.Addr {
	a = a.WithZone("").Unmap()
	b := a.As16()
	switch {
	case a.Is4():
		return []netip.Addr{a}
	case nat64.Contains(a), nat64own.Contains(a), siit.Contains(a), isISATAP(a):
		return []netip.Addr{a, netip.AddrFrom4([4]byte(b[12:16]))}
	case sixToFour.Contains(a):
		return []netip.Addr{a, netip.AddrFrom4([4]byte(b[2:6]))}
	case [12]byte(b[:12]) == [12]byte{} && !a.IsLoopback() && !a.IsUnspecified():
		// ::a.b.c.d, the old compatible form
		return []netip.Addr{netip.AddrFrom4([4]byte(b[12:16]))}
	}
	return []netip.Addr{a}
}
