package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// authority is a certificate that signs itself, for a server or a client.
func authority(t *testing.T, name string) (pair tls.Certificate, cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb})
	if pair, err = tls.X509KeyPair(cert, key); err != nil {
		t.Fatal(err)
	}
	return pair, cert, key
}

// TestFilesAreReadAgain: an authority that is put in another's place counts within seconds,
// also with the old file's time, and the one that is gone counts no more. A file that cannot be
// parsed changes nothing and is told once. The same with the service's own certificate.
func TestFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	at := time.Now().Add(-time.Hour)
	put := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path+".new", at, at); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, cert, key := authority(t, "first.internal")
	_, cert2, key2 := authority(t, "second.internal")
	old, oldCert, _ := authority(t, "old-client")
	young, youngCert, _ := authority(t, "young-client")
	cfg := &Config{TLSCert: put("cert", cert), TLSKey: put("key", key), ClientCA: put("ca", oldCert)}
	var said lockedBuffer
	creds, err := newTransport(cfg, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	// serverName is whose certificate the service shows, "" if it refuses the client.
	serverName := func(client tls.Certificate) string {
		t.Helper()
		a, b := net.Pipe()
		defer a.Close()
		go func() {
			defer b.Close()
			if c, _, err := creds.ServerHandshake(b); err == nil {
				_, _ = io.WriteString(c, "x") // the client hears of a refusal when it reads
			}
		}()
		_ = a.SetDeadline(time.Now().Add(time.Minute))
		c := tls.Client(a, &tls.Config{Certificates: []tls.Certificate{client}, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return ""
		}
		return c.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	until := func(what string, client tls.Certificate, want string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); serverName(client) != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within a minute", what)
			}
		}
	}
	if got := serverName(old); got != "first.internal" {
		t.Fatalf("the old client: got %q", got)
	}
	if got := serverName(young); got != "" {
		t.Fatalf("the young client is let in by %q", got)
	}
	put("ca", []byte("half written"))
	until("told of what cannot be read", old, "first.internal")
	for deadline := time.Now().Add(time.Minute); !strings.Contains(said.String(), "client-ca"); time.Sleep(20 * time.Millisecond) {
		if serverName(old); time.Now().After(deadline) {
			t.Fatal("the log does not tell of the file that cannot be parsed")
		}
	}
	put("ca", youngCert)
	until("the young authority", young, "first.internal")
	if got := serverName(old); got != "" {
		t.Errorf("the old client is still let in by %q", got)
	}
	put("key", key2)
	put("cert", cert2)
	until("the second certificate", young, "second.internal")
	if n := strings.Count(said.String(), "level=WARN"); n > 2 {
		// the pair may be read between its two files
		t.Errorf("%d warnings:\n%s", n, said.String())
	}
}

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
