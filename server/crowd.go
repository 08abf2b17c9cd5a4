package server

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// crowd bounds the connections of one listener: in all, and from one address. A connection
// costs memory and a descriptor before anybody has said who it is, so who is over a bound is
// hung up on at once. A caller's library comes again by itself.
type crowd struct {
	net.Listener
	most, mostEach int // 0 = no bound
	log            *slog.Logger
	count          func() // hears of each that is refused

	mu     sync.Mutex // guards the rest
	all    int
	from   map[netip.Prefix]int
	told   time.Time
	untold int
}

func newCrowd(l net.Listener, most, mostEach int, log *slog.Logger, count func()) *crowd {
	return &crowd{Listener: l, most: most, mostEach: mostEach, log: log, count: count, from: map[netip.Prefix]int{}}
}

// Accept implements net.Listener.
func (l *crowd) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		at := origin(c.RemoteAddr())
		if why := l.enter(at); why != "" {
			_ = c.Close() // it was never heard
			l.refuse(at, why)
			continue
		}
		return &guest{Conn: c, leave: sync.OnceFunc(func() { l.left(at) })}, nil
	}
}

// origin is whose connection counts together: an IPv4 address, or an IPv6 network of 64 bits,
// of which one machine has all addresses.
func origin(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.WithZone("").Prefix(bits) // the bits are right for the address
	return p
}

// enter counts a connection, or says why there is no room for it.
func (l *crowd) enter(at netip.Prefix) (why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.most > 0 && l.all >= l.most:
		return "connections"
	case l.mostEach > 0 && l.from[at] >= l.mostEach:
		return "connections-per-address"
	}
	l.all++
	l.from[at]++
	return ""
}

func (l *crowd) left(at netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.from[at]--; l.from[at] == 0 {
		delete(l.from, at)
	}
}

// refuse tells of it, at most once in a while.
func (l *crowd) refuse(at netip.Prefix, limit string) {
	if l.count != nil {
		l.count()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.untold++
	if time.Since(l.told) < refusedEvery {
		return
	}
	l.log.Warn("connections were refused: there are as many as may be", "limit", limit, "from", at.String(), "refused", l.untold)
	l.told, l.untold = time.Now(), 0
}

// guest is a connection that was let in.
type guest struct {
	net.Conn
	leave func()
}

func (g *guest) Close() error {
	defer g.leave()
	return g.Conn.Close()
}
