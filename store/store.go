package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"golang.org/x/sync/singleflight"
)

// Options of [Open].
type Options struct {
	Logger *slog.Logger
	// Now is the clock for times that people read, and for everything on SQLite; nil =
	// time.Now.
	Now func() time.Time
	// AllowUnsafe opens a PostgreSQL server that loses what it has confirmed when its machine
	// stops, and a database whose schema is newer than this program.
	AllowUnsafe bool
	// Pools are the connections to PostgreSQL.
	Pools Pools
	// RequestKey keys the hashes that an erasure leaves of request_ids. It is the same in every
	// process and stays the same, or a caller's repetition is a new mail.
	RequestKey []byte
	// Observer hears of commits; nil = nobody does.
	Observer Observer
}

// Store is an open database. All methods may be called from any goroutine.
type Store struct {
	log     *slog.Logger
	now     func() time.Time
	observe Observer
	// requestKey is Options.RequestKey
	requestKey []byte
	dialect    dialect // set before anything else

	// The pools. A transaction holds a connection of write and asks for no other while it does.
	// Only Open and Close set them.
	write *sqlx.DB // mail under way, and transactions; SQLite: one connection
	lease *sqlx.DB // Register and Renew; SQLite: write
	own   *sqlx.DB // the engine's reading statements; PostgreSQL: write
	look  *sqlx.DB // people's named reading statements
	read  *sqlx.DB // lists and counts
	// working holds a value for each transaction of people and of cleaning, so that enough of
	// write is left for mail.
	working chan struct{}
	// migrating opens the connections of PostgreSQL's migrations
	migrating func() *sql.DB

	q      statements
	unlock func() error

	enqueue []*coalescer[*enqueueOp]
	settle  *writer
	quick   *writer      // settlements that somebody waits for
	refused atomic.Int64 // results whose data the database refused
	// write nothing to search by; only a benchmark sets it, to show what that costs
	noTerms bool
	intake  chan *enqueueOp
	cache   contentCache
	reading singleflight.Group // of shared content

	interactive *interactive // bulk yields to callers
	damage      damage       // mails that the database cannot read or write
	// how long the transaction of EnqueueAll may take; only tests set it
	allTransaction time.Duration
	// how long a write that meets damage is repeated; only tests set it
	damageWait time.Duration

	hasCounted atomic.Bool // the counters have counted what was there before them

	// Remember sets it; nil = the past of the database is not looked at
	lineage atomic.Pointer[lineage]
}

// Open connects to dsn, "sqlite:PATH" or "postgres://...", brings the schema up to date and
// prepares every statement, so that a broken one stops the start. Errors are one line and name
// what to do where there is something to do.
func Open(ctx context.Context, dsn string, opt Options) (*Store, error) {
	s := &Store{requestKey: opt.RequestKey, log: opt.Logger, now: opt.Now, interactive: newInteractive(), allTransaction: allTransaction, damageWait: writerDamage}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.observe = opt.Observer; s.observe == nil {
		s.observe = deaf{}
	}
	var err error
	switch {
	case strings.HasPrefix(dsn, "sqlite:"):
		err = s.openSQLite(ctx, strings.TrimPrefix(dsn, "sqlite:"))
	case strings.HasPrefix(dsn, "postgres://"), strings.HasPrefix(dsn, "postgresql://"):
		err = s.openPostgres(ctx, dsn, opt.Pools, pq.TargetSessionAttrsReadWrite)
	default:
		err = CheckDSN(dsn)
	}
	if err == nil {
		err = s.dialect.check(ctx, opt.AllowUnsafe)
	}
	if err == nil {
		err = s.migrate(ctx, opt.AllowUnsafe)
	}
	if err == nil {
		s.q, err = prepare(ctx, s)
	}
	if err != nil {
		s.closeDBs()
		return nil, err
	}
	s.startCoalescers()
	return s, nil
}

// CheckDSN says whether dsn names a kind of database there is, without opening it.
func CheckDSN(dsn string) error {
	for _, scheme := range []string{"sqlite:", "postgres://", "postgresql://"} {
		if rest, ok := strings.CutPrefix(dsn, scheme); ok && rest != "" {
			return nil
		}
	}
	return errors.New("database: write sqlite:PATH or postgres://user@host/db?sslmode=verify-full")
}

// Close flushes what was handed over and closes the database.
func (s *Store) Close() error {
	for _, c := range s.enqueue {
		c.stop()
	}
	s.settle.close()
	s.quick.close()
	return s.closeDBs()
}

func (s *Store) closeDBs() error {
	var errs []error
	closed := map[*sqlx.DB]bool{nil: true}
	for _, db := range []*sqlx.DB{s.read, s.look, s.own, s.lease, s.write} {
		if !closed[db] {
			closed[db] = true
			errs = append(errs, db.Close())
		}
	}
	if s.unlock != nil {
		errs = append(errs, s.unlock())
	}
	return errors.Join(errs...)
}

// Ping asks the database for a sign of life.
func (s *Store) Ping(ctx context.Context) error { return s.fault(s.read.PingContext(ctx)) }

// Now is the clock that decides what is due: the database's on PostgreSQL, whose replicas'
// clocks may differ; this machine's on SQLite.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	t, err := s.dialect.clock(ctx, nil)
	return t, s.fault(err)
}

// Dialect names the database: postgres or sqlite.
func (s *Store) Dialect() string { return s.dialect.name() }

func micro(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// t binds a time: timestamptz on PostgreSQL, microseconds on SQLite. nil and zero are null.
func (s *Store) t(t *time.Time) any {
	if t == nil || t.IsZero() {
		return nil
	}
	return s.dialect.time(*t)
}

func (s *Store) nowArg() any { n := s.now(); return s.t(&n) }

// dbTime scans a time of either database.
type dbTime struct{ time.Time }

// Scan implements sql.Scanner.
func (d *dbTime) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		d.Time = time.Time{}
	case time.Time:
		d.Time = v.UTC()
	case int64:
		d.Time = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("cannot read %T as a time", v)
	}
	return nil
}

func (d dbTime) ptr() *time.Time {
	if d.IsZero() {
		return nil
	}
	t := d.Time
	return &t
}

// workTx is tx for what people and cleaning ask for: a few at a time, with more time for each
// statement than mail under way has.
func (s *Store) workTx(ctx context.Context, f func(tx *sqlx.Tx) error) error {
	select {
	case s.working <- struct{}{}:
		defer func() { <-s.working }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.tx(patient(ctx, workStatement), f)
}

// tx runs f in a transaction, again on serialization faults. f asks the database for nothing
// but through tx: it holds a connection already, and when all who hold one want another, nobody
// gets any.
func (s *Store) tx(ctx context.Context, f func(tx *sqlx.Tx) error) error {
	for try := 0; ; try++ {
		err := s.txOnce(ctx, f)
		if err == nil || !retryable(err) || try == 5 {
			return s.fault(err)
		}
	}
}

// repeated runs f, one statement, again on serialization faults.
func (s *Store) repeated(f func() error) error {
	for try := 0; ; try++ {
		err := f()
		if err == nil || !retryable(err) || try == 5 {
			return s.fault(err)
		}
	}
}

func (s *Store) txOnce(ctx context.Context, f func(tx *sqlx.Tx) error) error {
	tx, err := s.write.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		_ = tx.Rollback() // the first error says more
		return err
	}
	return tx.Commit()
}
