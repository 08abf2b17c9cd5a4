package smtpx

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/maildispatch/maildispatch/smtpx/internal/idn"
)

var (
	errHost = errors.New("is neither a host name nor an IP address")
	errHelo = errors.New("is neither a host name nor an address literal such as [192.0.2.1] or [IPv6:2001:db8::1]")
)

// maxHost is the length of a host name in octets of its A-labels (RFC 1035 2.3.4).
const maxHost = 253

// Host checks the host of a mail server: a host name, or an IP address with or without
// brackets. It gives the form to store and to use. That is the host as given, but for an
// internationalised name, which becomes its A-labels (RFC 5890): the form that a name server
// and a certificate know.
//
// A name that IDNA maps to another one than is written (ⓔvil.example) is refused, with that
// name. A zone (fe80::1%eth0) is refused. It names an interface of this machine, and its text
// may hold any octet.
func Host(s string) (string, error) {
	addr := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		addr = s[1 : len(s)-1]
	}
	if a, err := netip.ParseAddr(addr); err == nil {
		if a.Zone() != "" || addr != s && !a.Is6() {
			return "", errHost
		}
		return s, nil
	}
	a, err := hostName(s, errHost)
	if err == nil && strings.EqualFold(a, s) {
		return s, nil // a password is sealed for the host as it is spelt
	}
	return a, err
}

// HeloName checks a name for EHLO (RFC 5321 4.1.1.1) and gives the form that goes on the wire:
// a host name as A-labels, or an address literal ([192.0.2.1], [IPv6:2001:db8::1]).
func HeloName(s string) (string, error) {
	if !strings.HasPrefix(s, "[") {
		return hostName(s, errHelo)
	}
	in, closed := strings.CutSuffix(s[1:], "]")
	six, isSix := strings.CutPrefix(in, "IPv6:")
	a, err := netip.ParseAddr(six)
	if !closed || err != nil || a.Zone() != "" || a.Is6() != isSix {
		return "", errHelo
	}
	return s, nil
}

func hostName(s string, bad error) (string, error) {
	if s == "" || len(s) > 4*maxHost { // in UTF-8; the work below grows with the square of it
		return "", bad
	}
	a, err := idn.ASCII(s)
	var other idn.Mapped
	if errors.As(err, &other) {
		return "", other
	}
	if err != nil || len(a) > maxHost || strings.Trim(a, "0123456789.") == "" {
		return "", bad
	}
	return a, nil
}

// addressLiteral is an address as EHLO gives it (RFC 5321 4.1.3).
func addressLiteral(a netip.Addr) string {
	if a = a.WithZone("").Unmap(); a.Is4() {
		return "[" + a.String() + "]"
	}
	return "[IPv6:" + a.String() + "]"
}
