package budget

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/tap"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// metering serves f over TCP, metered. Callers say who they are in the header "name".
func metering(t *testing.T, b *Budget, f pb.DispatchServer) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(append(b.Options(), grpc.MaxRecvMsgSize(32<<20), grpc.Creds(b.Credentials(insecure.NewCredentials())),
		grpc.InTapHandle(func(ctx context.Context, i *tap.Info) (context.Context, error) {
			return b.Tap(ctx, i.FullMethodName, strings.Join(i.Header.Get("name"), "")), nil
		}), grpc.ChainStreamInterceptor(b.Stream), grpc.ChainUnaryInterceptor(b.Unary))...)
	pb.RegisterDispatchServer(srv, f)
	go func() { _ = srv.Serve(l) }() // it ends by Stop
	t.Cleanup(srv.Stop)
	return l.Addr().String()
}

// rawCaller speaks HTTP/2 as no library lets one.
type rawCaller struct {
	t    *testing.T
	conn net.Conn
	fr   *http2.Framer

	mu     sync.Mutex // guards what follows, and writing
	cond   *sync.Cond
	first  int // window of a new stream
	window map[uint32]int
	status map[uint32]string // grpc-status of calls that are over; "" = cut without one
	closed bool
	next   uint32
}

func newRawCaller(t *testing.T, addr string) *rawCaller {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // a second time where the test did
	c := &rawCaller{t: t, conn: conn, fr: http2.NewFramer(conn, conn), first: 65535, window: map[uint32]int{0: 65535}, status: map[uint32]string{}, next: 1}
	c.cond = sync.NewCond(&c.mu)
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	c.must(c.fr.WriteSettings())
	go c.read()
	return c
}

func (c *rawCaller) must(err error) {
	if err != nil && !c.closed {
		c.t.Errorf("raw caller: %v", err)
	}
}

func (c *rawCaller) read() {
	for {
		f, err := c.fr.ReadFrame()
		c.mu.Lock()
		if err != nil {
			c.closed = true
			c.cond.Broadcast()
			c.mu.Unlock()
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
					c.first = int(v)
				}
				c.must(c.fr.WriteSettingsAck())
			}
		case *http2.WindowUpdateFrame:
			if _, ok := c.window[f.StreamID]; !ok {
				c.window[f.StreamID] = c.first
			}
			c.window[f.StreamID] += int(f.Increment)
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				if h.Name == "grpc-status" {
					c.status[f.StreamID] = h.Value
				}
			}
		case *http2.RSTStreamFrame:
			if _, ok := c.status[f.StreamID]; !ok {
				c.status[f.StreamID] = ""
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				c.must(c.fr.WritePing(true, f.Data))
			}
		}
		c.cond.Broadcast()
		c.mu.Unlock()
	}
}

// open begins a call.
func (c *rawCaller) open(method, name string) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/maildispatch.v1.Dispatch/" + method}, {":authority", "x"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"name", name}} {
		_ = e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}) // into memory
	}
	id := c.next
	c.next += 2
	c.must(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true}))
	return id
}

// send sends the first n bytes of a message of size bytes, as fast as it is let; it reports
// whether the call has lasted so long.
func (c *rawCaller) send(id uint32, size, n int) bool {
	b := append([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(size))...)
	b = append(b, make([]byte, n)...)
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(b) > 0 {
		if _, over := c.status[id]; over || c.closed {
			return false
		}
		w, ok := c.window[id]
		if !ok {
			w = c.first
		}
		k := min(len(b), w, c.window[0], 16<<10)
		if k <= 0 {
			c.cond.Wait()
			continue
		}
		c.window[id], c.window[0] = w-k, c.window[0]-k
		c.must(c.fr.WriteData(id, false, b[:k]))
		b = b[k:]
	}
	return true
}

// ended waits for the end of a call and returns its status.
func (c *rawCaller) ended(id uint32) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if s, over := c.status[id]; over {
			return s
		}
		if c.closed {
			return "closed"
		}
		c.cond.Wait()
	}
}

func (c *rawCaller) overs() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.status)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

var statusExhausted, statusLate = fmt.Sprint(int(codes.ResourceExhausted)), fmt.Sprint(int(codes.DeadlineExceeded))

// TestHalfSentMessages: who sends many messages by half loses calls of its own, with a word
// that says so, holds no more than its share, and nobody else hears of it.
func TestHalfSentMessages(t *testing.T) {
	const mb = 1 << 20
	for name, x := range map[string]struct {
		most    bounds
		callers int // connections, four messages each
		who     string
	}{
		"one connection":  {bounds{8 * mb, 100 * mb, 100 * mb}, 1, ""},
		"one caller":      {bounds{100 * mb, 8 * mb, 100 * mb}, 4, "eve"},
		"more than fits":  {bounds{100 * mb, 100 * mb, 8 * mb}, 4, "eve"},
		"more, and no id": {bounds{100 * mb, 100 * mb, 8 * mb}, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := New()
			b.most = x.most
			addr := metering(t, b, &fake{})
			conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() }) // nothing is asked any more
			honest := func() {
				t.Helper()
				s, err := pb.NewDispatchClient(conn).Send(t.Context(), &pb.SendRequest{Message: &pb.MailMessage{Text: strings.Repeat("x", mb)}})
				if err == nil {
					_, err = s.Recv()
				}
				if err != nil {
					t.Errorf("somebody else's mail: %v", err)
				}
			}
			honest()
			var evil []*rawCaller
			sent := 0
			for range x.callers {
				c := newRawCaller(t, addr)
				evil = append(evil, c)
				for range 16 / x.callers {
					c.send(c.open("Send", x.who), 4*mb, 3*mb)
					sent += 3
					honest()
				}
			}
			cut := 0
			eventually(t, "calls are cut", func() bool {
				cut = 0
				for _, c := range evil {
					cut += c.overs()
				}
				return sent-3*cut <= 8
			})
			if cut == 16 {
				t.Error("every call was cut, want as many as are over the limit")
			}
			for _, c := range evil {
				c.mu.Lock()
				for id, s := range c.status {
					if s != statusExhausted {
						t.Errorf("call %d was cut with status %q, want RESOURCE_EXHAUSTED", id, s)
					}
				}
				c.mu.Unlock()
			}
			if held := b.held.Load(); held > 8*mb {
				t.Errorf("%d KiB are held, want at most 8 MiB", held>>10)
			}
			for _, c := range evil {
				_ = c.conn.Close() // its calls go with it
			}
			_ = conn.Close()
			eventually(t, "nothing is held", func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				return b.held.Load() == 0 && len(b.conns) == 0 && len(b.accounts) == 0
			})
		})
	}
}

