package server

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/workload"
)

// oidcConfig says whose tokens of workloads are taken. All of it is empty, or the first three
// are not.
type oidcConfig struct {
	issuer, audience, keys string
	keysCA, keysToken      string
	algorithms             string // separated by commas
}

// declareWorkloads declares the flags by which workloads are known.
func (c *Config) declareWorkloads(fs *flag.FlagSet) {
	o := &c.oidc
	fs.StringVar(&o.issuer, "oidc-issuer", "", "whose OpenID Connect tokens are taken for callers that --client-names has as oidc:SUBJECT, such as https://kubernetes.default.svc.cluster.local; empty: none")
	fs.StringVar(&o.audience, "oidc-audience", "", "what such a token has to be made for")
	fs.StringVar(&o.keys, "oidc-keys", "", "where the issuer's keys are: an https address, or a file, of a JSON Web Key Set; read again every 5 minutes")
	fs.StringVar(&o.keysCA, "oidc-keys-ca", "", "PEM authorities for --oidc-keys; empty: those of this machine")
	fs.StringVar(&o.keysToken, "oidc-keys-token", "", "file with a bearer token for --oidc-keys, which Kubernetes wants")
	fs.StringVar(&o.algorithms, "oidc-algorithms", strings.Join(workload.Algorithms, ","), "by which such tokens may be signed")
}

// workloads is what knows them; nil where none are taken. now is the time that counts.
func (c *Config) workloads(log *slog.Logger, now func() time.Time) (*workload.Verifier, error) {
	o := &c.oidc
	switch {
	case o.issuer == "" && o.audience == "" && o.keys == "" && o.keysCA == "" && o.keysToken == "":
		return nil, nil
	case o.issuer == "" || o.audience == "" || o.keys == "":
		return nil, errors.New("oidc-issuer, oidc-audience and oidc-keys go together")
	case c.ClientNames == "":
		return nil, errors.New("oidc-issuer needs client-names, which says what each workload may do")
	}
	from, err := workload.NewSource(o.keys, o.keysCA, o.keysToken)
	if err != nil {
		return nil, fmt.Errorf("oidc-keys: %w", err)
	}
	v, err := workload.New(workload.Config{Issuer: o.issuer, Audience: o.audience, Algorithms: strings.Split(o.algorithms, ","), Keys: from, Logger: log, Now: now})
	if err != nil {
		return nil, fmt.Errorf("oidc-algorithms: %w", err)
	}
	return v, nil
}

// checkWorkloads finds what cannot work.
func (c *Config) checkWorkloads() error {
	v, err := c.workloads(nil, nil)
	if err == nil && c.ClientNames != "" && c.ClientCA == "" && v == nil {
		err = errors.New("client-names needs client-ca or oidc-issuer")
	}
	return err
}

// workloadLines is what --print-config says of them.
func (c *Config) workloadLines() string {
	o := &c.oidc
	return fmt.Sprintf("oidc-issuer=%s\noidc-audience=%s\noidc-keys=%s\noidc-keys-ca=%s\noidc-keys-token=%s\noidc-algorithms=%s\n", o.issuer, o.audience, o.keys, o.keysCA, o.keysToken, o.algorithms)
}
