package outbound

import (
	"crypto/rsa"
	"errors"
	"sync"
	"testing"

	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/smtpx/message/dkim"
	"github.com/maildispatch/maildispatch/store"
)

var signingKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := dkim.NewKey()
	if err != nil {
		panic(err)
	}
	return key
})

func signing(t *testing.T, o *Outbound, name, domain, selector string) *store.MailServer {
	t.Helper()
	s := &store.MailServer{Name: name, DKIM: &store.DKIM{Domain: domain, Selector: selector}}
	read := s.DKIM
	if err := o.SealKey(s, signingKey()); err != nil {
		t.Fatal(err)
	}
	if read.SealedKey != nil {
		t.Error("the configuration that was read is changed in place")
	}
	return s
}

// TestKeyStaysInItsPlace: a sealed key opens for its mail server, domain and selector only,
// also where it was opened for them before.
func TestKeyStaysInItsPlace(t *testing.T) {
	o := outbound(t, "")
	s := signing(t, o, "main", "x.example", "s1")
	first, err := o.Signer(s)
	if err != nil || !first.Key.Equal(signingKey()) || first.Domain != "x.example" || first.Selector != "s1" {
		t.Fatalf("%+v, %v", first, err)
	}
	if again, err := o.Signer(s); err != nil || again != first {
		t.Errorf("the key is opened once more: %v", err)
	}
	for _, x := range [][3]string{{"other", "x.example", "s1"}, {"main", "y.example", "s1"}, {"main", "x.example", "s2"}} {
		moved := &store.MailServer{Name: x[0], DKIM: &store.DKIM{Domain: x[1], Selector: x[2], SealedKey: s.DKIM.SealedKey}}
		if got, err := o.Signer(moved); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("%v: got %v, %v, want that it does not open", x, got, err)
		}
	}
	damaged := append([]byte(nil), s.DKIM.SealedKey...)
	damaged[len(damaged)-1] ^= 1
	if _, err := o.Signer(&store.MailServer{Name: "main", DKIM: &store.DKIM{Domain: "x.example", Selector: "s1", SealedKey: damaged}}); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("damaged: %v", err)
	}
	newer := signing(t, o, "main", "x.example", "s1")
	if got, err := o.Signer(newer); err != nil || got == first {
		t.Errorf("a key that was given anew: %v, want it opened", err)
	}
}
