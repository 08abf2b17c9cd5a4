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

// fault sorts an error into the sentinels of this package. The cause stays wrapped for the log.
func (s *Store) fault(err error) error {
	if err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrFull) {
		return err
	}
	var pe *pq.Error
	var se *sqlite.Error
	var ne net.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, sql.ErrNoRows):
		return err
	case errors.As(err, &pe):
		switch {
		case pe.Code.Class() == "53" || pe.Code == "25006": // insufficient resources (disk full), read-only transaction
			return fmt.Errorf("%w: %w", ErrFull, err)
		case pe.Code.Class() == "57" || pe.Code.Class() == "08": // operator intervention, connection
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	case errors.As(err, &se):
		switch se.Code() & 0xff {
		case 13, 8: // full, read-only
			return fmt.Errorf("%w: %w", ErrFull, err)
		case 5, 6, 10, 14: // busy, locked, io error, cannot open
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &ne),
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
