package access

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/maildispatch/maildispatch/store"
)

// The file of names has a line for each client certificate that is known:
//
// 	billing.internal          roles=send,read teams=billing
// 	spiffe://corp/ns/ops/sa/x roles=admin system
//
// The first word is a DNS name or a URI of the certificate's subject alternative names. The
// common name never counts. A workload is known by the subject of its token:
//
// 	oidc:system:serviceaccount:shop:billing roles=send teams=billing
//
// # begins a comment.

var teamSlug = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// CheckNames says what is wrong with a file of names.
func CheckNames(path string) error {
	b, err := os.ReadFile(path)
	if err == nil {
		_, err = readNames(string(b))
	}
	return err
}

func readNames(text string) (map[string]*Principal, error) {
	out := map[string]*Principal{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		p, err := nameLine(words)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if out[words[0]] != nil {
			return nil, fmt.Errorf("line %d: %s stands there twice", n, words[0])
		}
		out[words[0]] = p
	}
	return out, nil
}

func nameLine(words []string) (*Principal, error) {
	p := &Principal{Actor: "certificate " + words[0], Name: words[0], ended: make(chan struct{})}
	if subject, is := strings.CutPrefix(words[0], ofWorkload); is {
		if subject == "" {
			return nil, errors.New("oidc: is there without a subject")
		}
		p.Actor = "workload " + subject
	}
	said := map[string]bool{}
	for _, w := range words[1:] {
		key, value, has := strings.Cut(w, "=")
		if said[key] {
			return nil, fmt.Errorf("%s stands there twice", key)
		}
		said[key] = true
		switch {
		case key == "system" && !has:
			p.System = true
		case key == "teams" && has:
			p.Teams = strings.Split(value, ",")
		case key == "roles" && has:
			for r := range strings.SplitSeq(value, ",") {
				role, ok := roles[store.Role(r)]
				if !ok {
					return nil, fmt.Errorf("%q is none of the roles send, read, admin", r)
				}
				p.Roles = append(p.Roles, role)
			}
		default:
			return nil, fmt.Errorf("%q is none of roles=, teams=, system", w)
		}
	}
	for _, team := range p.Teams {
		if !teamSlug.MatchString(team) {
			return nil, fmt.Errorf("%q is not a team: [a-z0-9][a-z0-9-]{0,62}", team)
		}
	}
	if len(p.Roles) == 0 || p.System == (len(p.Teams) > 0) {
		return nil, errors.New("roles= is needed, and either teams= or system")
	}
	return p, nil
}

// readNames reads the file again when its text has changed. What is wrong with it is an error,
// and what was read before holds.
func (b *Book) readNames(next *state) error {
	if b.cfg.Names == "" {
		return nil
	}
	text, err := os.ReadFile(b.cfg.Names)
	if err != nil {
		return fmt.Errorf("client-names: %w", err)
	}
	if next.names != nil && string(text) == b.file {
		return nil
	}
	names, err := readNames(string(text))
	if err != nil {
		return fmt.Errorf("client-names: %s: %w", b.cfg.Names, err)
	}
	for san, p := range names { // calls of who stays as it was go on
		if had := next.names[san]; had != nil && had.same(p) {
			names[san] = had
		}
	}
	b.file, next.names = string(text), names
	return nil
}

func (p *Principal) same(q *Principal) bool {
	return p.System == q.System && slices.Equal(p.Roles, q.Roles) && slices.Equal(p.Teams, q.Teams)
}

// named is the principal of a client certificate that TLS has verified; nil when there is none
// that is known.
func (s *state) named(ctx context.Context) (*Principal, error) {
	if len(s.names) == 0 {
		return nil, nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, nil
	}
	return s.byCertificate(info.State.PeerCertificates[0])
}

func (s *state) byCertificate(c *x509.Certificate) (found *Principal, err error) {
	look := func(name string) {
		switch p := s.names[name]; {
		case p == nil || p == found, strings.HasPrefix(name, ofWorkload):
		case found != nil:
			err = refused("the certificate has more than one name that is known")
		default:
			found = p
		}
	}
	for _, name := range c.DNSNames {
		look(name)
	}
	for _, u := range c.URIs {
		look(u.String())
	}
	return found, err
}
