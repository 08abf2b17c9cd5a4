package oauth

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maildispatch/maildispatch/smtpx"
)

// provider is a scripted token endpoint.
type provider struct {
	*httptest.Server
	mu    sync.Mutex
	forms []map[string][]string
}

func (p *provider) asked() []map[string][]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.forms
}

func endpoint(t *testing.T, answer http.HandlerFunc) *provider {
	p := &provider{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		p.mu.Lock()
		p.forms = append(p.forms, r.Form)
		p.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func issue(w http.ResponseWriter, token string, life int, more string) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":%d%s}`, token, life, more)
}

func source(p *provider, grant Grant, s Secrets) *Source {
	return New(Config{Login: Login{TokenURL: p.URL, ClientID: "app", Scopes: []string{"https://outlook.office365.com/.default"}, Grant: grant, Mailbox: "shop@x.example"},
		Secrets: func(context.Context) (Secrets, error) { return s, nil }, Client: Client{Timeout: time.Minute}})
}

// TestOneRequest: 50 connections at once make one request, and what they get is kept.
func TestOneRequest(t *testing.T) {
	var all sync.WaitGroup
	all.Add(50)
	p := endpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		all.Wait()
		issue(w, "tok", 3600, "")
	})
	s := source(p, ClientCredentials, Secrets{Client: "s3cret"})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			all.Done()
			if k, err := s.Token(t.Context()); err != nil || k.Access != "tok" {
				t.Errorf("%+v %v", k, err)
			}
		})
	}
	wg.Wait()
	if k, err := s.Token(t.Context()); err != nil || k.Fresh || len(p.asked()) != 1 {
		t.Errorf("%+v %v after %d requests, want the kept token after 1", k, err, len(p.asked()))
	}
	f := p.asked()[0]
	if fmt.Sprint(f["grant_type"], f["client_id"], f["client_secret"], f["scope"]) != "[client_credentials] [app] [s3cret] [https://outlook.office365.com/.default]" {
		t.Error(f)
	}
	// A stranger's token does not take the kept one out of use; a refusal of it does, once.
	s.Refused(smtpx.Token{Access: "other"})
	s.Refused(smtpx.Token{Access: "tok"})
	s.Refused(smtpx.Token{Access: "tok"})
	if k, err := s.Token(t.Context()); err != nil || !k.Fresh || len(p.asked()) != 2 {
		t.Errorf("after a refusal: %+v %v after %d requests", k, err, len(p.asked()))
	}
}

// TestRenewal: past 80 % of its life the token is renewed while the old one serves, also when
// the provider fails then; past its end it does not serve.
func TestRenewal(t *testing.T) {
	fail := false
	n := 0
	p := endpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		if fail {
			w.WriteHeader(503)
			return
		}
		n++
		issue(w, fmt.Sprint("tok", n), 100, "")
	})
	s := source(p, ClientCredentials, Secrets{Client: "x"})
	get := func() string {
		t.Helper()
		k, err := s.Token(t.Context())
		if err != nil {
			return err.Error()
		}
		return k.Access
	}
	if got := get(); got != "tok1" {
		t.Fatal(got)
	}
	s.mu.Lock()
	left, all := time.Until(s.renewAt), time.Until(s.endAt)
	if left < 60*time.Second || left > 80*time.Second || all < 70*time.Second || all > 90*time.Second {
		t.Errorf("renewed in %v, ends in %v, want 80 s and 90 s of 100", left, all)
	}
	fail, s.renewAt = true, time.Now()
	s.mu.Unlock()
	settled := func() {
		t.Helper()
		s.mu.Lock()
		f := s.flight
		s.mu.Unlock()
		if f != nil {
			<-f.done
		}
	}
	for range 3 {
		if got := get(); got != "tok1" {
			t.Errorf("while the provider is down: %s, want the old token", got)
		}
		settled()
	}
	if got := len(p.asked()); got != 2 {
		t.Errorf("%d requests, want 2: one failed, and is not repeated at once", got)
	}
	s.mu.Lock()
	fail, s.nextTry = false, time.Time{}
	s.mu.Unlock()
	if got := get(); got != "tok1" {
		t.Errorf("at the renewal: %s, want the old token", got)
	}
	settled()
	if got := get(); got != "tok2" {
		t.Errorf("after the renewal: %s", got)
	}
	s.mu.Lock()
	fail, s.endAt = true, time.Now()
	s.mu.Unlock()
	if got := get(); !strings.Contains(got, "503") {
		t.Errorf("past its end, with the provider down: %s", got)
	}
}

