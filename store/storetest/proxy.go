package storetest

import (
	"bytes"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy stands between a store and PostgreSQL and breaks what goes through it.
type Proxy struct {
	target string
	mu     sync.Mutex
	flows  *sync.Cond
	stuck  bool
	cut    func(answer bool, b []byte) bool
	mute   func(startup, question []byte) bool
	muted  chan struct{} // closed when mute has picked its connection
}

// NewProxy starts one and returns the DSN that leads through it.
func NewProxy(t testing.TB, dsn string) (*Proxy, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: u.Host}
	p.flows = sync.NewCond(&p.mu)
	u.Host = l.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		p.Stick(false)
		_ = l.Close()
		wg.Wait()
	})
	return p, u.String()
}

// Stick lets nothing through and closes nothing, until it is told otherwise.
func (p *Proxy) Stick(on bool) {
	p.mu.Lock()
	p.stuck = on
	p.flows.Broadcast()
	p.mu.Unlock()
}

// Cut sets what decides, of each piece of a question or an answer, whether it is dropped and
// its connection closed; nil drops nothing. An answer that is dropped is to something that
// PostgreSQL has done.
func (p *Proxy) Cut(f func(answer bool, b []byte) bool) {
	p.mu.Lock()
	p.cut = f
	p.mu.Unlock()
}

// Mute silences one connection: the first on which pick says yes to a piece of a question,
// given the piece that the connection began with, which holds its settings in plain text. The
// piece picked and all that follow still reach PostgreSQL, TCP acknowledges everything, and no
// answer comes back. All other connections are well. The channel is closed when it has
// happened.
func (p *Proxy) Mute(pick func(startup, question []byte) bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute, p.muted = pick, make(chan struct{})
	return p.muted
}

// picked says whether b makes its connection the mute one.
func (p *Proxy) picked(startup, b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mute == nil || !p.mute(startup, b) {
		return false
	}
	p.mute = nil
	close(p.muted)
	return true
}

// passes waits while it is stuck, and says whether b goes through.
func (p *Proxy) passes(answer bool, b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.stuck {
		p.flows.Wait()
	}
	return p.cut == nil || len(b) == 0 || !p.cut(answer, b)
}

func (p *Proxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	var wg sync.WaitGroup
	var silent atomic.Bool
	pump := func(from, to net.Conn, answer bool) {
		defer client.Close()
		defer server.Close()
		buf := make([]byte, 64<<10)
		var startup []byte
		for {
			n, err := from.Read(buf)
			if !p.passes(answer, buf[:n]) {
				return
			}
			if startup == nil {
				startup = bytes.Clone(buf[:n])
			}
			if !answer && p.picked(startup, buf[:n]) {
				silent.Store(true)
			}
			if answer && silent.Load() {
				n = 0 // swallowed
			}
			if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
				return
			}
		}
	}
	wg.Go(func() { pump(client, server, false) })
	wg.Go(func() { pump(server, client, true) })
	wg.Wait()
}
