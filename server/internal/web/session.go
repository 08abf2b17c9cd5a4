package web

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// A session ends after sessionLife, after sessionIdle without use, or with its token.
	sessionLife = 12 * time.Hour
	sessionIdle = time.Hour
	// maxSessions bounds their memory; beyond it the one that was idle longest ends. Only who
	// has a token begins one.
	maxSessions = 10_000
)

// session is somebody who has signed in.
type session struct {
	token string
	began time.Time
	used  time.Time // guarded by sessions.mu
}

// sessions are known by the hash of their cookie.
type sessions struct {
	now func() time.Time

	mu  sync.Mutex // guards all
	all map[[32]byte]*session
}

// begin keeps a token and gives the cookie by which it is found again.
func (s *sessions) begin(token string) (cookie string) {
	cookie = random()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.all == nil {
		s.all = map[[32]byte]*session{}
	}
	var oldest [32]byte
	var idle time.Time
	for k, x := range s.all {
		if x.over(now) {
			delete(s.all, k)
		} else if idle.IsZero() || x.used.Before(idle) {
			oldest, idle = k, x.used
		}
	}
	if len(s.all) >= maxSessions {
		delete(s.all, oldest)
	}
	s.all[sha256.Sum256([]byte(cookie))] = &session{token: token, began: now, used: now}
	return cookie
}

func (x *session) over(now time.Time) bool {
	return now.Sub(x.began) >= sessionLife || now.Sub(x.used) >= sessionIdle
}

// token is that of a cookie's session, "" when there is none.
func (s *sessions) token(cookie string) string {
	k := sha256.Sum256([]byte(cookie))
	s.mu.Lock()
	defer s.mu.Unlock()
	x, now := s.all[k], s.now()
	if x == nil {
		return ""
	}
	if x.over(now) {
		delete(s.all, k)
		return ""
	}
	x.used = now
	return x.token
}

// end forgets a session.
func (s *sessions) end(cookie string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, sha256.Sum256([]byte(cookie)))
}

func random() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program first
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// cookieName tells services on one host apart: cookies do not know ports.
func (p *Page) cookieName() string {
	name := "maildispatch-" + p.cfg.Port
	if p.cfg.TLS {
		return "__Host-" + name
	}
	return name
}

func (p *Page) setCookie(w http.ResponseWriter, value string) {
	http.SetCookie(w, &http.Cookie{Name: p.cookieName(), Value: value, Path: "/", HttpOnly: true, Secure: p.cfg.TLS, SameSite: http.SameSiteStrictMode})
}

// cookie is that of a request; "" when it has none. Every browser that looks has one: forms are
// bound to it, also where nobody signs in.
func (p *Page) cookie(r *http.Request) string {
	c, err := r.Cookie(p.cookieName())
	if err != nil || len(c.Value) != 43 {
		return ""
	}
	return c.Value
}

// csrf is what a form has to bring back together with the cookie.
func (p *Page) csrf(cookie string) string {
	m := hmac.New(sha256.New, p.key)
	m.Write([]byte(cookie))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// mayPost reports whether a form was made by this page for this browser.
func (p *Page) mayPost(r *http.Request) bool {
	c := p.cookie(r)
	return c != "" && hmac.Equal([]byte(r.PostForm.Get("csrf")), []byte(p.csrf(c)))
}

const (
	// Attempts to sign in: loginBurst at once and then one in loginEvery, of one address; ten
	// times as much of all.
	loginBurst = 10
	loginEvery = 6 * time.Second
	// maxAddresses bounds the memory of the limiter.
	maxAddresses = 10_000
)

// limiter counts attempts to sign in by address.
type limiter struct {
	now func() time.Time

	mu  sync.Mutex // guards what follows
	of  map[string]time.Time
	all time.Time
}

// take says for how long an address has to wait, 0 when it may try now. Each bucket is the time
// at which it would be full again.
func (l *limiter) take(remote string) time.Duration {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.of == nil || len(l.of) >= maxAddresses {
		kept := map[string]time.Time{}
		for k, full := range l.of {
			if full.After(now) && len(kept) < maxAddresses/2 {
				kept[k] = full
			}
		}
		l.of = kept
	}
	full, all := later(l.of[host], now), later(l.all, now)
	if wait := full.Add(loginEvery).Sub(now) - loginBurst*loginEvery; wait > 0 {
		return wait
	}
	if wait := all.Add(loginEvery/10).Sub(now) - loginBurst*loginEvery; wait > 0 {
		return wait
	}
	l.of[host], l.all = full.Add(loginEvery), all.Add(loginEvery/10)
	return 0
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
