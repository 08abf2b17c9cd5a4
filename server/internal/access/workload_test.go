package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/store/storetest/memory"
)

// TestWorkloads: a workload is who the file says of its subject, for as long as its token holds
// and the file has it; a token's signature is looked at once.
func TestWorkloads(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "names")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const file = "oidc:system:serviceaccount:shop:billing roles=send teams=billing\nbilling.internal roles=read teams=billing\n"
	write(file)
	at, checks := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), 0
	// A token is its subject, behind a word that makes it another one.
	b, err := NewBook(t.Context(), Config{Store: memory.New(func() time.Time { return at }), Mode: Auto, Loopback: true, Names: path, Now: func() time.Time { return at },
		Workload: func(token string) (string, time.Time, error) {
			checks++
			_, subject, ok := strings.Cut(token, "/")
			if !ok {
				return "", time.Time{}, refused("no")
			}
			return subject, at.Add(time.Hour), nil
		}})
	if err != nil || !b.On() {
		t.Fatalf("got %v, want callers to be asked", err)
	}
	const billing = "system:serviceaccount:shop:billing"
	as := func(ctx context.Context, token string) (*Principal, error) {
		return b.identify(ctx, metadata.Pairs("authorization", "Bearer "+token))
	}
	p, err := as(t.Context(), "1/"+billing)
	if err != nil || p.Name != "oidc:"+billing || p.Actor != "workload "+billing || len(p.Roles) != 1 || p.Roles[0] != pb.Role_ROLE_SEND || !p.Expire.Equal(at.Add(time.Hour)) {
		t.Fatalf("got %+v, %v", p, err)
	}
	if again, err := as(t.Context(), "1/"+billing); err != nil || again != p || checks != 1 {
		t.Errorf("again: got another principal or %v, after %d checks", err, checks)
	}
	for _, token := range []string{"1/" + billing + "x", "1/billing.internal", "1/oidc:" + billing, "1/", "wrong", "md_x"} {
		if _, err := as(t.Context(), token); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%q: got %v, want UNAUTHENTICATED", token, err)
		}
	}

	// A certificate is nobody by the name of a workload, and stands beside its token.
	cert := func(c *x509.Certificate) context.Context {
		return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c}}}}})
	}
	uri, err := url.Parse("oidc:" + billing)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.identify(cert(&x509.Certificate{URIs: []*url.URL{uri}}), nil); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a certificate with a workload's name: got %v, want UNAUTHENTICATED", err)
	}
	both, err := as(cert(&x509.Certificate{DNSNames: []string{"billing.internal"}}), "1/"+billing)
	if err != nil || both.Name != p.Name || both.Actor != p.Actor+" with certificate billing.internal" {
		t.Errorf("with a certificate: got %+v, %v", both, err)
	}

	at = at.Add(time.Hour)
	if _, err := as(t.Context(), "1/"+billing); status.Code(err) != codes.Unauthenticated {
		t.Errorf("an hour later: got %v, want UNAUTHENTICATED", err)
	}
	b.sweep()
	if !p.over() || !both.over() || len(b.workloads) != 0 {
		t.Errorf("an hour later: its calls go on, or it is remembered")
	}
	p, err = as(t.Context(), "2/"+billing)
	if err != nil {
		t.Fatal(err)
	}
	write(strings.Replace(file, "roles=send", "roles=read", 1))
	if err := b.Read(t.Context()); err != nil || !p.over() {
		t.Errorf("other roles: %v, and its calls go on", err)
	}
	if p, err = as(t.Context(), "2/"+billing); err != nil || p.Roles[0] != pb.Role_ROLE_READ {
		t.Errorf("other roles: got %+v, %v", p, err)
	}

	// More than are remembered are right all the same, and end with the file.
	for i := range maxWorkloads {
		if _, err := as(t.Context(), fmt.Sprintf("m%d/%s", i, billing)); err != nil {
			t.Fatal(err)
		}
	}
	late, err := as(cert(&x509.Certificate{DNSNames: []string{"billing.internal"}}), "late/"+billing)
	if err != nil || len(b.workloads) != maxWorkloads || len(b.pairs) != 0 {
		t.Fatalf("got %v, %d remembered, %d pairs", err, len(b.workloads), len(b.pairs))
	}
	write("billing.internal roles=read teams=billing\n")
	if err := b.Read(t.Context()); err != nil || !late.over() || !p.over() || len(b.workloads) != 0 {
		t.Errorf("taken out of the file: %v, and calls go on", err)
	}
}