// TestNoToken: whatever a provider does instead of giving a token ends in time, says what a
// person can do, and shows neither the secret nor what else was answered.
func TestNoToken(t *testing.T) {
	for name, c := range map[string]struct {
		answer     http.HandlerFunc
		says, hint string
	}{
		"slow": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer in time", "does not answer"},
		"drips": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				w.(http.Flusher).Flush()
				time.Sleep(20 * time.Millisecond)
			}
		}, "no answer in time", "does not answer"},
		"400": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"invalid_client","error_description":"AADSTS7000222: the secret s3cret\u0000 has expired"}`)
		}, "400 invalid_client: AADSTS7000222: the secret *** ", "make a new one"},
		"401 without more": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, "answers 401", "token_url"},
		"html": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>internal page</html>")
		}, "no token", "token_url"},
		"html with 500": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			fmt.Fprint(w, "<html>internal page</html>")
		}, "answers 500", "later"},
		"5 MB": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 5<<20)) }, "longer than 64 KiB", "token_url"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
		}, "redirect", "not followed"},
		"307": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusTemporaryRedirect)
		}, "redirect", "not followed"},
		"empty":    {func(w http.ResponseWriter, _ *http.Request) { issue(w, "", 3600, "") }, "no token", "token_url"},
		"hangs up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "no token", "token_url"},
	} {
		for _, grant := range []Grant{ClientCredentials, ServiceAccount} {
			t.Run(name+" "+string(grant), func(t *testing.T) {
				t.Parallel()
				p := endpoint(t, c.answer)
				sec := Secrets{Client: "s3cret", Grant: key(t)}
				begun := time.Now()
				s := source(p, grant, sec)
				slow := c.says == "no answer in time"
				if slow {
					s.cfg.Client.Timeout = 300 * time.Millisecond
				}
				_, err := s.Token(t.Context())
				var e *Error
				if !errors.As(err, &e) || !strings.Contains(e.Hint(), c.hint) || slow && time.Since(begun) > 30*time.Second || !slow && len(p.asked()) != 1 {
					t.Fatalf("%v after %v and %d requests, want a hint with %q", err, time.Since(begun), len(p.asked()), c.hint)
				}
				if grant == ClientCredentials && !strings.Contains(e.Error(), c.says) || strings.Contains(e.Error()+e.Hint(), "s3cret") || strings.Contains(e.Error(), "internal page") {
					t.Errorf("got %q, want %q, and no secret", e, c.says)
				}
			})
		}
	}
}

// TestWhereTokensAreAsked: addresses are checked where they are dialled, and http reaches this
// machine only.
func TestWhereTokensAreAsked(t *testing.T) {
	p := endpoint(t, func(w http.ResponseWriter, _ *http.Request) { issue(w, "t", 60, "") })
	s := source(p, ClientCredentials, Secrets{Client: "x"})
	d, err := smtpx.ParseDestinations("public:443")
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.Client.Allow = d.Check
	_, err = s.Token(t.Context())
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Hint(), "--token-destinations") || len(p.asked()) != 0 {
		t.Errorf("loopback without the flag: %v, %d requests", err, len(p.asked()))
	}
	s.cfg.Client.Allow = func(a netip.AddrPort) error { return nil }
	if _, err := s.Token(t.Context()); err != nil {
		t.Errorf("loopback with it: %v", err)
	}
	for _, c := range []struct {
		url string
		ok  bool
	}{{"https://login.microsoftonline.com/t/oauth2/v2.0/token", true}, {"https://login.example:8443/x", true}, {"http://127.0.0.1:9/x", true}, {"http://[::1]:9/x", true},
		{"http://login.example/x", false}, {"http://10.0.0.1/x", false}, {"https://u:p@login.example/x", false}, {"https://login.example/x#f", false}, {"ftp://login.example/x", false},
		{"https:///x", false}, {"login.example", false}, {"https://a b/x", false}, {"https://ⓔvil.example/x", false}, {"https://[fe80::1%25eth0]/x", false}, {"", false}} {
		if err := CheckURL(c.url); (err == nil) != c.ok {
			t.Errorf("%q: %v, want ok=%v", c.url, err, c.ok)
		}
	}
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

// key is a key file as Google makes it.
func key(t *testing.T) string {
	der, err := x509.MarshalPKCS8PrivateKey(rsaKey())
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]string{"type": "service_account", "client_email": "mail@project.example", "private_key_id": "k1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": "https://evil.example/token"})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestServiceAccount: the key signs for the mailbox, at the configured address and not at the
// one that the key names.
func TestServiceAccount(t *testing.T) {
	p := endpoint(t, func(w http.ResponseWriter, _ *http.Request) { issue(w, "tok", 3600, "") })
	if k, err := source(p, ServiceAccount, Secrets{Grant: key(t)}).Token(t.Context()); err != nil || k.Access != "tok" {
		t.Fatalf("%+v %v", k, err)
	}
	parts := strings.Split(p.asked()[0]["assertion"][0], ".")
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(b, &claims); err != nil || claims["iss"] != "mail@project.example" || claims["sub"] != "shop@x.example" || claims["aud"] != p.URL {
		t.Errorf("%v %v", claims, err)
	}
	for _, bad := range []string{"", "{}", "x", `{"client_email":"a@x.example","private_key":"secret"}`} {
		if err := CheckKey(bad); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// rotating is a provider that gives a new refresh token each time and takes each once.
type rotating struct {
	*provider
	mu   sync.Mutex
	n    int
	life int
}

func newRotating(t *testing.T) *rotating {
	r := &rotating{n: 1, life: 3600}
	r.provider = endpoint(t, func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if got := q.Form.Get("refresh_token"); got != fmt.Sprint("r", r.n) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"invalid_grant"}`)
			return
		}
		r.n++
		issue(w, fmt.Sprint("tok", r.n), r.life, fmt.Sprintf(`,"refresh_token":"r%d"`, r.n))
	})
	return r
}

