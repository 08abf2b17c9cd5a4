package outbound

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/oauth"
	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/smtpx"
	"github.com/maildispatch/maildispatch/smtpx/message"
	"github.com/maildispatch/maildispatch/store"
)

// Secrets are secrets as a caller gives them; "" = not given.
type Secrets struct {
	Password     string
	ClientSecret string
	Grant        string // refresh token, or key of a service account
	SigningKey   string // PEM
}

// Servers is what is needed of the store for tokens.
type Servers interface {
	Server(ctx context.Context, sc store.Scope, name string) (*store.MailServer, error)
	ReplaceGrant(ctx context.Context, name string, was, now []byte) (bool, error)
}

// tokens are the access tokens of all mail servers in this process. client, servers and logger
// are written by UseTokens, before any goroutine reads them.
type tokens struct {
	client  oauth.Client
	servers Servers // nil = secrets are read where they are at hand, and none is replaced
	logger  *slog.Logger
	flights sync.WaitGroup // requests under way

	mu      sync.Mutex // guards sources
	sources map[string]sharedSource
}

// sharedSource is a mail server's token as it is configured in that version.
type sharedSource struct {
	version int64
	source  *oauth.Source
}

// TokenLife is when an access token was asked for, and until when it is used.
type TokenLife struct{ Since, Until time.Time }

// TokenLives are the lives of the access tokens that this process holds, by mail server.
func (o *Outbound) TokenLives() map[string]TokenLife {
	o.tokens.mu.Lock()
	defer o.tokens.mu.Unlock()
	lives := map[string]TokenLife{}
	for name, x := range o.tokens.sources {
		if since, until, ok := x.source.Life(); ok {
			lives[name] = TokenLife{since, until}
		}
	}
	return lives
}

// noTokens dials nobody.
var noTokens = oauth.Client{Allow: func(netip.AddrPort) error { return smtpx.ErrNotAllowed }}

// UseTokens lets tokens be asked for, where allow says yes. It comes before everything else.
func (o *Outbound) UseTokens(servers Servers, allow func(netip.AddrPort) error, log *slog.Logger) {
	o.tokens.client, o.tokens.servers, o.tokens.logger = oauth.Client{Allow: allow}, servers, log
}

// Wait ends with the last request for a token; none may begin any more. A refresh token that
// the provider replaces meanwhile is stored by then.
func (o *Outbound) Wait() { o.tokens.flights.Wait() }

// Username is the login name. With access tokens it is the sender's mailbox where none is set.
func Username(s *store.MailServer) string {
	if s.SMTP.Username != "" || s.SMTP.OAuth == nil {
		return s.SMTP.Username
	}
	from, err := message.ParseAddress(s.From)
	if err != nil {
		return ""
	}
	return from.Mailbox
}

// oauthPlace is what a secret of an OAuth 2 login belongs to: what a password does, because the
// token goes there, and who is shown the secret. The mailbox is among it also where from names
// it: the key of a service account opens every mailbox of its domain.
func oauthPlace(secret string, s *store.MailServer) string {
	x, o := s.SMTP, s.SMTP.OAuth
	return seal.Place("mail_server.oauth2."+secret, s.Name, x.Host, strconv.Itoa(x.Port), x.Encryption, Username(s), x.Auth, x.CAPEM, o.TokenURL, o.ClientID, o.Grant)
}

// SealOAuth seals the given secrets of an OAuth 2 login into s. What is not given stays.
func (o *Outbound) SealOAuth(s *store.MailServer, given Secrets) {
	if given.ClientSecret != "" {
		s.SMTP.OAuth.SealedClientSecret = o.keys.Seal(given.ClientSecret, oauthPlace("client_secret", s))
	}
	if given.Grant != "" {
		s.SMTP.OAuth.SealedGrant = o.keys.Seal(given.Grant, oauthPlace("grant", s))
	}
}

// shared is a mail server with the token that all of its connections share.
func (o *Outbound) shared(s *store.MailServer) (smtpx.Relay, error) {
	r := o.RelayWith(s, "")
	o.tokens.mu.Lock()
	defer o.tokens.mu.Unlock()
	x := o.tokens.sources[s.Name]
	if x.source == nil || x.version != s.Version {
		x = sharedSource{s.Version, o.source(s, Secrets{})}
		o.tokens.sources[s.Name] = x
	}
	r.Tokens = x.source
	return r, nil
}

