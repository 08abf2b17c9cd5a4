// Package oauth gets the access tokens by which mail servers are logged in to (XOAUTH2): with a
// client secret, a refresh token, or the key of a Google service account.
//
// A [Source] is one login's token. All connections of the mail server share it, and one request
// at most is under way. It lies in memory only. It is asked for anew when 80 % of its life are
// over, while the old one still serves, and when a mail server has refused it.
//
// The address of the provider is a second way in which a caller makes this service call
// somebody. Every address is checked right before it is dialled, redirects are not followed,
// no proxy is used, and an answer has 64 KiB and 10 s. What an answer says is shown only where
// it is an error as RFC 6749 5.2 has it.
package oauth

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/maildispatch/maildispatch/smtpx"
)

// Grant says by what a token is asked for.
type Grant string

const (
	ClientCredentials Grant = "client_credentials" // RFC 6749 4.4
	RefreshToken      Grant = "refresh_token"      // RFC 6749 6
	ServiceAccount    Grant = "service_account"    // Google's key file, RFC 7523
)

// Login is where, as whom and for which mailbox tokens are asked for.
type Login struct {
	TokenURL string
	ClientID string
	Scopes   []string
	Grant    Grant
	Mailbox  string // whom a service account stands in for
	CAPEM    []byte // extra trusted roots; empty = the system's
}

// Secrets are what a Login is proved by.
type Secrets struct {
	Client string // client secret; "" = none
	Grant  string // refresh token, or the JSON key of a service account
}

// Config is what a Source needs.
type Config struct {
	Login
	// Secrets reads them as they are stored now.
	Secrets func(ctx context.Context) (Secrets, error)
	// Rotated stores a refresh token in the place of the one that was used; nil = it cannot be.
	Rotated func(ctx context.Context, was, now string) error
	Client  Client
	Logger  *slog.Logger
	// Go runs a request, which no caller's end cuts short: a refresh token that was replaced
	// has to be stored.
	Go func(func())
}

const (
	requestTime = 10 * time.Second
	// of a token whose life the provider does not tell
	unknownLife = 5 * time.Minute
	longestLife = 24 * time.Hour
	// how soon a renewal that failed is tried again while the old token serves
	renewAgain = 30 * time.Second
	// A token is not used in its last moments, so that it does not end on the way.
	lastMoments = 30 * time.Second
)

// Source gives the tokens of one login. It is a [smtpx.Tokens].
type Source struct {
	cfg Config

	mu      sync.Mutex // guards the rest; every connection's goroutine and the request's use it
	access  string     // "" = none
	since   time.Time  // when it was asked for
	renewAt time.Time
	endAt   time.Time
	nextTry time.Time // after a renewal that failed
	flight  *flight   // the request under way; nil = none
	// A refresh token that could not be stored, and the one that is still stored in its place.
	unsaved, stored string
}

// flight is one request. Its outcome is written before done is closed, and read after.
type flight struct {
	done  chan struct{}
	token smtpx.Token
	err   error
}

// New makes a Source. Nothing is asked for before the first Token.
func New(cfg Config) *Source {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Go == nil {
		cfg.Go = func(f func()) { go f() }
	}
	return &Source{cfg: cfg}
}

// Token is the kept token, or a new one. Errors have a Hint.
func (s *Source) Token(ctx context.Context) (smtpx.Token, error) {
	s.mu.Lock()
	now := time.Now()
	if s.access != "" && now.Before(s.endAt) {
		t := s.token(false)
		if !now.Before(s.renewAt) && !now.Before(s.nextTry) && s.flight == nil {
			s.begin()
		}
		s.mu.Unlock()
		return t, nil
	}
	if s.flight == nil {
		s.begin()
	}
	f := s.flight
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		return smtpx.Token{}, ctx.Err()
	}
}

// Life is when the kept token was asked for, and until when it is used; false when none is
// kept.
func (s *Source) Life() (since, until time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since, s.endAt, s.access != ""
}

// Refused takes a token that a mail server did not take out of use.
func (s *Source) Refused(t smtpx.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.access == t.Access {
		s.access = ""
	}
}

// token is the kept token. With mu held.
func (s *Source) token(fresh bool) smtpx.Token {
	return smtpx.Token{Access: s.access, Fresh: fresh, Facts: map[string]string{"expires": s.endAt.UTC().Format(time.RFC3339), "grant": string(s.cfg.Grant)}}
}

// begin starts the request. With mu held.
func (s *Source) begin() {
	f := &flight{done: make(chan struct{})}
	s.flight = f
	s.cfg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*requestTime)
		defer cancel()
		begun := time.Now()
		t, rotated, err := s.request(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.flight, f.err = nil, err
		if err == nil {
			life := unknownLife
			if !t.Expiry.IsZero() {
				life = min(t.Expiry.Sub(begun), longestLife)
			}
			s.access, s.since, s.renewAt, s.nextTry = t.AccessToken, begun, begun.Add(life*8/10), time.Time{}
			s.endAt = begun.Add(life - min(lastMoments, life/10))
			f.token = s.token(true)
			if rotated != "" {
				f.token.Facts["refresh_token"] = rotated
			}
		} else {
			s.nextTry = time.Now().Add(renewAgain)
			if s.access != "" {
				s.cfg.Logger.Warn("access token not renewed; the old one still serves", "token_url", s.cfg.TokenURL, "error", err)
			}
		}
		close(f.done)
	})
}

// request asks the provider once. rotated says what became of a new refresh token.
func (s *Source) request(ctx context.Context) (t *oauth2.Token, rotated string, err error) {
	secrets, err := s.cfg.Secrets(ctx)
	if err != nil {
		return nil, "", err
	}
	used := secrets.Grant
	s.mu.Lock()
	if s.unsaved != "" && s.stored == secrets.Grant {
		used = s.unsaved // the stored one was used up
	}
	s.mu.Unlock()
	ask := func(grant string) (*oauth2.Token, error) {
		t, err := s.cfg.Client.token(ctx, s.cfg.Login, Secrets{secrets.Client, grant})
		return t, s.cfg.Login.explain(err, Secrets{secrets.Client, grant})
	}
	t, err = ask(used)
	var fault *Error
	if errors.As(err, &fault) && fault.code == "invalid_grant" && s.cfg.Grant == RefreshToken {
		// Another replica may have used the token up a moment ago, and stored its successor.
		if again, serr := s.cfg.Secrets(ctx); serr == nil && again.Grant != secrets.Grant {
			secrets, used = again, again.Grant
			t, err = ask(used)
		}
	}
	if err != nil {
		return nil, "", err
	}
	if s.cfg.Grant == RefreshToken && t.RefreshToken != "" && t.RefreshToken != used || used != secrets.Grant {
		rotated = s.keep(ctx, secrets.Grant, t.RefreshToken)
	}
	return t, rotated, nil
}

// keep stores a refresh token before its access token is used. One that cannot be stored is
// used from memory, and stored with the next request.
func (s *Source) keep(ctx context.Context, stored, now string) string {
	if s.cfg.Rotated == nil {
		return "the provider has replaced the one that was given, which may be used up"
	}
	err := s.cfg.Rotated(ctx, stored, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.unsaved, s.stored = now, stored
		s.cfg.Logger.Error("a replaced refresh token is not stored yet", "token_url", s.cfg.TokenURL, "error", err)
		return "replaced, not stored yet"
	}
	s.unsaved, s.stored = "", ""
	return "replaced and stored"
}
