package store

import (
	"errors"
	"fmt"
)

var (
	ErrNotFound          = errors.New("not found")
	ErrExists            = errors.New("name is taken")
	ErrRequestIDReused   = errors.New("request_id was used for other content")
	ErrVersion           = errors.New("version does not match") // etag
	ErrDeleted           = errors.New("mail server is deleted")
	ErrNotDeleted        = errors.New("mail server is not deleted")
	ErrServerChanged     = errors.New("mail server was changed meanwhile")
	ErrServerUnavailable = errors.New("mail server is unavailable")
	ErrStale             = errors.New("lease is lost")
	ErrUnreadable        = errors.New("mail cannot be read")
	ErrSending           = errors.New("mail is being sent")
	ErrFinished          = errors.New("mail is finished")
	ErrContentRemoved    = errors.New("content of the mail was removed")
	// wraps connection faults: the outcome of a write may be unknown
	ErrUnavailable = errors.New("database is unavailable")
	ErrFull        = errors.New("database is full")
	// marks an error after which it is known that the call has written no new mail: see
	// [Unwritten]
	ErrUnwritten = errors.New("no new mail was written")
	// access is on, and the process that writes does not ask yet, or never
	ErrNobody = errors.New("who does this has to be known")
)

// Unwritten is err with the mark ErrUnwritten; its text stays the same, and nil stays nil. An
// error without the mark leaves open whether the mails were written, or may be written yet.
func Unwritten(err error) error {
	if err == nil {
		return nil
	}
	return &unwritten{err}
}

type unwritten struct{ error }

func (e *unwritten) Unwrap() error { return e.error }

func (e *unwritten) Is(target error) bool { return target == ErrUnwritten }

// DefaultExistsError: the team already has a default mail server.
type DefaultExistsError struct{ Team, Current string }

func (e *DefaultExistsError) Error() string {
	if e.Team == "" {
		return fmt.Sprintf("the system already has the default mail server %q", e.Current)
	}
	return fmt.Sprintf("team %q already has the default mail server %q", e.Team, e.Current)
}

// PendingError: the mail server still has unfinished mail.
type PendingError struct{ Count int }

func (e *PendingError) Error() string { return fmt.Sprintf("%d unfinished mails", e.Count) }
