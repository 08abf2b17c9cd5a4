// Package workload knows callers by OpenID Connect tokens that a platform gives to its
// workloads, such as the service accounts of Kubernetes.
//
// Everything by which a token is checked comes from the operator: issuer, audience, algorithms
// and where the issuer's keys are. Nothing of it is taken from a token, nor looked up at the
// issuer. [Verifier.Verify] works in memory alone; [Verifier.Run] reads the keys every five
// minutes, and soon after a token came with a key that is not known. While the keys cannot be
// read the last ones hold, for a day.
//
// The package leaves it to package access what a subject may do.
package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
)

const (
	readEvery = 5 * time.Minute  // how often keys are read again
	readSoon  = 10 * time.Second // and at most so often because of an unknown one
	keysHold  = 24 * time.Hour   // how long keys are good that cannot be read again
	// skew is how far the issuer's clock and ours may be apart. A token holds so much longer.
	// One that is not valid yet is taken up to five minutes early, as the library has it.
	skew = 30 * time.Second
)

// Algorithms are those that a token may be signed by unless others are configured. None of them
// works with a shared secret.
var Algorithms = []string{oidc.RS256, oidc.ES256}

// known are all that may be configured.
var known = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}

// Config of a Verifier.
type Config struct {
	Issuer     string   // what `iss` has to be, letter by letter
	Audience   string   // what `aud` has to have
	Algorithms []string // none = Algorithms
	Keys       Source
	Logger     *slog.Logger
	Now        func() time.Time // nil = time.Now
}

// Source is where the issuer's keys are: a JSON Web Key Set (RFC 7517).
type Source interface {
	Read(ctx context.Context) ([]byte, error)
}

// Verifier knows workloads. Calls use Verify; Run alone changes the keys.
type Verifier struct {
	cfg    Config
	verify *oidc.IDTokenVerifier
	want   chan struct{} // a key is not known

	mu   sync.RWMutex // guards what follows
	keys []jose.JSONWebKey
	read time.Time // when keys were read
	last time.Time // when it was tried last
}

// New makes a Verifier that has no keys yet.
func New(c Config) (*Verifier, error) {
	if c.Issuer == "" || c.Audience == "" || c.Keys == nil {
		return nil, errors.New("issuer, audience and keys go together")
	}
	if len(c.Algorithms) == 0 {
		c.Algorithms = Algorithms
	}
	for _, a := range c.Algorithms {
		if !slices.Contains(known, a) {
			return nil, fmt.Errorf("%q is none of the algorithms %v", a, known)
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	v := &Verifier{cfg: c, want: make(chan struct{}, 1)}
	v.verify = oidc.NewVerifier(c.Issuer, v, &oidc.Config{ClientID: c.Audience, SupportedSigningAlgs: c.Algorithms, Now: func() time.Time { return c.Now().Add(-skew) }})
	return v, nil
}

var (
	errUnknownKey = errors.New("the key is not known")
	errOldKeys    = errors.New("the keys have not been read for too long")
)

// Verify says whose token it is, and until when it holds. It asks nobody.
func (v *Verifier) Verify(token string) (subject string, expire time.Time, err error) {
	var signature error // the library tells it as text alone
	t, err := v.verify.Verify(context.WithValue(context.Background(), signatureKey{}, &signature), token)
	if errors.Is(signature, errOldKeys) {
		v.ask()
	}
	switch {
	case errors.Is(signature, errUnknownKey) && v.ask(), errors.Is(signature, errOldKeys):
		e := apierr.New(codes.Unavailable, pb.ReasonDatabaseUnavailable, "the keys of the token's issuer are being read")
		e.RetryAfter = time.Second
		return "", time.Time{}, e
	case err != nil:
		// what is wrong with it is the log's to say: a stranger may have made it
		v.cfg.Logger.Debug("a workload's token was refused", "error", err)
		return "", time.Time{}, refused("the token is not known")
	case t.Subject == "":
		return "", time.Time{}, refused("the token is not known")
	}
	return t.Subject, t.Expiry.Add(skew), nil
}

func refused(text string) error {
	return apierr.New(codes.Unauthenticated, pb.ReasonTokenRefused, "%s", text)
}

// ask has the keys read again, unless that was tried a moment ago: it reports whether it may
// help to come again.
func (v *Verifier) ask() bool {
	v.mu.RLock()
	due := v.cfg.Now().Sub(v.last) >= readSoon
	v.mu.RUnlock()
	if due {
		select {
		case v.want <- struct{}{}:
		default: // it is known already
		}
	}
	return due
}

// VerifySignature implements oidc.KeySet.
func (v *Verifier) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := v.signed(token)
	if told, ok := ctx.Value(signatureKey{}).(*error); ok {
		*told = err
	}
	return payload, err
}

// signatureKey leads to where VerifySignature leaves its error.
type signatureKey struct{}

// signed is the payload of a token with a good signature.
func (v *Verifier) signed(token string) ([]byte, error) {
	algorithms := make([]jose.SignatureAlgorithm, len(v.cfg.Algorithms))
	for i, a := range v.cfg.Algorithms {
		algorithms[i] = jose.SignatureAlgorithm(a)
	}
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, err
	}
	if len(jws.Signatures) != 1 {
		return nil, errors.New("not one signature")
	}
	id := jws.Signatures[0].Header.KeyID
	v.mu.RLock()
	keys, read := v.keys, v.read
	v.mu.RUnlock()
	if v.cfg.Now().Sub(read) > keysHold {
		return nil, errOldKeys
	}
	found := false
	for i := range keys {
		if id != "" && keys[i].KeyID != id {
			continue
		}
		found = true
		if payload, err := jws.Verify(&keys[i]); err == nil {
			return payload, nil
		}
	}
	if !found {
		return nil, errUnknownKey
	}
	return nil, errors.New("the signature is wrong")
}

// Read reads the keys. What was read before holds when it fails.
func (v *Verifier) Read(ctx context.Context) error {
	now := v.cfg.Now()
	v.mu.Lock()
	v.last = now
	v.mu.Unlock()
	b, err := v.cfg.Keys.Read(ctx)
	if err != nil {
		return err
	}
	keys, err := parse(b)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.keys, v.read = keys, now
	v.mu.Unlock()
	return nil
}

// Run keeps the keys in step with the issuer until ctx ends.
func (v *Verifier) Run(ctx context.Context) {
	failed := false
	for {
		err := v.Read(ctx)
		if (err != nil) != failed && ctx.Err() == nil {
			if failed = err != nil; failed {
				v.cfg.Logger.Warn("the keys of workloads' tokens cannot be read: what was read before holds", "error", err)
			} else {
				v.cfg.Logger.Info("the keys of workloads' tokens are read again")
			}
		}
		pause := readEvery
		if err != nil {
			pause = readSoon
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-v.want:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}
