package brake

import "github.com/maildispatch/maildispatch/store"

// Way is how mail of a mail server leaves: through itself, or through its fallback while it
// cannot be used. A mail server has one drain for each way.
type Way struct {
	Server *store.MailServer // whose mail it is
	Via    *store.MailServer // through which it leaves
	// a mail server that has failed and has a fallback is tried with one mail, so that the rest
	// need not wait for what comes of it
	Probe bool
}

// Key names a way.
type Key struct{ Server, Via string }

// Key names the way.
func (w Way) Key() Key { return Key{w.Server.Name, w.Via.Name} }

// Direct is the way of a mail server that can be used.
func Direct(s *store.MailServer) Way { return Way{Server: s, Via: s} }

// Diverts says whether the mail leaves through another mail server than its own.
func (w Way) Diverts() bool { return w.Server.Name != w.Via.Name }
