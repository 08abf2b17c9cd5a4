package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// TestHealthOverTLS: the probe believes the authority that it is told, and no other, and shows
// the certificate that the service asks for.
func TestHealthOverTLS(t *testing.T) {
	dir := t.TempDir()
	file := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pair := func(name string) (cert, key string) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
		if err != nil {
			t.Fatal(err)
		}
		kd, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return file(name+".pem", "CERTIFICATE", der), file(name+".key", "PRIVATE KEY", kd)
	}
	cert, key := pair("service")
	other, otherKey := pair("other")
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert})))
	healthpb.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(l) }() // ends with Stop
	defer s.Stop()
	for _, c := range []struct {
		name string
		args []string
		well bool
	}{
		{"all that it takes", []string{"--ca", cert, "--cert", other, "--key", otherKey}, true},
		{"no certificate of its own", []string{"--ca", cert}, false},
		{"another authority", []string{"--ca", other, "--cert", other, "--key", otherKey}, false},
		{"the system's authorities", []string{"--tls", "--cert", other, "--key", otherKey}, false},
		{"a certificate without its key", []string{"--ca", cert, "--cert", other}, false},
		{"an authority that is none", []string{"--ca", key}, false},
	} {
		if err := healthCheck(t.Context(), append([]string{"--target", l.Addr().String()}, c.args...)); (err == nil) != c.well {
			t.Errorf("%s: got %v, want well=%v", c.name, err, c.well)
		}
	}
}