// RelayToTest is a mail server with a token of its own, and with secrets that are not stored.
func (o *Outbound) RelayToTest(s *store.MailServer, given Secrets) (smtpx.Relay, error) {
	if s.SMTP != nil && s.SMTP.OAuth != nil {
		r := o.RelayWith(s, "")
		r.Tokens = o.source(s, given)
		return r, nil
	}
	if given.Password != "" {
		return o.RelayWith(s, given.Password), nil
	}
	return o.Relay(s)
}

// source is a source of tokens for s as it is configured. given takes the place of stored
// secrets.
func (o *Outbound) source(s *store.MailServer, given Secrets) *oauth.Source {
	x := s.SMTP.OAuth
	conf := oauth.Config{Client: o.tokens.client, Logger: o.tokens.logger, Go: o.tokens.flights.Go,
		Login: oauth.Login{TokenURL: x.TokenURL, ClientID: x.ClientID, Scopes: x.Scopes, Grant: oauth.Grant(x.Grant), Mailbox: Username(s), CAPEM: []byte(s.SMTP.CAPEM)}}
	stored := len(x.SealedClientSecret) > 0 || len(x.SealedGrant) > 0
	// the sealed grant that was opened last; one request at a time reads and replaces it
	var sealed []byte
	conf.Secrets = func(ctx context.Context) (oauth.Secrets, error) {
		now := s
		if stored && o.tokens.servers != nil {
			var err error
			if now, err = o.tokens.servers.Server(ctx, store.Everything, s.Name); err != nil {
				return oauth.Secrets{}, fmt.Errorf("the secrets cannot be read: %w", err)
			}
		}
		have, err := o.open(s, now, given)
		sealed = now.SealedGrant()
		return have, err
	}
	if given.Grant == "" && stored && o.tokens.servers != nil {
		conf.Rotated = func(ctx context.Context, was, token string) error {
			return o.replaceGrant(ctx, s, sealed, was, token)
		}
	}
	return oauth.New(conf)
}

// replaceGrant stores a refresh token in the place of the one that was used, which lay sealed.
// One that was only sealed anew meanwhile is still the one that was used. Another is a person's
// or another replica's, which stays and is used next time.
func (o *Outbound) replaceGrant(ctx context.Context, s *store.MailServer, sealed []byte, was, token string) error {
	place := oauthPlace("grant", s)
	for {
		ok, err := o.tokens.servers.ReplaceGrant(ctx, s.Name, sealed, o.keys.Seal(token, place))
		if ok || err != nil {
			return err
		}
		now, err := o.tokens.servers.Server(ctx, store.Everything, s.Name)
		if err != nil {
			return err
		}
		stored := now.SealedGrant()
		if text, err := o.keys.Open(stored, place, place); err != nil || text != was || bytes.Equal(stored, sealed) {
			return nil
		}
		sealed = stored
	}
}

// fault is a fault of the secrets. It is a fault of the token.
type fault struct{ text, hint string }

func (f *fault) Error() string { return f.text }

// Hint is what a person can do about it.
func (f *fault) Hint() string { return f.hint }

const giveSecrets = "give the secrets of oauth2; stored ones are dropped when token_url, client_id, grant, host, port, encryption, auth, username (or from, where it stands in for it) or ca_pem change"

// open opens the secrets that are stored in now, for the login of s and no other: a secret of a
// configuration that somebody has changed meanwhile does not open.
func (o *Outbound) open(s, now *store.MailServer, given Secrets) (oauth.Secrets, error) {
	have := oauth.Secrets{Client: given.ClientSecret, Grant: given.Grant}
	for _, x := range []struct {
		name   string
		sealed func(*store.OAuth) []byte
		to     *string
	}{{"client_secret", func(a *store.OAuth) []byte { return a.SealedClientSecret }, &have.Client}, {"grant", func(a *store.OAuth) []byte { return a.SealedGrant }, &have.Grant}} {
		if *x.to != "" || now.SMTP == nil || now.SMTP.OAuth == nil || len(x.sealed(now.SMTP.OAuth)) == 0 {
			continue
		}
		place := oauthPlace(x.name, s)
		var err error
		if *x.to, err = o.keys.Open(x.sealed(now.SMTP.OAuth), place, place); err != nil {
			return have, &fault{err.Error(), "give the secrets again, or start the service with the key file they were sealed with"}
		}
	}
	var err error
	switch grant := oauth.Grant(s.SMTP.OAuth.Grant); {
	case grant == oauth.ClientCredentials && have.Client == "":
		err = &fault{"there is no client_secret", giveSecrets}
	case grant == oauth.RefreshToken && have.Grant == "":
		err = &fault{"there is no refresh_token", giveSecrets}
	case grant == oauth.ServiceAccount && have.Grant == "":
		err = &fault{"there is no service_account_key", giveSecrets}
	}
	return have, err
}
