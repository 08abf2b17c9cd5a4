package outbound

import (
	"bytes"
	"crypto/rsa"
	"sync"

	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/smtpx/message/dkim"
	"github.com/maildispatch/maildispatch/store"
)

// keyPlace is what a signing key belongs to. A key that is moved to another mail server, or
// under another name in DNS, opens to nothing.
func keyPlace(name string, d *store.DKIM) string {
	return seal.Place("mail_server.dkim", name, d.Domain, d.Selector)
}

// SealKey seals a key into s, whose domain and selector are those it signs for.
func (o *Outbound) SealKey(s *store.MailServer, key *rsa.PrivateKey) error {
	der, err := dkim.MarshalDER(key)
	if err != nil {
		return err
	}
	public, err := dkim.PublicKey(key)
	if err != nil {
		return err
	}
	d := *s.DKIM // the one that was read may be somebody else's too
	d.PublicKey, d.SealedKey = public, o.keys.Seal(string(der), keyPlace(s.Name, &d))
	s.DKIM = &d
	return nil
}

// signers are the opened keys of this process, one for each mail server.
type signers struct {
	mu     sync.Mutex // guards byName
	byName map[string]openedKey
}

// openedKey is a key as it was opened, and as it lay sealed.
type openedKey struct {
	sealed []byte
	signer *dkim.Signer
}

// Signer is what signs mail of s. A key is opened once for as long as it is stored as it is:
// opening costs as much as signing. Sealed values are never equal by chance.
func (o *Outbound) Signer(s *store.MailServer) (*dkim.Signer, error) {
	d := s.DKIM
	o.signers.mu.Lock()
	defer o.signers.mu.Unlock()
	if x := o.signers.byName[s.Name]; x.signer != nil && bytes.Equal(x.sealed, d.SealedKey) && x.signer.Domain == d.Domain && x.signer.Selector == d.Selector {
		return x.signer, nil
	}
	place := keyPlace(s.Name, d)
	der, err := o.keys.Open(d.SealedKey, place, place)
	if err != nil {
		return nil, err
	}
	key, err := dkim.ParseDER([]byte(der))
	if err != nil {
		return nil, err
	}
	signer := &dkim.Signer{Domain: d.Domain, Selector: d.Selector, Key: key}
	o.signers.byName[s.Name] = openedKey{d.SealedKey, signer}
	return signer, nil
}
