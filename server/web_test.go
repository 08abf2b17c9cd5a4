package server

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWebPortIsNotPlaintext: beyond loopback the page needs a certificate, and callers are
// asked who they are although calls are taken on loopback only.
func TestWebPortIsNotPlaintext(t *testing.T) {
	for _, args := range [][]string{{"-web-listen=0.0.0.0:8080"}, {"-web-listen=:8080", "-insecure"}, {"-web-listen=8080"}} {
		var c Config
		fs := flag.NewFlagSet("serve", flag.ContinueOnError)
		if err := c.Flags(fs); err != nil {
			t.Fatal(err)
		}
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), "web-listen: ") {
			t.Errorf("%q: got %v, want it refused", args, err)
		}
	}
	if c := (&Config{Listen: "127.0.0.1:1", WebListen: "10.0.0.1:8080"}); c.OnLoopback() {
		t.Error("a page beyond loopback: nobody would be asked who calls")
	}
}

// TestWebPortOverTLS: with the service's certificate the page is served over TLS, under the
// names of the certificate and no others, with cookies that stay there.
func TestWebPortOverTLS(t *testing.T) {
	_, cert, key := authority(t, "mail.internal")
	dir := t.TempDir()
	for name, b := range map[string][]byte{"cert": cert, "key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := serve(t, "-web-listen=127.0.0.1:0", "-auth=required", "-tls-cert="+filepath.Join(dir, "cert"), "-tls-key="+filepath.Join(dir, "key"))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "mail.internal"}}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(client.CloseIdleConnections)
	for host, want := range map[string]int{"mail.internal": http.StatusOK, "evil.example": http.StatusMisdirectedRequest} {
		q, err := http.NewRequest(http.MethodGet, "https://"+s.WebAddr().String()+"/login", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Host = host
		r, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close() // nothing of it is read
		if r.StatusCode != want || r.Header.Get("Strict-Transport-Security") == "" {
			t.Errorf("%s: got %d %v, want %d", host, r.StatusCode, r.Header, want)
		}
		if c := r.Header.Get("Set-Cookie"); want == http.StatusOK && (!strings.HasPrefix(c, "__Host-") || !strings.Contains(c, "; Secure")) {
			t.Errorf("cookie: got %q", c)
		}
	}
	if r, err := http.Get("http://" + s.WebAddr().String() + "/login"); err == nil && r.StatusCode != http.StatusBadRequest {
		t.Errorf("plaintext: got %d", r.StatusCode)
	}
}