// TestRotation: a replaced refresh token is stored before its access token is used. What cannot
// be stored is used from memory and stored later; what another replica stored meanwhile is used
// in the place of one that is used up.
func TestRotation(t *testing.T) {
	p := newRotating(t)
	var (
		mu     sync.Mutex
		stored = "r1"
		down   bool
	)
	replica := func() *Source {
		s := source(p.provider, RefreshToken, Secrets{})
		s.cfg.Secrets = func(context.Context) (Secrets, error) {
			mu.Lock()
			defer mu.Unlock()
			return Secrets{Grant: stored}, nil
		}
		s.cfg.Rotated = func(_ context.Context, was, now string) error {
			mu.Lock()
			defer mu.Unlock()
			if down {
				return errors.New("the database is away")
			}
			if stored == was {
				stored = now
			}
			return nil
		}
		return s
	}
	a, b := replica(), replica()
	get := func(s *Source, want, keep string) {
		t.Helper()
		k, err := s.Token(t.Context())
		if err != nil || k.Access != want || stored != keep {
			t.Fatalf("%+v %v, stored %s, want %s and %s", k, err, stored, want, keep)
		}
		s.Refused(k) // ask again next time
	}
	get(a, "tok2", "r2")
	get(b, "tok3", "r3")
	get(a, "tok4", "r4")
	down = true
	get(a, "tok5", "r4") // r5 is in memory
	down = false
	get(a, "tok6", "r6")
	// b reads r6 and a uses it up before b asks.
	first := true
	read := b.cfg.Secrets
	b.cfg.Secrets = func(ctx context.Context) (Secrets, error) {
		k, err := read(ctx)
		if first {
			first = false
			get(a, "tok7", "r7")
		}
		return k, err
	}
	get(b, "tok8", "r8")
}
