package oauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/oauth2/jwt"

	"github.com/maildispatch/maildispatch/smtpx"
)

const (
	maxAnswer    = 64 << 10
	maxAddresses = 4 // of a name
)

var (
	errTooLong  = errors.New("the answer is longer than 64 KiB")
	errPlain    = errors.New("http is for this machine only")
	errNoKey    = errors.New("is not the JSON key of a service account: client_email and private_key are missing")
	errRedirect = errors.New("the provider answers with a redirect")
)

// Client makes requests to providers.
type Client struct {
	// Allow is asked about every address right before it is dialled; nil = everything.
	Allow   func(netip.AddrPort) error
	Timeout time.Duration // of a request with its answer; 0 = 10 s
}

// CheckURL checks the address of a provider: https, or http to a loopback address.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || len(s) > 2048:
		return errors.New("is not an address such as https://login.example/token")
	case u.Scheme == "https":
	case u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return errors.New("is not https")
	}
	if _, err := smtpx.Host(u.Hostname()); err != nil {
		return fmt.Errorf("has a host that %w", err)
	}
	return nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// serviceAccount is the part of Google's key file that is used. Its own token_uri is not: the
// address is configured, and the key is sealed for it.
type serviceAccount struct {
	Email string `json:"client_email"`
	Key   string `json:"private_key"`
	KeyID string `json:"private_key_id"`
}

// CheckKey checks the JSON key of a service account.
func CheckKey(s string) error {
	_, err := parseKey(s)
	return err
}

func parseKey(s string) (k serviceAccount, err error) {
	block := func() *pem.Block { b, _ := pem.Decode([]byte(k.Key)); return b }
	// the parser's own error could show a part of the key
	if json.Unmarshal([]byte(s), &k) != nil || k.Email == "" || block() == nil {
		return k, errNoKey
	}
	return k, nil
}

// token asks for a token once.
func (c Client) token(ctx context.Context, l Login, s Secrets) (*oauth2.Token, error) {
	if err := CheckURL(l.TokenURL); err != nil {
		return nil, fmt.Errorf("token_url %w", err)
	}
	if c.Timeout == 0 {
		c.Timeout = requestTime
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var seen error
	hc, err := c.http(ctx, l, &seen)
	if err != nil {
		return nil, err
	}
	t, err := ask(context.WithValue(ctx, oauth2.HTTPClient, hc), l, s)
	var answer *oauth2.RetrieveError
	if err != nil && seen != nil && !errors.As(err, &answer) {
		err = seen // the library keeps only its text
	}
	if err == nil && t.AccessToken == "" {
		err = errors.New("no access_token")
	}
	return t, err
}

// ask makes the request that belongs to the grant.
func ask(ctx context.Context, l Login, s Secrets) (*oauth2.Token, error) {
	endpoint := oauth2.Endpoint{TokenURL: l.TokenURL, AuthStyle: oauth2.AuthStyleInParams}
	switch l.Grant {
	case ClientCredentials:
		cc := clientcredentials.Config{ClientID: l.ClientID, ClientSecret: s.Client, TokenURL: l.TokenURL, Scopes: l.Scopes, AuthStyle: endpoint.AuthStyle}
		return cc.Token(ctx)
	case RefreshToken:
		conf := oauth2.Config{ClientID: l.ClientID, ClientSecret: s.Client, Endpoint: endpoint, Scopes: l.Scopes}
		return conf.TokenSource(ctx, &oauth2.Token{RefreshToken: s.Grant}).Token()
	case ServiceAccount:
		k, err := parseKey(s.Grant)
		if err != nil {
			return nil, err
		}
		conf := jwt.Config{Email: k.Email, PrivateKey: []byte(k.Key), PrivateKeyID: k.KeyID, Subject: l.Mailbox, Scopes: l.Scopes, TokenURL: l.TokenURL}
		return conf.TokenSource(ctx).Token()
	}
	return nil, fmt.Errorf("grant %q is not known", l.Grant)
}

// http is a client for one request within ctx. seen takes its first error.
func (c Client) http(ctx context.Context, l Login, seen *error) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(l.CAPEM) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(l.CAPEM) {
			return nil, errors.New("ca_pem holds no certificate")
		}
		conf.RootCAs = pool
	}
	plain := strings.HasPrefix(l.TokenURL, "http://")
	// no Proxy: it would dial in our place, and ask nobody
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true, TLSClientConfig: conf, MaxResponseHeaderBytes: maxAnswer,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return c.dial(ctx, addr, plain) }}
	noRedirect := func(*http.Request, []*http.Request) error {
		*seen = errRedirect
		return errRedirect
	}
	return &http.Client{Transport: bounded{t, ctx, seen}, CheckRedirect: noRedirect}, nil
}

// dial connects to the first address that may be dialled and answers.
func (c Client) dial(ctx context.Context, addr string, plain bool) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	p, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	last := error(smtpx.ErrNotAllowed)
	for _, a := range addrs[:min(len(addrs), maxAddresses)] {
		to := netip.AddrPortFrom(a.Unmap(), uint16(p))
		if plain && !to.Addr().IsLoopback() {
			last = errPlain
			continue
		}
		if c.Allow != nil {
			if err := c.Allow(to); err != nil {
				last = err
				continue
			}
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", to.String())
		if err == nil {
			return conn, nil
		}
		last = err
	}
	return nil, last
}

