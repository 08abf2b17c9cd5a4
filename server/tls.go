package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// transport is TLS when a certificate is configured, else plaintext.
func transport(cfg *Config) (credentials.TransportCredentials, error) {
	if cfg.TLSCert == "" {
		return insecure.NewCredentials(), nil
	}
	c := &certificate{cert: cfg.TLSCert, key: cfg.TLSKey}
	if _, err := c.get(nil); err != nil {
		return nil, fmt.Errorf("tls-cert: %w", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
	if cfg.ClientCA != "" {
		pem, err := os.ReadFile(cfg.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("client-ca: %w", err)
		}
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("client-ca: holds no PEM certificate")
		}
		t.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return credentials.NewTLS(t), nil
}

// certificate reads a pair of files again when they change, so that a renewed certificate needs
// no restart.
type certificate struct {
	cert, key string

	mu      sync.Mutex
	loaded  *tls.Certificate
	changed time.Time
	looked  time.Time
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loaded != nil && time.Since(c.looked) < time.Second {
		return c.loaded, nil
	}
	c.looked = time.Now()
	st, err := os.Stat(c.cert)
	if err == nil && (c.loaded == nil || !st.ModTime().Equal(c.changed)) {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(c.cert, c.key); err == nil {
			c.loaded, c.changed = &pair, st.ModTime()
		}
	}
	if c.loaded == nil {
		return nil, err
	}
	// half-written files are looked at again in a second; the old pair serves meanwhile
	return c.loaded, nil
}
