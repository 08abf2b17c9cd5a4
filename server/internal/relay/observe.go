package relay

import (
	"slices"
	"strings"

	"github.com/maildispatch/maildispatch/smtpx"
)

// Observer hears what happens to connections, once an event. It must not wait for anything.
type Observer interface {
	// Opened: a session was opened with the mail server, or could not be.
	Opened(server string, failure smtpx.Failure)
	// Suspended: this process has opened the breaker of the mail server, or keeps it open.
	Suspended(server string)
}

// deaf is the Observer where none is given.
type deaf struct{}

func (deaf) Opened(string, smtpx.Failure) {}
func (deaf) Suspended(string)             {}

// Use is what this process has with a mail server at one moment.
type Use struct {
	Name      string
	Suspended bool // as all replicas know it
	Batch     int  // connections of the batch
	Busy      int  // connections of mails in php mode, and those that are being opened
	Idle      int
	Limit     int
	Waiters   int // mails in php mode that wait for a connection
	Slots     int // connections over all replicas that this process holds
}

// Uses is every mail server that this process has connections to, or knows a breaker of, by
// name.
func (rs *Relays) Uses() []Use {
	all := map[string]*Use{}
	use := func(name string) *Use {
		if all[name] == nil {
			all[name] = &Use{Name: name}
		}
		return all[name]
	}
	for _, r := range rs.all() {
		u := use(r.name)
		r.mu.Lock()
		u.Batch, u.Idle, u.Busy = r.batch, len(r.idle), r.open-r.batch-len(r.idle)
		u.Limit, u.Waiters = r.limit(), len(r.waiters)
		r.mu.Unlock()
	}
	for _, name := range rs.breakers.open() {
		use(name).Suspended = true
	}
	rs.slots.mu.Lock()
	for pm := range rs.slots.held {
		use(pm.slot.MailServer).Slots++
	}
	rs.slots.mu.Unlock()
	uses := make([]Use, 0, len(all))
	for _, u := range all {
		uses = append(uses, *u)
	}
	slices.SortFunc(uses, func(a, b Use) int { return strings.Compare(a.Name, b.Name) })
	return uses
}

// open are the mail servers whose breaker is open.
func (bs *breakers) open() []string {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	var open []string
	for name, b := range bs.byName {
		if b.known != nil && b.known.Failures > 0 {
			open = append(open, name)
		}
	}
	return open
}
