package api

import (
	"context"
	"crypto/rsa"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/apierr"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/smtpx/message/dkim"
	"github.com/maildispatch/maildispatch/store"
)

// signing is what callers see: everything but the key.
func signing(d *store.DKIM) *pb.Dkim {
	if d == nil {
		return nil
	}
	out := &pb.Dkim{Domain: d.Domain, Selector: d.Selector, DnsName: dkim.RecordName(d.Domain, d.Selector)}
	if d.PublicKey != "" {
		out.DnsValue = dkim.Record(d.PublicKey)
	}
	return out
}

// storedDKIM is a checked configuration, with the key that was there if it is for the same name
// in DNS.
func storedDKIM(x *pb.Dkim, was *store.DKIM) *store.DKIM {
	if x == nil {
		return nil
	}
	d := &store.DKIM{Domain: signingDomain(x.Domain), Selector: strings.ToLower(x.Selector)}
	if was != nil && was.Domain == d.Domain && was.Selector == d.Selector {
		return was
	}
	return d
}

// signingDomain is a domain as A-labels in lower case; "" where it is none.
func signingDomain(s string) string {
	a, err := smtpx.Host(s)
	if err != nil || !strings.Contains(a, ".") || strings.HasPrefix(a, "[") {
		return ""
	}
	if _, err := netip.ParseAddr(a); err == nil {
		return ""
	}
	return strings.ToLower(a)
}

// selectors are what RFC 6376 3.1 allows.
var selectors = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

// maxRecordName is the length of a name in DNS (RFC 1035 2.3.4).
const maxRecordName = 253

func checkDKIM(c *apierr.Check, prefix string, x *pb.Dkim) {
	if x == nil {
		return
	}
	domain, selector := signingDomain(x.Domain), strings.ToLower(x.Selector)
	if domain == "" {
		c.Bad(prefix+"domain", "is not a domain such as x.example")
	}
	switch {
	case len(selector) > maxRecordName || !selectors.MatchString(selector):
		c.Bad(prefix+"selector", "is not the name of a key: letters, digits and hyphens, with dots between labels")
	case len(dkim.RecordName(domain, selector)) > maxRecordName:
		c.Bad(prefix+"selector", "makes with the domain a name that is too long for DNS")
	}
	if x.PrivateKey == "" {
		return
	}
	if _, err := dkim.ParseKey(x.PrivateKey); err != nil {
		c.Bad(prefix+"private_key", "%v", err)
	}
}

// sealKey seals a key that was given, and was checked, into s.
func (a *API) sealKey(s *store.MailServer, text string) error {
	if s.DKIM == nil || text == "" {
		return nil
	}
	key, err := dkim.ParseKey(text)
	if err != nil {
		return err
	}
	return a.Outbound.SealKey(s, key)
}