// bounded bounds a request in time and its answer in length.
type bounded struct {
	t    http.RoundTripper
	ctx  context.Context // of the one request; the library gives none with some grants
	seen *error
}

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.t.RoundTrip(r.WithContext(b.ctx))
	if err != nil {
		*b.seen = err
		return nil, err
	}
	res.Body = &cut{res.Body, maxAnswer, b.seen}
	return res, nil
}

// cut is a body that fails behind its limit. A cut answer is no answer.
type cut struct {
	io.ReadCloser
	left int
	seen *error
}

func (c *cut) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if c.left -= n; c.left < 0 {
		n, err = 0, errTooLong
	}
	if err != nil && err != io.EOF {
		*c.seen = err
	}
	return n, err
}

// Error is why there is no token, with what a person can do.
type Error struct {
	text, hint, code string // code is RFC 6749's; "" = none
	err              error
}

func (e *Error) Error() string { return e.text }
func (e *Error) Unwrap() error { return e.err }

// Hint is what a person can do about it.
func (e *Error) Hint() string { return e.hint }

// explain makes an Error. Of an answer it tells the status, and error and error_description,
// without the secrets: nobody reads by this what else an address answers.
func (l Login) explain(err error, s Secrets) error {
	if err == nil {
		return nil
	}
	e := &Error{err: err, hint: "check token_url"}
	var (
		answer  *oauth2.RetrieveError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		dns     *net.DNSError
		op      *net.OpError
	)
	switch {
	case errors.As(err, &answer):
		e.text, e.code = answerText(answer)
		e.hint = hint(e.code, e.text, answer.Response.StatusCode)
	case errors.Is(err, smtpx.ErrNotAllowed):
		e.text, e.hint = "token_url: "+smtpx.ErrNotAllowed.Error(), "this address is outside what the service may call for tokens: see --token-destinations"
	case errors.Is(err, errPlain):
		e.text, e.hint = errPlain.Error(), "use https in token_url"
	case errors.Is(err, errRedirect):
		e.text, e.hint = errRedirect.Error(), "redirects are not followed: give the address that really answers as token_url"
	case errors.Is(err, errTooLong):
		e.text = errTooLong.Error()
	case errors.Is(err, errNoKey):
		e.text, e.hint = "service_account_key "+errNoKey.Error(), "give the whole key file that Google made"
	case errors.As(err, &unknown):
		e.text, e.hint = "tls: the certificate is signed by nobody this machine trusts", "give the authority's certificate in ca_pem"
	case errors.As(err, &host):
		e.text = "tls: the certificate is for another name"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		e.text, e.hint = "no answer in time", "the provider does not answer: try again later, or check token_url and the network in between"
	case errors.As(err, &dns):
		e.text, e.hint = "the host of token_url is not found", "check its spelling and this machine's name server"
	case errors.As(err, &op) && op.Err != nil:
		e.text = "no connection: " + op.Err.Error()
	case strings.Contains(err.Error(), "private key"):
		e.text, e.err, e.hint = "the private key of the service account cannot be read", errNoKey, "give the whole key file that Google made"
	default:
		// the library's text may quote the answer
		e.text, e.err = "the answer is no token", errors.New("not as RFC 6749 5.1 has it")
	}
	for _, secret := range []string{s.Client, s.Grant} {
		if secret != "" {
			e.text = strings.ReplaceAll(e.text, secret, "***")
		}
	}
	e.text = smtpx.Clean(e.text, 400)
	return e
}

func answerText(a *oauth2.RetrieveError) (text, code string) {
	code, description := a.ErrorCode, a.ErrorDescription
	if code == "" { // the library looks into one grant's answers only
		var said struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		if json.Unmarshal(a.Body, &said) == nil {
			code, description = said.Error, said.Description
		}
	}
	text = fmt.Sprintf("the provider answers %d", a.Response.StatusCode)
	if code != "" {
		text += " " + smtpx.Clean(code, 60)
	}
	if description != "" {
		text += ": " + smtpx.Clean(description, 250)
	}
	return text, code
}

// hint is by what Microsoft and Google say, and by RFC 6749 5.2.
func hint(code, text string, status int) string {
	for _, h := range []struct{ is, hint string }{
		{"AADSTS7000215", "the client secret is wrong: give its value, not its id"},
		{"AADSTS7000222", "the client secret has expired: make a new one and give it"},
		{"AADSTS700016", "the tenant does not know this client_id: check client_id and the tenant in token_url"},
		{"AADSTS90002", "the tenant in token_url does not exist"},
		{"AADSTS500011", "the scope names nothing in this tenant: Exchange Online wants https://outlook.office365.com/.default"},
		{"AADSTS1002012", "client credentials want a scope that ends in /.default: https://outlook.office365.com/.default"},
		{"AADSTS70011", "the scope is not valid: Exchange Online wants https://outlook.office365.com/.default"},
		{"AADSTS65001", "an administrator has to consent to the application's permissions"},
	} {
		if strings.Contains(text, h.is) {
			return h.hint
		}
	}
	switch {
	case code == "invalid_client":
		return "client_id or client_secret is wrong, or the secret has expired"
	case code == "invalid_grant":
		return "the refresh token has expired or was withdrawn, or the service account's key or mailbox is not known: give a new one"
	case code == "unauthorized_client":
		return "the application may not ask like this: allow the grant, or (Google) give the service account domain-wide delegation for the scopes"
	case code == "invalid_scope":
		return "the scopes are not valid: Exchange Online wants https://outlook.office365.com/.default, Gmail https://mail.google.com/"
	case status >= 500 || status == 429:
		return "the provider has no time just now: try again later"
	}
	return "check token_url: what answers there gives no tokens"
}
