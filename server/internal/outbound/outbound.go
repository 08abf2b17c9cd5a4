// Package outbound turns a saved mail server into what smtpx dials: one place for sending and
// for testing, so that both always mean the same relay. It is also the only place where a
// stored password or signing key is opened.
package outbound

import (
	"fmt"
	"net"
	"strconv"

	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/store"
)

// Outbound knows the keys and this machine's mail program.
type Outbound struct {
	keys   *seal.Ring
	host   string
	port   int
	helo   string
	tokens tokens

	signers signers
}

// New makes an Outbound. localhost is host:port of the mail program of this machine, for
// TYPE_LOCALHOST.
func New(keys *seal.Ring, localhost, helo string) (*Outbound, error) {
	h, p, err := net.SplitHostPort(localhost)
	if err != nil {
		return nil, fmt.Errorf("localhost-smtp: %q is not host:port", localhost)
	}
	port, err := strconv.Atoi(p)
	if err != nil || port < 1 || port > 65535 {
		return nil, fmt.Errorf("localhost-smtp: %q has no port from 1 to 65535", localhost)
	}
	if helo != "" {
		wire, err := smtpx.HeloName(helo)
		if err != nil {
			return nil, fmt.Errorf("helo-name: %q %w", helo, err)
		}
		helo = wire
	}
	return &Outbound{keys: keys, host: h, port: port, helo: helo, tokens: tokens{client: noTokens, sources: map[string]sharedSource{}},
		signers: signers{byName: map[string]openedKey{}}}, nil
}

// place is what a password belongs to. Whoever changes one of these has to give the password
// again: else it could be sent to a host of their choice. The authorities are among them,
// because they say who may be taken for the host, and so is the mechanism, because it says
// whether the password is shown to it.
func place(name string, x *store.SMTP) string {
	return seal.Place("mail_server.password", name, x.Host, strconv.Itoa(x.Port), x.Encryption, x.Username, x.Auth, x.CAPEM)
}

// firstPlace is the place of passwords that were sealed before authorities and mechanism
// belonged to it. They open until they are given anew.
func firstPlace(name string, x *store.SMTP) string {
	return seal.Place("mail_server.password", name, x.Host, strconv.Itoa(x.Port), x.Encryption, x.Username)
}

// Seal seals a password for the mail server as it is configured.
func (o *Outbound) Seal(s *store.MailServer, password string) []byte {
	return o.keys.Seal(password, place(s.Name, s.SMTP))
}

// Relay is where and how to connect, with the stored password opened.
func (o *Outbound) Relay(s *store.MailServer) (smtpx.Relay, error) {
	if s.SMTP != nil && s.SMTP.OAuth != nil {
		return o.shared(s)
	}
	password := ""
	if s.SMTP != nil && len(s.SMTP.SealedPassword) > 0 {
		var err error
		if password, err = o.keys.Open(s.SMTP.SealedPassword, place(s.Name, s.SMTP), firstPlace(s.Name, s.SMTP)); err != nil {
			return smtpx.Relay{}, &smtpx.Error{Phase: smtpx.PhaseAuth, Temporary: true, Err: err,
				Hint: "give the password again, or start the service with the key file it was sealed with"}
		}
	}
	return o.RelayWith(s, password), nil
}

// RelayWith is Relay with a password that is not stored.
func (o *Outbound) RelayWith(s *store.MailServer, password string) smtpx.Relay {
	if s.Type == store.TypeLocalhost {
		return smtpx.Relay{Host: o.host, Port: o.port, Encryption: smtpx.EncryptionNone, Auth: smtpx.AuthNone, HeloName: o.helo}
	}
	x := s.SMTP
	helo := x.HeloName
	if helo == "" {
		helo = o.helo
	}
	return smtpx.Relay{Host: x.Host, Port: x.Port, Encryption: smtpx.Encryption(x.Encryption), Auth: smtpx.Auth(x.Auth), Username: Username(s),
		Password: password, HeloName: helo, CAPEM: []byte(x.CAPEM), AllowPlaintextAuth: x.AllowPlaintextAuth, Timeouts: smtpx.Timeouts{Connect: x.Timeout}}
}
