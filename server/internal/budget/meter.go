package budget

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

// What has come of messages and is not taken yet, in bytes. A message that is half sent counts,
// and so do whole ones that nobody reads. Who is over a limit loses the call that holds most of
// it, and nobody else loses anything.
const (
	connectionHeld = 128 << 20 // of one connection
	principalHeld  = 192 << 20 // of one caller, over its connections
	processHeld    = 320 << 20 // of all; the caller that holds most gives way
)

// bounds are these, and others in tests.
type bounds struct{ connection, principal, process int64 }

// messageTime is how long a message may take to come while the service waits for it.
const messageTime = 30 * time.Second

// account is what one caller holds.
type account struct {
	held  atomic.Int64
	calls int // guarded by Budget.mu
}

// call is one call of a connection.
type call struct {
	b      *Budget
	conn   *conn
	id     uint32 // of its HTTP/2 stream
	who    *account
	name   string // of who
	cancel context.CancelFunc
	held   atomic.Int64
	came   atomic.Int64 // bytes of messages so far; the connection's reader writes it
	// The connection's reader writes it, and whoever looks for a call that holds much.
	why atomic.Pointer[apierr.Error] // it was cut; nil = it goes on
	// The handler's goroutine writes it, who cuts reads it.
	say atomic.Pointer[func(*status.Status) error] // ends the call with a status; nil = not yet

	// The connection's reader alone uses these: where in a message it is.
	prefix [5]byte
	have   int // octets of prefix
	need   int // bytes of the message that are to come

	mu      sync.Mutex // guards what follows
	half    bool       // part of a message is there
	reading bool       // somebody waits for a message
	timer   *time.Timer
	over    bool
}

type callKey struct{}

// callContext says of a call that was too slow that its time ran out. It is what the transport
// tells the caller where it still reads the only request of a call.
type callContext struct {
	context.Context
	c *call
}

func (c callContext) Err() error {
	err := c.Context.Err()
	if err != nil {
		if e := c.c.why.Load(); e != nil && e.Code == codes.DeadlineExceeded {
			return context.DeadlineExceeded
		}
	}
	return err
}

func (c callContext) Value(k any) any {
	if k == (callKey{}) {
		return c.c
	}
	return c.Context.Value(k)
}

// callOf is the call of a context; nil where the connection is not metered.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// Came tells how many bytes of messages have come of the call so far, parts of messages too;
// nil where the connection is not metered.
func Came(ctx context.Context) func() int64 {
	if c := callOf(ctx); c != nil {
		return c.came.Load
	}
	return nil
}

// oneRequest are the methods whose caller sends a single message, at once.
var oneRequest = sync.OnceValue(func() map[string]bool {
	out := map[string]bool{}
	protoregistry.GlobalFiles.RangeFilesByPackage("maildispatch.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				if m := s.Methods().Get(j); !m.IsStreamingClient() {
					out["/"+string(s.FullName())+"/"+string(m.Name())] = true
				}
			}
		}
		return true
	})
	return out
})

// Tap begins to count what comes of a call, for the caller of that name; "" is one that nobody
// knows, of whom only the connection counts. The connection's reader calls it when it has read
// the headers of the call and nothing behind them.
func (b *Budget) Tap(ctx context.Context, method, name string) context.Context {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return ctx
	}
	a, ok := p.Addr.(meteredAddr)
	if !ok {
		return ctx
	}
	inner, cancel := context.WithCancel(ctx)
	c := &call{b: b, conn: a.conn, id: a.conn.opened, name: name, cancel: cancel}
	b.mu.Lock()
	if name != "" {
		if b.accounts[name] == nil {
			b.accounts[name] = &account{}
		}
		c.who = b.accounts[name]
		c.who.calls++
	}
	a.conn.calls[c.id] = c
	b.mu.Unlock()
	if oneRequest()[method] {
		c.half, c.reading = true, true
		c.watch(true)
	}
	context.AfterFunc(inner, c.end)
	return callContext{inner, c}
}

// end forgets the call.
func (c *call) end() {
	c.mu.Lock()
	c.over = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	c.give(c.held.Swap(0))
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	if c.conn.calls[c.id] == c {
		delete(c.conn.calls, c.id)
		c.conn.last = time.Now()
	}
	if c.who != nil {
		if c.who.calls--; c.who.calls == 0 {
			delete(c.b.accounts, c.name)
		}
	}
}

func (c *call) give(n int64) {
	c.conn.held.Add(-n)
	if c.who != nil {
		c.who.held.Add(-n)
	}
	c.b.held.Add(-n)
}

// taken gives back a message of n bytes that somebody has read.
func (c *call) taken(n int64) {
	for {
		had := c.held.Load()
		k := min(n, had)
		if c.held.CompareAndSwap(had, had-k) {
			c.give(k)
			return
		}
	}
}

