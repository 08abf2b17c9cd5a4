package main

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// delay is a relay's distance: a proxy that hands on every byte some time after it came, each
// way. It holds back time, not bandwidth: what is under way is bounded only by windowChunks.
type delay struct {
	oneWay time.Duration
	to     string
	l      net.Listener
	mu     sync.Mutex
	conns  map[net.Conn]bool
	wg     sync.WaitGroup
}

const (
	chunkBytes   = 64 << 10
	windowChunks = 1024 // of a connection, each way
)

func newDelay(oneWay time.Duration, port int) (*delay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &delay{oneWay: oneWay, to: fmt.Sprintf("127.0.0.1:%d", port), l: l, conns: map[net.Conn]bool{}}
	d.wg.Go(d.accept)
	return d, nil
}

func (d *delay) port() int { return d.l.Addr().(*net.TCPAddr).Port }

func (d *delay) close() {
	_ = d.l.Close()
	d.mu.Lock()
	for c := range d.conns {
		_ = c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

func (d *delay) accept() {
	for {
		near, err := d.l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", d.to)
		if err != nil {
			_ = near.Close()
			continue
		}
		d.mu.Lock()
		d.conns[near], d.conns[far] = true, true
		d.mu.Unlock()
		d.wg.Go(func() {
			var both sync.WaitGroup
			both.Go(func() { d.carry(near, far) })
			both.Go(func() { d.carry(far, near) })
			both.Wait()
			_, _ = near.Close(), far.Close()
			d.mu.Lock()
			delete(d.conns, near)
			delete(d.conns, far)
			d.mu.Unlock()
		})
	}
}

// carry hands the bytes of from on to to, and the end after them.
func (d *delay) carry(from, to net.Conn) {
	type parcel struct {
		due  time.Time
		data []byte
	}
	way := make(chan parcel, windowChunks)
	go func() {
		defer close(way)
		buf := make([]byte, chunkBytes)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				way <- parcel{time.Now().Add(d.oneWay), append([]byte(nil), buf[:n]...)}
			}
			if err != nil {
				return
			}
		}
	}()
	broken := false
	for p := range way {
		time.Sleep(time.Until(p.due))
		if !broken {
			if _, err := to.Write(p.data); err != nil {
				broken = true // go on reading, so that the other side can end
			}
		}
	}
	if c, ok := to.(*net.TCPConn); ok {
		_ = c.CloseWrite() // fails only when it is closed
	}
}

// measure is the median round trip of a command to the sink, of eleven.
func (d *delay) measure() (time.Duration, error) {
	c, err := net.Dial("tcp", d.l.Addr().String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	br := bufio.NewReader(c)
	if _, err := br.ReadString('\n'); err != nil { // the greeting
		return 0, err
	}
	var all [11]time.Duration
	for i := range all {
		begin := time.Now()
		if _, err := c.Write([]byte("RSET\r\n")); err != nil {
			return 0, err
		}
		if _, err := br.ReadString('\n'); err != nil {
			return 0, err
		}
		all[i] = time.Since(begin)
	}
	ls := all[:]
	slices.Sort(ls)
	return percentile(ls, 50), nil
}
