package budget

import (
	"net"
	"sync/atomic"
	"time"
)

// conn reads along with HTTP/2 (RFC 9113) to see which call its bytes are for: grpc counts what
// it reads neither by call nor by caller, and it says so only when a message is whole.
//
// It hands out the end of headers by itself. So when grpc has read them and asks whether to
// take the call, nothing behind them was read, and the call is the one that they open.
type conn struct {
	net.Conn
	b    *Budget
	held atomic.Int64
	// Guarded by Budget.mu.
	calls map[uint32]*call
	last  time.Time // when the last call ended, or the connection began

	// The reader alone uses what follows; of opened, Tap, which it calls.
	opened  uint32 // the stream whose headers were read last
	preface int    // octets of the client's preface that are to come
	header  [9]byte
	have    int // octets of header
	left    int // octets of the frame's payload that are to come
	// of which so many at the end are padding; -1 = the octet that says so is to come
	pad  int
	data *call
	rest []byte // read, and not handed out
	err  error  // after rest
}

const clientPreface = len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

// Types and flags of frames, RFC 9113 section 6.
const (
	frameData         = 0
	frameHeaders      = 1
	frameContinuation = 9
	flagEndHeaders    = 0x4
	flagPadded        = 0x8
)

func (b *Budget) meter(c net.Conn) *conn {
	m := &conn{Conn: c, b: b, calls: map[uint32]*call{}, preface: clientPreface, last: time.Now()}
	b.mu.Lock()
	b.conns[m] = true
	b.mu.Unlock()
	return m
}

// meteredAddr is where the connection comes from, and leads Tap to it.
type meteredAddr struct {
	net.Addr
	conn *conn
}

func (c *conn) RemoteAddr() net.Addr { return meteredAddr{c.Conn.RemoteAddr(), c} }

func (c *conn) Close() error {
	c.b.mu.Lock()
	delete(c.b.conns, c)
	c.b.mu.Unlock()
	return c.Conn.Close()
}

func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, kept := copy(p, c.rest), len(c.rest) > 0
	var err error
	if !kept {
		if c.err != nil {
			return 0, c.err
		}
		n, err = c.Conn.Read(p)
	}
	k := c.scan(p[:n])
	switch {
	case kept:
		c.rest = c.rest[k:]
	case k < n:
		c.rest, c.err, err = append(c.rest[:0:0], p[k:n]...), err, nil
	}
	return k, err
}

// scan reads along until headers end, and says how far that is.
func (c *conn) scan(b []byte) int {
	at := 0
	for at < len(b) {
		if c.preface > 0 {
			k := min(c.preface, len(b)-at)
			c.preface -= k
			at += k
			continue
		}
		if c.have < len(c.header) {
			k := copy(c.header[c.have:], b[at:])
			at += k
			if c.have += k; c.have < len(c.header) {
				break
			}
			c.begin()
		} else {
			at += c.payload(b[at:min(len(b), at+c.left)])
		}
		if c.have == len(c.header) && c.left == 0 {
			c.have = 0
			if t := c.header[3]; (t == frameHeaders || t == frameContinuation) && c.header[4]&flagEndHeaders != 0 {
				break
			}
		}
	}
	return at
}

// begin reads the header of a frame.
func (c *conn) begin() {
	h := c.header
	c.left = int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	stream := uint32(h[5]&0x7f)<<24 | uint32(h[6])<<16 | uint32(h[7])<<8 | uint32(h[8])
	c.data, c.pad = nil, 0
	switch h[3] {
	case frameHeaders:
		c.opened = stream
	case frameData:
		c.b.mu.Lock()
		c.data = c.calls[stream]
		c.b.mu.Unlock()
		if h[4]&flagPadded != 0 {
			c.pad = -1
		}
	}
}

// payload takes part of a frame's payload and says how much.
func (c *conn) payload(b []byte) int {
	n := len(b)
	if c.pad < 0 {
		c.pad = min(int(b[0]), c.left-1)
		c.left--
		return 1
	}
	if content := min(n, c.left-c.pad); c.data != nil && content > 0 {
		c.data.feed(b[:content])
	}
	c.left -= n
	return n
}
