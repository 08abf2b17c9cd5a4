package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

// A connection can fail in a way that nobody reports: its answers stop while TCP still
// acknowledges what is sent, behind a pooler, a firewall or a failover. lib/pq then reads for
// ever, also when the context has ended, because it asks the server to cancel and waits for the
// answer. So each read and each write has a limit here, a little above the statement's own at
// the server.
//
// Other errors are about the connection and not about the statement: the server has become a
// standby or read-only. Such a connection is closed, and the next one looks for a server that
// can write.

// narrowFor is how long a pool stays at the connections that stand after the server refused one
// more.
const narrowFor = 5 * time.Second

// waitForPlace is how long a pool without any connection waits for the server to have a place.
const waitForPlace = 5 * time.Second

// pieceBytes is how much is written under one limit, so that a large value over a slow line is
// no silence.
const pieceBytes = 64 << 10

// connector makes the connections of one pool.
type connector struct {
	cfg     pq.Config
	silence time.Duration // limit of one read or write; 0 = none
	size    int           // of the pool
	db      *sql.DB       // the pool; set before the first connection
	group   *poolGroup

	standing atomic.Int64 // open connections

	mu    sync.Mutex  // guards widen
	widen *time.Timer // gives the pool its size back
}

// poolGroup is the pools of one process, of which one that has nothing gets a connection of
// another when the server has no more. It is complete before the first connection is opened.
type poolGroup struct {
	all []*connector
	// fresh looks at each connection before it is used; nil = no need.
	fresh func(context.Context, *pgConn) error
}

// yield makes the pool that has most connections give one up, if any has more than one.
func (g *poolGroup) yield() {
	var most *connector
	for _, c := range g.all {
		if most == nil || c.standing.Load() > most.standing.Load() {
			most = c
		}
	}
	if n := most.standing.Load(); n > 1 {
		most.narrow(int(n) - 1)
	}
}

// openPool makes a pool of at most size connections. None is opened yet.
func openPool(group *poolGroup, cfg pq.Config, size int, silence time.Duration) *sql.DB {
	c := &connector{cfg: cfg, silence: silence, size: size, group: group}
	group.all = append(group.all, c)
	c.db = sql.OpenDB(c)
	c.setSize(size)
	c.db.SetConnMaxLifetime(poolLifetime)
	c.db.SetConnMaxIdleTime(poolIdle)
	return c.db
}

func (c *connector) setSize(n int) {
	c.db.SetMaxOpenConns(n)
	c.db.SetMaxIdleConns(n)
}

// Driver implements driver.Connector.
func (c *connector) Driver() driver.Driver { return &pq.Driver{} }

// Connect implements driver.Connector. It tries the address's hosts in their order and takes
// the first that answers and can write.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	d := &dialer{silence: c.silence}
	p, err := pq.NewConnectorConfig(c.cfg)
	if err != nil {
		return nil, err
	}
	p.Dialer(d)
	raw, err := p.Connect(ctx)
	for end := time.Now().Add(waitForPlace); tooManyConnections(err) && time.Now().Before(end); raw, err = p.Connect(ctx) {
		if n := c.standing.Load(); n > 0 {
			c.narrow(int(n))
			// database/sql asks again, and waits for one that stands
			return nil, driver.ErrBadConn
		}
		c.group.yield()
		select {
		case <-ctx.Done():
			return nil, &connectError{err}
		case <-time.After(100 * time.Millisecond):
		}
	}
	if err != nil {
		return nil, &connectError{err}
	}
	inner, ok := raw.(pqConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the driver's connection is a %T", raw), raw.Close())
	}
	c.standing.Add(1)
	conn := &pgConn{pqConn: inner, line: d.last.Load(), silence: c.silence, pool: c}
	if c.group.fresh != nil {
		if err := c.group.fresh(ctx, conn); err != nil {
			return nil, &connectError{errors.Join(err, conn.Close())}
		}
	}
	return conn, nil
}

// narrow makes the pool as large as what stands, for a while.
func (c *connector) narrow(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setSize(n)
	if c.widen == nil {
		c.widen = time.AfterFunc(narrowFor, func() { c.setSize(c.size) })
		return
	}
	c.widen.Reset(narrowFor)
}

// Close implements io.Closer: the pool calls it when it is closed.
func (c *connector) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.widen != nil {
		c.widen.Stop()
	}
	return nil
}

// connectError: no connection could be opened. Nothing was asked yet.
type connectError struct{ error }

func (e *connectError) Unwrap() error { return e.error }

// pqConn is what database/sql uses of a connection of lib/pq.
type pqConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
	driver.NamedValueChecker
}

// pgConn is a connection that knows when it has to be closed. database/sql uses it from one
// goroutine at a time.
type pgConn struct {
	pqConn
	line    *line
	silence time.Duration // the limit of a read or write outside of a patient transaction
	pool    *connector
	inTx    bool
	ended   bool // to be closed: its server cannot do what is asked
	closed  bool
}

// check looks at what a call of the driver returned. An error about the connection ends it;
// outside of a transaction such a statement did nothing and may be asked again on another
// connection.
func (c *pgConn) check(err error) error {
	if !endsConnection(err) {
		return err
	}
	c.ended = true
	if !c.inTx && changedNothing(err) {
		return fmt.Errorf("%w: %w", driver.ErrBadConn, err)
	}
	return err
}

// IsValid implements driver.Validator: the pool closes a connection that is not.
func (c *pgConn) IsValid() bool { return !c.ended && !c.line.broken.Load() && c.pqConn.IsValid() }

// ResetSession implements driver.SessionResetter.
func (c *pgConn) ResetSession(ctx context.Context) error {
	if !c.IsValid() {
		return driver.ErrBadConn
	}
	return c.pqConn.ResetSession(ctx)
}

