package outbound

import (
	"context"

	"github.com/maildispatch/maildispatch/store"
)

// secret is one sealed value of a mail server, and where it belongs.
type secret struct {
	name         string
	sealed       []byte
	place, first string
	put          func(s *store.MailServer, sealed []byte)
}

// secrets are all sealed values of a mail server. What is sealed and not listed here would be
// lost with the key that it was sealed with.
func secrets(s *store.MailServer) []secret {
	var all []secret
	add := func(name string, sealed []byte, place, first string, put func(*store.MailServer, []byte)) {
		if len(sealed) > 0 {
			all = append(all, secret{name, sealed, place, first, put})
		}
	}
	if x := s.SMTP; x != nil {
		add("password", x.SealedPassword, place(s.Name, x), firstPlace(s.Name, x), func(s *store.MailServer, b []byte) { s.SMTP.SealedPassword = b })
		if o := x.OAuth; o != nil {
			client, grant := oauthPlace("client_secret", s), oauthPlace("grant", s)
			add("oauth2 client secret", o.SealedClientSecret, client, client, func(s *store.MailServer, b []byte) { s.SMTP.OAuth.SealedClientSecret = b })
			add("oauth2 grant", o.SealedGrant, grant, grant, func(s *store.MailServer, b []byte) { s.SMTP.OAuth.SealedGrant = b })
		}
	}
	if d := s.DKIM; d != nil {
		add("dkim key", d.SealedKey, keyPlace(s.Name, d), keyPlace(s.Name, d), func(s *store.MailServer, b []byte) {
			d := *s.DKIM // the one that was read may be somebody else's too
			d.SealedKey = b
			s.DKIM = &d
		})
	}
	return all
}

// Sealed is how a mail server's secrets are sealed.
type Sealed struct {
	Current int      // by the newest key
	Older   int      // by another that is in the key file
	Lost    []string // names of those that do not open
}

// Inspect says how the secrets of a mail server are sealed.
func (o *Outbound) Inspect(s *store.MailServer) Sealed {
	var in Sealed
	for _, x := range secrets(s) {
		switch _, err := o.keys.Open(x.sealed, x.place, x.first); {
		case err != nil:
			in.Lost = append(in.Lost, x.name)
		case o.keys.Current(x.sealed):
			in.Current++
		default:
			in.Older++
		}
	}
	return in
}

// Reseal seals the secrets of s that are sealed by an older key by the newest one, and says how
// many. Those that do not open stay as they are.
func (o *Outbound) Reseal(s *store.MailServer) int {
	n := 0
	for _, x := range secrets(s) {
		if o.keys.Current(x.sealed) {
			continue
		}
		if open, err := o.keys.Open(x.sealed, x.place, x.first); err == nil {
			x.put(s, o.keys.Seal(open, x.place))
			n++
		}
	}
	return n
}

// Listing lists mail servers by name.
type Listing interface {
	Servers(ctx context.Context, sc store.Scope, f store.ServerFilter, afterName string, n int) ([]*store.MailServer, error)
}

// Each calls f with every mail server of a scope, deleted ones too.
func Each(ctx context.Context, l Listing, sc store.Scope, f func(*store.MailServer) error) error {
	const page = 100
	for after := ""; ; {
		servers, err := l.Servers(ctx, sc, store.ServerFilter{ShowDeleted: true}, after, page)
		if err != nil {
			return err
		}
		for _, s := range servers {
			if err := f(s); err != nil {
				return err
			}
		}
		if len(servers) < page {
			return nil
		}
		after = servers[page-1].Name
	}
}

// Census counts how the stored secrets of all mail servers are sealed. The names in Lost name
// their mail server too.
func (o *Outbound) Census(ctx context.Context, l Listing) (Sealed, error) {
	var all Sealed
	err := Each(ctx, l, store.Everything, func(s *store.MailServer) error {
		in := o.Inspect(s)
		all.Current += in.Current
		all.Older += in.Older
		for _, name := range in.Lost {
			all.Lost = append(all.Lost, s.Name+" ("+name+")")
		}
		return nil
	})
	return all, err
}