// TestSlowMessages: a message that is waited for and does not come ends its call. A stream that
// says nothing between two messages, and one whose messages are not waited for, go on.
func TestSlowMessages(t *testing.T) {
	b := New()
	b.slow = 100 * time.Millisecond
	f := &fake{began: make(chan struct{}), let: make(chan struct{})}
	c := newRawCaller(t, metering(t, b, f))
	for _, x := range []struct {
		method string
		n      int
	}{{"Send", 0}, {"Send", 10}, {"GetMail", 0}, {"GetMail", 10}, {"SendStream", 10}} {
		id := c.open(x.method, "")
		if x.n > 0 {
			c.send(id, 1000, x.n)
		}
		if got := c.ended(id); got != statusLate {
			t.Errorf("%s after %d bytes: got status %q, want DEADLINE_EXCEEDED", x.method, x.n, got)
		}
	}
	idle := c.open("SendStream", "")
	c.send(idle, 0, 0)
	time.Sleep(3 * b.slow) // what is not to happen has its time
	c.send(idle, 0, 0)
	c.mu.Lock()
	if s, over := c.status[idle]; over {
		t.Errorf("a stream that was quiet ended with %q", s)
	}
	c.mu.Unlock()
}

// TestReadsAlong: what a connection counts does not depend on how its bytes come.
func TestReadsAlong(t *testing.T) {
	var wire bytes.Buffer
	wire.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&wire, nil)
	var headers bytes.Buffer
	// into memory
	_ = hpack.NewEncoder(&headers).WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 100)})
	block := headers.Bytes()
	message := func(n int) []byte {
		return append(append([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(n))...), make([]byte, n)...)
	}
	two := append(message(10), message(300)[:100]...)
	for _, err := range []error{
		fr.WriteSettings(),
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:20]}),
		fr.WriteContinuation(1, true, block[20:]),
		fr.WriteData(1, false, two[:3]), fr.WriteDataPadded(1, false, two[3:], make([]byte, 50)),
		fr.WriteDataPadded(1, false, nil, make([]byte, 7)),
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block, EndHeaders: true}),
		fr.WriteData(3, false, nil), fr.WriteData(3, false, message(0)), fr.WritePing(false, [8]byte{}),
		fr.WriteData(99, false, message(70)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	all := wire.Bytes()
	for name, r := range map[string]io.Reader{"at once": bytes.NewReader(all), "one by one": iotest.OneByteReader(bytes.NewReader(all)), "in halves": iotest.HalfReader(bytes.NewReader(all)),
		"with its end": iotest.DataErrReader(bytes.NewReader(all))} {
		b := New()
		c := b.meter(readConn{r})
		calls := map[uint32]*call{}
		var got []byte
		for buf := make([]byte, 64); ; {
			n, err := c.Read(buf)
			got = append(got, buf[:n]...)
			if id := c.opened; id != 0 && c.have == 0 && calls[id] == nil {
				calls[id] = &call{b: b, conn: c, id: id, cancel: func() {}}
				c.calls[id] = calls[id]
			}
			if err != nil {
				if err != io.EOF {
					t.Errorf("%s: %v", name, err)
				}
				break
			}
		}
		if !bytes.Equal(got, all) {
			t.Errorf("%s: read %d octets of %d, or others", name, len(got), len(all))
		}
		if len(calls) != 2 || calls[1].held.Load() != int64(len(two)) || calls[3].held.Load() != 5 || b.held.Load() != int64(len(two))+5 {
			t.Fatalf("%s: %d calls, %d bytes", name, len(calls), b.held.Load())
		}
		if c := calls[1]; !c.half || c.need != 205 {
			t.Errorf("%s: the first call waits for %d bytes, want 205", name, c.need)
		}
		if calls[3].half {
			t.Errorf("%s: the second call's message is not whole", name)
		}
	}
}

// readConn is a connection that only gives.
type readConn struct{ io.Reader }

func (readConn) Write(b []byte) (int, error)      { return len(b), nil }
func (readConn) Close() error                     { return nil }
func (readConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (readConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (readConn) SetDeadline(time.Time) error      { return nil }
func (readConn) SetReadDeadline(time.Time) error  { return nil }
func (readConn) SetWriteDeadline(time.Time) error { return nil }

// TestCame: what came of a message counts before all of it is there.
func TestCame(t *testing.T) {
	b := New()
	c := &call{b: b, conn: &conn{b: b}, cancel: func() {}}
	defer c.end()
	came := Came(callContext{context.Background(), c})
	c.feed([]byte{0, 0, 0, 1, 0, 'a', 'b'}) // two bytes of a message of 256
	if n := came(); n != 7 {
		t.Errorf("%d bytes came, want 7", n)
	}
	if Came(context.Background()) != nil {
		t.Error("a connection that nobody meters tells what came")
	}
}
