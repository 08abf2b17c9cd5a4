package client

import (
	"net"
	"net/netip"
	"strings"
)

// local reports whether a grpc target can only be this machine: a unix socket, or nothing but
// loopback addresses. In doubt it says no.
func local(target string) bool {
	endpoint := target
	switch scheme, rest, _ := strings.Cut(target, ":"); scheme {
	case "unix", "unix-abstract":
		return true
	case "dns", "passthrough", "ipv4", "ipv6":
		endpoint = strings.TrimPrefix(rest, "/")
		if after, is := strings.CutPrefix(rest, "//"); is { // scheme://authority/endpoint
			_, endpoint, _ = strings.Cut(after, "/")
		}
	}
	for address := range strings.SplitSeq(endpoint, ",") { // ipv4 and ipv6 take a list
		if !loopback(address) {
			return false
		}
	}
	return true
}

// loopback reads host, host:port, :port (which net.Dial and grpc take for this machine) or
// [host]:port.
func loopback(address string) bool {
	host, port, err := net.SplitHostPort(address)
	switch {
	case err != nil:
		host = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]")
	case host == "" && port != "":
		return true
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
