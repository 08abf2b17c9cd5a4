package smtpx

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// withHint adds what a person can do about a fault of opening a session.
func withHint(e *Error, r Relay) *Error {
	if e != nil && e.Hint == "" {
		e.Hint = hint(e, r)
	}
	return e
}

const loginHint = "username or password is wrong, or this account may not send: check them with the provider (some want an app password)"

func hint(e *Error, r Relay) string {
	var (
		host    x509.HostnameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
	)
	var hinted interface{ Hint() string }
	if e.Phase == PhaseToken && errors.As(e.Err, &hinted) {
		return hinted.Hint()
	}
	if h := hintOfProvider(e, r); h != "" {
		return h
	}
	switch {
	case errors.Is(e.Err, ErrNotAllowed):
		return "this address is outside what the service may dial: see --smtp-destinations"
	case errors.As(e.Err, &host) && len(certNames(host.Certificate)) == 0:
		return "the certificate names no host the way that is checked today (subjectAltName): have it issued again with one"
	case errors.As(e.Err, &host):
		return "the certificate is for another name: use the name that it carries as host (" + strings.Join(certNames(host.Certificate), ", ") + ")"
	case errors.As(e.Err, &unknown):
		return "the certificate is signed by nobody this machine trusts: give the authority's certificate in ca_pem"
	case errors.As(e.Err, &invalid) && invalid.Reason == x509.Expired:
		return "the certificate has expired, or is not valid yet: renew it on the server"
	case errors.As(e.Err, &record):
		return "the server does not speak TLS on this port: use ENCRYPTION_STARTTLS (usual port 587) or the TLS port (usual 465)"
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens on port %d of this host: check host and port", r.Port)
	case errors.Is(e.Err, errHeloName), e.Phase == PhaseEHLO && e.Reply.Code == 501:
		return "set helo_name to this machine's full host name, or to its address as [192.0.2.1] or [IPv6:2001:db8::1]"
	case errors.Is(e.Err, errProtocol) && e.Phase == PhaseGreeting:
		return "what listens there does not speak SMTP: check the port"
	case errors.Is(e.Err, errNoAuth) && r.Encryption == EncryptionNone:
		return "the server offers a login only over TLS, or not at all: use ENCRYPTION_STARTTLS or ENCRYPTION_TLS, or remove username and password"
	case errors.Is(e.Err, errNoAuth):
		return "the server offers no login: remove username and password, or use its submission port (587 or 465)"
	case errors.Is(e.Err, errNoCertificates):
		return "give ca_pem the authority's certificate as PEM, or leave it out"
	case errors.Is(e.Err, errInTheLine):
		return "do not send through this network before its operator knows who writes into the connection"
	case errors.Is(e.Err, errPlaintextAuth):
		return "use ENCRYPTION_STARTTLS or ENCRYPTION_TLS, or permit it with allow_plaintext_auth"
	case errors.Is(e.Err, errNoMechanism):
		return "set auth to a mechanism that the server offers, or leave it out"
	}
	switch e.Phase {
	case PhaseDNS:
		return "the host name is not found: check its spelling and this machine's name server"
	case PhaseConnect:
		if errors.Is(e.Err, os.ErrDeadlineExceeded) {
			return "the host does not answer on this port: a firewall may be in the way"
		}
		return "check host, port and the network in between"
	case PhaseGreeting:
		if errors.Is(e.Err, os.ErrDeadlineExceeded) && r.Encryption != EncryptionTLS {
			return "the server waits instead of greeting: port 465 wants ENCRYPTION_TLS"
		}
		if e.Err != nil && r.Encryption != EncryptionTLS {
			return "the server closed the connection instead of greeting: it may want ENCRYPTION_TLS on this port, or refuse this machine's address"
		}
		return "the server refuses this machine: ask its operator"
	case PhaseTLS, PhaseSTARTTLS:
		if strings.Contains(fmt.Sprint(e.Err), "does not offer STARTTLS") {
			return "use ENCRYPTION_TLS on port 465, or another port; ENCRYPTION_NONE only where the network can be trusted"
		}
		if e.Phase == PhaseSTARTTLS && e.Reply.Code != 0 {
			return "the server offers STARTTLS and cannot do it now: try again later, or ask its operator"
		}
		if strings.Contains(fmt.Sprint(e.Err), "protocol version") {
			return "the server is too old for TLS 1.2: ask its operator to renew it"
		}
		if e.Phase == PhaseTLS {
			return "check that this is the TLS port (usual 465); STARTTLS has another (usual 587)"
		}
		if isEOF(e.Err) || errors.Is(e.Err, errClosed) || errors.Is(e.Err, os.ErrDeadlineExceeded) {
			return "the server hangs up, or falls silent, where TLS should begin: try again later, or ask its operator"
		}
		return "the TLS handshake failed: ask the server's operator what it wants of TLS"
	case PhaseAuth:
		if e.Reply.Code == 530 && r.Encryption == EncryptionNone {
			return "the server takes a login only over TLS: use ENCRYPTION_STARTTLS or ENCRYPTION_TLS"
		}
		if e.Reply.Code >= 500 {
			return loginHint
		}
		return "the server cannot check the login just now: try again later"
	case PhaseMail:
		return "the server refuses this sender's mailbox: use an address that the account may send from"
	case PhaseRcpt:
		return "the server refuses this recipient: the account may lack the right to send there"
	}
	return ""
}

func certNames(c *x509.Certificate) []string {
	if c == nil {
		return nil
	}
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names[:min(len(names), 5)]
}
