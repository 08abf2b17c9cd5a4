package catchall

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/emersion/go-smtp"
)

// Fault is what an address is answered whose local part is Name, or begins with it and a plus
// sign.
type Fault struct {
	Name string
	Does string // for a person

	at     place
	code   int
	status smtp.EnhancedCode
	says   string
	other  func(x *session, f *Fault, to string) error // instead of a fixed reply; nil = none
}

type place int

const (
	atMail place = iota // it is the sender's
	atRcpt
	atDot
)

// Faults are the addresses that are answered with a fault, whatever their domain. A program
// that sends can be tried out with them.
var Faults = []Fault{
	{Name: "nobody", at: atRcpt, code: 550, status: smtp.EnhancedCode{5, 1, 1}, says: "No such mailbox here", Does: "there is no such mailbox"},
	{Name: "reject", at: atRcpt, code: 550, status: smtp.EnhancedCode{5, 7, 1}, says: "Recipient address rejected: Access denied", Does: "the recipient is refused for good"},
	{Name: "full", at: atRcpt, code: 552, status: smtp.EnhancedCode{5, 2, 2}, says: "Mailbox is full", Does: "the mailbox is full"},
	{Name: "tempfail", at: atRcpt, code: 451, status: smtp.EnhancedCode{4, 3, 0}, says: "Local error, try again later", Does: "the recipient is refused for now, each time"},
	{Name: "greylist", at: atRcpt, code: 451, status: smtp.EnhancedCode{4, 7, 1}, says: "Greylisted, try again later", Does: "the recipient is refused for now at the first try",
		other: (*session).greylist},
	{Name: "few", at: atRcpt, code: 452, status: smtp.EnhancedCode{4, 5, 3}, says: "Too many recipients", Does: "no recipient is taken behind another one of the same transaction",
		other: (*session).few},
	{Name: "spam", at: atDot, code: 554, status: smtp.EnhancedCode{5, 7, 1}, says: "This looks like spam", Does: "the mail is refused for good for its content"},
	{Name: "toobig", at: atDot, code: 552, status: smtp.EnhancedCode{5, 3, 4}, says: "Message too large", Does: "the mail is refused for good for its size"},
	{Name: "throttle", at: atDot, code: 432, status: smtp.EnhancedCode{4, 3, 2}, says: "Concurrent connections limit exceeded", Does: "the mail is refused for now: too many connections"},
	{Name: "slow", at: atDot, Does: "the mail is taken after 10 s", other: (*session).slow},
	{Name: "silent", at: atDot, Does: "the mail is taken, and nothing is ever said of it", other: (*session).silent},
	{Name: "drop", at: atDot, Does: "the mail is not taken: the connection ends", other: (*session).drop},
	{Name: "badsender", at: atMail, code: 553, status: smtp.EnhancedCode{5, 7, 1}, says: "Sender address rejected: not owned by user", Does: "as sender: it may not send"},
	{Name: "nologin", at: atMail, code: 530, status: smtp.EnhancedCode{5, 7, 0}, says: "Authentication required", Does: "as sender: the login is gone"},
}

// fault finds what to do at a place for an address, nil for nothing.
func fault(at place, address string) *Fault {
	local, _, _ := strings.Cut(address, "@")
	local, _, _ = strings.Cut(strings.ToLower(local), "+")
	for i := range Faults {
		if f := &Faults[i]; f.at == at && f.Name == local {
			return f
		}
	}
	return nil
}

// strike does what a fault does; nil goes on as if there were none.
func (x *session) strike(f *Fault, to string) error {
	if f == nil {
		return nil
	}
	if f.other != nil {
		return f.other(x, f, to)
	}
	return x.refuse(f, to)
}

func (x *session) refuse(f *Fault, to string) error {
	err := &smtp.SMTPError{Code: f.code, EnhancedCode: f.status, Message: f.says}
	x.s.told(to, err)
	return err
}

// greylist refuses a sender and a recipient once.
func (x *session) greylist(f *Fault, to string) error {
	key := x.mail.From + " " + to
	x.s.mu.Lock()
	seen := x.s.grey[key]
	if x.s.grey == nil {
		x.s.grey = map[string]bool{}
	}
	x.s.grey[key] = true
	x.s.mu.Unlock()
	if seen {
		return nil
	}
	return x.refuse(f, to)
}

func (x *session) few(f *Fault, to string) error {
	if len(x.mail.To) == 0 {
		return nil
	}
	return x.refuse(f, to)
}

func (x *session) slow(*Fault, string) error {
	wait := x.s.Slow
	if wait == 0 {
		wait = 10 * time.Second
	}
	select {
	case <-time.After(wait):
	case <-x.s.ended.Done():
	}
	return nil
}

// errGone ends a session of which nothing more is said.
var errGone = errors.New("catchall: the session ends")

// silent keeps the mail first. It says nothing for as long as senders wait at most for a reply
// (RFC 5321 4.5.3.2.6: 10 minutes), and then ends the connection.
func (x *session) silent(*Fault, string) error {
	if err := x.keep(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(x.s.ended, 15*time.Minute)
	defer cancel()
	<-ctx.Done()
	_ = x.conn.Close()
	return errGone
}

func (x *session) drop(*Fault, string) error {
	_ = x.conn.Close()
	return errGone
}
