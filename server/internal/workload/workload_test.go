package workload

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	issuer, audience = "https://issuer.example", "maildispatch"
	subject          = "system:serviceaccount:shop:billing"
)

// platform gives out tokens, and tells its keys.
type platform struct {
	t     *testing.T
	keys  []jose.JSONWebKey // private; the last one signs
	down  bool
	reads atomic.Int64
	at    time.Time
}

func (p *platform) Read(context.Context) ([]byte, error) {
	p.reads.Add(1)
	if p.down {
		return nil, errors.New("down")
	}
	return p.set(), nil
}

func (p *platform) set() []byte {
	var set jose.JSONWebKeySet
	for _, k := range p.keys {
		set.Keys = append(set.Keys, k.Public())
	}
	b, err := json.Marshal(set)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// rotate adds a key.
func (p *platform) rotate(id string) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	p.keys = append(p.keys, jose.JSONWebKey{Key: k, KeyID: id, Algorithm: string(jose.ES256), Use: "sig"})
}

type claims map[string]any

// token signs the usual claims with changes; nil takes one out.
func (p *platform) token(change claims) string {
	p.t.Helper()
	return sign(p.t, jose.ES256, p.keys[len(p.keys)-1], p.claims(change))
}

func (p *platform) claims(change claims) claims {
	c := claims{"iss": issuer, "aud": []string{"other", audience}, "sub": subject, "exp": p.at.Add(time.Hour).Unix(), "nbf": p.at.Unix(), "iat": p.at.Unix()}
	for k, v := range change {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

func sign(t *testing.T, alg jose.SignatureAlgorithm, key any, c claims) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(body)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func newPlatform(t *testing.T) (*platform, *Verifier) {
	t.Helper()
	p := &platform{t: t, at: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	p.rotate("one")
	v, err := New(Config{Issuer: issuer, Audience: audience, Keys: p, Now: func() time.Time { return p.at }})
	if err == nil {
		err = v.Read(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return p, v
}

// TestVerify: a token counts by the operator's issuer, audience and algorithms and the issuer's
// keys, and by nothing that it says itself; to check one asks nobody.
func TestVerify(t *testing.T) {
	t.Parallel()
	p, v := newPlatform(t)
	got, until, err := v.Verify(p.token(nil))
	if err != nil || got != subject || !until.Equal(p.at.Add(time.Hour+skew)) {
		t.Fatalf("got %q until %v, %v, want %q", got, until, err, subject)
	}
	if _, _, err := v.Verify(p.token(claims{"aud": audience, "nbf": nil, "iat": nil})); err != nil {
		t.Errorf("an audience that is no list: %v", err)
	}
	for what, ahead := range map[string]time.Duration{"our clock is ahead": 20 * time.Second, "the issuer's clock is ahead": -20 * time.Second} {
		if _, _, err := v.Verify(p.token(claims{"nbf": p.at.Add(-ahead).Unix(), "exp": p.at.Add(time.Second - max(0, ahead)).Unix()})); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	stranger := &platform{t: t, at: p.at}
	stranger.rotate("one") // by the same name
	public, err := x509.MarshalPKIXPublicKey(p.keys[0].Public().Key)
	if err != nil {
		t.Fatal(err)
	}
	right := p.token(nil)
	parts := strings.Split(right, ".")
	for what, token := range map[string]string{
		"another issuer":    p.token(claims{"iss": issuer + "/"}),
		"another audience":  p.token(claims{"aud": "other"}),
		"no audience":       p.token(claims{"aud": nil}),
		"expired":           p.token(claims{"exp": p.at.Add(-skew - time.Second).Unix()}),
		"no expiry":         p.token(claims{"exp": nil}),
		"not yet":           p.token(claims{"nbf": p.at.Add(6 * time.Minute).Unix()}),
		"no subject":        p.token(claims{"sub": ""}),
		"a stranger's key":  stranger.token(nil),
		"a shared secret":   sign(t, jose.HS256, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), p.claims(nil)),
		"no algorithm":      "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"no signature":      parts[0] + "." + parts[1] + ".",
		"another's payload": parts[0] + "." + strings.Split(stranger.token(claims{"sub": "root"}), ".")[1] + "." + parts[2],
		"nothing":           "",
		"not a token":       "a.b.c",
		"two at once":       right + "." + right,
	} {
		if got, _, err := v.Verify(token); status.Code(err) != codes.Unauthenticated || got != "" {
			t.Errorf("%s: got %q, %v, want UNAUTHENTICATED", what, got, err)
		}
	}
	if n := p.reads.Load(); n != 1 {
		t.Errorf("the issuer was asked %d times, want once", n)
	}
}

// TestKeysRotate: a token by a key that is not known yet is one to come again with, once the
// keys were read; nobody makes the service read them again and again.
func TestKeysRotate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, v := newPlatform(t)
		began := time.Now()
		v.cfg.Now = func() time.Time { return p.at.Add(time.Since(began)) }
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go v.Run(ctx)
		synctest.Wait()
		before := p.token(nil)
		p.rotate("two")
		after := p.token(nil)
		if _, _, err := v.Verify(after); status.Code(err) != codes.Unauthenticated {
			t.Errorf("the keys were read a moment ago: got %v, want UNAUTHENTICATED", err)
		}
		time.Sleep(readSoon)
		reads := p.reads.Load()
		if _, _, err := v.Verify(after); status.Code(err) != codes.Unavailable {
			t.Errorf("a new key: got %v, want UNAVAILABLE", err)
		}
		synctest.Wait()
		for _, token := range []string{before, after} {
			if _, _, err := v.Verify(token); err != nil {
				t.Errorf("after the keys were read: %v", err)
			}
		}
		p.keys = p.keys[1:] // the first is taken out
		p.rotate("three")
		strange := p.token(nil)
		p.keys = p.keys[:1]
		for range 1000 {
			_, _, _ = v.Verify(strange) // nobody has it
		}
		synctest.Wait()
		if n := p.reads.Load() - reads; n != 1 {
			t.Errorf("the keys were read %d times, want once", n)
		}
		time.Sleep(readEvery)
		synctest.Wait()
		if _, _, err := v.Verify(before); err == nil {
			t.Error("a token by a key that was taken out is good")
		}
		if _, _, err := v.Verify(after); err != nil {
			t.Errorf("a token by the key that stays: %v", err)
		}
	})
}

// TestIssuerIsDown: the last keys hold for a day, and a service that never had any says so.
func TestIssuerIsDown(t *testing.T) {
	t.Parallel()
	p, v := newPlatform(t)
	p.down = true
	day := p.token(claims{"exp": p.at.Add(100 * time.Hour).Unix()})
	p.at = p.at.Add(keysHold)
	if err := v.Read(t.Context()); err == nil {
		t.Fatal("it is not down")
	}
	if _, _, err := v.Verify(day); err != nil {
		t.Errorf("a day without the issuer: %v", err)
	}
	p.at = p.at.Add(time.Minute)
	if _, _, err := v.Verify(day); status.Code(err) != codes.Unavailable {
		t.Errorf("longer: got %v, want UNAVAILABLE", err)
	}
	p.down = false
	if err := v.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Verify(day); err != nil {
		t.Errorf("it is back: %v", err)
	}
	none, err := New(Config{Issuer: issuer, Audience: audience, Keys: p, Now: func() time.Time { return p.at }})
	if err != nil {
		t.Fatal(err)
	}
	p.down = true
	if err := none.Read(t.Context()); err == nil {
		t.Fatal("it is not down")
	}
	for range 2 {
		if _, _, err := none.Verify(day); status.Code(err) != codes.Unavailable {
			t.Errorf("no keys yet: got %v, want UNAVAILABLE", err)
		}
	}
}

// TestSources: keys come from a file, or from an address that is asked over TLS with a token,
// follows no redirect and says little.
func TestSources(t *testing.T) {
	t.Parallel()
	p := &platform{t: t}
	p.rotate("one")
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/away":
			http.Redirect(w, r, "/keys", http.StatusFound)
		case r.Header.Get("Authorization") != "Bearer own":
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path == "/long":
			_, _ = w.Write(make([]byte, maxKeys+1))
		default:
			_, _ = w.Write(p.set())
		}
	}))
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := write("ca", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	token := write("token", []byte("own\n"))
	for what, x := range map[string]struct {
		at, ca, token string
		bad           bool
	}{
		"an address":           {srv.URL + "/keys", ca, token, false},
		"a file":               {write("keys", p.set()), "", "", false},
		"without a token":      {srv.URL + "/keys", ca, "", true},
		"an unknown authority": {srv.URL + "/keys", "", token, true},
		"a redirect":           {srv.URL + "/away", ca, token, true},
		"too long":             {srv.URL + "/long", ca, token, true},
		"no file":              {filepath.Join(dir, "none"), "", "", true},
	} {
		s, err := NewSource(x.at, x.ca, x.token)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Read(t.Context())
		if (err != nil) != x.bad {
			t.Errorf("%s: got %v", what, err)
		}
		if keys, err := parse(b); !x.bad && (err != nil || len(keys) != 1) {
			t.Errorf("%s: got %d keys, %v", what, len(keys), err)
		}
	}
	for _, at := range []string{"http://issuer.example/keys", "ftp://x/", "https://", "https://u:p@x/keys"} {
		if _, err := NewSource(at, "", ""); err == nil {
			t.Errorf("%s was taken", at)
		}
	}
	private, err := json.Marshal(jose.JSONWebKeySet{Keys: p.keys})
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"nothing": "", "no keys": `{"keys": []}`, "a private key": string(private), "a shared secret": `{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}`} {
		if _, err := parse([]byte(text)); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}
