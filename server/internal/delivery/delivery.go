// Package delivery is the vocabulary between whoever takes a mail from a caller and the engine
// that sends it: what is handed over, what is reported back while it happens, and the counts of
// a batch. It holds no behaviour, so that the api and the engine need not know each other.
package delivery

import (
	"time"

	"github.com/google/uuid"

	"github.com/maildispatch/maildispatch/store"
)

// Submission is a checked, routed and composed mail with the mail server it goes through.
type Submission struct {
	Mail   *store.NewMail
	Server *store.MailServer
	Waits  bool // for a limit of mails, where it would be refused otherwise
}

// Event is one step of a mail's way, in the order it happened. Exactly one of the pointers is
// set.
type Event struct {
	MailID    uuid.UUID
	Time      time.Time
	Accepted  *Accepted
	Attempt   *store.Attempt
	Recipient *Recipient
	Completed *store.Mail
}

// Accepted: the mail is durable. Sent before the first byte goes to the relay.
type Accepted struct {
	Server string
	Mode   store.Mode
	Route  string
	// PausedUntil is when the mail server sends again; zero = it sends now. The mail is queued.
	PausedUntil time.Time
	// this request_id had been accepted before; what follows is the first mail's story
	Duplicate bool
}

// Recipient is the result for one recipient.
type Recipient struct {
	Recipient store.Recipient
	Result    store.RecipientResult
}

// Counts sums up a batch pass. Every claimed mail is in exactly one of the fields behind
// Claimed.
type Counts struct {
	Claimed  int
	Sent     int // finished: every recipient accepted
	Partial  int // some recipients accepted, the rest refused or still waiting
	Deferred int // temporary failure of the mail: will be tried again
	Failed   int // permanent failure, or out of attempts
	Unknown  int // no reply after the final dot
	Expired  int // expire_time had passed: never sent
	Released int // given back untouched: the mail server is down, or the service is stopping
}

// Add adds d to c.
func (c *Counts) Add(d Counts) {
	c.Claimed += d.Claimed
	c.Sent += d.Sent
	c.Partial += d.Partial
	c.Deferred += d.Deferred
	c.Failed += d.Failed
	c.Unknown += d.Unknown
	c.Expired += d.Expired
	c.Released += d.Released
}

// Since is what has been settled since the counts were before, and how much of that has been
// claimed then or later.
func (c Counts) Since(before Counts) Counts {
	c.Sent -= before.Sent
	c.Partial -= before.Partial
	c.Deferred -= before.Deferred
	c.Failed -= before.Failed
	c.Unknown -= before.Unknown
	c.Expired -= before.Expired
	c.Released -= before.Released
	c.Claimed = c.Sent + c.Partial + c.Deferred + c.Failed + c.Unknown + c.Expired + c.Released
	return c
}