// cut ends the call for a reason.
func (c *call) cut(why *apierr.Error) {
	if !c.why.CompareAndSwap(nil, why) {
		return
	}
	c.give(c.held.Swap(0))
	// Before whoever waits for a message hears of it, and says what the context says.
	if say := c.say.Load(); say != nil {
		_ = (*say)(why.GRPCStatus()) // where the connection is gone, nobody listens
	}
	c.cancel()
}

// canSay finds how to end the call with a status of ours. Where grpc has no way any more, who
// is cut hears CANCELLED; so does who is cut before the only request of a call has come.
func (c *call) canSay(ctx context.Context) {
	if t, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ WriteStatus(*status.Status) error }); ok {
		say := t.WriteStatus
		c.say.Store(&say)
	}
}

// watch looks at the time of a message while part of it is there and somebody waits for the
// rest. again: another one has begun.
func (c *call) watch(again bool) {
	switch {
	case c.over || !c.half || !c.reading:
		if c.timer != nil {
			c.timer.Stop()
			c.timer = nil
		}
	case c.timer == nil:
		c.timer = time.AfterFunc(c.b.slow, func() {
			c.cut(apierr.New(codes.DeadlineExceeded, pb.ReasonDeadlineTooShort, "a message has to come within %v", c.b.slow))
		})
	case again:
		c.timer.Reset(c.b.slow)
	}
}

// wait says that somebody waits for a message, or has stopped to.
func (c *call) wait(yes bool) {
	c.mu.Lock()
	c.reading = yes
	c.watch(yes)
	c.mu.Unlock()
}

// feed counts data of the call.
func (c *call) feed(b []byte) {
	if c.why.Load() != nil {
		return
	}
	n := int64(len(b))
	c.held.Add(n)
	c.came.Add(n)
	c.give(-n)
	whole := false
	for len(b) > 0 {
		if c.have < len(c.prefix) {
			k := copy(c.prefix[c.have:], b)
			b = b[k:]
			if c.have += k; c.have < len(c.prefix) {
				break
			}
			c.need = int(c.prefix[1])<<24 | int(c.prefix[2])<<16 | int(c.prefix[3])<<8 | int(c.prefix[4])
		}
		k := min(c.need, len(b))
		b, c.need = b[k:], c.need-k
		if c.need == 0 {
			c.have, whole = 0, true
		}
	}
	c.mu.Lock()
	c.half = c.have > 0
	c.watch(whole)
	c.mu.Unlock()
	c.b.settle(c)
}

// settle takes a call from whoever is over a limit, after c has grown.
func (b *Budget) settle(c *call) {
	switch {
	case c.conn.held.Load() > b.most.connection:
		b.cutLargest(func(o *call) bool { return o.conn == c.conn })
	case c.who != nil && c.who.held.Load() > b.most.principal:
		b.cutLargest(func(o *call) bool { return o.who == c.who })
	case b.held.Load() > b.most.process:
		b.cutLargest(b.greediest())
	}
}

// greediest tells the calls of the caller, or of the unknown caller's connection, that holds
// most.
func (b *Budget) greediest() func(*call) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	sums := map[any]int64{}
	of := func(c *call) any {
		if c.who != nil {
			return c.who
		}
		return c.conn
	}
	var most any
	for cn := range b.conns {
		for _, c := range cn.calls {
			k := of(c)
			if sums[k] += c.held.Load(); most == nil || sums[k] > sums[most] {
				most = k
			}
		}
	}
	return func(c *call) bool { return of(c) == most }
}

func (b *Budget) cutLargest(among func(*call) bool) {
	var largest *call
	b.mu.Lock()
	for cn := range b.conns {
		for _, c := range cn.calls {
			if c.why.Load() == nil && among(c) && (largest == nil || c.held.Load() > largest.held.Load()) {
				largest = c
			}
		}
	}
	b.mu.Unlock()
	if largest != nil {
		e := apierr.New(codes.ResourceExhausted, pb.ReasonOverloaded, "too much has been sent at once and is not taken yet")
		e.RetryAfter = retry
		largest.cut(e)
	}
}

// Credentials meter the connections that are made with them.
func (b *Budget) Credentials(of credentials.TransportCredentials) credentials.TransportCredentials {
	return meteredCredentials{of, b}
}

type meteredCredentials struct {
	credentials.TransportCredentials
	b *Budget
}

func (m meteredCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := m.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return c, info, err
	}
	return m.b.meter(c), info, nil
}

func (m meteredCredentials) Clone() credentials.TransportCredentials {
	return meteredCredentials{m.TransportCredentials.Clone(), m.b}
}
