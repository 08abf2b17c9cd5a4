package outbound

import (
	"testing"

	"github.com/maildispatch/maildispatch/store"
)

// TestGrantStaysWithItsMailbox: the key of a service account opens every mailbox of its domain.
// A row whose sender was changed behind the service's back gets none of it.
func TestGrantStaysWithItsMailbox(t *testing.T) {
	o := outbound(t, "")
	with := func(from, username string) *store.MailServer {
		s := server()
		s.From, s.SMTP.Username, s.SMTP.Auth = from, username, "xoauth2"
		s.SMTP.OAuth = &store.OAuth{TokenURL: "https://login.example/token", Grant: "service_account"}
		return s
	}
	sealed := with("Shop <shop@x.example>", "")
	o.SealOAuth(sealed, Secrets{Grant: "key"})
	for _, x := range []struct {
		from, username string
		opens          bool
	}{{"shop@x.example", "", true}, {"a@x.example", "shop@x.example", true}, {"boss@x.example", "", false}, {"shop@x.example", "boss@x.example", false}} {
		s := with(x.from, x.username)
		s.SMTP.OAuth.SealedGrant = sealed.SMTP.OAuth.SealedGrant
		have, err := o.open(s, s, Secrets{})
		if opens := err == nil && have.Grant == "key"; opens != x.opens {
			t.Errorf("from %s, username %q: opens %v, %v, want %v", x.from, x.username, opens, err, x.opens)
		}
	}
}
