package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/lib/pq"
	sqlite "modernc.org/sqlite"
)

// retryable: deadlock and serialization faults, which changed nothing.
func retryable(err error) bool {
	var pe *pq.Error
	return errors.Is(err, errOvertaken) || errors.As(err, &pe) && (pe.Code == "40P01" || pe.Code == "40001")
}

// dataFault: the data of one row is to blame (PostgreSQL classes 22 and 23).
func dataFault(err error) bool {
	var pe *pq.Error
	if errors.As(err, &pe) {
		c := pe.Code.Class()
		return c == "22" || c == "23"
	}
	var se *sqlite.Error
	if errors.As(err, &se) {
		c := se.Code() & 0xff
		return c == 19 || c == 18 || c == 20 // constraint, too big, mismatch
	}
	return false
}

// damaged: the database cannot do what a statement asks, for a reason of its own (PostgreSQL
// class XX: a damaged page or index, a fault of the server; SQLite: a malformed file). Of many
// rows one may be to blame, but no other words make it good, and it may pass.
func damaged(err error) bool {
	var pe *pq.Error
	if errors.As(err, &pe) {
		return pe.Code.Class() == "XX"
	}
	var se *sqlite.Error
	return errors.As(err, &se) && se.Code()&0xff == 11 // corrupt
}

// SQLSTATEs that fault and the connections look at.
const (
	// the server is a standby, or default_transaction_read_only is on
	readOnlyTransaction = "25006"
	// of our statements only in recovery, or after a table they read was altered
	featureNotSupported   = "0A000"
	idleTransactionEnded  = "25P03"
	tooManyConnectionsNow = "53300"
	lockNotAvailable      = "55P03" // lock_timeout
	queryCanceled         = "57014" // statement_timeout, or a context that ended
)

// endsConnection says whether an error is about the connection: on another one the same
// statement may work.
func endsConnection(err error) bool {
	var pe *pq.Error
	if !errors.As(err, &pe) {
		return false // the line itself says when it is broken
	}
	switch c := pe.Code; {
	case c == queryCanceled:
		return false
	case c == readOnlyTransaction, c == featureNotSupported, c == idleTransactionEnded:
		return true
	default:
		return c.Class() == "57" || c.Class() == "08"
	}
}

// changedNothing says whether a statement that ended its connection certainly did nothing.
func changedNothing(err error) bool {
	var pe *pq.Error
	return errors.As(err, &pe) && (pe.Code == readOnlyTransaction || pe.Code == featureNotSupported)
}

// tooManyConnections: the server has no place for one more.
func tooManyConnections(err error) bool {
	var pe *pq.Error
	return errors.As(err, &pe) && pe.Code == tooManyConnectionsNow
}

// lockTimeout: a lock was not had within lock_timeout.
func lockTimeout(err error) bool {
	var pe *pq.Error
	return errors.As(err, &pe) && pe.Code == lockNotAvailable
}

// fault turns an error into one of the sentinels of this package, with the cause wrapped for
// the log.
func (s *Store) fault(err error) error {
	if err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrFull) {
		return err
	}
	var (
		pe *pq.Error
		se *sqlite.Error
		ne net.Error
		ce *connectError
	)
	switch {
	case errors.As(err, &ce):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, sql.ErrNoRows):
		return err
	case errors.As(err, &pe):
		switch {
		case endsConnection(err), tooManyConnections(err), pe.Code == queryCanceled:
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case pe.Code.Class() == "53": // disk full, out of memory
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	case errors.As(err, &se):
		switch se.Code() & 0xff {
		case 13: // full
			return fmt.Errorf("%w: %w", ErrFull, err)
		case 5, 6, 8, 10, 14: // busy, locked, read-only, io error, cannot open
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &ne), errors.Is(err, syscall.ECONNREFUSED),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