// completeKey gives s a key where it has to sign and has none.
func (a *API) completeKey(s *store.MailServer, newKey func() (*rsa.PrivateKey, error)) error {
	if s.DKIM == nil || len(s.DKIM.SealedKey) > 0 {
		return nil
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	return a.Outbound.SealKey(s, key)
}

// keyAhead makes the key that a change will need before the transaction of the change begins:
// making one may take a second, in which nobody else could write. What it returns makes it
// then, should that need not have been seen.
func (a *API) keyAhead(ctx context.Context, r *pb.UpdateMailServerRequest) func() (*rsa.PrivateKey, error) {
	newKey := sync.OnceValues(dkim.NewKey)
	named := func(p string) bool { return p == "*" || strings.HasPrefix(p, "dkim") }
	if r.MailServer.Dkim == nil && !slices.ContainsFunc(r.UpdateMask.GetPaths(), named) {
		return newKey
	}
	s, err := a.Store.Server(ctx, a.scope(ctx), r.MailServer.Name)
	if err != nil {
		return newKey // the change says it
	}
	if _, err := a.change(s, r.MailServer, r.UpdateMask); err == nil && s.DKIM != nil && len(s.DKIM.SealedKey) == 0 {
		_, _ = newKey() // its error comes again
	}
	return newKey
}

// signer is what signs mail of s, nil where nothing does. Mail of a mail server that should
// sign and cannot is refused: it would leave unsigned, and nobody would know why it is taken
// for forged.
func (a *API) signer(s *store.MailServer) (*dkim.Signer, error) {
	if s.DKIM == nil {
		return nil, nil
	}
	signer, err := a.Outbound.Signer(s)
	if err != nil {
		return nil, apierr.Precondition(pb.ReasonMailServerUnavailable, s.Name,
			"mail server %q cannot sign: %v; give dkim.private_key again, or start the service with the key file it was sealed with", s.Name, err)
	}
	return signer, nil
}

// signedBody is a body whose sum is known: many mails of a bulk have the same.
type signedBody struct {
	pieces []message.Piece
	sum    dkim.BodySum
}

// sign puts the signature of mail server s in front of a message, if s has a key. This is where
// a mail's bytes are final, and from here on they are only stored and sent: so every attempt
// has the same signature. known is the body of the mail before, or nil.
func (a *API) sign(ctx context.Context, s *store.MailServer, m *store.NewMail, pieces []message.Piece, known *signedBody) ([]message.Piece, error) {
	signer, err := a.signer(s)
	if signer == nil || err != nil {
		return pieces, err
	}
	header, body, err := message.Split(pieces)
	if err != nil {
		return nil, err
	}
	if known == nil || !sameContent(known.pieces, body) {
		sum, err := a.sumBody(ctx, body)
		if err != nil {
			return nil, a.fault(err)
		}
		if known == nil {
			known = &signedBody{}
		}
		known.pieces, known.sum = body, sum
	}
	field, err := signer.Sign(header, known.sum, m.CreateTime)
	if err != nil {
		return nil, err
	}
	return message.Prepend(field, pieces), nil
}

// sameContent reports whether two bodies are the same ranges of the same shared content.
func sameContent(a, b []message.Piece) bool {
	return slices.EqualFunc(a, b, func(x, y message.Piece) bool {
		return x.Shared != nil && x.Shared == y.Shared && x.Offset == y.Offset && x.Length == y.Length
	})
}

// readers is how many calls at once read stored files in order to sign: each holds one in
// memory.
const readers = 4

// sumBody hashes a body. Files that were uploaded are read for it.
func (a *API) sumBody(ctx context.Context, body []message.Piece) (dkim.BodySum, error) {
	return dkim.SumBody(func(w io.Writer) error {
		return a.writePieces(ctx, w, body)
	})
}

// writePieces writes a message, or a part of one. Files that were uploaded are read for it.
func (a *API) writePieces(ctx context.Context, w io.Writer, pieces []message.Piece) error {
	for _, p := range pieces {
		b := p.Bytes()
		if b == nil && p.Shared != nil {
			if err := a.writeStored(ctx, w, p); err != nil {
				return err
			}
			continue
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func (a *API) writeStored(ctx context.Context, w io.Writer, p message.Piece) error {
	select {
	case a.readers <- struct{}{}:
		defer func() { <-a.readers }()
	case <-ctx.Done():
		return ctx.Err()
	}
	content, err := a.Store.Content(ctx, p.Shared.Sum)
	if err != nil {
		return err
	}
	if p.Offset+p.Length > len(content) {
		return io.ErrUnexpectedEOF
	}
	_, err = w.Write(content[p.Offset : p.Offset+p.Length])
	return err
}

// signAnew signs a mail that is sent once more. Its sender stays that of the first, so the key
// of its mail server of today is only right for it where that sends from the same domain.
func (a *API) signAnew(ctx context.Context, s *store.MailServer, m *store.NewMail) error {
	was, err := message.ParseAddress(m.From)
	if err != nil {
		return err
	}
	now, err := message.ParseAddress(s.From)
	if err != nil || !strings.EqualFold(was.Domain(), now.Domain()) {
		return err
	}
	pieces := make([]message.Piece, len(m.Raw))
	shared := map[*store.Content]*message.Content{}
	for i, p := range m.Raw {
		pieces[i] = message.Piece{Data: p.Data, Offset: p.Offset, Length: p.Length}
		if p.Shared == nil {
			continue
		}
		if shared[p.Shared] == nil {
			shared[p.Shared] = &message.Content{Sum: p.Shared.Sum, Size: p.Shared.Size, File: p.Shared.File}
		}
		pieces[i].Shared = shared[p.Shared]
	}
	signed, err := a.sign(ctx, s, m, pieces, nil)
	if err != nil {
		return err
	}
	m.SizeBytes += int64(len(signed[0].Data) - len(m.Raw[0].Data))
	m.Raw[0].Data = signed[0].Data
	return nil
}

// aligned reports whether a signature of the domain counts for mail from this address (DMARC,
// RFC 7489 3.1.1): it is the address's own domain, or one above it.
func aligned(domain, from string) bool {
	addr, err := message.ParseAddress(from)
	if err != nil || !utf8.ValidString(from) {
		return false
	}
	of := signingDomain(addr.Domain())
	return of == domain || strings.HasSuffix(of, "."+domain)
}
