package access

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// whoAmI answers with the caller's actor, and whether any call reached it.
type whoAmI struct {
	pb.UnimplementedAccessAdminServer
}

func (whoAmI) WhoAmI(ctx context.Context, _ *pb.WhoAmIRequest) (*pb.WhoAmIResponse, error) {
	c := From(ctx)
	return &pb.WhoAmIResponse{Actor: c.Actor, Name: c.Name}, nil
}

// certified makes a certificate that signs itself.
func certified(t *testing.T, common string, names ...string) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: common}, DNSNames: names, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, leaf
}

// TestCertificates: over TLS, by the subject alternative name, alone and with a token.
func TestCertificates(t *testing.T) {
	t.Parallel()
	d := newDesk(t, Required, true)
	path := filepath.Join(t.TempDir(), "names")
	if err := os.WriteFile(path, []byte("billing.internal roles=send teams=t1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.book.cfg.Names = path
	secret, _ := d.token()
	server, serverLeaf := certified(t, "server")
	known, knownLeaf := certified(t, "x", "billing.internal")
	byCommon, commonLeaf := certified(t, "billing.internal")
	authorities, roots := x509.NewCertPool(), x509.NewCertPool()
	authorities.AddCert(knownLeaf)
	authorities.AddCert(commonLeaf)
	roots.AddCert(serverLeaf)
	g := d.book.Guard()
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: authorities, ClientAuth: tls.RequireAndVerifyClientCert})),
		grpc.InTapHandle(g.Tap), grpc.UnaryInterceptor(g.Unary))
	pb.RegisterAccessAdminServer(s, whoAmI{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }() // ends with Stop
	t.Cleanup(s.Stop)
	ask := func(cert tls.Certificate, token string) (*pb.WhoAmIResponse, error) {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}})))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
		return pb.NewAccessAdminClient(conn).WhoAmI(ctx, &pb.WhoAmIRequest{})
	}
	if me, err := ask(known, ""); err != nil || me.Name != "billing.internal" {
		t.Errorf("a known name: got %v, %v", me, err)
	}
	if me, err := ask(known, secret); err != nil || me.Name != "n" || me.Actor == "" {
		t.Errorf("with a token: got %v, %v, want the token's name", me, err)
	}
	if _, err := ask(known, secret+"x"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("with a token that is wrong: got %v, want UNAUTHENTICATED", err)
	}
	if _, err := ask(byCommon, ""); status.Code(err) != codes.Unauthenticated {
		t.Errorf("by its common name: got %v, want UNAUTHENTICATED", err)
	}
}
