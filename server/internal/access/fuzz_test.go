package access

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"slices"
	"strings"
	"testing"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
)

// FuzzNames: no file of names panics or makes somebody without a role or with no bound, and a
// certificate is somebody exactly by the DNS names and URIs that the file has, letter by
// letter, never by its common name, and never by two of them.
func FuzzNames(f *testing.F) {
	const file = "# who\nbilling.internal roles=send,read teams=t1,t2\nspiffe://corp/ops roles=admin system # us\n"
	for _, x := range [][4]string{
		{file, "billing.internal", "", ""}, {file, "other\nbilling.internal", "", ""}, {file, "", "spiffe://corp/ops", ""}, {file, "", "", "billing.internal"},
		{file, "BILLING.internal", "spiffe://corp/ops/", ""}, {file, "billing.internal", "spiffe://corp/ops", ""}, {file, "billing.internal\x00", "", ""}, {file, "*.internal", "", ""},
		{"x roles=send teams=t1\u2028y roles=admin system", "y", "", ""}, {"x roles=send teams=", "x", "", ""}, {"", "", "", ""}, {"x roles=,send system", "x", "", ""},
	} {
		f.Add(x[0], x[1], x[2], x[3])
	}
	f.Fuzz(func(t *testing.T, file, dns, uri, common string) {
		names, err := readNames(file)
		if err != nil {
			if len(names) > 0 {
				t.Errorf("%q is wrong and names %d", file, len(names))
			}
			return
		}
		listed := map[string]bool{}
		for line := range strings.SplitSeq(file, "\n") {
			line, _, _ = strings.Cut(line, "#")
			if words := strings.Fields(line); len(words) > 0 {
				listed[words[0]] = true
			}
		}
		if len(listed) != len(names) {
			t.Errorf("%q names %d, want %d", file, len(names), len(listed))
		}
		for name, p := range names {
			if p.Name != name || len(p.Roles) == 0 || slices.Contains(p.Roles, pb.Role_ROLE_UNSPECIFIED) || p.System == (len(p.Teams) > 0) || slices.Contains(p.Teams, "") {
				t.Errorf("%q: %q is %+v", file, name, p)
			}
		}
		cert := &x509.Certificate{DNSNames: strings.Split(dns, "\n"), Subject: pkix.Name{CommonName: common}, EmailAddresses: []string{common}}
		sans := slices.Clone(cert.DNSNames)
		if u, err := url.Parse(uri); err == nil {
			cert.URIs = []*url.URL{u}
			sans = append(sans, u.String())
		}
		known := map[string]bool{}
		for _, n := range sans {
			if listed[n] {
				known[n] = true
			}
		}
		p, err := (&state{names: names}).byCertificate(cert)
		switch {
		case len(known) > 1 && err == nil:
			t.Errorf("%q with %q is %+v, want none of them", file, sans, p)
		case len(known) == 1 && (err != nil || p == nil || !known[p.Name]), len(known) == 0 && (err != nil || p != nil):
			t.Errorf("%q with %q is %+v, %v; known: %v", file, sans, p, err, known)
		}
	})
}
