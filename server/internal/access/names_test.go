package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/maildispatch/maildispatch/store"
	"github.com/maildispatch/maildispatch/store/storetest/memory"
)

func TestNames(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "names")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# who\nbilling.internal roles=send,read teams=t1,t2\nspiffe://corp/ops roles=admin system # us\n")
	b, err := NewBook(context.Background(), Config{Store: memory.New(nil), Mode: Auto, Loopback: true, Names: path})
	if err != nil || !b.On() {
		t.Fatalf("got %v, want callers to be asked", err)
	}
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for what, c := range map[string]struct {
		cert *x509.Certificate
		want string
		bad  bool
	}{
		"DNS":         {&x509.Certificate{DNSNames: []string{"other", "billing.internal"}}, "billing.internal", false},
		"URI":         {&x509.Certificate{URIs: []*url.URL{uri("spiffe://corp/ops")}}, "spiffe://corp/ops", false},
		"common name": {&x509.Certificate{Subject: pkix.Name{CommonName: "billing.internal"}}, "", false},
		"mail":        {&x509.Certificate{EmailAddresses: []string{"billing.internal"}}, "", false},
		"two":         {&x509.Certificate{DNSNames: []string{"billing.internal"}, URIs: []*url.URL{uri("spiffe://corp/ops")}}, "", true},
		"nobody":      {&x509.Certificate{DNSNames: []string{"BILLING.internal"}}, "", false},
	} {
		p, err := b.state.Load().byCertificate(c.cert)
		if (err != nil) != c.bad || err == nil && (p == nil) != (c.want == "") || err == nil && p != nil && p.Name != c.want {
			t.Errorf("%s: got %+v, %v, want %q", what, p, err, c.want)
		}
	}
	stays, goes := b.state.Load().names["billing.internal"], b.state.Load().names["spiffe://corp/ops"]
	write("billing.internal roles=read,send teams=t1\n")
	write("billing.internal teams=t1,t2 roles=send,read\n")
	if err := b.Read(context.Background()); err != nil || stays.over() || !goes.over() {
		t.Errorf("a name taken out: got %v, ended %v and %v, want only the second ended", err, stays.over(), goes.over())
	}
	write("billing.internal roles=boss teams=t1\n")
	if err := b.Read(context.Background()); err == nil || stays.over() || b.state.Load().names["billing.internal"] != stays {
		t.Errorf("a file that is wrong: got %v, want an error and the names of before", err)
	}
	for _, bad := range []string{"x", "x roles=send", "x teams=t1", "x roles=send teams=t1 system", "x roles=send teams=", "x roles=send teams=t1 y", "x roles=send system\nx roles=send system",
		"x roles=send system=false", "x roles=send system=", "x roles=send roles=admin teams=t1", "x roles=send teams=t1 teams=t2", "x roles=send teams=T1", "x roles=send teams=t1,*"} {
		if _, err := readNames(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestEndOfACertificateWithAToken: a call with both ends when either is known no more.
func TestEndOfACertificateWithAToken(t *testing.T) {
	t.Parallel()
	for _, goes := range []string{"the certificate", "the token"} {
		d := newDesk(t, Required, true)
		d.book.cfg.Names = filepath.Join(t.TempDir(), "names")
		names := func(text string) {
			t.Helper()
			if err := os.WriteFile(d.book.cfg.Names, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			d.read()
		}
		names("billing.internal roles=send teams=t1\n")
		secret, id := d.token()
		cert := &x509.Certificate{DNSNames: []string{"billing.internal"}}
		tls := credentials.TLSInfo{State: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert}}, PeerCertificates: []*x509.Certificate{cert}}}
		call := func() *Principal {
			t.Helper()
			p, err := d.book.identify(peer.NewContext(context.Background(), &peer.Peer{AuthInfo: tls}), metadata.Pairs("authorization", "Bearer "+secret))
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		p := call()
		d.read()
		if p.over() || call() != p || (Caller{Principal: p}).Err() != nil {
			t.Errorf("before %s goes, the caller is known no more", goes)
		}
		if goes == "the certificate" {
			names("other roles=send teams=t1\n")
		} else {
			if _, err := d.RevokeToken(context.Background(), id, store.Audit{Actor: "test"}); err != nil {
				t.Fatal(err)
			}
			d.read()
		}
		if !p.over() || (Caller{Principal: p}).Err() == nil || len(d.book.pairs) != 0 {
			t.Errorf("%s is gone, and the caller is still known", goes)
		}
	}
}
