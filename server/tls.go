package server

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// transport is TLS when a certificate is configured, else plaintext.
type transport struct {
	credentials.TransportCredentials
	pair     *onDisk[*tls.Certificate] // nil = plaintext
	clients  *onDisk[*x509.CertPool]   // nil = nobody is asked for a certificate
	refusals *refusals
}

// newTransport reads the files that the configuration names.
func newTransport(cfg *Config, log *slog.Logger) (*transport, error) {
	if cfg.TLSCert == "" {
		return &transport{TransportCredentials: insecure.NewCredentials()}, nil
	}
	pair := &onDisk[*tls.Certificate]{name: "tls-cert", files: []string{cfg.TLSCert, cfg.TLSKey}, log: log, parse: func(b [][]byte) (*tls.Certificate, error) {
		c, err := tls.X509KeyPair(b[0], b[1])
		return &c, err
	}}
	if _, err := pair.get(); err != nil {
		return nil, fmt.Errorf("tls-cert: %w", err)
	}
	t := &transport{pair: pair, refusals: &refusals{log: log}}
	if cfg.ClientCA == "" {
		t.TransportCredentials = credentials.NewTLS(t.config())
		return t, nil
	}
	t.clients = &onDisk[*x509.CertPool]{name: "client-ca", files: []string{cfg.ClientCA}, log: log, parse: func(b [][]byte) (*x509.CertPool, error) {
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM(b[0]) {
			return nil, errors.New("holds no PEM certificate")
		}
		return p, nil
	}}
	if _, err := t.clients.get(); err != nil {
		return nil, fmt.Errorf("client-ca: %w", err)
	}
	t.TransportCredentials = credentials.NewTLS(t.config("h2"))
	return t, nil
}

// config is that of connections, which speak the protocols.
func (t *transport) config(protocols ...string) *tls.Config {
	inner := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.pair.get() }}
	if t.clients == nil {
		return inner
	}
	inner.ClientAuth = tls.RequireAndVerifyClientCert
	// A resumed session brings a certificate that was checked against earlier authorities.
	inner.SessionTicketsDisabled = true
	outer := inner.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		p, err := t.clients.get()
		if err != nil {
			return nil, err
		}
		c := inner.Clone()
		c.ClientCAs = p
		return c, nil
	}
	return outer
}

// web is the configuration for browsers, nil for plaintext.
func (t *transport) web() *tls.Config {
	if t.pair == nil {
		return nil
	}
	return t.config("http/1.1")
}

// expiry is when the certificate in use ends, zero without one.
func (t *transport) expiry() time.Time {
	if t.pair == nil {
		return time.Time{}
	}
	c, err := t.pair.get()
	if err != nil || c.Leaf == nil {
		return time.Time{}
	}
	return c.Leaf.NotAfter
}

// lookAgain is how often files are read again, and only when somebody asks.
const lookAgain = time.Second

// onDisk is what files hold, parsed. They are read again when they change, so that a renewed
// certificate or an authority that was taken out needs no restart. What cannot be read or
// parsed, such as a file that is half written, changes nothing and is told once.
type onDisk[T any] struct {
	name  string
	files []string
	parse func([][]byte) (T, error)
	log   *slog.Logger

	mu     sync.Mutex // guards what follows
	have   bool
	value  T
	bytes  [][]byte // that value was made of
	looked time.Time
	told   string // the last fault that the log has
}

func (d *onDisk[T]) get() (T, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.have && time.Since(d.looked) < lookAgain {
		return d.value, nil
	}
	d.looked = time.Now()
	now := make([][]byte, len(d.files))
	var err error
	for i, f := range d.files {
		if now[i], err = os.ReadFile(f); err != nil {
			break
		}
	}
	// By what they hold: a file that is put in another's place may have its time.
	same := d.have && err == nil
	for i := range now {
		same = same && bytes.Equal(now[i], d.bytes[i])
	}
	if same {
		d.told = ""
		return d.value, nil
	}
	var v T
	if err == nil {
		v, err = d.parse(now)
	}
	switch {
	case err == nil:
		if d.have {
			d.log.Info("read again", "flag", d.name, "files", d.files)
		}
		d.have, d.value, d.bytes, d.told = true, v, now, ""
	case !d.have:
		return v, err
	case err.Error() != d.told:
		d.log.Warn("not read again: what was read before serves", "flag", d.name, "error", err)
		d.told = err.Error()
	}
	return d.value, nil
}