// Close implements driver.Conn.
func (c *pgConn) Close() error {
	if !c.closed {
		c.closed = true
		c.pool.standing.Add(-1)
	}
	if err := c.pqConn.Close(); !c.line.broken.Load() {
		return err
	}
	return nil // it has ended already; that it cannot say goodbye is no news
}

// Ping implements driver.Pinger.
func (c *pgConn) Ping(ctx context.Context) error { return c.check(c.pqConn.Ping(ctx)) }

// ExecContext implements driver.ExecerContext.
func (c *pgConn) ExecContext(ctx context.Context, q string, args []driver.NamedValue) (driver.Result, error) {
	r, err := c.pqConn.ExecContext(ctx, q, args)
	return r, c.check(err)
}

// QueryContext implements driver.QueryerContext.
func (c *pgConn) QueryContext(ctx context.Context, q string, args []driver.NamedValue) (driver.Rows, error) {
	r, err := c.pqConn.QueryContext(ctx, q, args)
	return r, c.check(err)
}

// PrepareContext implements driver.ConnPrepareContext.
func (c *pgConn) PrepareContext(ctx context.Context, q string) (driver.Stmt, error) {
	st, err := c.pqConn.PrepareContext(ctx, q)
	if err != nil {
		return nil, c.check(err)
	}
	inner, ok := st.(pqStmt)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the driver's statement is a %T", st), st.Close())
	}
	return &pgStmt{inner, c}, nil
}

// BeginTx implements driver.ConnBeginTx. In a transaction begun with a context of [patient]
// each statement may take that long.
func (c *pgConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	tx, err := c.pqConn.BeginTx(ctx, opts)
	if err != nil {
		return nil, c.check(err)
	}
	c.inTx = true
	t := &pgTx{tx, c}
	if d, ok := ctx.Value(patience{}).(time.Duration); ok {
		c.line.silence.Store(int64(d + silenceAfter))
		q := fmt.Sprintf("set local statement_timeout = %d", d.Milliseconds())
		if _, err := c.pqConn.ExecContext(ctx, q, nil); err != nil {
			return nil, errors.Join(err, t.Rollback())
		}
	}
	return t, nil
}

// patience is the key of how long a statement of a transaction may take, a time.Duration.
type patience struct{}

// patient lets each statement of a transaction begun with it take d.
func patient(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, patience{}, d)
}

type pgTx struct {
	driver.Tx
	c *pgConn
}

func (t *pgTx) done(err error) error {
	err = t.c.check(err)
	t.c.inTx = false
	t.c.line.silence.Store(int64(t.c.silence))
	return err
}

// Commit implements driver.Tx.
func (t *pgTx) Commit() error { return t.done(t.Tx.Commit()) }

// Rollback implements driver.Tx.
func (t *pgTx) Rollback() error { return t.done(t.Tx.Rollback()) }

type pqStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type pgStmt struct {
	pqStmt
	c *pgConn
}

// ExecContext implements driver.StmtExecContext.
func (s *pgStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	r, err := s.pqStmt.ExecContext(ctx, args)
	return r, s.c.check(err)
}

// QueryContext implements driver.StmtQueryContext.
func (s *pgStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	r, err := s.pqStmt.QueryContext(ctx, args)
	return r, s.c.check(err)
}

// dialer opens lines. lib/pq uses it for the connection, and later to ask the server to cancel
// a statement of it.
type dialer struct {
	silence time.Duration
	last    atomic.Pointer[line] // the newest; the connection's own as soon as it stands
}

// DialContext implements pq.DialerContext.
func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l := &line{Conn: c}
	l.silence.Store(int64(d.silence))
	d.last.Store(l)
	return l, nil
}

// Dial implements pq.Dialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialTimeout implements pq.Dialer.
func (d *dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// line is a network connection whose reads and writes have a limit each. lib/pq only reads
// while it waits for an answer, so a connection at rest in the pool is never cut by it.
type line struct {
	net.Conn
	// nanoseconds; the connection's owner writes, reads and writes read
	silence atomic.Int64
	// a limit of the driver's own, while it connects; nil = none
	until  atomic.Pointer[time.Time]
	broken atomic.Bool // a read or write has failed; nothing clears it
}

// SetDeadline implements net.Conn.
func (l *line) SetDeadline(t time.Time) error {
	l.until.Store(&t)
	return l.Conn.SetDeadline(t)
}

// limit is when the next read or write has to be over, zero for never.
func (l *line) limit() time.Time {
	var t time.Time
	if d := time.Duration(l.silence.Load()); d > 0 {
		t = time.Now().Add(d)
	}
	if u := l.until.Load(); u != nil && !u.IsZero() && (t.IsZero() || u.Before(t)) {
		return *u
	}
	return t
}

// Read implements net.Conn.
func (l *line) Read(b []byte) (int, error) {
	if err := l.SetReadDeadline(l.limit()); err != nil {
		return 0, l.failed(err)
	}
	n, err := l.Conn.Read(b)
	return n, l.failed(err)
}

// Write implements net.Conn.
func (l *line) Write(b []byte) (n int, err error) {
	for first := true; first || len(b) > 0; first = false {
		if err := l.SetWriteDeadline(l.limit()); err != nil {
			return n, l.failed(err)
		}
		k, err := l.Conn.Write(b[:min(len(b), pieceBytes)])
		n, b = n+k, b[k:]
		if err != nil {
			return n, l.failed(err)
		}
	}
	return n, nil
}

func (l *line) failed(err error) error {
	if err != nil {
		l.broken.Store(true)
	}
	return err
}
