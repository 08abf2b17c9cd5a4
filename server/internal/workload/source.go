package workload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeys  = 1 << 20 // bytes of a key set
	readTime = 10 * time.Second
)

// parse reads a key set. Only public keys that sign are taken.
func parse(b []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("not a key set: %w", err)
	}
	var out []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(raw, &k) != nil {
			continue // of a kind that is not known here
		}
		if k.Valid() && k.IsPublic() && (k.Use == "" || k.Use == "sig") {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the key set has no public key that signs")
	}
	return out, nil
}

// NewSource is where keys are read: a file, or an https address (http on this machine only).
// authorities is a PEM file for that address; "" = those of this machine. token is a file with
// a bearer token for it, as Kubernetes wants one; "" = none. Both files are read each time.
func NewSource(at, authorities, token string) (Source, error) {
	if !strings.Contains(at, "://") {
		if authorities != "" || token != "" {
			return nil, errors.New("a file takes neither authorities nor a token")
		}
		return file(at), nil
	}
	u, err := url.Parse(at)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%q is not an address such as https://kubernetes.default.svc/openid/v1/jwks", at)
	}
	ip := net.ParseIP(u.Hostname())
	here := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && !(u.Scheme == "http" && here) {
		return nil, fmt.Errorf("%q is not https", at)
	}
	return &address{at: at, authorities: authorities, token: token}, nil
}

type file string

// Read implements Source.
func (f file) Read(context.Context) ([]byte, error) { return os.ReadFile(string(f)) }

type address struct{ at, authorities, token string }

// Read implements Source.
func (a *address) Read(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	t := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	if a.authorities != "" {
		pem, err := os.ReadFile(a.authorities)
		if err != nil {
			return nil, err
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", a.authorities)
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.at, nil)
	if err != nil {
		return nil, err
	}
	if a.token != "" {
		b, err := os.ReadFile(a.token)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(b)))
	}
	c := http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("it answers with a redirect") // the token is for this address
	}}
	res, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", a.at, res.Status)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxKeys+1))
	if err == nil && len(b) > maxKeys {
		err = fmt.Errorf("%s answers more than %d bytes", a.at, maxKeys)
	}
	return b, err
}
