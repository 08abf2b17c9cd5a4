package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames is a connection that speaks HTTP/2 as no library lets one: messages by half, and more
// metadata than is taken.
type frames struct {
	conn   net.Conn
	secret token

	mu     sync.Mutex // guards what follows, and writing
	fr     *http2.Framer
	window map[uint32]int // 0 = the connection's
	first  int            // of a new call
	over   map[uint32]bool
	closed bool
	moved  *sync.Cond
}

func openFrames(ctx context.Context, m *mallory) (*frames, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", m.addr)
	if err != nil {
		return nil, err
	}
	c := &frames{conn: conn, secret: m.secret, fr: http2.NewFramer(conn, conn), window: map[uint32]int{0: 65535}, first: 65535, over: map[uint32]bool{}}
	c.moved = sync.NewCond(&c.mu)
	context.AfterFunc(ctx, c.close)
	if _, err = conn.Write([]byte(http2.ClientPreface)); err == nil {
		err = c.fr.WriteSettings()
	}
	if err != nil {
		c.close()
		return nil, err
	}
	go c.read()
	return c, nil
}

func (c *frames) close() {
	_ = c.conn.Close() // nothing is expected of it any more
	c.mu.Lock()
	c.closed = true
	c.moved.Broadcast()
	c.mu.Unlock()
}

func (c *frames) read() {
	defer c.close()
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			return
		}
		c.mu.Lock()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
				c.first = int(v)
			}
			if !f.IsAck() {
				err = c.fr.WriteSettingsAck()
			}
		case *http2.WindowUpdateFrame:
			c.window[f.StreamID] = c.of(f.StreamID) + int(f.Increment)
		case *http2.PingFrame:
			if !f.IsAck() {
				err = c.fr.WritePing(true, f.Data)
			}
		case *http2.RSTStreamFrame:
			c.over[f.StreamID] = true
		case *http2.HeadersFrame:
			c.over[f.StreamID] = c.over[f.StreamID] || f.StreamEnded()
		}
		c.moved.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// of is a call's window; the lock is held.
func (c *frames) of(id uint32) int {
	if w, ok := c.window[id]; ok {
		return w
	}
	return c.first
}

// open begins a call with so many bytes of metadata beside its own.
func (c *frames) open(id uint32, more int) error {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/maildispatch.v1.Dispatch/SendBatch"}, {":authority", "x"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"authorization", "Bearer " + string(c.secret)}} {
		_ = e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}) // into memory
	}
	for i := 0; i < more; i += 8 << 10 {
		_ = e.WriteField(hpack.HeaderField{Name: "x", Value: string(make([]byte, 8<<10)), Sensitive: true})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	block := b.Bytes()
	k := min(len(block), 16<<10)
	err := c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:k], EndHeaders: k == len(block)})
	for block = block[k:]; len(block) > 0 && err == nil; block = block[k:] {
		k = min(len(block), 16<<10)
		err = c.fr.WriteContinuation(id, k == len(block), block[:k])
	}
	return err
}

// send sends all but the last byte of a message, as fast as it is let.
func (c *frames) send(id uint32, size int) {
	piece := append([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(size))...)
	piece = append(piece, make([]byte, 16<<10-len(piece))...)
	c.mu.Lock()
	defer c.mu.Unlock()
	for left := 5 + size - 1; left > 0 && !c.over[id] && !c.closed; {
		k := min(left, len(piece), c.of(id), c.window[0])
		if k <= 0 {
			c.moved.Wait()
			continue
		}
		c.window[id], c.window[0] = c.of(id)-k, c.window[0]-k
		if c.fr.WriteData(id, false, piece[:k]) != nil {
			return
		}
		clear(piece[:5]) // the message's length was said
		left -= k
	}
}

// halfSent sends n messages but for their last bytes over one connection, and stays as long as
// it is let, at most a second.
func halfSent(ctx context.Context, m *mallory, n, size int) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := openFrames(ctx, m)
	if err != nil {
		return
	}
	defer c.close()
	var wg sync.WaitGroup
	for i := range n {
		id := uint32(2*i + 1)
		if c.open(id, 0) != nil {
			return
		}
		m.calls.Add(1)
		wg.Go(func() { c.send(id, size) })
	}
	wg.Wait()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
}

// metadata begins n calls with so many bytes of metadata each.
func metadata(ctx context.Context, m *mallory, n, size int) {
	c, err := openFrames(ctx, m)
	if err != nil {
		return
	}
	defer c.close()
	for i := range n {
		m.calls.Add(1)
		if c.open(uint32(2*i+1), size) != nil {
			return
		}
	}
}
