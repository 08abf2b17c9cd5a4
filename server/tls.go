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
	t := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.get() }}
	if cfg.ClientCA == "" {
		return &transport{credentials.NewTLS(t), pair, &refusals{log: log}}, nil
	}
	authorities := &onDisk[*x509.CertPool]{name: "client-ca", files: []string{cfg.ClientCA}, log: log, parse: func(b [][]byte) (*x509.CertPool, error) {
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM(b[0]) {
			return nil, errors.New("holds no PEM certificate")
		}
		return p, nil
	}}
	if _, err := authorities.get(); err != nil {
		return nil, fmt.Errorf("client-ca: %w", err)
	}
	t.ClientAuth = tls.RequireAndVerifyClientCert
	t.NextProtos = []string{"h2"}
	// A resumed session brings a certificate that was checked against earlier authorities.
	t.SessionTicketsDisabled = true
	outer := t.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		p, err := authorities.get()
		if err != nil {
			return nil, err
		}
		c := t.Clone()
		c.ClientCAs = p
		return c, nil
	}
	return &transport{credentials.NewTLS(outer), pair, &refusals{log: log}}, nil
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
