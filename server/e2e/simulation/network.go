package simulation

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
)

// conn is the client's end of a connection to a relay. What is written becomes packets that the
// driver delivers one by one; the relay's end is no goroutine but a state that the driver
// keeps.
type conn struct {
	w      *world
	rep    *replica
	name   string
	server string
	peer   *dialogue
	wake   chan struct{}
	closed bool // by the driver's side of things: no packet is delivered any more

	mu       sync.Mutex
	in       []byte
	err      error // what Read returns when in is empty
	gone     bool  // closed by the client
	deadline time.Time
	out      []packet
	outBusy  bool
	back     []packet
	backBusy bool
}

// packet is what one write left.
type packet struct {
	data []byte
	end  error // not nil: the end of the connection
	at   time.Time
}

// connect opens a connection, for smtpx.Dialer.
func (r *replica) connect(ctx context.Context, to netip.AddrPort, server string) (net.Conn, error) {
	w := r.w
	rl := w.relays[int(to.Port())-firstPort]
	var made *conn
	c, err := call(ctx, r.journal, fmt.Sprintf("dial %s", rl.name), local, func() (*conn, error) {
		if w.chance(rl.refuse) {
			return nil, syscall.ECONNREFUSED
		}
		w.conns++
		c := &conn{w: w, rep: r, server: server, name: fmt.Sprintf("%s.c%03d", r.name, w.conns), wake: make(chan struct{}, 1)}
		c.peer = rl.accept(c)
		r.conns = append(r.conns, c)
		made = c
		return c, nil
	})
	if err != nil && made != nil {
		_ = made.Close() // it came when nobody waited any more
	}
	switch {
	case ctx.Err() != nil:
		return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	case err != nil:
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	return c, nil
}

func (c *conn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	for {
		c.mu.Lock()
		n, err, left := 0, error(nil), time.Duration(-1)
		switch now := time.Now(); {
		case c.gone:
			err = net.ErrClosed
		case !c.deadline.IsZero() && !now.Before(c.deadline):
			err = os.ErrDeadlineExceeded
		case len(c.in) > 0:
			n = copy(b, c.in)
			c.in = c.in[n:]
		case c.err != nil:
			err = c.err
		case !c.deadline.IsZero():
			left = c.deadline.Sub(now)
		}
		c.mu.Unlock()
		if n > 0 || err != nil {
			return n, err
		}
		if left < 0 {
			<-c.wake
			continue
		}
		t := time.NewTimer(left)
		select {
		case <-c.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// Write implements net.Conn: the system takes everything, and nobody knows how far it gets.
func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gone:
		return 0, net.ErrClosed
	case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
		return 0, os.ErrDeadlineExceeded
	case c.err != nil && c.err != io.EOF:
		return 0, c.err
	}
	c.w.truth.leaving(c, b)
	c.send(packet{data: bytes.Clone(b), at: time.Now()})
	return len(b), nil
}

// send puts a packet on its way to the relay. With mu held.
func (c *conn) send(p packet) {
	c.out = append(c.out, p)
	if !c.outBusy {
		c.outBusy = true
		c.parkOut()
	}
}

func (c *conn) parkOut() {
	c.w.park(&op{key: c.name + ">", who: c.rep, calm: true, exec: func(fate) fate {
		c.mu.Lock()
		if len(c.out) == 0 {
			c.outBusy = false
			c.mu.Unlock()
			return fateDone
		}
		p := c.out[0]
		c.out = c.out[1:]
		more := len(c.out) > 0
		c.outBusy = more
		c.mu.Unlock()
		if more {
			c.parkOut()
		}
		if c.closed {
			return fateDone
		}
		if p.end != nil {
			c.closed = true
			c.peer.gone()
			return fateDone
		}
		if !c.w.calm && c.w.chance(c.w.prof.cut) {
			// a part arrives, and both sides hear of the end
			c.peer.receive(p.data[:c.w.rng.IntN(len(p.data)+1)], p.at)
			c.reset()
			return fateLost
		}
		c.peer.receive(p.data, p.at)
		return fateDone
	}})
}

// flies says whether a copy of a mail was written and has not reached its relay. Called by the
// driver.
func (w *world) flies(id uuid.UUID) bool {
	name := []byte("Message-ID: <" + id.String())
	for _, r := range append(slices.Clone(w.old), w.replicas...) {
		if r == nil {
			continue
		}
		for _, c := range r.conns {
			c.mu.Lock()
			out := !c.closed && slices.ContainsFunc(c.out, func(p packet) bool { return bytes.Contains(p.data, name) })
			c.mu.Unlock()
			if out {
				return true
			}
		}
	}
	return false
}

// reset ends the connection for both sides.
func (c *conn) reset() {
	if c.closed {
		return
	}
	c.closed = true
	c.peer.gone()
	c.mu.Lock()
	c.in, c.err = nil, syscall.ECONNRESET
	c.mu.Unlock()
	c.poke()
}

// answer puts the relay's words on their way. Called by the driver.
func (c *conn) answer(p packet, wait time.Duration) {
	c.mu.Lock()
	c.back = append(c.back, p)
	busy := c.backBusy
	c.backBusy = true
	c.mu.Unlock()
	if !busy {
		c.parkBack(wait)
	}
}

func (c *conn) parkBack(wait time.Duration) {
	if wait > 0 {
		c.w.after(wait, c.name+" late", func() { c.parkBack(0) })
		return
	}
	c.w.park(&op{key: c.name + "<", who: c.rep, calm: true, exec: func(fate) fate {
		c.mu.Lock()
		p := c.back[0]
		c.back = c.back[1:]
		more := len(c.back) > 0
		c.backBusy = more
		if !c.closed || p.end != nil {
			c.in = append(c.in, p.data...)
			if p.end != nil && c.err == nil {
				c.err = p.end
			}
		}
		c.mu.Unlock()
		if p.end != nil {
			c.closed = true
		}
		if more {
			c.parkBack(0)
		}
		if p.end == nil && !c.w.calm && c.w.chance(c.w.prof.cut) {
			c.reset()
			return fateLost
		}
		c.poke()
		return fateDone
	}})
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return net.ErrClosed
	}
	c.gone = true
	c.poke()
	if !c.rep.dead.Load() {
		c.send(packet{end: io.EOF})
	}
	return nil
}

// kill ends the connection with its process: what has been written may still arrive.
func (c *conn) kill() {
	if c.closed {
		return
	}
	c.mu.Lock()
	c.gone = true
	for i, p := range c.out {
		if p.end == nil && c.w.chance(0.5) {
			c.mu.Unlock()
			c.peer.receive(p.data, p.at)
			c.mu.Lock()
			continue
		}
		c.out = c.out[:i]
		break
	}
	c.out = nil
	c.mu.Unlock()
	c.closed = true
	c.peer.gone()
	c.poke()
}

func (c *conn) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (c *conn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: firstPort}
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	gone := c.gone
	c.mu.Unlock()
	c.poke()
	if gone {
		return net.ErrClosed
	}
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }
